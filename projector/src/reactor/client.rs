//! Client of command-api's internal listeners, which sends commands in batches.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chassis::clock::since_epoch;
use chassis::env::Tokens;
use chassis::exit::Misuse;
use chassis::tls;
use domain::TimeMs;
use domain::reactions::Step;
use futures_util::StreamExt as _;
use reqwest::Client;
use reqwest::header::HeaderMap;
use schemas::aggregate::route_name;
use schemas::commands::encode;
use schemas::headers::{SERVER_TIME, UNTIL};
use schemas::idempotency::IdempotencyKey;
use schemas::problem::ProblemKind;
use serde::{Deserialize, Serialize};

use super::sagas::Saga;
use crate::config::Config;

const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Time after which command-api leaves a command undecided, because its sender may have stopped and another may have
/// sent it again.
const DECIDED_WITHIN: Duration = Duration::from_secs(3);
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Prefix of problem types.
const PROBLEMS: &str = "/problems/";
/// Prefix of the types of events that confirm an order, in any version.
const CONFIRMED: &str = "order.confirmed.";

/// Answer to a step. Only a final answer about this very step ends its saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    /// The command was accepted. `is_confirmed`: it confirmed the order that it was sent to.
    Accepted { is_confirmed: bool },
    /// Rejected by the rule of this name, which is a regular outcome.
    Rejected(String),
    /// Refused for now: too much waits for the aggregate or its partition.
    Later,
    /// Not decided, or unknown: the partition, or all of command-api, is unavailable.
    Away,
    /// Refused until an operator has examined the aggregate, whose rules panicked.
    Quarantined(String),
    /// Refused for good by this build of command-api.
    Refused(String),
}

impl Answered {
    /// Returns the answer's outcome in the metrics.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Rejected(_) => "rejected",
            Self::Later | Self::Away => "later",
            Self::Refused(_) | Self::Quarantined(_) => "refused",
        }
    }
}

pub(crate) struct CommandClient {
    client: Client,
    urls: Vec<Url>,
    token: Tokens,
    /// Index of the URL to use: the one that answered last.
    preferred: AtomicUsize,
    /// Set while an outage has been logged and has not ended.
    has_complained: AtomicBool,
}

struct Url {
    url: String,
    /// Time in the last answer, and when that answer arrived.
    clock: Mutex<Option<(Duration, Instant)>>,
}

#[derive(Serialize)]
struct Line<'a> {
    aggregate: &'a str,
    id: &'a str,
    command: &'a str,
    data: &'a serde_json::value::RawValue,
    key: &'a str,
    cause: &'a str,
}

#[derive(Deserialize)]
struct LineAnswer {
    status: u16,
    /// Types of the events that the command made.
    #[serde(default)]
    events: Vec<String>,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    detail: String,
    rejection: Option<String>,
}

impl CommandClient {
    /// Returns `None` if no URLs are configured: this process then does not react to events.
    pub(crate) fn of(config: &Config) -> anyhow::Result<Option<Self>> {
        if config.command_urls.is_empty() {
            return Ok(None);
        }
        let token = config.service_token.clone();
        let token = token.ok_or_else(|| Misuse::new("REACTOR_COMMAND_URLS requires SERVICE_TOKEN"))?;
        // Without proxies and redirects the token reaches the configured URLs only.
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let is_secure = config.command_urls.iter().any(|url| url.starts_with("https://"));
        let tls = if is_secure {
            tls::client(config.ca_file.as_deref()).map_err(Misuse::new)?
        } else {
            tls::trusting_nobody()
        };
        let client = client.tls_backend_preconfigured(tls.as_ref().clone());
        let client = client.connect_timeout(CONNECT_WITHIN).timeout(ANSWERED_WITHIN).build()?;
        let urls = config.command_urls.iter().map(|url| Url { url: url.clone(), clock: Mutex::default() }).collect();
        let preferred = AtomicUsize::new(0);
        Ok(Some(Self { client, urls, token, preferred, has_complained: AtomicBool::new(false) }))
    }

