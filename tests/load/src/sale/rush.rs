//! The rush: buyers who send claims and retry them without an answer, some repeating even an answered one; watchers;
//! and probes that measure how soon a claim is visible.
//!
//! Everything runs on one thread, to leave the machine's cores to the servers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;

use super::observations::{Claim, Observations};
use super::visitor::{Answer, Visitor};
use super::{Names, display};
use crate::wire::Server;

/// One in this many claims is sent again although it was answered.
const AGAIN: u64 = 10;
/// One in this many buyers tries to exceed the limit per customer.
const GREEDY: u64 = 50;
/// One in this many buyers measures how soon an accepted claim is visible.
const PROBED: u64 = 100;
/// Number of attempts after which a buyer gives up, which counts as an error.
const TRIES: u32 = 60;
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Interval between polls of an order's page.
const POLL_EVERY: Duration = Duration::from_millis(20);
const POLL_FOR: Duration = Duration::from_secs(10);

/// The buyers and watchers, and the addresses that they use.
pub(crate) struct Crowd {
    pub(crate) buyers: u64,
    pub(crate) watchers: u64,
    /// Number of connections that the buyers share.
    pub(crate) connections: u64,
    /// Maximum number of units per customer.
    pub(crate) limit: u64,
    /// Poll for the order, against a system without consistency tokens.
    pub(crate) polls: bool,
    /// Number of claims accepted so far, shared with another thread.
    pub(crate) accepted: Arc<AtomicU64>,
    pub(crate) commands: Server,
    pub(crate) queries: Server,
}

struct Rush {
    crowd: Crowd,
    run: String,
    sale: String,
    claim: String,
    pages: [String; 2],
    /// Number of the next buyer.
    next: Cell<u64>,
    observations: RefCell<Observations>,
    probes: RefCell<JoinSet<()>>,
}

/// Plays the rush and returns when every buyer is answered.
pub(crate) fn play(crowd: Crowd, names: &Names) -> Result<Observations> {
    let rush = Rc::new(Rush {
        observations: RefCell::new(Observations::new(crowd.buyers)),
        crowd,
        run: names.run.clone(),
        sale: names.sale.clone(),
        claim: format!("/v1/sales/{}/claim", names.sale),
        pages: [format!("/v1/sales/{}", names.sale), format!("/v1/products/{}", names.product)],
        next: Cell::new(0),
        probes: RefCell::default(),
    });
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = runtime.context("cannot start the async runtime")?;
    let before = clock_gettime(ClockId::ThreadCPUTime);
    runtime.block_on(rush.clone().run())?;
    drop(runtime);
    let used = clock_gettime(ClockId::ThreadCPUTime) - before;
    let rush = Rc::into_inner(rush).context("a task outlived the rush")?;
    let mut observations = rush.observations.into_inner();
    observations.crowd = used.try_into().context("the thread's processor time went backwards")?;
    Ok(observations)
}

impl Rush {
    async fn run(self: Rc<Self>) -> Result<()> {
        // Watchers run until they are aborted below.
        let mut watchers = JoinSet::new();
        for watcher in 0..self.crowd.watchers {
            watchers.spawn_local(self.clone().watch(watcher));
        }
        let mut buyers = JoinSet::new();
        for _ in 0..self.crowd.connections {
            buyers.spawn_local(self.clone().buy());
        }
        display::show(&self.observations).await;
        while let Some(ended) = buyers.join_next().await {
            ended.context("a buyer's task failed")?;
        }
        let mut probes = self.probes.take();
        while let Some(ended) = probes.join_next().await {
            ended.context("a probe's task failed")?;
        }
        watchers.shutdown().await;
        Ok(())
    }

    /// Plays buyers one after the other on one connection.
    async fn buy(self: Rc<Self>) {
        let mut visitor = Visitor::new(&self.crowd.commands);
        loop {
            let buyer = self.next.get();
            if buyer >= self.crowd.buyers {
                return;
            }
            self.next.set(buyer + 1);
            let wishes = if buyer.is_multiple_of(GREEDY) { self.crowd.limit + 1 } else { 1 };
            for wish in 0..wishes {
                self.wish(&mut visitor, buyer, wish).await;
            }
            self.observations.borrow_mut().buyer_answered();
        }
    }

