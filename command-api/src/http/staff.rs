//! The check of commands that are for staff.
//!
//! Callers have no names yet, so a shared secret distinguishes staff from clients. The instance that receives a command
//! checks it; the owner to which that instance forwards the command relies on it.

use std::net::SocketAddr;

use axum::http::{HeaderMap, header};
use chassis::env::Tokens;
use schemas::commands::Who;
use schemas::problem::{Problem, ProblemKind};

use super::HttpState;

/// A listener's rule for commands of staff.
pub(crate) enum StaffRule {
    /// Every caller may send them.
    Open,
    /// Callers with the token may send them.
    Token(Tokens),
    /// Nobody may send them: other machines reach the listener, and no token is configured.
    Closed,
}

impl StaffRule {
    /// Returns the rule of a listener for clients.
    pub(crate) fn of(listener: SocketAddr, token: Option<Tokens>) -> Self {
        match token {
            Some(token) => Self::Token(token),
            None if listener.ip().is_loopback() => Self::Open,
            None => {
                tracing::warn!(http.addr = %listener, "commands of staff get 403: set STAFF_TOKEN to accept them beyond loopback");
                Self::Closed
            }
        }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let unauthenticated = |detail| Err(Problem::new(ProblemKind::Unauthenticated, detail));
        match self {
            Self::Open => Ok(()),
            Self::Token(token) => match bearer(headers) {
                Some(sent) if token.accept(sent) => Ok(()),
                Some(_) => unauthenticated("the staff token is wrong"),
                None => unauthenticated("the command is for staff; send the staff token as a bearer token"),
            },
            Self::Closed => {
                let detail = "the command is for staff, and clients reach this service from other machines: set STAFF_TOKEN \
                    and send it as a bearer token";
                Err(Problem::new(ProblemKind::Forbidden, detail))
            }
        }
    }
}

impl HttpState {
    /// Checks whether the sender of a request may send a command.
    pub(super) fn admit_sender(&self, who: Who, headers: &HeaderMap) -> Result<(), Problem> {
        match who {
            Who::Client => Ok(()),
            Who::Staff => self.staff.check(headers),
            // Only the internal listener serves it, to holders of the service token.
            Who::Internal => Ok(()),
        }
    }
}

/// Returns the token that a request carries.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
}
