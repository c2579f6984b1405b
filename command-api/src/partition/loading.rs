//! Loading of data that is not in memory, and the commands that wait for it.
//!
//! Invariant: no command is decided before its aggregate's state is in memory and it is known whether its key took
//! effect. Stored data is used only if its checkpoint covers everything that memory lacks.

use domain::TimeMs;
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::chain::Writer;

use super::awaiting_load::AwaitingRequest;
use super::{
    Checkpoint, Effects, LoadRequest, LoadedAggregate, LoadedNames, ParsedRequest, Partition, Phase, Unavailable,
};

/// Number of records that a checkpoint must save for a read in progress to restart from it.
const WORTH_BEGINNING_ANEW: i64 = if cfg!(test) { 12 } else { 100_000 };

impl<R> Partition<R> {
    /// Records that the store has reached `checkpoint`: memory need not hold the data before it, and the next takeover
    /// reads from there. A catch-up in progress restarts from it if that saves many records.
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

    /// Returns whether more records of a long read may be passed in. The read pauses while events that wait for the
    /// states of their aggregates take more than `max_unfolded` bytes.
    pub fn takes_records(&self, max_unfolded: usize) -> bool {
        !matches!(self.phase, Phase::CatchingUp { .. }) || self.unfolded_bytes() <= max_unfolded
    }

    /// Returns the approximate memory used by events that wait for the states of their aggregates.
    pub fn unfolded_bytes(&self) -> usize {
        self.memory.aggregates.tails.bytes()
    }

    /// Requests the states of aggregates of which only the latest events were read, so that those can be folded and a
    /// new owner starts warm. Repeats failed requests, so this is to be called periodically.
    pub fn ask_for_states(&mut self, out: &mut impl Effects<Reply = R>) {
        self.memory.aggregates.tails.ask(|aggregate| out.load(LoadRequest { aggregate, state: true, key: None }));
    }

    /// Evicts keys that the store has, the oldest first, until `keys` are left.
    pub fn forget(&mut self, keys: usize, now: TimeMs) {
        let settled = self.settled_checkpoint();
        self.memory.repeats.forget(settled, keys, self.parked.keys(), now);
    }

    /// Evicts aggregates that were not used since the last pass, until about `bytes` are left. If that cannot be
    /// reached, commands on aggregates that are not in memory are refused.
    pub fn evict(&mut self, bytes: usize) {
        let settled = self.settled_checkpoint();
        self.full = !self.memory.aggregates.evict(settled, bytes);
    }

    /// Returns the approximate memory used by the aggregates, including events that wait for their states.
    pub fn resident_bytes(&self) -> usize {
        self.memory.aggregates.bytes()
    }

    /// Returns the size of the largest state since reading began, in bytes.
    pub fn largest_state(&self) -> usize {
        self.memory.aggregates.largest_state()
    }

    /// Returns aggregates whose states came near the size at which nothing more is added to them, each once.
    pub fn take_nearly_full(&mut self) -> Vec<AggregateId> {
        self.memory.aggregates.take_nearly_full()
    }

    /// Returns the offset of the claim that counts, as far as the log was read; 0 without one.
    pub fn epoch(&self) -> u64 {
        self.memory.reader.epoch.map_or(0, |epoch| epoch.claim.cast_unsigned())
    }

