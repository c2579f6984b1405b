//! The rush: buyers who claim, and who do it again where they got no answer or are in doubt; watchers; and some who look
//! how soon their claim shows.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use jiff::Timestamp;

use super::shop::{Answer, Shop};
use super::{LIMIT_PER_CUSTOMER, Names};

/// One in so many buyers sends a claim again though it was answered.
const AGAIN: u64 = 10;
/// One in so many tries to get more than a customer may.
const GREEDY: u64 = 50;
/// One in so many accepted claims is asked for in the views.
const PROBED: u64 = 100;
/// A buyer gives up after so many refusals: that is an error.
const TRIES: u32 = 60;
const WATCHING: u64 = 64;
const WATCH_EVERY: Duration = Duration::from_secs(1);
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// A claim that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) order: String,
    pub(super) customer: String,
}

pub(super) struct Rush {
    pub(super) buyers: u64,
    watchers: u64,
    run: String,
    claim: String,
    pages: [String; 2],
    next: AtomicU64,
    /// Buyers who know what they got.
    pub(super) answered: AtomicU64,
    is_over: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) commands: Option<Histogram<u64>>,
    pub(super) queries: Option<Histogram<u64>>,
    pub(super) visible: Option<Histogram<u64>>,
    pub(super) counts: Counts,
    accepted: Vec<Claim>,
    odd: Vec<String>,
    last_answer: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) sold_out: u64,
    pub(super) over_limit: u64,
    pub(super) retried: u64,
    pub(super) again: u64,
    pub(super) queries: u64,
    pub(super) failed_queries: u64,
}

/// What came of it, in microseconds.
pub(super) struct Seen {
    pub(super) accepted: Vec<Claim>,
    pub(super) counts: Counts,
    pub(super) odd: Vec<String>,
    buyers: u64,
    within: Duration,
    commands: Histogram<u64>,
    queries: Histogram<u64>,
    visible: Histogram<u64>,
}

/// Of one thread, until it is flushed.
struct Local {
    state: State,
    flushed: Instant,
}

