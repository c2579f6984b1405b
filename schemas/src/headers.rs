//! Headers that HTTP does not define: their names, shared by the tiers that send and read them and by the description of
//! the interface.
//!
//! `Prefer` and `X-Request-Id` are not listed here: the foundation of both tiers handles them.

/// Name of a header in both spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Spelling in documents.
    pub name: &'static str,
    /// Spelling in lower case, which libraries expect of a constant.
    pub lower: &'static str,
}

impl Header {
    const fn new(name: &'static str, lower: &'static str) -> Self {
        assert!(name.eq_ignore_ascii_case(lower), "the spellings differ in case only");
        Self { name, lower }
    }
}

/// Token of the events that an answer shows, or that a query must show.
pub const CONSISTENCY_TOKEN: Header = Header::new("Consistency-Token", "consistency-token");
/// Key under which a command takes effect at most once.
pub const IDEMPOTENCY_KEY: Header = Header::new("Idempotency-Key", "idempotency-key");
/// Set to `true` if the command had already been accepted.
pub const IDEMPOTENT_REPLAYED: Header = Header::new("Idempotent-Replayed", "idempotent-replayed");
/// Set to `true` if records that the answer should show are parked; `GET /parked` of the projectors lists them.
pub const PARKED: Header = Header::new("Stampede-Parked", "stampede-parked");
/// W3C trace context.
pub const TRACEPARENT: Header = Header::new("traceparent", "traceparent");

/// Set to `elsewhere` if the command was forwarded to another instance, which owns its partition, so that a load
/// balancer can send the next one there. The edge removes it.
pub const OWNER: Header = Header::new("Stampede-Owner", "stampede-owner");
/// Time, in milliseconds since 1970, at which the sender of a batch to the internal listener stops waiting. Commands not
/// decided by then must not be decided anymore, even if a process was suspended in between. The time refers to the clock
/// returned in [`SERVER_TIME`].
pub const UNTIL: Header = Header::new("Stampede-Until", "stampede-until");
/// The server's time, in milliseconds since 1970, in the answer to such a batch.
pub const SERVER_TIME: Header = Header::new("Stampede-Time", "stampede-time");

/// Request headers that pages of other sites may send: of this system and of HTTP.
pub const SENT: &str =
    "Content-Type, Idempotency-Key, If-Match, If-None-Match, Consistency-Token, Prefer, X-Request-Id, traceparent";
/// Response headers that pages of other sites may read.
pub const EXPOSED: &str = "Consistency-Token, ETag, Idempotency-Key, Idempotent-Replayed, Retry-After, X-Request-Id, Stampede-Parked, Age, Link";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_may_send_and_read_the_headers_of_clients_but_not_those_between_services() {
        let sent: Vec<&str> = SENT.split(", ").collect();
        let exposed: Vec<&str> = EXPOSED.split(", ").collect();
        for (header, is_sent, is_exposed) in [
            (CONSISTENCY_TOKEN, true, true),
            (IDEMPOTENCY_KEY, true, true),
            (IDEMPOTENT_REPLAYED, false, true),
            (PARKED, false, true),
            (TRACEPARENT, true, false),
            (OWNER, false, false),
            (UNTIL, false, false),
            (SERVER_TIME, false, false),
        ] {
            assert_eq!(sent.contains(&header.name), is_sent, "{}", header.name);
            assert_eq!(exposed.contains(&header.name), is_exposed, "{}", header.name);
        }
    }
}
