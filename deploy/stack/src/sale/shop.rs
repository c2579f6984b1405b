//! The running stack as buyers and watchers use it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: u64 = 64 << 20;

pub(super) struct Shop {
    agent: Agent,
    commands: String,
    queries: String,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted {
        version: u64,
        token: String,
    },
    Rejected(String),
    /// Nothing was done, or nobody knows: the same again is safe.
    Later {
        after: Duration,
    },
    /// None of these.
    Odd(String),
}

#[derive(Deserialize)]
struct AnswerBody {
    version: Option<u64>,
    token: Option<String>,
    rejection: Option<String>,
}

/// A line of a batch's answer.
#[derive(Debug, Deserialize)]
pub(super) struct LineAnswer {
    pub(super) id: String,
    pub(super) status: u16,
    pub(super) rejection: Option<String>,
}

impl Shop {
    pub(super) fn new(commands: &str, queries: &str) -> Self {
        // A bound of the whole would cost a thread for each request, in which ureq resolves the name.
        let config = Agent::config_builder().http_status_as_error(false);
        let config = config.timeout_recv_response(Some(TIMEOUT)).timeout_recv_body(Some(TIMEOUT)).build();
        Self { agent: config.new_agent(), commands: commands.to_owned(), queries: queries.to_owned() }
    }

    /// The same over connections of its own: many threads would wait for each other at one agent's.
    pub(super) fn again(&self) -> Self {
        Self::new(&self.commands, &self.queries)
    }

    /// Under a key of its own.
    pub(super) fn send(&self, path: &str, key: &str, body: &str) -> Answer {
        let request = self.agent.post(format!("{}{path}", self.commands));
        let request = request.header("Content-Type", "application/json").header("Idempotency-Key", key);
        match request.send(body) {
            Ok(mut response) => answer(&mut response),
            Err(_) => Answer::Later { after: Duration::from_millis(50) },
        }
    }

    /// Until it is accepted.
    pub(super) fn must(&self, path: &str, body: &str) -> Result<()> {
        for _ in 0..30 {
            match self.send(path, path, body) {
                Answer::Accepted { .. } => return Ok(()),
                Answer::Later { after } => std::thread::sleep(after),
                other => bail!("{path} was answered {other:?}"),
            }
        }
        bail!("{path} was refused again and again")
    }

    /// The answers that came.
    pub(super) fn batch(&self, lines: &str) -> Result<Vec<LineAnswer>> {
        let request = self.agent.post(format!("{}/v1/commands", self.queries));
        let Ok(mut response) = request.header("Content-Type", "application/x-ndjson").send(lines) else {
            return Ok(Vec::new());
        };
        let text = text(&mut response)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// As a watcher asks: with what it has. Gives the new tag, if there is another row.
    pub(super) fn look(&self, path: &str, tag: Option<&str>) -> Option<Option<String>> {
        let mut request = self.agent.get(format!("{}{path}", self.queries));
        if let Some(tag) = tag {
            request = request.header("If-None-Match", tag);
        }
        let response = request.call().ok()?;
        let status = response.status().as_u16();
        let tag = response.headers().get("etag").and_then(|tag| Some(tag.to_str().ok()?.to_owned()));
        // Read to its end, or the connection is of no use any more.
        let whole = response.into_body().read_to_vec();
        (matches!(status, 200 | 304) && whole.is_ok()).then_some(tag)
    }

    /// Whether the views show the token within ten seconds.
    pub(super) fn shows(&self, path: &str, token: &str) -> bool {
        let request = self.agent.get(format!("{}{path}", self.queries));
        let request = request.header("Consistency-Token", token).header("Prefer", "wait=10");
        let Ok(response) = request.call() else { return false };
        let is_shown = response.status().as_u16() == 200;
        response.into_body().read_to_vec().is_ok() && is_shown
    }

    /// A row's data. `None`: there is none.
    pub(super) fn row(&self, path: &str) -> Result<Option<Value>> {
        Ok(self.get(path)?.map(|mut row| row["data"].take()))
    }

    pub(super) fn get(&self, path: &str) -> Result<Option<Value>> {
        // Never what the edge keeps.
        let request = self.agent.get(format!("{}{path}", self.queries)).header("Prefer", "wait=1");
        let mut response = request.call().with_context(|| format!("{path} was not answered"))?;
        let text = text(&mut response)?;
        match response.status().as_u16() {
            200 => Ok(Some(serde_json::from_str(&text).with_context(|| format!("{path} was answered {text}"))?)),
            404 => Ok(None),
            status => bail!("{path} was answered {status}: {text}"),
        }
    }
}

fn answer(response: &mut Response<Body>) -> Answer {
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after").and_then(|after| after.to_str().ok()?.parse().ok());
    let Ok(text) = text(response) else { return Answer::Later { after: Duration::ZERO } };
    let body = serde_json::from_str::<AnswerBody>(&text);
    match (status, body) {
        (200, Ok(AnswerBody { version: Some(version), token: Some(token), .. })) => Answer::Accepted { version, token },
        (422, Ok(AnswerBody { rejection: Some(rejection), .. })) => Answer::Rejected(rejection),
        (502..=504, _) => Answer::Later { after: Duration::from_secs(after.unwrap_or(1)) },
        _ => Answer::Odd(format!("{status} {text}")),
    }
}

fn text(response: &mut Response<Body>) -> Result<String> {
    Ok(response.body_mut().with_config().limit(MAX_BODY).read_to_string()?)
}
