//! Errors on the wire, as RFC 9457 problem details.
//!
//! The status codes of errors are defined only here.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Serialize;

pub const CONTENT_TYPE: &str = "application/problem+json";

/// Kind of error, as far as clients distinguish them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProblemKind {
    InvalidRequest,
    /// The token names a position that was never written.
    TokenAhead,
    NotFound,
    MethodNotAllowed,
    Unauthenticated,
    Forbidden,
    KeyExpired,
    PreconditionFailed,
    TooLarge,
    UnsupportedMediaType,
    Misdirected,
    Rejected,
    KeyReused,
    Internal,
    /// The views do not reflect the token's events yet.
    NotYet,
    /// The view has parked a record that the token covers.
    Parked,
    Overloaded,
    /// The domain logic failed on this aggregate.
    Quarantined,
    /// The aggregate's partition currently has no owner.
    NoOwner,
    /// The command may or may not have been written; a retry with its key returns the outcome.
    OutcomeUnknown,
    Unavailable,
    /// A client address exceeded its rate limit. Only the edge returns this.
    RateLimited,
}

/// Body of an error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Problem {
    /// Path under `/problems/` that serves an explanation of the problem.
    pub r#type: &'static str,
    pub title: &'static str,
    pub status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub detail: Cow<'static, str>,
    /// Details of a rejection; boxed because few problems have them.
    #[serde(flatten)]
    pub rejected: Option<Box<Rejected>>,
    /// ID of the request, as in `X-Request-Id`; the log lines about the request carry the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Box<str>>,
}

/// Details of a command that the domain rules rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rejected {
    /// Name of the rule that rejected the command.
    pub rejection: Cow<'static, str>,
    /// Status of the aggregate that rejected the command: the `status` of its row; for a product `on_sale` or
    /// `discontinued`; `unregistered`, `unplaced` or `unscheduled` if it does not exist yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'static, str>>,
    /// Unit price, if the command named a different one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_cents: Option<u64>,
}

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            r#type: kind.path(),
            title: kind.title(),
            status: kind.status(),
            detail: cut(detail.into()),
            rejected: None,
            request_id: None,
        }
    }

    /// Returns, as JSON, the problem of a failure of which only the status is known.
    pub fn json_of_status(status: u16, detail: &str, request_id: Option<&str>) -> Vec<u8> {
        let problem = Self::new(ProblemKind::of_status(status), detail.to_owned());
        // The status of the response takes precedence if no kind has exactly this one.
        Self { status, ..problem }.of_request(request_id).to_json()
    }

    /// Creates the problem of a command that the domain rules rejected.
    pub fn rejected(rejected: Rejected) -> Self {
        let detail = format!("the command was rejected: {}", rejected.rejection);
        Self { rejected: Some(Box::new(rejected)), ..Self::new(ProblemKind::Rejected, detail) }
    }

    /// Sets the ID of the request that failed.
    pub fn of_request(self, id: Option<&str>) -> Self {
        Self { request_id: id.map(Box::from), ..self }
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a problem consists of values that JSON can represent")
    }
}

/// Maximum length of `detail`, in characters. It may quote the request, which must not inflate the response.
const MAX_DETAIL_CHARS: usize = 300;

