//! The lifecycle of ownership: preparing, claiming and releasing a partition.

use domain::TimeMs;
use schemas::record::{Claim, Record};

use super::{ClockTrust, Effects, HaltError, MAX_CLOCK_LAG_MS, Partition, Phase, ReadTo, Ticket};

impl<R> Partition<R> {
    /// Sets the time and the trust in this instance's clock; called first in every turn. An instance with a wrong clock
    /// releases the partition, so that another one decides. Returns `true` if this call released it.
    pub fn look_at_clock(&mut self, clock: ClockTrust, now: TimeMs) -> bool {
        (self.clock, self.memory.now) = (clock, now);
        let lets_go = self.misjudges(now) && !self.leaving && !matches!(self.phase, Phase::Idle);
        if lets_go {
            self.let_go();
        }
        lets_go
    }

    /// Returns whether a decision made now would carry a wrong time.
    ///
    /// If the clock is known to be right and the log is far ahead of it, the log is wrong: an owner running an earlier
    /// build wrote an invalid time. Records cannot be retracted, so time in this partition does not advance until the
    /// clock has caught up: anything that opens or expires by time is late, and everything else continues. Waiting
    /// instead would make the partition unavailable for as long.
    pub(super) fn misjudges(&self, now: TimeMs) -> bool {
        match self.clock {
            ClockTrust::Right => false,
            ClockTrust::Unknown => self.memory.last_at.0 > now.0 + MAX_CLOCK_LAG_MS,
            ClockTrust::Wrong => true,
        }
    }

    /// Reads the partition to its end and waits there, so that little is left to read when it takes over.
    pub fn prepare(&mut self, out: &mut impl Effects<Reply = R>) {
        if matches!(self.phase, Phase::Idle) && self.clock != ClockTrust::Wrong {
            self.leaving = false;
            self.claims.clear();
            self.catch_up(false, out);
        }
    }

    /// Claims the partition once it has been read to its end.
    pub fn take_over(&mut self, out: &mut impl Effects<Reply = R>) {
        self.prepare(out);
        match &mut self.phase {
            Phase::CatchingUp { then_claim } => *then_claim = true,
            Phase::Prepared => self.claim(out),
            Phase::Idle
            | Phase::Claiming { .. }
            | Phase::ReadingBack { .. }
            | Phase::Owner(_)
            | Phase::Looking { .. } => {}
        }
    }

    /// Releases the partition: decides nothing more, answers the commands already decided, then becomes idle.
    pub fn let_go(&mut self) {
        match self.phase {
            Phase::Idle => {}
            Phase::CatchingUp { .. } | Phase::Prepared if self.claims.is_empty() => self.rest(),
            _ => {
                self.leaving = true;
                self.leave_if_settled();
            }
        }
    }

    /// Ends for good, because the partition is closed; a claim sent behind the closing one does not count either. Always
    /// fails, with the reason.
    pub(super) fn end(&mut self, out: &mut impl Effects<Reply = R>) -> Result<(), HaltError> {
        let offset = self.memory.reader.last_counted;
        self.step_down(out);
        self.dismiss_parked(out);
        Err(HaltError::Closed { offset })
    }

    /// Becomes idle and drops the state that only an owner needs.
    pub(super) fn rest(&mut self) {
        self.leaving = false;
        self.phase = Phase::Idle;
        self.memory.restart(None);
    }

    pub(super) fn catch_up(&mut self, then_claim: bool, out: &mut impl Effects<Reply = R>) {
        self.memory.restart(self.checkpoint.as_ref());
        self.phase = Phase::CatchingUp { then_claim };
        out.read(self.memory.from(), ReadTo::End);
    }

    pub(super) fn claim(&mut self, out: &mut impl Effects<Reply = R>) {
        let nonce = out.nonce();
        self.claims.push(nonce);
        self.generation = self.generation.wrapping_add(1);
        self.phase = Phase::Claiming { nonce, sent: false };
        self.send_claim(out);
    }

    pub(super) fn send_claim(&mut self, out: &mut impl Effects<Reply = R>) {
        let Phase::Claiming { nonce, sent } = &mut self.phase else { return };
        self.buffer.clear();
        let (nonce, url) = (*nonce, self.url.as_str().into());
        Record::Claim(Claim { nonce, url, partitions: Some(self.memory.partitions) }).encode(&mut self.buffer);
        *sent = out.append("", &self.buffer, Ticket { generation: self.generation, seq: 0 }).is_ok();
    }
}
