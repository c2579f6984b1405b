//! How an instance comes to own the partition, and how it ceases to.

use domain::TimeMs;
use schemas::record::{Claim, Record};

use super::{ClockTrust, Effects, MAX_CLOCK_LAG_MS, Partition, Phase, ReadTo, Ticket};

impl<R> Partition<R> {
    /// Hears what time it is and how far that can be believed, before anything else of a turn. An instance whose clock is wrong
    /// lets go, for another one to decide. Returns `true` if it just did.
    pub fn look_at_clock(&mut self, clock: ClockTrust, now: TimeMs) -> bool {
        (self.clock, self.memory.now) = (clock, now);
        let lets_go = self.misjudges(now) && !self.leaving && !matches!(self.phase, Phase::Idle);
        if lets_go {
            self.let_go();
        }
        lets_go
    }

    /// Whether what is decided now would be decided at a wrong time.
    ///
    /// Where the clock is known to be right and the log is far ahead of it, it is the log that is wrong: an owner of an earlier
    /// build wrote a time that was none. No record can be taken back, so time stands still in this partition until it comes:
    /// what is opened or ended by the time happens late, and all else goes on. To wait instead would close the partition to
    /// everybody for as long.
    pub(super) fn misjudges(&self, now: TimeMs) -> bool {
        match self.clock {
            ClockTrust::Right => false,
            ClockTrust::Unknown => self.memory.last_at.0 > now.0 + MAX_CLOCK_LAG_MS,
            ClockTrust::Wrong => true,
        }
    }

    /// Reads the partition to its end and waits there: what is left to read when it takes over is short.
    pub fn prepare(&mut self, out: &mut impl Effects<Reply = R>) {
        if matches!(self.phase, Phase::Idle) && self.clock != ClockTrust::Wrong {
            self.leaving = false;
            self.claims.clear();
            self.catch_up(false, out);
        }
    }

    /// Wants to own the partition: claims it, once it has read it to its end.
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

    /// Wants the partition no more: decides nothing from here on, answers what it decided, then is idle.
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

    /// Idle, and without what only an owner needs.
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
