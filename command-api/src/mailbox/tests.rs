use std::time::Duration;

use domain::{Command, product};
use schemas::aggregate::AggregateType;
use schemas::commands::Precondition;
use schemas::idempotency::IdempotencyKey;
use tokio::sync::oneshot;

use super::*;
use crate::batch_order::BatchOrder;
use crate::partition::Role;

fn open() -> (Mailbox, Lanes) {
    let (_, status) = watch::channel(Status::Role(Role::Owner));
    let (mailbox, lanes, _) = new(status);
    (mailbox, lanes)
}

fn request(product: &str, key: usize, of_batch: bool) -> ParsedRequest<Reply> {
    let aggregate = AggregateId::new(AggregateType::Product, product).unwrap();
    let order = of_batch.then(|| (BatchOrder::new(), aggregate.clone()));
    ParsedRequest {
        aggregate,
        command: Command::Product(product::Command::Discontinue),
        fingerprint: 0,
        precondition: Precondition::None,
        key: IdempotencyKey::from_bare(&key.to_string()).unwrap(),
        cause: None,
        trace: None,
        batch: None,
        reply: Reply::One { answer: oneshot::channel().0, order },
    }
}

fn time_limits() -> TimeLimits {
    TimeLimits { in_mailbox: Duration::from_secs(1), deadline: Instant::now() + Duration::from_secs(10) }
}

async fn taken(lanes: &mut Lanes, max: usize) -> Vec<String> {
    let mut jobs = Vec::new();
    lanes.take(&mut jobs, max).await;
    jobs.iter().map(|job| job.request.key.as_str().to_owned()).collect()
}

#[tokio::test]
async fn a_hot_aggregate_fills_its_share_and_leaves_room_for_others() {
    let (mailbox, mut lanes) = open();
    for key in 0..MAX_PER_AGGREGATE as usize {
        mailbox.put(request("hot", key, false), time_limits(), false).await.unwrap();
    }
    mailbox.put(request("hot", 0, false), time_limits(), false).await.unwrap_err();
    mailbox.put(request("cold", 1, false), time_limits(), false).await.unwrap();
    taken(&mut lanes, 1).await;
    mailbox.put(request("hot", 2, false), time_limits(), false).await.unwrap();
    mailbox.put(request("hot", 3, false), time_limits(), false).await.unwrap_err();
}

#[tokio::test]
async fn a_full_lane_refuses_a_command_and_does_not_count_it() {
    let (mailbox, mut lanes) = open();
    for key in 0..MAX_CLIENTS {
        mailbox.put(request(&format!("p-{key}"), key, false), time_limits(), false).await.unwrap();
    }
    for key in 0..MAX_CLIENTS {
        mailbox.put(request("late", key, false), time_limits(), false).await.unwrap_err();
    }
    taken(&mut lanes, 1).await;
    mailbox.put(request("late", 0, false), time_limits(), false).await.unwrap();
}

#[tokio::test]
async fn internal_commands_go_first_and_clients_and_batches_take_turns() {
    let (mailbox, mut lanes) = open();
    for key in 0..8 {
        mailbox.put(request("p", key, false), time_limits(), false).await.unwrap();
        mailbox.put(request("p", 100 + key, true), time_limits(), false).await.unwrap();
    }
    mailbox.put(request("p", 200, false), time_limits(), true).await.unwrap();
    mailbox.put(request("p", 201, true), time_limits(), true).await.unwrap();
    assert_eq!(taken(&mut lanes, 8).await, ["200", "201", "100", "101", "102", "0", "1", "2"]);
    assert_eq!(mailbox.depth(), 10);
}

#[tokio::test]
async fn a_line_of_a_batch_waits_for_room_and_is_not_refused() {
    let (mailbox, mut lanes) = open();
    for key in 0..MAX_LINES {
        mailbox.put(request("p", key, true), time_limits(), false).await.unwrap();
    }
    let mut last = std::pin::pin!(mailbox.put(request("p", MAX_LINES, true), time_limits(), false));
    assert!(futures_util::poll!(&mut last).is_pending());
    taken(&mut lanes, 1).await;
    last.await.unwrap();
}

#[tokio::test]
async fn the_wait_counts_from_when_the_partition_is_served() {
    let (mailbox, mut lanes) = open();
    mailbox.put(request("p", 0, false), time_limits(), false).await.unwrap();
    let mut jobs = Vec::new();
    lanes.take(&mut jobs, 1).await;
    let came = jobs[0].came;
    let after = |seconds| came + Duration::from_secs(seconds);
    assert!(!jobs[0].waited_too_long(after(1), came));
    assert!(jobs[0].waited_too_long(after(2), came));
    assert!(!jobs[0].waited_too_long(after(2), after(2)), "there was no owner until then");
    assert!(jobs[0].waited_too_long(after(11), after(11)), "no caller waits for the answer any more");
}

#[tokio::test]
async fn a_mailbox_whose_engine_ends_refuses_commands_as_closed() {
    let (told, status) = watch::channel(Status::Role(Role::Owner));
    let (mailbox, mut lanes, _requests) = new(status);
    assert!(mailbox.serves());
    lanes.close();
    assert!(!mailbox.serves(), "the role remains owner until all accepted commands are answered");
    for (of_batch, internal) in [(false, false), (false, true), (true, false), (true, true)] {
        let refused = mailbox.put(request("p", 1, of_batch), time_limits(), internal).await;
        assert_eq!(refused.unwrap_err(), NotQueued::Closed, "of a batch: {of_batch}, internal: {internal}");
    }
    drop(told);
}
