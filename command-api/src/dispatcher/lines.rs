//! Batch lines that are decided and answered together.
//!
//! A future, a timer and a channel per line would cost more than its decision, so the lines of one piece of a batch
//! share them: lines that are decided in this process reach each engine in one go, and the waiting task is woken once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use schemas::answers::Answer;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::{CommandRequest, Dispatcher, Reply};
use crate::batch_order::{BatchOrder, LineInFlight, Route};
use crate::mailbox::TimeLimits;

/// The recipient of one line's answer. If dropped without an answer, the line's outcome is unknown.
#[derive(Debug)]
pub(crate) struct LineReply {
    answers: Arc<Answers>,
    index: usize,
    /// `None` once the line is answered.
    line: Option<LineInFlight>,
}

/// Answers to lines that were submitted together.
#[derive(Debug)]
struct Answers {
    slots: Mutex<Slots>,
    complete: Notify,
}

#[derive(Debug)]
struct Slots {
    answers: Vec<Option<Answer>>,
    missing: usize,
}

impl Dispatcher {
    /// Returns the outcomes of one batch's lines, in order. The outcome of lines unanswered at the deadline is unknown.
    pub(crate) async fn submit_lines(
        &self,
        order: &Arc<BatchOrder>,
        lines: &[&CommandRequest],
        time_limits: TimeLimits,
    ) -> Vec<Answer> {
        let answers = Answers::new(lines.len());
        let (mut here, mut elsewhere) = (BTreeMap::<u32, Option<Vec<_>>>::new(), FuturesUnordered::new());
        for (index, incoming) in lines.iter().enumerate() {
            let partition = self.partition_of(incoming);
            // Checked once per partition, so that all its lines take the same route.
            let requests = here.entry(partition).or_insert_with(|| self.mailbox(partition).serves().then(Vec::new));
            let Some(requests) = requests else {
                elsewhere.push(async move { (index, self.bring(partition, incoming).await) });
                continue;
            };
            match order.enter(&incoming.aggregate, Route::Here) {
                Ok(line) => {
                    let reply = LineReply { answers: answers.clone(), index, line: Some(line) };
                    requests.extend(self.read(incoming, Reply::Line(reply)));
                }
                Err(answer) => answers.put(index, answer),
            }
        }
        let put = |(partition, requests): (u32, Option<Vec<_>>)| async move {
            self.mailbox(partition).put_lines(requests.unwrap_or_default(), time_limits, lines[0].internal).await;
        };
        let mut putting: FuturesUnordered<_> = here.into_iter().map(put).collect();
        let decided = async {
            let put_all = async { while putting.next().await.is_some() {} };
            let bring_all = async {
                while let Some((index, answer)) = elsewhere.next().await {
                    answers.put(index, answer);
                }
            };
            tokio::join!(put_all, bring_all, answers.complete());
        };
        // Lines without an answer by then have an unknown outcome.
        let _ = timeout_at(time_limits.deadline, decided).await;
        let of_line = |(incoming, answer): (&&CommandRequest, Option<Answer>)| {
            let answer = match answer {
                // The engine released the partition before the line's turn.
                Some(Answer::Misdirected) => Answer::NoOwner,
                Some(answer) => answer,
                None => {
                    order.refuse(&incoming.aggregate);
                    Answer::OutcomeUnknown
                }
            };
            self.outages[self.partition_of(incoming) as usize].heard(answer)
        };
        lines.iter().zip(answers.take()).map(of_line).collect()
    }
}

impl LineReply {
    pub(super) fn is_refused(&self) -> bool {
        self.line.as_ref().is_some_and(LineInFlight::is_refused)
    }

    pub(super) fn send(mut self, answer: Answer) {
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

impl Answers {
    fn new(lines: usize) -> Arc<Self> {
        let slots = Slots { answers: (0..lines).map(|_| None).collect(), missing: lines };
        Arc::new(Self { slots: Mutex::new(slots), complete: Notify::new() })
    }

    fn put(&self, index: usize, answer: Answer) {
        let mut slots = self.slots();
        slots.answers[index] = Some(answer);
        slots.missing -= 1;
        if slots.missing == 0 {
            self.complete.notify_one();
        }
    }

    /// Waits until no answer is missing.
    async fn complete(&self) {
        if self.slots().missing > 0 {
            self.complete.notified().await;
        }
    }

    /// Takes the answers; `None` for each line that has none yet.
    fn take(&self) -> Vec<Option<Answer>> {
        self.slots().answers.iter_mut().map(Option::take).collect()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
