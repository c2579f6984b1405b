//! Server side of a link: decides the commands that a peer forwards.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt as _, StreamExt as _};
use schemas::aggregate::AggregateId;
use schemas::answers::Answer;
use schemas::idempotency::IdempotencyKey;
use tokio::time::Instant;

use super::delay::Delays;
use super::{Answered, Forwarded, FromOwner, MAX_IN_FLIGHT, MAX_MESSAGE_COMMANDS, MAX_SENT_BYTES, ToOwner};
use crate::batch_order::LinkBatches;
use crate::dispatcher::Dispatcher;
use crate::request::{CommandRequest, TimeLimits};

/// Serves a link until the peer closes it or sends an undecodable message.
pub(crate) async fn serve(socket: WebSocket, dispatcher: Arc<Dispatcher>) {
    let mut delays = Delays::new();
    let (mut sink, mut stream) = socket.split();
    // Ready answers are sent together. The set polls its futures in the order of their arrival, and the first poll of
    // each puts its command into the mailbox, so commands are decided in the order of the link.
    let mut deciding = FuturesUnordered::new();
    let mut letting_go = FuturesUnordered::new();
    let mut batches = LinkBatches::default();
    loop {
        tokio::select! {
            message = stream.next(), if deciding.len() < MAX_IN_FLIGHT => match message {
                Some(Ok(Message::Binary(bytes))) => match postcard::from_bytes(&bytes) {
                    Ok(ToOwner::Decide { sent_us, commands }) => {
                        let late = Duration::from_micros(delays.of(sent_us));
                        let decided = incoming(commands, late, &mut batches);
                        deciding.extend(decided.map(|(id, incoming)| decide(id, incoming, dispatcher.clone())));
                    }
                    Ok(ToOwner::LetGo { id, partition }) => letting_go.push(let_go(id, partition, dispatcher.clone())),
                    Err(error) => {
                        tracing::error!(error = %error, "cannot decode a peer's message; closing the link");
                        return;
                    }
                },
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            Some(first) = deciding.next() => {
                // The engine has usually answered several, and answers more in a moment.
                tokio::task::yield_now().await;
                let mut answers = vec![first];
                while answers.len() < MAX_MESSAGE_COMMANDS {
                    let Some(Some(next)) = futures_util::FutureExt::now_or_never(deciding.next()) else { break };
                    answers.push(next);
                }
                for message in messages(answers) {
                    if sink.feed(message).await.is_err() {
                        return;
                    }
                }
                if sink.flush().await.is_err() {
                    return;
                }
            }
            Some(id) = letting_go.next() => if sink.send(Message::Binary(encode(&FromOwner::Gone { id }))).await.is_err() {
                return;
            },
        }
    }
}

async fn decide(id: u64, incoming: Result<CommandRequest, Answer>, dispatcher: Arc<Dispatcher>) -> Answered {
    let answer = match incoming {
        Ok(incoming) => dispatcher.submit_forwarded(&incoming).await,
        Err(answer) => answer,
    };
    Answered { id, answer }
}

async fn let_go(id: u64, partition: u32, dispatcher: Arc<Dispatcher>) -> u64 {
    dispatcher.let_go(partition).await;
    id
}

/// Encodes answers, in order, in as many messages as their size requires: usually one.
fn messages(answers: Vec<Answered>) -> Vec<Message> {
    let count = answers.len();
    let mut answers = FromOwner::Answers(answers);
    let whole = encode(&answers);
    let bytes = whole.len();
    if bytes <= MAX_SENT_BYTES {
        return vec![Message::Binary(whole)];
    }
    match &mut answers {
        FromOwner::Answers(answers) if count > 1 => {
            let later = answers.split_off(count / 2);
            let mut all = messages(std::mem::take(answers));
            all.extend(messages(later));
            all
        }
        // Only this command loses its answer, which a retry gets, instead of every command on the link.
        FromOwner::Answers(answers) => {
            tracing::error!(bytes, "an answer is too large for the link to a peer; its outcome is reported as unknown");
            let unknown = |answer: &Answered| Answered { id: answer.id, answer: Answer::OutcomeUnknown };
            vec![Message::Binary(encode(&FromOwner::Answers(answers.iter().map(unknown).collect())))]
        }
        FromOwner::Gone { .. } => vec![Message::Binary(whole)],
    }
}

fn encode(message: &FromOwner) -> Bytes {
    postcard::to_allocvec(message).expect("a message can be represented in postcard").into()
}

/// Converts a peer's commands, whose message was delayed by `late`. An error is the answer to a command that cannot be
/// decided.
fn incoming<'a>(
    forwarded: Vec<Forwarded<'a>>,
    late: Duration,
    batches: &'a mut LinkBatches,
) -> impl Iterator<Item = (u64, Result<CommandRequest, Answer>)> {
    let instant = Instant::now();
    let mut incoming = move |command: &Forwarded<'_>| {
        let malformed = || Answer::Invalid { detail: "malformed aggregate name or key".to_owned() };
        let deadline = instant + Duration::from_millis(command.left_ms).saturating_sub(late);
        let too_many = || Answer::Overloaded { detail: "too many batches in flight on this link".into() };
        let order = command.batch.map(|batch| batches.order(batch, deadline).ok_or_else(too_many)).transpose()?;
        Ok(CommandRequest {
            aggregate: AggregateId::parse(command.aggregate).map_err(|_| malformed())?,
            command: command.command.into(),
            body: Bytes::copy_from_slice(command.body),
            key: IdempotencyKey::from_bare(command.key).map_err(|_| malformed())?,
            precondition: command.precondition,
            trace: command.trace.map(Box::from),
            cause: command.cause.map(Box::from),
            internal: command.internal,
            time_limits: TimeLimits { in_mailbox: Duration::from_millis(command.in_mailbox_ms), deadline },
            order,
        })
    };
    forwarded.into_iter().map(move |command| (command.id, incoming(&command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(id: u64, bytes: usize) -> Answered {
        Answered { id, answer: Answer::Invalid { detail: "x".repeat(bytes) } }
    }

    fn answered(messages: &[Message]) -> Vec<(u64, bool)> {
        let read = |message: &Message| match message {
            Message::Binary(bytes) if bytes.len() <= MAX_SENT_BYTES => match postcard::from_bytes(bytes).unwrap() {
                FromOwner::Answers(answers) => answers,
                FromOwner::Gone { .. } => panic!("no release was requested"),
            },
            other => panic!("{} bytes in one message", other.clone().into_data().len()),
        };
        let all = messages.iter().flat_map(read);
        all.map(|Answered { id, answer }| (id, matches!(answer, Answer::Invalid { .. }))).collect()
    }

    #[test]
    fn large_answers_go_in_several_messages_in_order() {
        let answers = messages((0..256).map(|id| invalid(id, 100_000)).collect());
        assert!(answers.len() > 1);
        assert_eq!(answered(&answers), (0..256).map(|id| (id, true)).collect::<Vec<_>>());
    }

    #[test]
    fn an_answer_too_large_for_a_message_costs_no_other_command_its_answer() {
        let answers = messages(vec![invalid(0, 1), invalid(1, MAX_SENT_BYTES), invalid(2, 1)]);
        assert_eq!(answered(&answers), [(0, true), (1, false), (2, true)]);
    }
}
