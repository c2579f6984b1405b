//! Ids that connect an answer to the log lines about its request: that of the request, and that of its trace.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const MAX_CHARS: usize = 64;
/// Length of a trace id, in hexadecimal digits.
const TRACE_CHARS: usize = 32;

tokio::task_local! {
    /// Id of the current request. A span would also put it in the log, but every request would pay for creating it;
    /// this costs a request nothing beyond its id, and a log line one lookup.
    pub(super) static REQUEST_ID: RequestId;
}

/// A request id: 1 to 64 characters of `[A-Za-z0-9._~-]`. With it goes the id of the trace that the request belongs to.
#[derive(Debug, Clone, Copy)]
pub struct RequestId {
    chars: [u8; MAX_CHARS],
    len: u8,
    trace: Option<[u8; TRACE_CHARS]>,
}

/// Returns the id of the request that this task is handling.
pub fn request_id() -> Option<RequestId> {
    REQUEST_ID.try_with(|id| *id).ok()
}

impl RequestId {
    /// Returns the client's id with its header if it is valid, else a random id.
    pub(super) fn of(headers: &HeaderMap) -> (Self, Option<HeaderValue>) {
        let sent = headers.get(X_REQUEST_ID).and_then(|sent| Some((Self::parse(sent.as_bytes())?, sent)));
        let (id, sent) = sent.map_or_else(|| (Self::random(), None), |(id, sent)| (id, Some(sent.clone())));
        let trace = headers.get(TRACEPARENT).and_then(|context| trace_of(context.as_bytes()));
        (Self { trace, ..id }, sent)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let is_taken = |byte: &u8| byte.is_ascii_alphanumeric() || b"._~-".contains(byte);
        if text.is_empty() || text.len() > MAX_CHARS || !text.iter().all(is_taken) {
            return None;
        }
        let mut chars = [0; MAX_CHARS];
        chars[..text.len()].copy_from_slice(text);
        Some(Self { chars, len: u8::try_from(text.len()).ok()?, trace: None })
    }

    /// Returns a random id of 32 hexadecimal digits.
    pub(super) fn random() -> Self {
        let mut chars = [0; MAX_CHARS];
        let random: u128 = rand::random();
        for (index, char) in chars[..32].iter_mut().enumerate() {
            *char = b"0123456789abcdef"[(random >> (4 * index)) as usize & 15];
        }
        Self { chars, len: 32, trace: None }
    }

    /// Returns the id of the request's trace, if its `traceparent` names one.
    pub fn trace(&self) -> Option<&str> {
        self.trace.as_ref().map(|trace| str::from_utf8(trace).expect("hexadecimal digits are ASCII"))
    }

    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.chars[..usize::from(self.len)]).expect("an id is ASCII")
    }

    pub(super) fn to_header(self) -> HeaderValue {
        HeaderValue::from_str(self.as_str()).expect("an id's characters are valid in a header")
    }

    /// Runs a future as part of the request; meant for futures that outlive the answer's head.
    // Not an async fn, which would reserve space for the future twice.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        REQUEST_ID.scope(self, future)
    }
}

/// Returns the trace id in a `traceparent`: `00-{trace}-{span}-{flags}`. The rest does not matter to the log.
fn trace_of(context: &[u8]) -> Option<[u8; TRACE_CHARS]> {
    let (trace, rest) = context.strip_prefix(b"00-")?.split_first_chunk::<TRACE_CHARS>()?;
    let is_id =
        trace.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && trace.iter().any(|byte| *byte != b'0');
    (is_id && rest.first() == Some(&b'-')).then_some(*trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_is_taken_from_a_context_of_the_standard_alone() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let of = |context: &str| {
            let headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_str(context).unwrap())]);
            RequestId::of(&headers).0.trace().map(str::to_owned)
        };
        assert_eq!(of(&format!("00-{trace}-b7ad6b7169203331-01")).as_deref(), Some(trace));
        for wrong in
            ["", "00-", trace, &format!("01-{trace}-b7ad6b7169203331-01"), &format!("00-{}-1-1", "0".repeat(32))]
        {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(of(&format!("00-{}-b7ad6b7169203331-01", "\"".repeat(32))), None);
        assert_eq!(RequestId::of(&HeaderMap::new()).0.trace(), None);
    }

    #[test]
    fn a_valid_id_is_kept_and_any_other_is_replaced() {
        for text in ["a", "A-z.0_9~", &"x".repeat(64)] {
            assert_eq!(RequestId::parse(text.as_bytes()).unwrap().as_str(), text);
        }
        for text in ["", "a b", "ä", "a\"b", "a\nb", &"x".repeat(65)] {
            assert!(RequestId::parse(text.as_bytes()).is_none(), "{text:?}");
        }
        let [one, other] = [RequestId::random(), RequestId::random()];
        assert_eq!(one.as_str().len(), 32);
        assert_ne!(one.as_str(), other.as_str());
        assert!(RequestId::parse(one.as_str().as_bytes()).is_some());
    }
}