    async fn wish(self: &Rc<Self>, visitor: &mut Visitor, buyer: u64, wish: u64) {
        let (name, customer) = (format!("o-{}-{buyer}-{wish}", self.run), format!("c-{}-{buyer}", self.run));
        let body = format!(r#"{{"customer":"{customer}","quantity":1,"order":"{name}"}}"#);
        let order = format!("{}~{name}", self.sale);
        let key = key(Timestamp::now(), buyer, wish);
        let page = if buyer.is_multiple_of(PROBED) { Some(self.open_page().await) } else { None };
        let mut last = self.claim(visitor, buyer, &key, &body).await;
        if (buyer + wish).is_multiple_of(AGAIN) {
            let again = self.claim(visitor, buyer, &key, &body).await;
            let mut observations = self.observations.borrow_mut();
            observations.counts.again += 1;
            if !may_follow(&last, &again) {
                observations.odd.push(format!("{order} was answered {last:?}, and {again:?} when sent again"));
            }
            last = again;
        }
        let mut observations = self.observations.borrow_mut();
        match last {
            Answer::Accepted { token, order: named, .. } => {
                if named.as_deref() != Some(order.as_str()) {
                    observations.odd.push(format!("the answer for {order} names order {named:?}"));
                }
                if let Some(page) = page {
                    self.probes.borrow_mut().spawn_local(self.clone().probe(page, token, order.clone()));
                }
                observations.claim_accepted(Claim { order, customer });
                self.crowd.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Answer::Rejected(rule) if rule == "sold_out" => observations.counts.sold_out += 1,
            Answer::Rejected(rule) if rule == "over_limit" && wish > 0 => observations.counts.over_limit += 1,
            other => observations.odd.push(format!("{order} was answered {other:?}")),
        }
    }

    /// Sends a claim, retrying it under the same key until it is answered.
    async fn claim(&self, visitor: &mut Visitor, buyer: u64, key: &str, body: &str) -> Answer {
        let mut tries = 0;
        loop {
            let sent = Instant::now();
            let answer = visitor.command(&self.claim, key, body).await;
            self.observations.borrow_mut().commands.record(sent.elapsed());
            tries += 1;
            match answer {
                Answer::Later { after } if tries < TRIES => {
                    self.observations.borrow_mut().counts.retried += 1;
                    // Jitter around the requested delay, so that buyers do not all retry at once.
                    tokio::time::sleep(after.mul_f64(0.25 + (buyer % 97) as f64 / 97.0)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Queries the two pages in turn, each with the entity tag of its last answer.
    async fn watch(self: Rc<Self>, watcher: u64) {
        let mut visitor = Visitor::new(&self.crowd.queries);
        let mut tags = [None, None];
        let share = watcher as f64 / self.crowd.watchers as f64;
        let mut due = tokio::time::Instant::now() + WATCH_EVERY.mul_f64(share);
        for page in [0, 1].into_iter().cycle() {
            tokio::time::sleep_until(due).await;
            due += WATCH_EVERY;
            let asked = Instant::now();
            let looked = visitor.look(&self.pages[page], tags[page].as_deref()).await;
            let mut observations = self.observations.borrow_mut();
            observations.queries.record(asked.elapsed());
            match looked {
                Ok(tag) => tags[page] = tag,
                Err(_) => observations.counts.failed_queries += 1,
            }
        }
    }

    /// Opens a connection for a probe before the claim, as a buyer with an open page would have. If that fails, the
    /// next query connects.
    async fn open_page(&self) -> Visitor {
        let mut page = Visitor::new(&self.crowd.queries);
        let _ = page.look(&self.pages[0], None).await;
        page
    }

    /// Measures the time from the answer to a claim until the sale's page shows it or, when polling, the order's page
    /// exists.
    async fn probe(self: Rc<Self>, mut page: Visitor, token: String, order: String) {
        let answered = Instant::now();
        let is_shown = match self.crowd.polls {
            true => self.is_found(&mut page, &order).await,
            false => page.is_shown(&self.pages[0], &token).await,
        };
        let mut observations = self.observations.borrow_mut();
        match is_shown {
            true => observations.visible.record(answered.elapsed()),
            false => observations.odd.push(format!("{token} was not visible within 10 s")),
        }
    }

    /// Polls for the order every 20 ms, for at most ten seconds. Returns whether it was found.
    async fn is_found(&self, page: &mut Visitor, order: &str) -> bool {
        let path = format!("/v1/orders/{order}");
        let mut interval = tokio::time::interval(POLL_EVERY);
        let found = async {
            while page.look(&path, None).await.is_err() {
                interval.tick().await;
            }
        };
        tokio::time::timeout(POLL_FOR, found).await.is_ok()
    }
}

/// Returns a UUIDv7 as idempotency key. From its time, command-api infers that it cannot repeat an old command.
fn key(at: Timestamp, buyer: u64, wish: u64) -> String {
    let ms = at.as_millisecond().cast_unsigned();
    format!(
        "{:08x}-{:04x}-7{:03x}-8000-{:012x}",
        ms >> 16 & 0xffff_ffff,
        ms & 0xffff,
        wish & 0xfff,
        buyer & 0xffff_ffff_ffff
    )
}

/// Returns whether a repeated command may be answered `again` after `first`. An acceptance must be repeated with the
/// same version; a rejection may be decided anew, since units may have been returned.
fn may_follow(first: &Answer, again: &Answer) -> bool {
    match (first, again) {
        (Answer::Accepted { version, .. }, Answer::Accepted { version: other, .. }) => version == other,
        (Answer::Rejected(_), Answer::Rejected(_) | Answer::Accepted { .. }) => true,
        _ => false,
    }
}
