//! How an instance comes to own the partition, and how it ceases to.

use schemas::record::{Claim, Record};

use super::{Outside, Partition, Phase, ReadTo, Ticket};

impl<R> Partition<R> {
    /// Reads the partition to its end and waits there: what is left to read when it takes over is short.
    pub fn prepare(&mut self, out: &mut impl Outside<Reply = R>) {
        if matches!(self.phase, Phase::Idle) {
            self.leaving = false;
            self.claims.clear();
            self.catch_up(false, out);
        }
    }

    /// Wants to own the partition: claims it, once it has read it to its end.
    pub fn take_over(&mut self, out: &mut impl Outside<Reply = R>) {
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

    pub(super) fn catch_up(&mut self, then_claim: bool, out: &mut impl Outside<Reply = R>) {
        self.memory.restart(self.checkpoint.as_ref());
        self.phase = Phase::CatchingUp { then_claim };
        out.read(self.memory.from(), ReadTo::End);
    }

    pub(super) fn claim(&mut self, out: &mut impl Outside<Reply = R>) {
        let nonce = out.nonce();
        self.claims.push(nonce);
        self.generation = self.generation.wrapping_add(1);
        self.phase = Phase::Claiming { nonce, sent: false };
        self.send_claim(out);
    }

    pub(super) fn send_claim(&mut self, out: &mut impl Outside<Reply = R>) {
        let Phase::Claiming { nonce, sent } = &mut self.phase else { return };
        self.buffer.clear();
        let (nonce, url) = (*nonce, self.url.as_str().into());
        Record::Claim(Claim { nonce, url, partitions: Some(self.memory.partitions) }).encode(&mut self.buffer);
        *sent = out.append("", &self.buffer, Ticket { generation: self.generation, seq: 0 }).is_ok();
    }
}