impl Rush {
    pub(super) fn new(buyers: u64, watchers: u64, names: &Names) -> Self {
        Self {
            buyers,
            watchers,
            run: names.run.clone(),
            claim: format!("/v1/sales/{}/claim", names.sale),
            pages: [format!("/v1/sales/{}", names.sale), format!("/v1/products/{}", names.product)],
            next: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// They end by themselves once every buyer is answered.
    pub(super) fn start<'s>(&'s self, scope: &'s Scope<'s, '_>, shop: &'s Shop, connections: u64) {
        for _ in 0..connections {
            scope.spawn(move || self.buy(scope, shop));
        }
        for watching in 0..WATCHING.min(self.watchers) {
            scope.spawn(move || self.watch(shop, watching));
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn buy<'s>(&'s self, scope: &'s Scope<'s, '_>, shop: &'s Shop) {
        let own = shop.again();
        let mut local = Local { state: State::default(), flushed: Instant::now() };
        loop {
            let buyer = self.next.fetch_add(1, Ordering::Relaxed);
            if buyer >= self.buyers {
                break;
            }
            let wishes = if buyer.is_multiple_of(GREEDY) { LIMIT_PER_CUSTOMER + 1 } else { 1 };
            for wish in 0..wishes {
                self.wish((scope, shop), &own, &mut local, (buyer, wish));
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
            if local.flushed.elapsed() > FLUSH_EVERY {
                local.flush(self);
            }
        }
        local.flush(self);
        if self.answered.load(Ordering::Relaxed) >= self.buyers {
            self.is_over.store(true, Ordering::Relaxed);
        }
    }

    /// `probing`: for those who look how soon it shows.
    fn wish<'s>(
        &'s self,
        (scope, probing): (&'s Scope<'s, '_>, &'s Shop),
        shop: &Shop,
        local: &mut Local,
        (buyer, wish): (u64, u64),
    ) {
        let (order, customer) = (format!("o-{}-{buyer}-{wish}", self.run), format!("c-{}-{buyer}", self.run));
        let body = format!(r#"{{"customer":"{customer}","quantity":1,"order":"{order}"}}"#);
        let key = key(Timestamp::now(), buyer, wish);
        let mut last = self.claim(shop, local, (buyer, &key), &body);
        if (buyer + wish).is_multiple_of(AGAIN) {
            local.state.counts.again += 1;
            let again = self.claim(shop, local, (buyer, &key), &body);
            if !may_follow(&last, &again) {
                local.state.odd.push(format!("{order} was answered {last:?}, and again {again:?}"));
            }
            last = again;
        }
        match last {
            Answer::Accepted { token, .. } => {
                local.state.counts.accepted += 1;
                local.state.accepted.push(Claim { order, customer });
                if buyer.is_multiple_of(PROBED) {
                    scope.spawn(move || self.probe(probing, &token));
                }
            }
            Answer::Rejected(rule) if rule == "sold_out" => local.state.counts.sold_out += 1,
            Answer::Rejected(rule) if rule == "over_limit" && wish > 0 => local.state.counts.over_limit += 1,
            other => local.state.odd.push(format!("{order} was answered {other:?}")),
        }
    }

    /// Under the same key until there is an answer.
    fn claim(&self, shop: &Shop, local: &mut Local, (buyer, key): (u64, &str), body: &str) -> Answer {
        let mut tries = 0;
        loop {
            let sent = Instant::now();
            let answer = shop.send(&self.claim, key, body);
            record(&mut local.state.commands, sent.elapsed());
            tries += 1;
            match answer {
                Answer::Later { after } if tries < TRIES => {
                    local.state.counts.retried += 1;
                    // Spread over the time that was asked for, so that they do not come back together.
                    thread::sleep(after.mul_f64(0.25 + (buyer % 97) as f64 / 97.0));
                }
                answer => return answer,
            }
        }
    }

    fn watch(&self, shop: &Shop, watching: u64) {
        let shop = &shop.again();
        let mut local = Local { state: State::default(), flushed: Instant::now() };
        let mut tags = vec![[None, None]; usize::try_from(self.watchers.div_ceil(WATCHING)).unwrap_or_default()];
        let pause = WATCH_EVERY.div_f64(tags.len().max(1) as f64);
        let mut due = Instant::now() + pause.mul_f64(watching as f64 / WATCHING as f64);
        for turn in 0usize.. {
            if self.is_over() {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due += pause;
            let (watcher, page) = (turn % tags.len(), (turn / tags.len()) % 2);
            let asked = Instant::now();
            let seen = shop.look(&self.pages[page], tags[watcher][page].as_deref());
            record(&mut local.state.queries, asked.elapsed());
            local.state.counts.queries += 1;
            match seen {
                Some(Some(tag)) => tags[watcher][page] = Some(tag),
                Some(None) => {}
                None => local.state.counts.failed_queries += 1,
            }
            if local.flushed.elapsed() > FLUSH_EVERY {
                local.flush(self);
            }
        }
        local.flush(self);
    }

    /// From the answer to a claim until the sale's page shows it.
    fn probe(&self, shop: &Shop, token: &str) {
        let answered = Instant::now();
        let is_shown = shop.shows(&self.pages[0], token);
        let mut state = self.state();
        match is_shown {
            true => record(&mut state.visible, answered.elapsed()),
            false => state.odd.push(format!("{token} was not shown within 10 s")),
        }
    }

    pub(super) fn seen(&self, opened: Instant) -> Seen {
        let mut state = self.state();
        let State { commands, queries, visible, counts, accepted, odd, last_answer } = std::mem::take(&mut *state);
        let within = last_answer.map_or(Duration::ZERO, |last| last - opened);
        let [commands, queries, visible] = [commands, queries, visible].map(|all| all.unwrap_or_else(histogram));
        Seen { accepted, counts, odd, buyers: self.buyers, within, commands, queries, visible }
    }
}

/// A UUIDv7: its time tells command-api that it cannot be the repeat of something long ago.
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

/// What was accepted stays so, under one version; a rejection may be decided anew, when units have come back.
fn may_follow(first: &Answer, again: &Answer) -> bool {
    match (first, again) {
        (Answer::Accepted { version, .. }, Answer::Accepted { version: other, .. }) => version == other,
        (Answer::Rejected(_), Answer::Rejected(_) | Answer::Accepted { .. }) => true,
        _ => false,
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are within its bounds")
}

fn record(all: &mut Option<Histogram<u64>>, took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    // It grows by itself, and takes all that fits its digits.
    let _ = all.get_or_insert_with(histogram).record(micros);
}

impl Local {
    fn flush(&mut self, rush: &Rush) {
        self.flushed = Instant::now();
        let State { commands, queries, visible: _, counts, accepted, odd, last_answer: _ } =
            std::mem::take(&mut self.state);
        let mut state = rush.state();
        if commands.is_some() {
            state.last_answer = Some(Instant::now());
        }
        add(&mut state.commands, commands);
        add(&mut state.queries, queries);
        state.counts.add(counts);
        state.accepted.extend(accepted);
        state.odd.extend(odd);
    }
}

fn add(all: &mut Option<Histogram<u64>>, part: Option<Histogram<u64>>) {
    let Some(part) = part else { return };
    match all {
        // Both have the same bounds and grow by themselves.
        Some(all) => drop(all.add(&part)),
        none => *none = Some(part),
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.sold_out += other.sold_out;
        self.over_limit += other.over_limit;
        self.retried += other.retried;
        self.again += other.again;
        self.queries += other.queries;
        self.failed_queries += other.failed_queries;
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |all: &Histogram<u64>, share| all.value_at_quantile(share) as f64 / 1_000.0;
        let times = |all: &Histogram<u64>| format!("p50 {:.1} ms, p99 {:.1} ms", ms(all, 0.5), ms(all, 0.99));
        let Counts { accepted, sold_out, over_limit, retried, again, queries, failed_queries } = self.counts;
        let seconds = self.within.as_secs_f64();
        writeln!(f, "rush        {} buyers answered within {seconds:.2} s", self.buyers)?;
        writeln!(
            f,
            "commands    {:.0}/s, {}; {accepted} accepted, {sold_out} sold out, {over_limit} over the limit, {retried} \
             refused and sent again, {again} sent again though answered",
            self.commands.len() as f64 / seconds,
            times(&self.commands)
        )?;
        writeln!(
            f,
            "queries     {:.0}/s, {}; {failed_queries} of {queries} failed",
            queries as f64 / seconds,
            times(&self.queries)
        )?;
        write!(f, "visible     {} after the answer, of {} claims", times(&self.visible), self.visible.len())
    }
}
