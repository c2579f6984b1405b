//! Errors on the wire: RFC 9457 problem details.
//!
//! This is the one file of the contracts that knows status codes of errors.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Serialize;

pub const CONTENT_TYPE: &str = "application/problem+json";

/// What went wrong, as far as a client can tell one case from another.
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
    /// The views do not show the token's events yet.
    NotYet,
    /// A view did not take what the token names.
    Parked,
    Overloaded,
    /// The rules failed on this aggregate.
    Quarantined,
    /// Nobody owns the aggregate's partition just now.
    NoOwner,
    /// The command may or may not have been written; a retry under its key tells.
    OutcomeUnknown,
    Unavailable,
    /// One address asked for too much. The edge alone says it.
    RateLimited,
}

/// The body of an error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Problem {
    /// A path under `/problems/`, which explains it to a person.
    pub r#type: &'static str,
    pub title: &'static str,
    pub status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub detail: Cow<'static, str>,
    /// Apart, since few problems have it.
    #[serde(flatten)]
    pub rejected: Option<Box<Rejected>>,
    /// The request's name, as in `X-Request-Id`: the log's lines about it carry the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Box<str>>,
}

/// What a problem tells of a command that the rules rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rejected {
    /// The name of the rule that rejected the command.
    pub rejection: Cow<'static, str>,
    /// How far the aggregate has come that rejected the command: the `status` of its row; of a product `on_sale` or
    /// `discontinued`; `unregistered`, `unplaced` or `unscheduled` where there is none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Cow<'static, str>>,
    /// The price of one unit, where the command named another.
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

    /// Writes the problem of a failure of which nothing but its status is known, as JSON.
    pub fn json_of_status(status: u16, detail: &str, request_id: Option<&str>) -> Vec<u8> {
        let problem = Self::new(ProblemKind::of_status(status), detail.to_owned());
        // Where no kind has this very status, the answer's own is the one to tell.
        Self { status, ..problem }.of_request(request_id).to_json()
    }

    /// Tells that the rules refused a command.
    pub fn rejected(rejected: Rejected) -> Self {
        let detail = format!("the command was rejected: {}", rejected.rejection);
        Self { rejected: Some(Box::new(rejected)), ..Self::new(ProblemKind::Rejected, detail) }
    }

    /// Names the request that met the problem.
    pub fn of_request(self, id: Option<&str>) -> Self {
        Self { request_id: id.map(Box::from), ..self }
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a problem holds nothing that JSON cannot")
    }
}

/// The longest `detail`, in characters: it may repeat what the client wrote, and is not to multiply it.
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

    /// The last part of the problem's `type`.
    pub fn slug(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    /// Finds the kind that fits a status best, where nothing more is known.
    pub fn of_status(status: u16) -> Self {
        match status {
            503 => Self::Unavailable,
            400..500 => Self::ALL.into_iter().find(|kind| kind.status() == status).unwrap_or(Self::InvalidRequest),
            _ => Self::Internal,
        }
    }

    /// The problem's `type`.
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
            Self::TokenAhead => "The token names what was never written",
            Self::NotFound => "There is no such thing",
            Self::MethodNotAllowed => "The method does not fit the path",
            Self::Unauthenticated => "The service token is missing",
            Self::Forbidden => "This may not be done from here",
            Self::KeyExpired => "The idempotency key is too old or from the future",
            Self::PreconditionFailed => "The condition does not hold",
            Self::TooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body is not of a known type",
            Self::Misdirected => "Another instance owns this partition",
            Self::Rejected => "The command was rejected by the rules",
            Self::KeyReused => "The idempotency key was used for another command",
            Self::Internal => "A fault on our side",
            Self::NotYet => "The views are not there yet",
            Self::Parked => "The view did not take what the token names",
            Self::Overloaded => "Too many requests wait",
            Self::Quarantined => "The aggregate is in quarantine",
            Self::NoOwner => "No instance owns this partition just now",
            Self::OutcomeUnknown => "The outcome is not known yet",
            Self::Unavailable => "A part that this needs is away",
            Self::RateLimited => "Too many requests from one address",
        }
    }

    /// For a person who followed the problem's `type`.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::InvalidRequest => {
                "A header, an id or a field of the body is not as the API says; detail names it. Mend the request; a retry of the same one fails again."
            }
            Self::TokenAhead => {
                "The Consistency-Token names a position behind the end of the log, so no answer gave it: it was made up, or the log was lost and begun anew. Ask without it, or send one that an answer gave."
            }
            Self::NotFound => "The path names no route, aggregate, command, view or row.",
            Self::MethodNotAllowed => "The path exists, for another method; Allow names those that it takes.",
            Self::Unauthenticated => {
                "The internal listener serves callers with the service token only: send it as Authorization: Bearer."
            }
            Self::Forbidden => {
                "The service token is wrong; or a page of another site sent a command in a way that browsers do not ask about first: send it as application/json, from a site that CORS_ORIGINS lists."
            }
            Self::KeyExpired => {
                "A UUIDv7 key tells when it was made. One older than the window could name a command that is no longer remembered, so it is refused; so is one that is over 2 minutes ahead of the server's clock. Look up whether the command took effect, then send it under a new key."
            }
            Self::PreconditionFailed => {
                "The aggregate is not at the version that If-Match names, or exists where If-None-Match: * wanted it absent. ETag tells the version."
            }
            Self::TooLarge => "A command has at most 64 KiB, a batch at most 10,000 lines and 8 MiB.",
            Self::UnsupportedMediaType => {
                "Commands are application/json, batches application/x-ndjson, neither with a Content-Encoding."
            }
            Self::Misdirected => {
                "The command reached an instance that does not own its partition and may not pass it on again."
            }
            Self::Rejected => {
                "The rules forbid the command in the state that Consistency-Token names; rejection is the rule's name."
            }
            Self::KeyReused => {
                "This aggregate took another command under the same Idempotency-Key. A key names one command with its data and condition."
            }
            Self::Internal => "Something broke that should not. The server's log knows more.",
            Self::NotYet => {
                "The views did not reach the Consistency-Token within the time of Prefer: wait. The answer's token tells how far they are. Try again, or ask with Prefer: handling=lenient."
            }
            Self::Parked => {
                "The view could not take a record that the Consistency-Token names, and goes on without it. An operator has to mend that; until then ask without the token, or with Prefer: handling=lenient, for the row as it was before."
            }
            Self::Quarantined => {
                "The rules failed on this aggregate, so nothing is decided on it; all others are served. Nothing was \
                 done, and a retry under the same Idempotency-Key is safe. An operator has to look."
            }
            Self::Overloaded => {
                "The request was refused before anything was done. Try again after Retry-After, a command under the same key."
            }
            Self::NoOwner => "Ownership of the partition is moving. Try again after Retry-After, under the same key.",
            Self::OutcomeUnknown => {
                "The command was sent to the log, and no answer came in time. A retry under the same key joins it and tells its outcome."
            }
            Self::Unavailable => "A server that the answer needs does not respond. Try again after Retry-After.",
            Self::RateLimited => {
                "Your address asked for more than its share, and nothing was done. Wait as Retry-After says, then send \
                 the same again, a command under the same Idempotency-Key."
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
    fn a_detail_says_no_more_of_what_came_than_a_few_lines_hold() {
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
