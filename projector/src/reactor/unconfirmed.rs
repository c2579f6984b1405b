//! Ends orders that were placed and cannot be confirmed. They would keep what is held for their other lines, and their
//! buyers waiting, until a person looks.
//!
//! Nothing is written for this when an order is placed: what its placing causes is an open chain until it is done or
//! parked, and here is looked at what is parked. A line that has been parked for long enough is tried once more, and its
//! order is rejected where that is refused again. A try at a partition that is away waits until the partition is back: such
//! time is not the product's, and does not end an order.
//!
//! Any reactor may end any order, and two at the same time: a last try and a rejection are steps like all others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::env::Secret;
use chassis::shutdown::Shutdown;
use domain::TimeMs;
use domain::reactions::Step;
use schemas::record::Record;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Row};

use super::chains::{self, Chain, End, Ended, Sender};
use super::lanes::Lanes;
use super::positions::{REACTOR, ReactorStoreError, connect};

/// Between looks, which read what is parked and nothing else.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// An order that could not even be rejected is tried again after this.
const FAILED_FOR: Duration = Duration::from_secs(60);
/// Records of which chains are under way.
const MAX_AT_ONCE: usize = 1000;

pub(crate) struct Unconfirmed {
    pub(crate) url: Secret,
    pub(crate) lanes: Lanes,
    /// How long a line may be parked.
    pub(crate) within: Duration,
    pub(crate) payment_window: Duration,
}

/// A record that is parked, by its aggregate and its offset.
type Place = (String, i64);

/// A chain under way.
struct Attempt {
    place: Place,
    /// The last try for a line, or the rejection of its order.
    step: Step,
    cause: Arc<str>,
}

/// Chains of a record that have not ended, and whether one of them failed.
#[derive(Default)]
struct Open {
    chains: usize,
    has_failed: bool,
}

/// What one connection has under way.
struct Round<'a> {
    unconfirmed: &'a Unconfirmed,
    client: Client,
    attempts: HashMap<i64, Attempt>,
    open: HashMap<Place, Open>,
    /// Records of which not even the rejection was taken, with the time.
    failed: HashMap<Place, Instant>,
    next: i64,
    sender: mpsc::UnboundedSender<Ended>,
    ended: mpsc::UnboundedReceiver<Ended>,
}

impl Unconfirmed {
    /// Looks again and again, until shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let error = tokio::select! {
                Err(error) = self.look_on() => error,
                () = shutdown.requested() => return,
            };
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error, "orders that cannot be confirmed wait for Postgres");
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    /// Looks until Postgres fails.
    async fn look_on(&self) -> Result<(), ReactorStoreError> {
        let client = connect(&self.url).await?;
        let (sender, ended) = mpsc::unbounded_channel();
        let (attempts, open, failed) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut round = Round { unconfirmed: self, client, attempts, open, failed, next: 0, sender, ended };
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
        let within_ms = i64::try_from(self.unconfirmed.within.as_millis()).unwrap_or(i64::MAX);
        let most = i64::try_from(MAX_AT_ONCE).unwrap_or(i64::MAX);
        let rows = self.client.query(include_str!("list_unconfirmed.sql"), &[&REACTOR, &within_ms, &most]).await?;
        self.failed.retain(|_, since| since.elapsed() < FAILED_FOR);
        rows.iter().for_each(|row| self.try_again(row));
        Ok(())
    }

    /// Tries what the placing of an order caused, a last time.
    fn try_again(&mut self, row: &Row) {
        let (place, partition): (Place, i32) = ((row.get(0), row.get(1)), row.get(2));
        if self.open.contains_key(&place) || self.failed.contains_key(&place) {
            return;
        }
        let Ok(Some(Record::Commit(commit))) = Record::decode(row.get(3)) else { return };
        let source = (partition.cast_unsigned(), place.1);
        let caused = chains::of(&commit, source, self.unconfirmed.payment_window);
        for (step, cause) in caused.steps.into_iter().filter(|(step, _)| step.given_up().is_some()) {
            self.begin(Attempt { place: place.clone(), step, cause }, TimeMs(commit.at_ms));
        }
    }

    fn begin(&mut self, attempt: Attempt, at: TimeMs) {
        self.next += 1;
        self.open.entry(attempt.place.clone()).or_default().chains += 1;
        let sender = Sender {
            source: (0, self.next),
            ended: self.sender.clone(),
            lease: None,
            patience: Duration::ZERO,
            waits_for_partition: true,
        };
        let (step, cause) = (attempt.step.clone(), attempt.cause.clone());
        self.attempts.insert(self.next, attempt);
        self.unconfirmed.lanes.begin(Chain { step, at, cause, sender });
    }

    async fn end(&mut self, all: Vec<Ended>) -> Result<(), ReactorStoreError> {
        let (mut aggregates, mut offsets) = (Vec::new(), Vec::new());
        for Ended { source: (_, number), how, at } in all {
            let Some(Attempt { place, step, cause }) = self.attempts.remove(&number) else { continue };
            let (is_done, rejection) = (matches!(how, End::Done | End::NotDue), step.given_up());
            if is_done && rejection.is_none() {
                tracing::warn!(aggregate = place.0, "an order that could not be confirmed is rejected");
            }
            let has_failed = !is_done && rejection.is_none();
            if let Some(step) = rejection.filter(|_| !is_done) {
                self.begin(Attempt { place: place.clone(), step, cause }, at);
            }
            let Some(open) = self.open.get_mut(&place) else { continue };
            open.chains -= 1;
            open.has_failed |= has_failed;
            if open.chains > 0 {
                continue;
            }
            if self.open.remove(&place).is_some_and(|open| open.has_failed) {
                self.failed.insert(place, Instant::now());
            } else {
                aggregates.push(place.0);
                offsets.push(place.1);
            }
        }
        if !aggregates.is_empty() {
            let forget = include_str!("forget_unconfirmed.sql");
            self.client.execute(forget, &[&REACTOR, &aggregates, &offsets]).await?;
        }
        Ok(())
    }
}
