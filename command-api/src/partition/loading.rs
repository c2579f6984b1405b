//! What is kept outside of memory, and how commands wait for it.
//!
//! Invariant: nothing is decided on an aggregate before its state is here, and nothing under a key before it is known
//! whether it took effect. What is kept is used only if it reaches up to everything that memory lacks.

use domain::TimeMs;
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::Writer;

use super::awaiting_load::AwaitingRequest;
use super::{
    Checkpoint, Effects, LoadRequest, LoadedAggregate, LoadedNames, ParsedRequest, Partition, Phase, Unavailable,
};

/// A read that is under way begins anew where a checkpoint saves it so many records.
const WORTH_BEGINNING_ANEW: i64 = if cfg!(test) { 12 } else { 100_000 };

impl<R> Partition<R> {
    /// What is kept outside reaches up to here: memory need not hold it, and the next take-over reads from here. So does
    /// one that is under way, where that saves it a long way.
    pub fn checkpointed(&mut self, checkpoint: Checkpoint, out: &mut impl Effects<Reply = R>) {
        let is_news = |known: &Checkpoint| known.reader.next_offset < checkpoint.reader.next_offset;
        if self.checkpoint.as_ref().is_none_or(is_news) {
            self.checkpoint = Some(checkpoint);
        }
        let saves = checkpoint.reader.next_offset - self.memory.reader.next_offset;
        if let Phase::CatchingUp { then_claim } = self.phase
            && saves >= WORTH_BEGINNING_ANEW
        {
            self.catch_up(then_claim, out);
        }
    }

    /// Tells whether it takes in more records of a long read just now, or waits until states come: as long as events that
    /// wait for theirs take more than `max_unfolded` bytes.
    pub fn takes_records(&self, max_unfolded: usize) -> bool {
        !matches!(self.phase, Phase::CatchingUp { .. }) || self.unfolded_bytes() <= max_unfolded
    }

    /// About how much memory events take that wait for the states of their aggregates.
    pub fn unfolded_bytes(&self) -> usize {
        self.memory.aggregates.tails.bytes()
    }

    /// Asks for states of which only the end was read: that can be folded then, and whoever takes over is warm. Those that
    /// could not be had are asked for again; so this is to be called now and then.
    pub fn ask_for_states(&mut self, out: &mut impl Effects<Reply = R>) {
        self.memory.aggregates.tails.ask(|aggregate| out.load(LoadRequest { aggregate, state: true, key: None }));
    }

    /// Lets go of keys that are kept outside, the oldest first, until so many are left.
    pub fn forget(&mut self, keys: usize, now: TimeMs) {
        let settled = self.settled_checkpoint();
        self.memory.repeats.forget(settled, keys, self.parked.keys(), now);
    }

    /// Lets go of aggregates that were not used since the last time, until about `bytes` are left. Where that cannot
    /// be reached, commands on aggregates that are not in memory are refused.
    pub fn evict(&mut self, bytes: usize) {
        let settled = self.settled_checkpoint();
        self.full = !self.memory.aggregates.evict(settled, bytes);
    }

    /// About how much memory the aggregates take, with events that wait for their states.
    pub fn resident_bytes(&self) -> usize {
        self.memory.aggregates.bytes()
    }

    /// The size of the largest state since reading began, in bytes.
    pub fn largest_state(&self) -> usize {
        self.memory.aggregates.largest_state()
    }

    /// Returns aggregates whose states came near the size at which they take on nothing more, each once.
    pub fn take_nearly_full(&mut self) -> Vec<AggregateId> {
        self.memory.aggregates.take_nearly_full()
    }

