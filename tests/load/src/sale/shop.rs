//! The shopkeeper's client of the running stack, used before and after the rush.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use stack::layout::Layout;
use stack::up;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::wire;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: u64 = 64 << 20;
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Shop {
    agent: Agent,
    url: String,
    /// `Authorization` of the commands, most of which are for staff.
    staff: String,
}

/// The answer to one line of a batch.
#[derive(Debug, Deserialize)]
pub(super) struct LineAnswer {
    pub(super) id: String,
    pub(super) status: u16,
    pub(super) rejection: Option<String>,
}

impl Shop {
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        // No global timeout, for which ureq would resolve the name in a new thread for each request.
        let config = Agent::config_builder().http_status_as_error(false);
        let config = config.timeout_recv_response(Some(TIMEOUT)).timeout_recv_body(Some(TIMEOUT));
        let address = up::address(layout)?;
        let agent = wire::trusting(config, &address)?.build().new_agent();
        Ok(Self { agent, url: address.url, staff: layout.staff_bearer()? })
    }

    /// Sends a command until it is accepted, with its path as the idempotency key. Fails after 30 attempts.
    pub(super) fn must(&self, path: &str, body: &str) -> Result<()> {
        for _ in 0..TRIES {
            let request = self.agent.post(format!("{}{path}", self.url));
            let request = request.header("Content-Type", "application/json").header("Idempotency-Key", path);
            let request = request.header("Authorization", &self.staff);
            if let Ok(mut response) = request.send(body) {
                match response.status().as_u16() {
                    200 => return Ok(()),
                    502..=504 => {}
                    status => bail!("{path} was answered {status}: {}", text(&mut response)?),
                }
            }
            thread::sleep(PAUSE);
        }
        bail!("{path} was not accepted after {TRIES} attempts")
    }

    /// Sends a batch and returns the answers that arrived.
    pub(super) fn batch(&self, lines: &str) -> Result<Vec<LineAnswer>> {
        let request = self.agent.post(format!("{}/v1/commands", self.url)).header("Authorization", &self.staff);
        let Ok(mut response) = request.header("Content-Type", "application/x-ndjson").send(lines) else {
            return Ok(Vec::new());
        };
        let text = text(&mut response)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Returns a row's data, or `None` if the row does not exist.
    pub(super) fn row(&self, path: &str) -> Result<Option<Value>> {
        Ok(self.get(path)?.map(|mut row| row["data"].take()))
    }

    pub(super) fn get(&self, path: &str) -> Result<Option<Value>> {
        // A Prefer header bypasses the edge's cache.
        let request = self.agent.get(format!("{}{path}", self.url)).header("Prefer", "wait=1");
        let mut response = request.call().with_context(|| format!("{path} was not answered"))?;
        let text = text(&mut response)?;
        match response.status().as_u16() {
            200 => Ok(Some(serde_json::from_str(&text).with_context(|| format!("{path} was answered {text}"))?)),
            404 => Ok(None),
            status => bail!("{path} was answered {status}: {text}"),
        }
    }
}

fn text(response: &mut Response<Body>) -> Result<String> {
    Ok(response.body_mut().with_config().limit(MAX_BODY).read_to_string()?)
}