fn cut(detail: Cow<'static, str>) -> Cow<'static, str> {
    match detail.char_indices().nth(MAX_DETAIL_CHARS) {
        None => detail,
        Some((end, _)) => Cow::Owned(format!("{}…", &detail[..end])),
    }
}

impl ProblemKind {
    pub const ALL: [Self; 22] = [
        Self::InvalidRequest,
        Self::TokenAhead,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::KeyExpired,
        Self::PreconditionFailed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::Misdirected,
        Self::Rejected,
        Self::KeyReused,
        Self::Internal,
        Self::NotYet,
        Self::Parked,
        Self::Overloaded,
        Self::Quarantined,
        Self::NoOwner,
        Self::OutcomeUnknown,
        Self::Unavailable,
        Self::RateLimited,
    ];

    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::TokenAhead => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::KeyExpired => 409,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Misdirected => 421,
            Self::Rejected | Self::KeyReused => 422,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::NotYet
            | Self::Parked
            | Self::Overloaded
            | Self::Quarantined
            | Self::NoOwner
            | Self::OutcomeUnknown
            | Self::Unavailable => 503,
        }
    }

    /// Returns the last segment of the problem's `type`.
    pub fn slug(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    /// Returns the kind that fits a status best if nothing else is known.
    pub fn of_status(status: u16) -> Self {
        match status {
            503 => Self::Unavailable,
            400..500 => Self::ALL.into_iter().find(|kind| kind.status() == status).unwrap_or(Self::InvalidRequest),
            _ => Self::Internal,
        }
    }

    /// Returns the problem's `type`.
    fn path(self) -> &'static str {
        match self {
            Self::InvalidRequest => "/problems/invalid-request",
            Self::TokenAhead => "/problems/token-ahead",
            Self::NotFound => "/problems/not-found",
            Self::MethodNotAllowed => "/problems/method-not-allowed",
            Self::Unauthenticated => "/problems/unauthenticated",
            Self::Forbidden => "/problems/forbidden",
            Self::KeyExpired => "/problems/idempotency-key-expired",
            Self::PreconditionFailed => "/problems/precondition-failed",
            Self::TooLarge => "/problems/too-large",
            Self::UnsupportedMediaType => "/problems/unsupported-media-type",
            Self::Misdirected => "/problems/misdirected",
            Self::Rejected => "/problems/rejected",
            Self::KeyReused => "/problems/idempotency-key-reused",
            Self::Internal => "/problems/internal",
            Self::NotYet => "/problems/not-yet",
            Self::Parked => "/problems/parked",
            Self::Overloaded => "/problems/overloaded",
            Self::Quarantined => "/problems/quarantined",
            Self::NoOwner => "/problems/no-owner",
            Self::OutcomeUnknown => "/problems/outcome-unknown",
            Self::Unavailable => "/problems/unavailable",
            Self::RateLimited => "/problems/rate-limited",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "The request is malformed",
            Self::TokenAhead => "The token names a position that was never written",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Unauthenticated => "A bearer token is missing or wrong",
            Self::Forbidden => "The request is forbidden",
            Self::KeyExpired => "The idempotency key is too old or from the future",
            Self::PreconditionFailed => "The precondition failed",
            Self::TooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The media type is not supported",
            Self::Misdirected => "Another instance owns this partition",
            Self::Rejected => "The command was rejected by the rules",
            Self::KeyReused => "The idempotency key was used for another command",
            Self::Internal => "Internal error",
            Self::NotYet => "The views have not caught up yet",
            Self::Parked => "The view skipped a record that the token covers",
            Self::Overloaded => "Too many requests are waiting",
            Self::Quarantined => "The aggregate is quarantined",
            Self::NoOwner => "No instance currently owns this partition",
            Self::OutcomeUnknown => "The outcome is not known yet",
            Self::Unavailable => "A required backend is unavailable",
            Self::RateLimited => "Too many requests from one address",
        }
    }

    /// Returns the explanation served at the problem's `type`.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::InvalidRequest => {
                "A header, an ID or a field of the body violates the API contract; detail names it. Correct the request: an unchanged retry fails again."
            }
            Self::TokenAhead => {
                "The Consistency-Token names a position beyond the end of the log. Either no response ever returned it, or the log was lost and recreated. Retry without it, or with one from a recent response."
            }
            Self::NotFound => "The path names no route, aggregate, command, view or row.",
            Self::MethodNotAllowed => "The path does not support this method; Allow lists those that it supports.",
            Self::Unauthenticated => {
                "The command is for staff: send the staff token as Authorization: Bearer. The internal listener wants the service token in the same way."
            }
            Self::Forbidden => {
                "The service token is wrong, or the command is for staff and this service has no STAFF_TOKEN, which it needs to accept such commands from other machines, or a page of another site sent a command as a request without CORS preflight. Send commands as application/json, from an origin listed in CORS_ORIGINS."
            }
            Self::KeyExpired => {
                "A UUIDv7 key contains its creation time. A key older than the idempotency window is refused, because its command may no longer be remembered; so is one more than 2 minutes ahead of the server's clock. Check whether the command took effect before sending it with a new key."
            }
            Self::PreconditionFailed => {
                "The aggregate is not at a version listed in If-Match, or it exists although If-None-Match: * requires that it does not. ETag has its version."
            }
            Self::TooLarge => "A command is limited to 64 KiB, and a batch to 10,000 lines and 8 MiB.",
            Self::UnsupportedMediaType => {
                "Commands must be application/json and batches application/x-ndjson, without a Content-Encoding."
            }
            Self::Misdirected => {
                "The command reached an instance that does not own its partition and may not forward it again."
            }
            Self::Rejected => {
                "The domain rules forbid the command in the state that Consistency-Token identifies; rejection is the name of the rule."
            }
            Self::KeyReused => {
                "The aggregate already accepted a different command with the same Idempotency-Key. A key identifies one command, including its data and precondition."
            }
            Self::Internal => "An unexpected error occurred; the server's log has the details.",
            Self::NotYet => {
                "The views did not reach the Consistency-Token within the time given by Prefer: wait. The token of the response has their progress. Retry, or send Prefer: handling=lenient to accept older data."
            }
            Self::Parked => {
                "The view failed to apply a record covered by the Consistency-Token and continues without it. Until an operator has resolved this, retry without the token or with Prefer: handling=lenient to get the row as it was before."
            }
            Self::Quarantined => {
                "The domain logic failed on this aggregate, so it accepts no commands; other aggregates are not affected. \
                 The command was not executed, and a retry with the same Idempotency-Key is safe. Operator intervention is \
                 required."
            }
            Self::Overloaded => {
                "The request was refused before it was processed. Retry after Retry-After; retry a command with the same key."
            }
            Self::NoOwner => {
                "Ownership of the partition is being transferred. Retry after Retry-After, with the same key."
            }
            Self::OutcomeUnknown => {
                "The command was sent to the log but not confirmed in time. A retry with the same key waits for the same command and returns its outcome."
            }
            Self::Unavailable => "A backend that the request depends on does not respond. Retry after Retry-After.",
            Self::RateLimited => {
                "Your address exceeded its rate limit, and the request was not processed. Repeat it after Retry-After; \
                 repeat a command with the same Idempotency-Key."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_a_path_of_its_own_and_an_explanation() {
        let slugs: std::collections::BTreeSet<_> = ProblemKind::ALL.iter().map(|kind| kind.slug()).collect();
        assert_eq!(slugs.len(), ProblemKind::ALL.len());
        assert!(ProblemKind::ALL.iter().all(|kind| !kind.explanation().is_empty() && kind.status() >= 400));
    }

    #[test]
    fn a_detail_is_truncated_to_its_maximum_length() {
        let detail = |chars: usize| Problem::new(ProblemKind::InvalidRequest, "ä".repeat(chars)).detail;
        assert_eq!(detail(300), "ä".repeat(300));
        assert_eq!(detail(70_000), "ä".repeat(300) + "…");
    }

    #[test]
    fn a_bare_status_has_a_problem_of_its_kind() {
        for (status, slug) in [(400, "invalid-request"), (404, "not-found"), (405, "method-not-allowed")] {
            assert_eq!(ProblemKind::of_status(status).slug(), slug);
        }
        assert_eq!(ProblemKind::of_status(426), ProblemKind::InvalidRequest);
        assert_eq!(ProblemKind::of_status(500), ProblemKind::Internal);
        assert_eq!(ProblemKind::of_status(503), ProblemKind::Unavailable);
    }

    #[test]
    fn a_rejection_carries_its_machine_name() {
        let rejected = Rejected { rejection: "out_of_stock".into(), state: Some("on_sale".into()), price_cents: None };
        let json: serde_json::Value = serde_json::from_slice(&Problem::rejected(rejected).to_json()).unwrap();
        assert_eq!(json["type"], "/problems/rejected");
        assert_eq!(json["status"], 422);
        assert_eq!((&json["rejection"], &json["state"]), (&"out_of_stock".into(), &"on_sale".into()));
        assert_eq!(json.get("price_cents"), None);
        assert_eq!(serde_json::to_value(Problem::new(ProblemKind::NotFound, "")).unwrap().get("rejection"), None);
    }
}
