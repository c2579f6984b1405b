//! Rejects placed orders that cannot be confirmed. Otherwise they would hold the units of their other lines, and keep
//! their buyers waiting, until an operator intervenes.
//!
//! Placing an order writes nothing for this purpose: its reactions are open sagas until they are done or parked, and
//! this module polls the parked ones. A parked line is retried at intervals, and its order is rejected once the line
//! has been refused for long enough. A retry at an unavailable partition waits until the partition is back; such time
//! does not count, because it says nothing about the product. Nor does time without retries: a reactor that starts
//! counts from zero.
//!
//! Any reactor may reject any order, even two at once: retries and rejections are steps like all others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::postgres::Connection;
use chassis::postgres::PostgresSettings;
use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use domain::TimeMs;
use domain::reactions::Step;
use schemas::record::Record;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Row;

use super::positions::{ReactorStoreError, connect};
use super::queues::PartitionQueues;
use super::sagas::{self, EndedSaga, Origin, Saga, SagaEnd};
use crate::parked::{ParkedAt, REACTOR};

/// Interval between polls, which read parked records only.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// Number of retries of a line within the time after which its order is rejected.
const TRIES: u32 = 15;
/// Maximum duration of a refused retry: more than command-api takes to refuse a line twice. A longer one has waited for
/// a partition.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);
/// Delay before a retry for an order whose rejection failed.
const FAILED_FOR: Duration = Duration::from_secs(60);
/// Maximum number of records with open sagas.
const MAX_AT_ONCE: usize = 1000;

pub(crate) struct Unconfirmed {
    pub(crate) postgres: PostgresSettings,
    pub(crate) queues: PartitionQueues,
    /// Time for which a parked line may be refused before its order is rejected.
    pub(crate) within: Duration,
    pub(crate) payment_window: Duration,
}

/// A saga in flight.
struct Attempt {
    place: ParkedAt,
    /// The retry of a line, or the rejection of its order.
    step: Step,
    cause: Arc<str>,
    begun: Instant,
}

/// Time for which the lines of a record have been refused.
#[derive(Debug)]
struct Refused {
    length: Duration,
    last: Instant,
}

impl Refused {
    /// Adds a refusal. The time since the last one counts, unless the refused retry has waited for a partition.
    fn note(known: Option<Self>, begun: Instant, now: Instant) -> Self {
        let Some(Self { length, last }) = known else { return Self { length: Duration::ZERO, last: now } };
        let counts = now.duration_since(begun) <= REFUSED_WITHIN;
        let since = if counts { now.duration_since(last) } else { Duration::ZERO };
        Self { length: length + since, last: now }
    }
}

/// Open sagas of a record, and the outcome of those that have ended.
#[derive(Default)]
struct Open {
    sagas: usize,
    /// Set if even the rejection of the order failed.
    has_failed: bool,
    /// Set if a line was refused and its order is not rejected yet.
    was_refused: bool,
}

/// State that is kept for one connection to Postgres.
struct Round<'a> {
    unconfirmed: &'a Unconfirmed,
    client: Connection,
    attempts: HashMap<i64, Attempt>,
    open: HashMap<ParkedAt, Open>,
    /// Records whose order could not even be rejected, with the time of the failure.
    failed: HashMap<ParkedAt, Instant>,
    /// Refusals by record, which outlive the connection.
    refused: &'a mut HashMap<ParkedAt, Refused>,
    next: i64,
    sender: mpsc::UnboundedSender<EndedSaga>,
    ended: mpsc::UnboundedReceiver<EndedSaga>,
}

impl Unconfirmed {
    /// Polls until shutdown, and reconnects after errors.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut refused = HashMap::new();
        while !shutdown.is_requested() {
            let error = tokio::select! {
                Err(error) = self.look_on(&mut refused) => error,
                () = shutdown.requested() => return,
            };
            let error = with_causes(&error);
            tracing::warn!(error, "Postgres failed; rejections of unconfirmed orders are delayed");
            shutdown.sleep(RETRY).await;
        }
    }

    /// Polls until Postgres fails.
    async fn look_on(&self, refused: &mut HashMap<ParkedAt, Refused>) -> Result<(), ReactorStoreError> {
        let client = connect(&self.postgres).await?;
        // It holds no more ends than sagas are open: those of MAX_AT_ONCE records, and of one poll.
        let (sender, ended) = mpsc::unbounded_channel();
        let (attempts, open, failed) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut round = Round { unconfirmed: self, client, attempts, open, failed, refused, next: 0, sender, ended };
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut all = Vec::new();
            tokio::select! {
                _ = look.tick(), if round.open.len() < MAX_AT_ONCE => round.look().await?,
                _ = round.ended.recv_many(&mut all, MAX_AT_ONCE) => round.end(all).await?,
            }
        }
    }
}

