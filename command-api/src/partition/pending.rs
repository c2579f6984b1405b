//! Answers that wait for their proof.

use std::collections::VecDeque;

use schemas::answers::Answer;

use super::ParsedRequest;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Pending<R> {
    /// Sequence number of the record whose acknowledgement proves the answer. Never lower than that of an earlier
    /// answer.
    pub(super) needs: u64,
    /// Set if the command was sent to the log, by this record or in an earlier epoch.
    pub(super) may_count: bool,
    pub(super) answer: Answer,
    pub(super) request: ParsedRequest<R>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct PendingAnswers<R>(VecDeque<Pending<R>>);

impl<R> Default for PendingAnswers<R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<R> PendingAnswers<R> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, pending: Pending<R>) {
        debug_assert!(self.last_needed() <= pending.needs, "answers are proved in order");
        self.0.push_back(pending);
    }

    /// Returns the highest sequence number that an answer waits for; 0 if none waits.
    pub(super) fn last_needed(&self) -> u64 {
        self.0.back().map_or(0, |pending| pending.needs)
    }

    /// Returns the number of answers that wait for this record, which is the last one that any waits for.
    pub(super) fn needing(&self, seq: u64) -> usize {
        self.0.iter().rev().take_while(|pending| pending.needs == seq).count()
    }

    pub(super) fn pop_proven(&mut self, acknowledged: u64) -> Option<Pending<R>> {
        self.0.pop_front_if(|pending| pending.needs <= acknowledged)
    }

    pub(super) fn take(&mut self) -> VecDeque<Pending<R>> {
        std::mem::take(&mut self.0)
    }

    pub(super) fn move_positions(&mut self, proven: i64, shift: i64) {
        for pending in &mut self.0 {
            match &mut pending.answer {
                Answer::Accepted { position: (_, offset), .. }
                | Answer::Rejected { position: (_, offset), .. }
                | Answer::PreconditionFailed { position: (_, offset), .. } => {
                    *offset += if *offset > proven { shift } else { 0 };
                }
                Answer::KeyReused
                | Answer::KeyExpired { .. }
                | Answer::Invalid { .. }
                | Answer::NoSuchCommand
                | Answer::Overloaded { .. }
                | Answer::Quarantined
                | Answer::NoOwner
                | Answer::Misdirected
                | Answer::OutcomeUnknown => {}
            }
        }
    }
}
