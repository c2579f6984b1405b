//! The replay's client of the edge.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stack::layout::Layout;
use stack::up;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::wire;

/// Timeout of a request, longer than any answer takes.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: u64 = 64 << 20;

#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    url: String,
    /// `Authorization` of the commands, which are all for staff.
    staff: String,
}

/// The answer to one line of a batch.
#[derive(Debug, Deserialize)]
pub(super) struct LineAnswer {
    pub(super) status: u16,
    #[serde(default)]
    pub(super) events: Vec<String>,
    #[serde(default)]
    pub(super) replayed: bool,
    pub(super) token: Option<String>,
    #[serde(default)]
    pub(super) detail: String,
}

/// The highest position of each partition over all answers, by log: that of a running stack may grow.
#[derive(Debug, Default)]
pub(super) struct Tokens(BTreeMap<String, BTreeMap<u32, i64>>);

impl Client {
    pub(super) fn new(layout: &Layout) -> Result<Self> {
        let config =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).max_idle_connections(64);
        let address = up::address(layout)?;
        let agent = wire::trusting(config, &address)?.build().new_agent();
        Ok(Self { agent, url: address.url, staff: layout.staff_bearer()? })
    }

    /// Sends a command and returns the status of its answer. After a 503 the caller may retry.
    pub(super) fn command(&self, path: &str, key: &str, body: &str) -> Result<StatusCode> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = request.header("Content-Type", "application/json").header("Idempotency-Key", key);
        let request = request.header("Authorization", &self.staff);
        Ok(request.send(body)?.status())
    }

    /// Sends a batch and passes each line's answer to `answered` as it arrives. Returns the number of answers. An edge
    /// or service that fails meanwhile is no error here.
    pub(super) fn batch(&self, lines: &str, mut answered: impl FnMut(LineAnswer) -> Result<()>) -> Result<usize> {
        let request =
            self.agent.post(format!("{}/v1/commands", self.url)).header("Content-Type", "application/x-ndjson");
        let request = request.header("Authorization", &self.staff);
        let Ok(mut response) = request.send(lines) else { return Ok(0) };
        match response.status() {
            StatusCode::OK => {}
            status if status.is_server_error() => return Ok(0),
            status => bail!("a batch was answered {status}: {}", text(&mut response)?),
        }
        let mut count = 0;
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let Ok(line) = line else { break };
            // The last line may be cut off.
            let Ok(answer) = serde_json::from_str(&line) else { break };
            answered(answer)?;
            count += 1;
        }
        Ok(count)
    }

    /// Reads from the views as of `token`. Returns `None` if they have not caught up or a service is unavailable.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str, token: &str) -> Result<Option<T>> {
        let mut request = self.agent.get(format!("{}{path}", self.url)).header("Prefer", "wait=10");
        if !token.is_empty() {
            request = request.header("Consistency-Token", token);
        }
        let Ok(mut response) = request.call() else { return Ok(None) };
        match response.status() {
            StatusCode::OK => {
                let body = text(&mut response)?;
                Ok(Some(serde_json::from_str(&body).with_context(|| format!("{path} was answered {body}"))?))
            }
            status if status.is_server_error() => Ok(None),
            status => bail!("{path} was answered {status}: {}", text(&mut response)?),
        }
    }
}

fn text(response: &mut Response<Body>) -> Result<String> {
    Ok(response.body_mut().with_config().limit(MAX_BODY).read_to_string()?)
}

impl Tokens {
    pub(super) fn add(&mut self, token: &str) -> Result<()> {
        let (log, positions) = token.split_once('.').with_context(|| format!("{token:?} is not a token"))?;
        let known = self.0.entry(log.to_owned()).or_default();
        for position in positions.split(',') {
            let parsed = position.split_once('-').and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
            let (partition, offset) = parsed.with_context(|| format!("{token:?} is not a token"))?;
            let highest = known.entry(partition).or_insert(offset);
            *highest = offset.max(*highest);
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<()> {
        other.of_each_log().try_for_each(|token| self.add(&token))
    }

    pub(super) fn text(&self) -> String {
        self.of_each_log().collect::<Vec<_>>().join(",")
    }

    fn of_each_log(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(log, positions)| {
            let positions: Vec<_> = positions.iter().map(|(p, o)| format!("{p}-{o}")).collect();
            format!("{log}.{}", positions.join(","))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_add_up_to_the_furthest_positions() {
        let mut tokens = Tokens::default();
        assert_eq!(tokens.text(), "");
        for token in ["k7x2.3-10", "k7x2.3-9,1-4", "k7x2.3-11"] {
            tokens.add(token).unwrap();
        }
        assert_eq!(tokens.text(), "k7x2.1-4,3-11");
        assert!(tokens.add("k7x2").is_err());
        tokens.add("ab12.40-7").unwrap();
        assert_eq!(tokens.text(), "ab12.40-7,k7x2.1-4,3-11", "the log has grown");
        let mut merged = Tokens::default();
        merged.merge(&tokens).unwrap();
        assert_eq!(merged.text(), tokens.text());
    }
}
