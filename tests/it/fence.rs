//! A projector that is stopped at any step of a batch, and continues long after others have taken its partitions over,
//! writes nothing and blocks the others for no longer than the timeouts.

use crate::fixture::{Heard, ProjectorProcess, Shop, Step, Tripwire};
use crate::projectors::Orders;

const EVERYTHING: &str = "product,order,customer,revenue,revenue_by_minute,sale,best_sellers,journal";
/// Views split over two projectors.
const SUMS_AND_REST: (&str, &str) = ("customer,revenue,revenue_by_minute,best_sellers", "product,order,sale,journal");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Postgres,
    Redis,
}

async fn stopped_at(server: Server, words: &'static [u8], heard: Heard) {
    stopped(server, Step { words, heard }, None).await;
}

/// Stops one of two projectors of `views`, while a third one folds the rest. Without `views`, both fold all.
async fn stopped(server: Server, step: Step, views: Option<(&str, &str)>) {
    let shop = Shop::with_views(2).await;
    let mut orders = Orders::new(&shop).await;
    let mut seen = shop.clone();
    let wire = match server {
        Server::Postgres => Tripwire::in_url(&mut seen.postgres_url).await,
        Server::Redis => Tripwire::in_url(&mut seen.redis_url).await,
    };
    let (ours, rest) = views.unwrap_or((EVERYTHING, ""));
    let rest = (!rest.is_empty()).then(|| shop.projector_of(rest));
    let first = ProjectorProcess::start(&seen, ours).await;
    orders.place("before", 2).await;
    let second = shop.projector_of(ours);
    second.wait_ready().await;
    orders.place("two", 2).await;

    wire.arm(step, first.pid());
    // Not every batch has records of its partitions.
    let mut round = 0;
    loop {
        round += 1;
        orders.send(&format!("stop-{round}")).await;
        if tokio::time::timeout(std::time::Duration::from_millis(200), wire.tripped()).await.is_ok() {
            break;
        }
        assert!(round < 50, "the projector never reached this step");
    }
    orders.come_to_be_shown().await;
    orders.place("without", 3).await;
    orders.all_shown().await;

    first.wake();
    orders.place("awake", 5).await;
    orders.all_shown().await;
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    let report = projector::audit::audit(&config, None).await.unwrap();
    assert_eq!(report.differences, [], "{server:?}");
    drop((first, second, rest));
}

#[tokio::test]
async fn a_projector_stopped_before_its_transaction() {
    stopped_at(Server::Postgres, b"BEGIN", Heard::Nothing).await;
}

/// Sums could be added twice. For a projector of all views, the journal's unique key already prevents a second fold.
#[tokio::test]
async fn a_projector_of_sums_stopped_before_its_transaction() {
    let step = Step { words: b"BEGIN", heard: Heard::Nothing };
    stopped(Server::Postgres, step, Some(SUMS_AND_REST)).await;
}

#[tokio::test]
async fn a_projector_stopped_within_its_transaction() {
    stopped_at(Server::Postgres, b"COMMIT", Heard::UpToThem).await;
}

#[tokio::test]
async fn a_projector_stopped_between_its_transaction_and_its_answer() {
    stopped_at(Server::Postgres, b"COMMIT", Heard::All).await;
}

#[tokio::test]
async fn a_projector_stopped_before_redis_hears_of_a_batch() {
    stopped_at(Server::Redis, b"EVALSHA", Heard::Nothing).await;
}

#[tokio::test]
async fn a_projector_stopped_between_the_rows_and_the_positions() {
    // The last call of a batch moves the positions.
    stopped_at(Server::Redis, b"EVALSHA", Heard::UpToThem).await;
}

#[tokio::test]
async fn a_projector_stopped_before_redis_answers() {
    stopped_at(Server::Redis, b"EVALSHA", Heard::All).await;
}
