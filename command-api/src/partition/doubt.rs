//! Recovery of an owner that does not know which of its records count: it reads the log before it claims again.

use domain::TimeMs;
use schemas::answers::Answer;
use schemas::chain::{Doubt, Reader, Settled, Writer};
use schemas::record::Epoch;

use super::pending::Pending;
use super::{DoubtCause, Effects, ParsedRequest, Partition, Phase, ReadTo};

impl<R> Partition<R> {
    /// Starts a read from the last acknowledged record to the offset that settles the doubt: other writers' records are
    /// among this owner's.
    pub(super) fn look(&mut self, doubt: Doubt, out: &mut impl Effects<Reply = R>) {
        let Phase::Owner(writer) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("only an owner has records of its own")
        };
        out.doubted(DoubtCause::Displaced);
        let Doubt { offset } = doubt;
        let reader = writer.reader();
        out.read(reader.next_offset, ReadTo::Offset(offset + 1));
        self.phase = Phase::Looking { writer, reader };
    }

    pub(super) fn looked(&mut self, mut writer: Writer, reader: &Reader, out: &mut impl Effects<Reply = R>) {
        let (base, proven) = (writer.offset_of(0), writer.offset_of(writer.acknowledged()));
        let settled = writer.settle(reader);
        self.move_positions(proven, writer.offset_of(0) - base);
        match settled {
            Ok(Settled::Deposed) => self.catch_up(true, out),
            Ok(Settled::Broken) => self.doubt(DoubtCause::Broken, out),
            Ok(Settled::Continues) => {
                self.phase = Phase::Owner(writer);
                self.answer_proven(out);
            }
            Err(doubt) => {
                self.phase = Phase::Owner(writer);
                self.answer_proven(out);
                self.look(doubt, out);
            }
        }
    }

    /// Rebuilds the state from the log, because the state in memory includes decisions of this epoch that may not
    /// count. Claims the partition anew unless the read finds a foreign claim.
    pub(super) fn doubt(&mut self, cause: DoubtCause, out: &mut impl Effects<Reply = R>) {
        out.doubted(cause);
        self.catch_up(true, out);
    }

    pub(super) fn is_deposed(&self) -> bool {
        let foreign = |epoch: Epoch| !self.claims.contains(&epoch.nonce);
        !self.claims.is_empty() && self.memory.reader.epoch.is_some_and(foreign)
    }

    /// Answers all pending commands and becomes idle. A foreign claim ended the epoch and the log was read past it, so
    /// it is final which commands count.
    pub(super) fn step_down(&mut self, out: &mut impl Effects<Reply = R>) {
        for Pending { request, may_count, .. } in self.pending.take() {
            // The command may have counted so long ago that only the store still has its key.
            let is_forgotten = |key| self.memory.repeats.may_have_forgotten(key);
            let is_open = may_count && request.remembered_key().is_none_or(is_forgotten);
            let otherwise = if is_open { Answer::OutcomeUnknown } else { Answer::NoOwner };
            let answer = self.counted(&request).unwrap_or(otherwise);
            out.answer(request.reply, answer);
        }
        self.rest();
    }

    /// Settles pending commands once this is the owner again: answers those that count and decides the others anew. All
    /// that count come first, because a command that is decided anew enters its key before it counts.
    pub(super) fn settle_pending(&mut self, now: TimeMs, out: &mut impl Effects<Reply = R>) {
        let mut open = Vec::new();
        for Pending { request, may_count, .. } in self.pending.take() {
            match self.counted(&request).filter(|_| may_count) {
                Some(answer) => out.answer(request.reply, answer),
                None => open.push((request, may_count)),
            }
        }
        for (request, may_count) in open {
            self.take_up(request, may_count, now, out);
        }
        self.leave_if_settled();
    }

    fn counted(&self, request: &ParsedRequest<R>) -> Option<Answer> {
        let repeat = self.memory.repeats.of(request)?;
        (repeat.fingerprint == request.fingerprint).then(|| repeat.accepted(self.partition))
    }

    /// Moves the offsets expected after `proven` by `shift`, because records of other writers took some of them. The
    /// shift is an upper bound: a position that is too late makes a reader wait longer than necessary; one that is too
    /// early would be wrong.
    fn move_positions(&mut self, proven: i64, shift: i64) {
        if shift != 0 {
            self.memory.move_positions(proven, shift);
            self.pending.move_positions(proven, shift);
        }
    }
}
