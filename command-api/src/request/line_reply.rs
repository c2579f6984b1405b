//! Recipients of the answers to lines of a batch that were submitted together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::answers::Answer;
use tokio::sync::Notify;

use crate::batch_order::LineInFlight;

/// The recipient of one line's answer. If dropped without an answer, the line's outcome is unknown.
#[derive(Debug)]
pub(crate) struct LineReply {
    answers: Arc<LineAnswers>,
    index: usize,
    /// `None` once the line is answered.
    line: Option<LineInFlight>,
}

/// Answers to lines that were submitted together.
#[derive(Debug)]
pub(crate) struct LineAnswers {
    slots: Mutex<Slots>,
    complete: Notify,
}

#[derive(Debug)]
struct Slots {
    answers: Vec<Option<Answer>>,
    missing: usize,
}

impl LineReply {
    /// Creates the recipient of the answer to the line at `index`.
    pub(crate) fn new(answers: Arc<LineAnswers>, index: usize, line: LineInFlight) -> Self {
        Self { answers, index, line: Some(line) }
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.line.as_ref().is_some_and(LineInFlight::is_refused)
    }

    pub(crate) fn send(mut self, answer: Answer) {
        self.answer(answer);
    }

    /// Updates the order of the batch before it stores the answer.
    fn answer(&mut self, answer: Answer) {
        let Some(line) = self.line.take() else { return };
        line.end(answer.is_unavailable());
        self.answers.put(self.index, answer);
    }
}

impl Drop for LineReply {
    fn drop(&mut self) {
        self.answer(Answer::OutcomeUnknown);
    }
}

impl LineAnswers {
    pub(crate) fn new(lines: usize) -> Arc<Self> {
        let slots = Slots { answers: (0..lines).map(|_| None).collect(), missing: lines };
        Arc::new(Self { slots: Mutex::new(slots), complete: Notify::new() })
    }

    pub(crate) fn put(&self, index: usize, answer: Answer) {
        let mut slots = self.slots();
        slots.answers[index] = Some(answer);
        slots.missing -= 1;
        if slots.missing == 0 {
            self.complete.notify_one();
        }
    }

    /// Waits until no answer is missing.
    pub(crate) async fn complete(&self) {
        if self.slots().missing > 0 {
            self.complete.notified().await;
        }
    }

    /// Takes the answers; `None` for each line that has none yet.
    pub(crate) fn take(&self) -> Vec<Option<Answer>> {
        self.slots().answers.iter_mut().map(Option::take).collect()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
