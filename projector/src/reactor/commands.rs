//! Commands in batches to command-api's internal listeners.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use chassis::env::Secret;
use domain::TimeMs;
use domain::reactions::Step;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use reqwest::Client;
use schemas::aggregate::route_name;
use schemas::commands::encode;
use schemas::idempotency::IdempotencyKey;
use serde::{Deserialize, Serialize};

use super::chains::Chain;
use crate::config::Config;

/// Lines in one request, and requests under way.
const MAX_LINES: usize = 1000;
const MAX_REQUESTS: usize = 4;
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// command-api answers a batch within 30 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    Accepted,
    /// By a rule, of this name: an outcome like any other.
    Rejected(String),
    /// Not now, or nobody knows.
    Later,
    /// Never, or not until somebody looked.
    Refused(String),
}

pub(crate) struct Commands {
    client: Client,
    urls: Vec<String>,
    token: Secret,
    /// The one that answered last.
    preferred: AtomicUsize,
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
        let client = Client::builder().connect_timeout(CONNECT_WITHIN).timeout(ANSWER_WITHIN).build()?;
        Ok(Some(Self { client, urls: config.command_urls.clone(), token, preferred: AtomicUsize::new(0) }))
    }

    /// In their order. Those for one aggregate are decided in it, as far as they are in one request.
    pub(super) async fn send(&self, chains: &[Chain]) -> Vec<Answered> {
        let mut answers = Vec::with_capacity(chains.len());
        for chains in chains.chunks(MAX_LINES * MAX_REQUESTS) {
            let mut requests = Vec::new();
            for lines in chains.chunks(MAX_LINES) {
                requests.push(self.request(lines));
            }
            answers.extend(join_all(requests).await.into_iter().flatten());
        }
        answers
    }

    async fn request(&self, chains: &[Chain]) -> Vec<Answered> {
        let index = self.preferred.load(Ordering::Relaxed) % self.urls.len();
        let mut answers = match self.post(&self.urls[index], chains).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "command-api did not answer; another one is asked");
                self.preferred.store(index + 1, Ordering::Relaxed);
                Vec::new()
            }
        };
        answers.resize(chains.len(), Answered::Later);
        answers
    }

    /// As many answers as came before the connection broke.
    async fn post(&self, url: &str, chains: &[Chain]) -> anyhow::Result<Vec<Answered>> {
        let mut body = Vec::with_capacity(chains.len() * 200);
        for chain in chains {
            write_line(&mut body, chain)?;
        }
        let request = self.client.post(format!("{url}/v1/commands")).bearer_auth(self.token.expose());
        let response = request.header("content-type", "application/x-ndjson").body(body).send().await?;
        let response = response.error_for_status()?;
        let mut answers = Vec::with_capacity(chains.len());
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

/// By nature, with the time of the cause: what is done soon after it is not looked for among what was done long ago.
fn key(step: &Step, at: TimeMs) -> IdempotencyKey {
    IdempotencyKey::by_nature(at, &step.nature())
}

impl From<LineAnswer> for Answered {
    fn from(answer: LineAnswer) -> Self {
        match (answer.status, answer.rejection) {
            (200, _) => Self::Accepted,
            (422, Some(rejection)) => Self::Rejected(rejection),
            (503, _) if !answer.r#type.ends_with("quarantined") => Self::Later,
            (status, _) => Self::Refused(format!("{status} {}: {}", answer.r#type, answer.detail)),
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
        for (status, slug) in [(400, "x"), (404, "x"), (409, "x"), (422, "x"), (503, "quarantined")] {
            let refused = format!(r#"{{"status":{status},"type":"/problems/{slug}","detail":"why"}}"#);
            assert_eq!(answered(&refused), Answered::Refused(format!("{status} /problems/{slug}: why")));
        }
    }

    #[test]
    fn a_step_has_the_same_key_whenever_it_is_taken() {
        let reserve =
            |order: &str| Step::Reserve { product: ProductId("cd".into()), order: OrderId(order.into()), quantity: 1 };
        let at = TimeMs(1_790_000_000_000);
        assert_eq!(key(&reserve("o"), at), key(&reserve("o"), at));
        assert_ne!(key(&reserve("o"), at), key(&reserve("p"), at));
        assert_eq!(key(&reserve("o"), at).time(), Some(at));
    }
}
