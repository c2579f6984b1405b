//! Parsing of `Prefer` (RFC 7240), shared by both tiers.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};

pub const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The supported preferences of a request. Others, and malformed values, are ignored: a preference never fails a
/// request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preferences {
    /// `wait=2`: number of seconds that the client is willing to wait. Fractions are accepted.
    pub wait: Option<Duration>,
    /// Whether the client sent `handling=lenient`.
    pub is_lenient: bool,
}

impl Preferences {
    /// Parses the preferences; of two with the same name the first counts. `wait` is capped at `longest`.
    pub fn of(headers: &HeaderMap, longest: Duration) -> Self {
        let (mut wait, mut lenient) = (None, None);
        let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| value.split(',')) {
            let preference = preference.split(';').next().unwrap_or_default();
            let Some((name, value)) = preference.split_once('=') else { continue };
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if wait.is_none() && name.eq_ignore_ascii_case("wait") {
                wait = seconds(value);
            } else if lenient.is_none() && name.eq_ignore_ascii_case("handling") {
                lenient = Some(value.eq_ignore_ascii_case("lenient"));
            }
        }
        Self { wait: wait.map(|wait| wait.min(longest)), is_lenient: lenient.unwrap_or(false) }
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = plain.then(|| text.parse::<f64>().ok()).flatten()?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(values: &[&'static str]) -> (Option<f32>, bool) {
        let headers = values.iter().map(|value| (PREFER, HeaderValue::from_static(value))).collect();
        let Preferences { wait, is_lenient } = Preferences::of(&headers, Duration::from_secs(10));
        (wait.map(|wait| wait.as_secs_f32()), is_lenient)
    }

    #[test]
    fn known_preferences_count_and_all_others_are_ignored() {
        assert_eq!(of(&[]), (None, false));
        assert_eq!(of(&["wait=2"]), (Some(2.0), false));
        assert_eq!(of(&["wait=0.25, handling=lenient"]), (Some(0.25), true));
        assert_eq!(of(&["respond-async", "Handling = \"lenient\"; x=1", "Wait=99"]), (Some(10.0), true));
        assert_eq!(of(&["wait=99999999999999999999999"]), (Some(10.0), false));
        assert_eq!(of(&["wait=\"5\"; foo=bar, wait=7"]), (Some(5.0), false));
        for odd in
            ["wait=-1", "wait=", "wait=NaN", "wait=inf", "wait=1e3", "wait=abc", "wait", "handling=strict", ";;,="]
        {
            assert_eq!(of(&[odd]), (None, false), "{odd}");
        }
    }
}
