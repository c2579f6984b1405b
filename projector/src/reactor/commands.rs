//! Commands in batches to command-api's internal listeners.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use chassis::env::Secret;
use domain::TimeMs;
use domain::reactions::Step;
use futures_util::StreamExt as _;
use reqwest::Client;
use schemas::aggregate::route_name;
use schemas::commands::{UNTIL, encode};
use schemas::idempotency::IdempotencyKey;
use serde::{Deserialize, Serialize};

use super::chains::Chain;
use crate::config::Config;

const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// What command-api has not decided by then it leaves: whoever asked may be gone, and somebody else have asked again.
const DECIDED_WITHIN: Duration = Duration::from_secs(3);
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    Accepted,
    /// By a rule, of this name: an outcome like any other.
    Rejected(String),
    /// Not now.
    Later,
    /// Not now, or nobody knows: the partition, or all of command-api, is away.
    Away,
    /// Its rules panicked: not until somebody looked at the aggregate.
    Quarantined(String),
    /// Never.
    Refused(String),
}

pub(crate) struct Commands {
    client: Client,
    urls: Vec<String>,
    token: Secret,
    /// The one that answered last.
    preferred: AtomicUsize,
    /// It was told that command-api takes nothing.
    has_complained: AtomicBool,
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
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    detail: String,
    rejection: Option<String>,
}

impl Commands {
    /// `None`: this process is to leave it to others.
    pub(crate) fn of(config: &Config) -> anyhow::Result<Option<Self>> {
        if config.command_urls.is_empty() {
            return Ok(None);
        }
        let token = config.service_token.clone().context("REACTOR_COMMAND_URLS needs the SERVICE_TOKEN, too")?;
        // The token goes where the setting says, and nowhere else.
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = client.connect_timeout(CONNECT_WITHIN).timeout(ANSWERED_WITHIN).build()?;
        let (urls, preferred) = (config.command_urls.clone(), AtomicUsize::new(0));
        Ok(Some(Self { client, urls, token, preferred, has_complained: AtomicBool::new(false) }))
    }

    /// In one request, and answered in their order. Those for one aggregate are decided in it.
    pub(super) async fn send<'a>(&self, chains: impl ExactSizeIterator<Item = &'a Chain> + Clone) -> Vec<Answered> {
        let index = self.preferred.load(Ordering::Relaxed) % self.urls.len();
        let count = chains.len();
        let mut answers = match self.post(&self.urls[index], chains).await {
            Ok(answers) => {
                if self.has_complained.swap(false, Ordering::Relaxed) {
                    tracing::info!("command-api takes what events cause again");
                }
                answers
            }
            Err(error) => {
                self.preferred.store(index + 1, Ordering::Relaxed);
                if !self.has_complained.swap(true, Ordering::Relaxed) {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "command-api takes nothing; what events cause waits for it");
                }
                Vec::new()
            }
        };
        answers.resize(count, Answered::Away);
        answers
    }

    /// As many answers as came before the connection broke.
    async fn post<'a>(
        &self,
        url: &str,
        chains: impl ExactSizeIterator<Item = &'a Chain>,
    ) -> anyhow::Result<Vec<Answered>> {
        let mut answers = Vec::with_capacity(chains.len());
        let mut body = Vec::with_capacity(chains.len() * 200);
        for chain in chains {
            write_line(&mut body, chain)?;
        }
        let until = SystemTime::now().duration_since(UNIX_EPOCH)? + DECIDED_WITHIN;
        let request = self.client.post(format!("{url}/v1/commands")).bearer_auth(self.token.expose());
        let request =
            request.header("content-type", "application/x-ndjson").header(UNTIL, until.as_millis().to_string());
        let response = request.body(body).send().await?;
        let response = response.error_for_status()?;
        let mut rest = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let Ok(chunk) = chunk else { break };
            rest.extend_from_slice(&chunk);
            let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            for line in rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                answers.push(serde_json::from_slice::<LineAnswer>(line).context("read an answer")?.into());
            }
            rest.drain(..end);
        }
        Ok(answers)
    }
}

fn write_line(body: &mut Vec<u8>, chain: &Chain) -> anyhow::Result<()> {
    let (aggregate, id, command) = chain.step.command();
    let (command, data) = encode(&command);
    let key = key(&chain.step, chain.at);
    let line = Line {
        aggregate: route_name(aggregate),
        id,
        command,
        data: &serde_json::value::RawValue::from_string(data)?,
        key: key.as_str(),
        cause: &chain.cause,
    };
    serde_json::to_writer(&mut *body, &line)?;
    body.push(b'\n');
    Ok(())
}

/// By nature: what the log shows of the same step taken twice has the same name.
fn key(step: &Step, at: TimeMs) -> IdempotencyKey {
    IdempotencyKey::by_nature(at, &step.nature())
}

impl From<LineAnswer> for Answered {
    fn from(answer: LineAnswer) -> Self {
        let reason = format!("{} {}: {}", answer.status, answer.r#type, answer.detail);
        match (answer.status, answer.rejection) {
            (200, _) => Self::Accepted,
            (422, Some(rejection)) => Self::Rejected(rejection),
            (503, _) if answer.r#type.ends_with("quarantined") => Self::Quarantined(reason),
            (503, _) if answer.r#type.ends_with("overloaded") => Self::Later,
            (503, _) => Self::Away,
            _ => Self::Refused(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::ids::{OrderId, ProductId};

    use super::*;

    fn answered(json: &str) -> Answered {
        serde_json::from_str::<LineAnswer>(json).unwrap().into()
    }

    #[test]
    fn a_rule_answers_an_outage_waits_and_nonsense_is_refused() {
        assert_eq!(answered(r#"{"status":200,"id":"a","events":[]}"#), Answered::Accepted);
        let rejected = r#"{"status":422,"type":"/problems/rejected","rejection":"out_of_stock"}"#;
        assert_eq!(answered(rejected), Answered::Rejected("out_of_stock".to_owned()));
        assert_eq!(answered(r#"{"status":503,"type":"/problems/overloaded"}"#), Answered::Later);
        assert_eq!(answered(r#"{"status":503,"type":"/problems/no-owner"}"#), Answered::Away);
        for status in [400, 404, 409, 422] {
            let refused = format!(r#"{{"status":{status},"type":"/problems/x","detail":"why"}}"#);
            assert_eq!(answered(&refused), Answered::Refused(format!("{status} /problems/x: why")));
        }
        let quarantined = r#"{"status":503,"type":"/problems/quarantined","detail":"why"}"#;
        assert_eq!(answered(quarantined), Answered::Quarantined("503 /problems/quarantined: why".to_owned()));
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