    /// Returns the number of records that a takeover would have to read, as far as an owner knows.
    pub fn tail_records(&self) -> u64 {
        let (Phase::Owner(writer) | Phase::Looking { writer, .. }) = &self.phase else { return 0 };
        let kept = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.reader.next_offset);
        let end = writer.offset_of(writer.acknowledged()) + 1;
        u64::try_from(end - kept).unwrap_or(0)
    }

    /// Returns the number of aggregates that are known to have events.
    pub fn names(&self) -> usize {
        self.memory.aggregates.names()
    }

    /// Returns whether the names of all aggregates are known, so that a new aggregate can be recognized.
    pub fn knows_names(&self) -> bool {
        !matches!(self.phase, Phase::Idle) && self.memory.aggregates.knows_names()
    }

    /// Returns the number of keys in memory.
    pub fn remembered_keys(&self) -> usize {
        self.memory.repeats.len()
    }

    /// Returns the offset that the checkpoint of loaded data must have reached for the data to be used.
    pub fn floor(&self) -> i64 {
        self.memory.floor()
    }

    /// Processes the result of [`Effects::load`].
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

    /// Processes the result of [`Effects::load_names`]. Commands on aggregates that turn out to be new wait no longer.
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

    /// Processes a failed load. The request is not repeated at once, because a lasting failure would cause a busy loop.
    fn not_loaded(&mut self, wanted: &LoadRequest, out: &mut impl Effects<Reply = R>) {
        if wanted.state {
            self.memory.aggregates.tails.want_again(&wanted.aggregate);
            self.parked.set_asks_state(&wanted.aggregate, false);
        }
        self.refuse_parked(wanted, out);
    }

    /// Returns the data that has to be loaded before the command can be decided, or `None` if it can be decided now.
    /// The request is empty for a line that only waits behind an earlier one of its batch. The key of a new aggregate
    /// needs no lookup: no command has taken effect on it.
    pub(super) fn missing(&self, request: &ParsedRequest<R>) -> Option<LoadRequest> {
        let aggregate = &request.aggregate;
        let waits = self.parked.holds_back(request);
        if !waits && self.memory.repeats.of(request).is_some() {
            return None;
        }
        // If memory is full, an aggregate that is not in it is treated as cold, so that the command is refused.
        let state = self.memory.aggregates.is_cold(aggregate) || self.full && !self.memory.aggregates.knows(aggregate);
        let key = request.remembered_key().filter(|key| self.memory.repeats.may_have_forgotten(key));
        let key = key.filter(|_| !self.memory.aggregates.is_new(aggregate)).cloned();
        (waits || state || key.is_some()).then(|| LoadRequest { aggregate: aggregate.clone(), state, key })
    }

    /// Parks a command until its data is loaded, or refuses it. `may_count` is set if it was sent to the log before.
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
            return parked.set_back(overloaded("memory has no room for another aggregate at the moment"), out);
        }
        if !wanted.state && self.parked.is_full_of(&wanted.aggregate) {
            return parked.set_back(overloaded("too many commands on this aggregate are waiting for key lookups"), out);
        }
        wanted.state &= !self.parked.asks_state(&wanted.aggregate);
        let (aggregate, asks_state) = (wanted.aggregate.clone(), wanted.state);
        if (wanted.state || wanted.key.is_some()) && out.load(wanted).is_err() {
            return parked.set_back(overloaded("too many commands are waiting for their aggregates to be loaded"), out);
        }
        self.parked.push(parked);
        if asks_state {
            self.parked.set_asks_state(&aggregate, true);
        }
    }

    /// Answers all parked commands with `NoOwner`: this instance decides nothing, and another one will.
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
        // The aggregate was evicted while its commands waited for something else.
        let lacks_state = self.parked.waits(aggregate) && self.memory.aggregates.is_cold(aggregate);
        if lacks_state && !self.parked.asks_state(aggregate) {
            let wanted = LoadRequest { aggregate: aggregate.clone(), state: true, key: None };
            match out.load(wanted.clone()) {
                Ok(()) => self.parked.set_asks_state(aggregate, true),
                Err(Unavailable) => self.refuse_parked(&wanted, out),
            }
        }
    }

    /// Refuses the commands that wait for data that cannot be read.
    fn refuse_parked(&mut self, wanted: &LoadRequest, out: &mut impl Effects<Reply = R>) {
        let LoadRequest { aggregate, state, key } = wanted;
        let refused = match key {
            _ if *state && self.memory.aggregates.is_cold(aggregate) => self.parked.take_of(aggregate),
            Some(key) => self.parked.take_of_key(aggregate, key.as_str()),
            None => return,
        };
        for parked in refused {
            let detail = "the stored data of the aggregate cannot be read at the moment".into();
            parked.set_back(Answer::Overloaded { detail }, out);
        }
    }

    /// Returns the offset before which everything is certainly in the store. An owner's records in flight may be
    /// appended later than expected: their offsets are final only once acknowledged.
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
