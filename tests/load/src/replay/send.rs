//! Sends the purchases as commands, in concurrent batches.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

use super::PRODUCT;
use super::client::{Client, LineAnswer, Tokens};
use super::progress::Progress;
use super::purchases::Purchase;

const CONNECTIONS: usize = 8;
const BATCH: usize = 500;
/// Time without progress of a batch after which the replay fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause after a 503, as its Retry-After requests.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Pause after a missing answer; short, because another instance may accept the retry at once.
const RETRY: Duration = Duration::from_millis(100);

/// Outcomes of the commands.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) recorded: u64,
    /// Commands deduplicated as repeats of an accepted one.
    pub(super) repeated: u64,
    /// Commands that had no effect because their order exists, although their idempotency key has expired.
    pub(super) already: u64,
    /// Number of times that this run sent a command again.
    pub(super) retried: u64,
    pub(super) tokens: Tokens,
    /// Time from sending a batch to the answer of each of its commands, in microseconds.
    pub(super) latency: Histogram<u64>,
}

/// The commands of all shops, in the same order in every run.
pub(super) struct Orders<'a> {
    pub(super) purchases: &'a [Purchase],
    pub(super) shops: u32,
}

impl Orders<'_> {
    pub(super) fn len(&self) -> usize {
        self.purchases.len() * usize::try_from(self.shops).expect("the number of shops fits a usize")
    }

    fn write(&self, index: usize, lines: &mut String) -> Result<()> {
        let purchase = &self.purchases[index % self.purchases.len()];
        let shop = u32::try_from(index / self.purchases.len())? + 1;
        let (order, customer) = (purchase.order_id(shop), purchase.customer_id(shop));
        writeln!(
            lines,
            r#"{{"aggregate":"orders","id":"{order}","command":"record","key":"record-{order}","data":{{"customer":"{customer}","lines":[{{"product":"{PRODUCT}","quantity":{},"amount_cents":{}}}],"ordered_at":"{}T00:00:00Z"}}}}"#,
            purchase.units,
            purchase.amount_cents,
            purchase.date_in(shop)?
        )?;
        Ok(())
    }
}

/// Sends all commands, at most `rate` of them per second. Fails if `cancelled` is set while commands are refused.
pub(super) fn send(client: &Client, orders: &Orders<'_>, rate: Option<u32>, cancelled: &AtomicBool) -> Result<Sent> {
    // A rate limit calls for small batches, which spread the load evenly.
    let batch = rate.map_or(BATCH, |rate| (usize::try_from(rate).unwrap_or(BATCH) / 20).clamp(1, BATCH));
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let progress = Progress::new(orders.len() as u64);
    let total = Mutex::new(Sent::new()?);
    let failed = AtomicBool::new(false);
    let work = || -> Result<()> {
        loop {
            let first = next.fetch_add(batch, Ordering::Relaxed);
            if first >= orders.len() || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            if let Some(rate) = rate {
                let due = began + Duration::from_secs_f64(first as f64 / f64::from(rate));
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let sent = send_batch(client, orders, first..orders.len().min(first + batch), cancelled)?;
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            progress.answered(&sent.latency);
            total.add(&sent)?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| {
                    let result = work();
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    result
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    progress.end();
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Sends a batch, and its refused commands again, until every command is accepted.
fn send_batch(
    client: &Client,
    orders: &Orders<'_>,
    range: std::ops::Range<usize>,
    cancelled: &AtomicBool,
) -> Result<Sent> {
    let mut sent = Sent::new()?;
    let mut pending: Vec<usize> = range.collect();
    let mut last_progress = Instant::now();
    loop {
        let mut lines = String::with_capacity(pending.len() * 250);
        pending.iter().try_for_each(|index| orders.write(*index, &mut lines))?;
        let begun = Instant::now();
        let mut refused = Vec::new();
        let mut answers = 0;
        let answered = client.batch(&lines, |answer| {
            let index = pending[answers];
            answers += 1;
            if answer.status == 503 {
                refused.push(index);
                return Ok(());
            }
            sent.latency.record(u64::try_from(begun.elapsed().as_micros())?)?;
            sent.take(&answer)
        })?;
        let pause = if refused.is_empty() { RETRY } else { RETRY_AFTER };
        if answered > refused.len() {
            last_progress = Instant::now();
        }
        refused.extend_from_slice(&pending[answered..]);
        pending = refused;
        if pending.is_empty() {
            return Ok(sent);
        }
        if last_progress.elapsed() > PATIENCE {
            bail!("commands have been refused for {} s; see `cargo stack status`", PATIENCE.as_secs());
        }
        if cancelled.load(Ordering::Relaxed) {
            bail!("the stack is stopping");
        }
        sent.retried += pending.len() as u64;
        thread::sleep(pause);
    }
}

impl Sent {
    fn new() -> Result<Self> {
        let latency = Histogram::new(3)?;
        Ok(Self { recorded: 0, repeated: 0, already: 0, retried: 0, tokens: Tokens::default(), latency })
    }

    fn take(&mut self, answer: &LineAnswer) -> Result<()> {
        match (answer.status, answer.replayed, answer.events.is_empty()) {
            (200, true, _) => self.repeated += 1,
            (200, false, true) => self.already += 1,
            (200, false, false) => self.recorded += 1,
            (status, ..) => bail!("an order was rejected with {status}: {}", answer.detail),
        }
        answer.token.as_deref().map_or(Ok(()), |token| self.tokens.add(token))
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.recorded += other.recorded;
        self.repeated += other.repeated;
        self.already += other.already;
        self.retried += other.retried;
        self.latency.add(&other.latency)?;
        self.tokens.merge(&other.tokens)
    }
}