impl Round<'_> {
    async fn look(&mut self) -> Result<(), ReactorStoreError> {
        let within = self.unconfirmed.within;
        let pause = within / TRIES;
        let pause_ms = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        let most = i64::try_from(MAX_AT_ONCE).unwrap_or(i64::MAX);
        self.failed.retain(|_, since| since.elapsed() < FAILED_FOR);
        let open = &self.open;
        // A record that is no longer retried may have been handled or discarded elsewhere.
        self.refused.retain(|place, known| open.contains_key(place) || known.last.elapsed() < within + FAILED_FOR);
        let resting = self.refused.iter().filter(|(_, known)| known.last.elapsed() < pause).map(|(place, _)| place);
        let passed_over = self.open.keys().chain(self.failed.keys()).chain(resting);
        let (aggregates, offsets) = ParkedAt::columns(passed_over);
        let list = include_str!("list_unconfirmed.sql");
        let rows = self.client.query(list, &[&REACTOR, &pause_ms, &most, &aggregates, &offsets]).await?;
        rows.iter().for_each(|row| self.try_again(row));
        Ok(())
    }

    /// Executes the reactions to a placed order again.
    fn try_again(&mut self, row: &Row) {
        let place = ParkedAt { aggregate: row.get(0), offset: row.get(1) };
        let partition: i32 = row.get(2);
        let Ok(Some(Record::Commit(commit))) = Record::decode(row.get(3)) else { return };
        let source = (partition.cast_unsigned(), place.offset);
        let caused = sagas::caused_by(&commit, source, self.unconfirmed.payment_window);
        for (step, cause) in caused.steps {
            self.begin(Attempt { place: place.clone(), step, cause, begun: Instant::now() }, TimeMs(commit.at_ms));
        }
    }

    fn begin(&mut self, attempt: Attempt, at: TimeMs) {
        self.next += 1;
        self.open.entry(attempt.place.clone()).or_default().sagas += 1;
        let sender = Origin { source: (0, self.next), ended: self.sender.clone(), lease: None, patience: None };
        let (step, cause) = (attempt.step.clone(), attempt.cause.clone());
        self.attempts.insert(self.next, attempt);
        self.unconfirmed.queues.begin(Saga { step, at, cause, sender });
    }

    async fn end(&mut self, all: Vec<EndedSaga>) -> Result<(), ReactorStoreError> {
        let (mut aggregates, mut offsets) = (Vec::new(), Vec::new());
        for EndedSaga { source: (_, number), how, at } in all {
            let Some(Attempt { place, step, cause, begun }) = self.attempts.remove(&number) else { continue };
            let (is_done, rejection) = (matches!(how, SagaEnd::Done | SagaEnd::NotDue), step.given_up());
            if is_done && rejection.is_none() {
                tracing::warn!(aggregate = place.aggregate, "rejected an order that could not be confirmed");
            }
            let has_failed = !is_done && rejection.is_none();
            let mut was_refused = false;
            if let Some(step) = rejection.filter(|_| !is_done) {
                let now = Instant::now();
                let refused = Refused::note(self.refused.remove(&place), begun, now);
                was_refused = refused.length < self.unconfirmed.within;
                self.refused.insert(place.clone(), refused);
                if !was_refused {
                    self.begin(Attempt { place: place.clone(), step, cause, begun: now }, at);
                }
            }
            let Some(open) = self.open.get_mut(&place) else { continue };
            open.sagas -= 1;
            open.has_failed |= has_failed;
            open.was_refused |= was_refused;
            if open.sagas > 0 {
                continue;
            }
            let Open { has_failed, was_refused, .. } = self.open.remove(&place).unwrap_or_default();
            if has_failed {
                self.failed.insert(place, Instant::now());
            } else if !was_refused {
                self.refused.remove(&place);
                aggregates.push(place.aggregate);
                offsets.push(place.offset);
            }
        }
        if !aggregates.is_empty() {
            let forget = include_str!("forget_parked.sql");
            self.client.execute(forget, &[&REACTOR, &aggregates, &offsets]).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_between_refusals_and_not_while_a_partition_is_away() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut known = None;
        let mut refused = |begun, ended| {
            let noted = Refused::note(known.take(), at(begun), at(ended));
            let length = noted.length.as_secs();
            known = Some(noted);
            length
        };
        assert_eq!(refused(100, 101), 0, "the time before the first refusal is unknown");
        assert_eq!(refused(160, 162), 61);
        assert_eq!(refused(222, 1500), 61, "the retry waited for a partition");
        assert_eq!(refused(1560, 1561), 122, "time counts again once the partition is back");
        assert_eq!(refused(1561, 1561), 122, "another line of the same record");
    }
}
