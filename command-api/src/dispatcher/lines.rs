//! Batch lines that are decided and answered together.
//!
//! A future, a timer and a channel per line would cost more than its decision, so the lines of one piece of a batch
//! share them: lines that are decided in this process reach each engine in one go, and the waiting task is woken once.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use schemas::answers::Answer;
use tokio::time::timeout_at;

use super::Dispatcher;
use crate::batch_order::{BatchOrder, Route};
use crate::request::{CommandRequest, LineAnswers, LineReply, Reply, TimeLimits};

impl Dispatcher {
    /// Returns the outcomes of one batch's lines, in order. The outcome of lines unanswered at the deadline is unknown.
    pub(crate) async fn submit_lines(
        &self,
        order: &Arc<BatchOrder>,
        lines: &[&CommandRequest],
        time_limits: TimeLimits,
    ) -> Vec<Answer> {
        let answers = LineAnswers::new(lines.len());
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
                    let reply = LineReply::new(answers.clone(), index, line);
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