    /// Sends steps in one request and returns their answers in order. Steps to one aggregate are decided in that order.
    pub(super) async fn send<'a>(&self, sagas: impl ExactSizeIterator<Item = &'a Saga> + Clone) -> Vec<Answered> {
        let count = sagas.len();
        let mut answers = match self.post_to_any(sagas).await {
            Ok(answers) => {
                if self.has_complained.swap(false, Ordering::Relaxed) {
                    tracing::info!("command-api available again");
                }
                answers
            }
            Err(error) => {
                if !self.has_complained.swap(true, Ordering::Relaxed) {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "command-api unavailable; reactions are delayed");
                }
                Vec::new()
            }
        };
        answers.resize(count, Answered::Away);
        answers
    }

    /// Sends one request to the preferred address. Passes over addresses that refuse the connection at once: there may
    /// be more addresses than instances.
    async fn post_to_any<'a>(
        &self,
        sagas: impl ExactSizeIterator<Item = &'a Saga> + Clone,
    ) -> anyhow::Result<Vec<Answered>> {
        let mut refusing = 0;
        loop {
            let index = self.preferred.load(Ordering::Relaxed) % self.urls.len();
            let error = match self.post(&self.urls[index], sagas.clone()).await {
                Ok(answers) => return Ok(answers),
                Err(error) => error,
            };
            self.preferred.store(index + 1, Ordering::Relaxed);
            refusing += 1;
            if !refuses(&error) || refusing == self.urls.len() {
                return Err(error);
            }
        }
    }

    /// Sends one request. Returns the answers that arrived before the connection broke.
    async fn post<'a>(
        &self,
        url: &Url,
        sagas: impl ExactSizeIterator<Item = &'a Saga>,
    ) -> anyhow::Result<Vec<Answered>> {
        let mut answers = Vec::with_capacity(sagas.len());
        let mut body = Vec::with_capacity(sagas.len() * 200);
        for saga in sagas {
            write_line(&mut body, saga)?;
        }
        let until = url.time() + DECIDED_WITHIN;
        let request = self.client.post(format!("{}/v1/commands", url.url)).bearer_auth(self.token.sent().expose());
        let request =
            request.header("content-type", "application/x-ndjson").header(UNTIL.lower, until.as_millis().to_string());
        let response = request.body(body).send().await?;
        url.note_time(response.headers());
        let response = response.error_for_status()?;
        let mut rest = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let Ok(chunk) = chunk else { break };
            rest.extend_from_slice(&chunk);
            let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            for line in rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                answers.push(serde_json::from_slice::<LineAnswer>(line).context("decode an answer")?.into());
            }
            rest.drain(..end);
        }
        Ok(answers)
    }
}

impl Url {
    /// Returns the time of the server's clock or slightly less, so that no command is decided too late. Until the
    /// server has sent its time, returns that of this host.
    fn time(&self) -> Duration {
        let known = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        match known {
            // The server read its clock before the answer arrived, so this is never ahead.
            Some((told, came)) => told + came.elapsed(),
            None => since_epoch(),
        }
    }

    fn note_time(&self, headers: &HeaderMap) {
        let told = headers.get(SERVER_TIME.lower).and_then(|told| told.to_str().ok()?.parse().ok());
        if let Some(told) = told.map(Duration::from_millis) {
            *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some((told, Instant::now()));
        }
    }
}

/// Returns whether nobody listens at the address of a failed request.
fn refuses(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(|error| error.is_connect() && !error.is_timeout())
}

fn write_line(body: &mut Vec<u8>, saga: &Saga) -> anyhow::Result<()> {
    let (aggregate, id, command) = saga.step.command();
    let (command, data) = encode(&command);
    let key = key(&saga.step, saga.at);
    let line = Line {
        aggregate: route_name(aggregate),
        id,
        command,
        data: &serde_json::value::RawValue::from_string(data)?,
        key: key.as_str(),
        cause: &saga.cause,
    };
    serde_json::to_writer(&mut *body, &line)?;
    body.push(b'\n');
    Ok(())
}

/// Derives the idempotency key from the step itself, so that a step that was sent twice has one key in the log.
fn key(step: &Step, at: TimeMs) -> IdempotencyKey {
    IdempotencyKey::from_dedup_key(at, &step.dedup_key())
}