    /// Records that a take-over would have to read, as far as an owner knows.
    pub fn tail_records(&self) -> u64 {
        let (Phase::Owner(writer) | Phase::Looking { writer, .. }) = &self.phase else { return 0 };
        let kept = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.reader.next_offset);
        let end = writer.offset_of(writer.acknowledged()) + 1;
        u64::try_from(end - kept).unwrap_or(0)
    }

    /// Names of aggregates that are known to have events.
    pub fn names(&self) -> usize {
        self.memory.aggregates.names()
    }

    /// Whether the names are those of all aggregates, so that it can tell which one is new.
    pub fn knows_names(&self) -> bool {
        !matches!(self.phase, Phase::Idle) && self.memory.aggregates.knows_names()
    }

    /// Keys in memory.
    pub fn remembered_keys(&self) -> usize {
        self.memory.repeats.len()
    }

    /// What is kept is used if its checkpoint reaches up to here.
    pub fn floor(&self) -> i64 {
        self.memory.floor()
    }

    /// What [`Effects::load`] asked for came.
    pub fn loaded(
        &mut self,
        wanted: &LoadRequest,
        kept: Result<LoadedAggregate, Unavailable>,
        now: TimeMs,
        out: &mut impl Effects<Reply = R>,
    ) {
        match kept {
            Ok(kept) if kept.checkpoint < self.floor() => {
                if out.load_later(wanted.clone()).is_err() {
                    self.not_loaded(wanted, out);
                }
            }
            Ok(kept) => {
                self.take_in(wanted, kept, now);
                self.resume(&wanted.aggregate, now, out);
                self.ask_for_states(out);
            }
            Err(Unavailable) => self.not_loaded(wanted, out),
        }
    }

    /// What [`Effects::load_names`] asked for came. Commands on what turns out to be new wait no longer.
    pub fn named(&mut self, kept: &LoadedNames, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        self.asks_names = false;
        let knew = self.memory.aggregates.knows_names();
        self.memory.aggregates.bring_names(kept);
        if knew || !self.memory.aggregates.knows_names() {
            return;
        }
        for aggregate in self.parked.aggregates() {
            self.resume(&aggregate, now, out);
        }
    }

    pub(super) fn ask_names(&mut self, out: &mut impl Effects<Reply = R>) {
        if self.asks_names || matches!(self.phase, Phase::Idle) {
            return;
        }
        if let Some(from) = self.memory.aggregates.lacks_names_from() {
            out.load_names(from);
            self.asks_names = true;
        }
    }

    /// It is not asked for again at once: what fails would be asked for all the time.
    fn not_loaded(&mut self, wanted: &LoadRequest, out: &mut impl Effects<Reply = R>) {
        if wanted.state {
            self.memory.aggregates.tails.want_again(&wanted.aggregate);
            self.parked.set_asks_state(&wanted.aggregate, false);
        }
        self.refuse_parked(wanted, out);
    }

    /// Returns what has to be brought before the command can be decided; `None`: it can be. A line that only waits behind an
    /// earlier one of its batch wants nothing brought. Nor does a new aggregate's key: under none did anything happen to it.
    pub(super) fn missing(&self, request: &ParsedRequest<R>) -> Option<LoadRequest> {
        let aggregate = &request.aggregate;
        let waits = self.parked.holds_back(request);
        if !waits && self.memory.repeats.of(request).is_some() {
            return None;
        }
        // Without room for it, it is as good as cold: nobody brings it.
        let state = self.memory.aggregates.is_cold(aggregate) || self.full && !self.memory.aggregates.knows(aggregate);
        let key = request.remembered_key().filter(|key| self.memory.repeats.may_have_forgotten(key));
        let key = key.filter(|_| !self.memory.aggregates.is_new(aggregate)).cloned();
        (waits || state || key.is_some()).then(|| LoadRequest { aggregate: aggregate.clone(), state, key })
    }

    /// `may_count`: it was sent to the log before.
    pub(super) fn park(
        &mut self,
        request: ParsedRequest<R>,
        may_count: bool,
        mut wanted: LoadRequest,
        out: &mut impl Effects<Reply = R>,
    ) {
        let key_known = wanted.key.is_none();
        let parked = AwaitingRequest { request, may_count, key_known };
        let overloaded = |detail: &'static str| Answer::Overloaded { detail: detail.into() };
        if self.parked.is_full() || self.full && wanted.state {
            return parked.set_back(overloaded("there is no room for another aggregate in memory just now"), out);
        }
        if !wanted.state && self.parked.is_full_of(&wanted.aggregate) {
            return parked
                .set_back(overloaded("too many commands on this aggregate wait for their keys to be looked up"), out);
        }
        wanted.state &= !self.parked.asks_state(&wanted.aggregate);
        let (aggregate, asks_state) = (wanted.aggregate.clone(), wanted.state);
        if (wanted.state || wanted.key.is_some()) && out.load(wanted).is_err() {
            return parked.set_back(overloaded("too many commands wait for what is kept of their aggregates"), out);
        }
        self.parked.push(parked);
        if asks_state {
            self.parked.set_asks_state(&aggregate, true);
        }
    }

    /// Of an instance that decides nothing: another one will.
    pub(super) fn dismiss_parked(&mut self, out: &mut impl Effects<Reply = R>) {
        if !self.parked.is_empty() {
            self.parked.take().for_each(|parked| parked.set_back(Answer::NoOwner, out));
        }
    }

    fn take_in(&mut self, wanted: &LoadRequest, kept: LoadedAggregate, now: TimeMs) {
        let LoadRequest { aggregate, key, .. } = wanted;
        if let Some(state) = kept.state {
            self.memory.aggregates.bring(aggregate, state);
            self.parked.set_asks_state(aggregate, false);
        }
        let Some(key) = key else { return };
        if let Some(repeat) = kept.repeat
            && self.memory.repeats.get(aggregate, key.as_str()).is_none()
        {
            self.memory.repeats.insert(aggregate, key.as_str(), now, repeat);
        }
        self.parked.know_key(aggregate, key.as_str());
    }

    fn resume(&mut self, aggregate: &AggregateId, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        if !matches!(self.phase, Phase::Owner(_)) || self.leaving {
            return;
        }
        let memory = &self.memory;
        let (is_cold, is_new) = (memory.aggregates.is_cold(aggregate), memory.aggregates.is_new(aggregate));
        let is_ready = |AwaitingRequest { request, key_known, .. }: &AwaitingRequest<R>| {
            memory.repeats.of(request).is_some() || *key_known && !is_cold || is_new
        };
        for AwaitingRequest { request, may_count, .. } in self.parked.take_ready(aggregate, is_ready) {
            self.decide(request, may_count, now, out);
        }
        // It was let go of while its commands waited for something else.
        let lacks_state = self.parked.waits(aggregate) && self.memory.aggregates.is_cold(aggregate);
        if lacks_state && !self.parked.asks_state(aggregate) {
            let wanted = LoadRequest { aggregate: aggregate.clone(), state: true, key: None };
            match out.load(wanted.clone()) {
                Ok(()) => self.parked.set_asks_state(aggregate, true),
                Err(Unavailable) => self.refuse_parked(&wanted, out),
            }
        }
    }

    /// What was wanted cannot be read: who waits for it is refused.
    fn refuse_parked(&mut self, wanted: &LoadRequest, out: &mut impl Effects<Reply = R>) {
        let LoadRequest { aggregate, state, key } = wanted;
        let refused = match key {
            _ if *state && self.memory.aggregates.is_cold(aggregate) => self.parked.take_of(aggregate),
            Some(key) => self.parked.take_of_key(aggregate, key.as_str()),
            None => return,
        };
        for parked in refused {
            let detail = "what is kept of the aggregate cannot be read just now".into();
            parked.set_back(Answer::Overloaded { detail }, out);
        }
    }

    /// What stands before this offset is kept outside for certain. An owner's records in flight may come to stand
    /// later than expected: an offset is theirs only when it was acknowledged.
    fn settled_checkpoint(&self) -> i64 {
        let checkpoint = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.reader.next_offset);
        let proven = |writer: &Writer| writer.offset_of(writer.acknowledged()) + 1;
        match &self.phase {
            Phase::Owner(writer) | Phase::Looking { writer, .. } => checkpoint.min(proven(writer)),
            Phase::Idle
            | Phase::CatchingUp { .. }
            | Phase::Prepared
            | Phase::Claiming { .. }
            | Phase::ReadingBack { .. } => checkpoint,
        }
    }
}
