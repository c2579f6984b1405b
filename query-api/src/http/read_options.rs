//! Parsing of a read's headers: the token, the preferences and the versions that the client has.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::Response;
use chassis::prefer::Preferences;
use schemas::headers;
use schemas::problem::ProblemKind;
use schemas::token::Token;

use super::problems::{invalid, problem};
use crate::positions::{Log, Positions};
use crate::reads::{Freshness, Reads};

pub(super) const CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static(headers::CONSISTENCY_TOKEN.lower);
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How long a request waits for its token without a `Prefer: wait`.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Headers of a read request, validated against the log.
#[derive(Debug)]
pub(super) struct ReadOptions {
    pub(super) log: Log,
    pub(super) fresh: Freshness,
    /// Entity tags of the versions that the client has.
    if_none_match: Option<IfNoneMatch>,
}

#[derive(Debug, PartialEq, Eq)]
enum IfNoneMatch {
    Any,
    /// Tags without their quotes.
    These(Vec<String>),
}

impl ReadOptions {
    /// Parses the headers of a request to the views of `log`. An error is worded for the client.
    pub(super) fn parse(headers: &HeaderMap, log: Log, positions: &Positions) -> Result<Self, String> {
        if headers.contains_key(header::IF_MATCH) {
            return Err("If-Match is a condition of commands; a query takes If-None-Match".to_owned());
        }
        let token = token(headers, log, positions)?;
        let Preferences { wait, is_lenient } = Preferences::of(headers, MAX_WAIT);
        let from = token.as_ref().and_then(|_| client(headers));
        let fresh = Freshness { token, wait: wait.unwrap_or(DEFAULT_WAIT), from, lenient: is_lenient };
        Ok(Self { log, fresh, if_none_match: if_none_match(headers) })
    }

    /// Returns whether the client already has the version with this tag.
    pub(super) fn has(&self, tag: &str) -> bool {
        match &self.if_none_match {
            None => false,
            Some(IfNoneMatch::Any) => true,
            Some(IfNoneMatch::These(tags)) => tags.iter().any(|known| known == tag),
        }
    }
}

impl FromRequestParts<Arc<Reads>> for ReadOptions {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, reads: &Arc<Reads>) -> Result<Self, Response> {
        let Some(log) = reads.positions.log() else {
            let detail = "the views have not processed any records yet";
            return Err(problem(ProblemKind::Unavailable, detail));
        };
        Self::parse(&parts.headers, log, &reads.positions).map_err(invalid)
    }
}

/// Parses the consistency token. Several headers are joined as if they were one. A token of a former log names the end
/// of its copy, in every partition.
fn token(headers: &HeaderMap, log: Log, positions: &Positions) -> Result<Option<Token>, String> {
    let Some(text) = joined(headers, &CONSISTENCY_TOKEN)? else { return Ok(None) };
    let mut named = BTreeMap::new();
    for token in Token::parse_each(&text).map_err(|error| error.to_string())? {
        let positions = match positions.in_former_log(token.log) {
            Some(positions) => positions.clone(),
            None if token.log == log.id => token.positions,
            None => return Err(format!("the Consistency-Token belongs to another log; this one is {}", log.id)),
        };
        for (partition, offset) in positions {
            let highest = named.entry(partition).or_insert(offset);
            *highest = offset.max(*highest);
        }
    }
    match named.keys().next_back() {
        Some(partition) if *partition >= log.partitions => {
            Err(format!("the Consistency-Token names partition {partition}; there are {}", log.partitions))
        }
        _ => Ok(Some(Token { log: log.id, positions: named })),
    }
}

/// Returns the client address that the edge added; the client may have forged the earlier entries of the header.
fn client(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all(FORWARDED_FOR).iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next()?.trim().parse().ok()
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, String> {
    let mut values = headers.get_all(name).iter().map(|value| value.to_str());
    let Some(first) = values.next() else { return Ok(None) };
    let mut text = first.map_err(|_| format!("{name} is not text"))?.to_owned();
    for value in values {
        text.push(',');
        text.push_str(value.map_err(|_| format!("{name} is not text"))?);
    }
    Ok(Some(text))
}

/// Parses `If-None-Match`. Malformed tags match nothing. Tags are compared weakly, as RFC 9110 requires here.
fn if_none_match(headers: &HeaderMap) -> Option<IfNoneMatch> {
    let text = joined(headers, &header::IF_NONE_MATCH).ok()??;
    if text.trim() == "*" {
        return Some(IfNoneMatch::Any);
    }
    let opaque = |tag: &str| {
        let tag = tag.trim();
        tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"').map(str::to_owned)
    };
    Some(IfNoneMatch::These(text.split(',').filter_map(opaque).collect()))
}

#[cfg(test)]
mod tests;