impl From<LineAnswer> for Answered {
    fn from(answer: LineAnswer) -> Self {
        let reason = format!("{} {}: {}", answer.status, answer.r#type, answer.detail);
        let known = ProblemKind::ALL.into_iter().find(|kind| answer.r#type.strip_prefix(PROBLEMS) == Some(kind.slug()));
        let kind = match (answer.status, known) {
            (200, _) => {
                let is_confirmed = answer.events.iter().any(|event| event.starts_with(CONFIRMED));
                return Self::Accepted { is_confirmed };
            }
            (_, Some(kind)) => kind,
            // Request Timeout and Too Early.
            (408 | 425, None) => ProblemKind::Unavailable,
            (status, None) => ProblemKind::of_status(status),
        };
        match kind {
            ProblemKind::Rejected => answer.rejection.map_or(Self::Refused(reason), Self::Rejected),
            ProblemKind::Quarantined => Self::Quarantined(reason),
            ProblemKind::InvalidRequest
            | ProblemKind::TokenAhead
            | ProblemKind::NotFound
            | ProblemKind::MethodNotAllowed
            | ProblemKind::KeyExpired
            | ProblemKind::PreconditionFailed
            | ProblemKind::TooLarge
            | ProblemKind::UnsupportedMediaType
            | ProblemKind::KeyReused => Self::Refused(reason),
            ProblemKind::Overloaded | ProblemKind::RateLimited => Self::Later,
            // Caused by a wrong setting, a missing owner or a transient fault.
            ProblemKind::Unauthenticated
            | ProblemKind::Forbidden
            | ProblemKind::Misdirected
            | ProblemKind::Internal
            | ProblemKind::NotYet
            | ProblemKind::Parked
            | ProblemKind::NoOwner
            | ProblemKind::OutcomeUnknown
            | ProblemKind::Unavailable => Self::Away,
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::ids::{OrderId, ProductId};
    use domain::{Rejection, product};
    use schemas::answers::Answer;

    use super::*;

    fn answered(json: &str) -> Answered {
        serde_json::from_str::<LineAnswer>(json).unwrap().into()
    }

    /// Returns every answer that command-api can give.
    fn every_answer() -> [Answer; 12] {
        let (version, position) = (1, (0, 0));
        let all = [
            Answer::Accepted { version, events: vec![], position, replayed: false, order: None },
            Answer::rejected(&Rejection::Product(product::Rejection::OutOfStock), "on_sale", version, position),
            Answer::PreconditionFailed { version, position },
            Answer::KeyReused,
            Answer::KeyExpired { detail: "why".into() },
            Answer::Invalid { detail: "why".into() },
            Answer::NoSuchCommand,
            Answer::Overloaded { detail: "why".into() },
            Answer::Quarantined,
            Answer::NoOwner,
            Answer::Misdirected,
            Answer::OutcomeUnknown,
        ];
        // A new variant does not compile here: add it to the list above.
        match &all[0] {
            Answer::Accepted { .. } | Answer::Rejected { .. } | Answer::PreconditionFailed { .. } => {}
            Answer::KeyReused | Answer::KeyExpired { .. } | Answer::Invalid { .. } | Answer::NoSuchCommand => {}
            Answer::Overloaded { .. } | Answer::Quarantined | Answer::NoOwner => {}
            Answer::Misdirected | Answer::OutcomeUnknown => {}
        }
        all
    }

    fn ends_its_saga(answered: &Answered) -> bool {
        matches!(answered, Answered::Quarantined(_) | Answered::Refused(_))
    }

    #[test]
    fn only_a_final_answer_about_the_step_ends_its_saga() {
        for answer in every_answer() {
            let line = answer.problem().map_or(r#"{"status":200,"id":"a"}"#.into(), |problem| problem.to_json());
            let answered = answered(&String::from_utf8(line).unwrap());
            let is_right = match answer {
                Answer::Accepted { .. } => matches!(answered, Answered::Accepted { .. }),
                Answer::Rejected { .. } => answered == Answered::Rejected("out_of_stock".to_owned()),
                Answer::Quarantined => matches!(answered, Answered::Quarantined(_)),
                Answer::Overloaded { .. } => answered == Answered::Later,
                Answer::NoOwner | Answer::Misdirected | Answer::OutcomeUnknown => answered == Answered::Away,
                Answer::PreconditionFailed { .. } | Answer::KeyReused | Answer::KeyExpired { .. } => {
                    ends_its_saga(&answered)
                }
                Answer::Invalid { .. } | Answer::NoSuchCommand => ends_its_saga(&answered),
            };
            assert!(is_right, "{answer:?}: {answered:?}");
        }
    }

    #[test]
    fn no_problem_of_an_outage_overload_or_setting_ends_a_saga_in_any_build() {
        let of = |status: u16, slug: &str| {
            answered(&format!(r#"{{"status":{status},"type":"/problems/{slug}","detail":"why"}}"#))
        };
        for kind in ProblemKind::ALL {
            let answered = of(kind.status(), kind.slug());
            let is_final = match kind.status() {
                503 => kind == ProblemKind::Quarantined,
                401 | 403 | 421 | 429 | 500.. => false,
                _ => true,
            };
            assert_eq!(ends_its_saga(&answered), is_final, "{kind:?}: {answered:?}");
        }
        for status in (100..200).chain(300..600) {
            let answered = of(status, "of-another-build");
            let is_final = (400..500).contains(&status) && ![401, 403, 408, 421, 425, 429].contains(&status);
            assert_eq!(ends_its_saga(&answered), is_final, "{status}: {answered:?}");
        }
    }

    #[test]
    fn the_end_of_a_batch_is_a_time_of_the_deciding_servers_clock() {
        let url = Url { url: String::new(), clock: Mutex::default() };
        let told = Duration::from_secs(1_000_000);
        assert!(url.time() > told, "the host's clock applies until the server has sent its time");
        url.note_time(&HeaderMap::from_iter([(SERVER_TIME.lower.parse().unwrap(), "1000000000".parse().unwrap())]));
        let (known, soon) = (url.time(), told + Duration::from_secs(60));
        assert!(known >= told && known < soon, "{known:?}");
        url.note_time(&HeaderMap::new());
        assert!(url.time() >= known, "an older build sends no time");
    }

    #[test]
    fn a_step_has_the_same_key_whenever_it_is_taken() {
        let reserve = |order: &str| Step::Reserve {
            product: ProductId("cd".into()),
            order: OrderId(order.into()),
            quantity: 1,
            amount_cents: 500,
        };
        let at = TimeMs(1_790_000_000_000);
        assert_eq!(key(&reserve("o"), at), key(&reserve("o"), at));
        assert_ne!(key(&reserve("o"), at), key(&reserve("p"), at));
        assert_eq!(key(&reserve("o"), at).time(), Some(at));
    }
}
