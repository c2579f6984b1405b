//! Times on the wire: RFC 3339 in UTC, to the millisecond.

pub use domain::TimeMs;
use jiff::Timestamp;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// 9999-12-30T00:00:00Z, near the last instant that four digits of a year can write. Later ones are refused.
pub const MAX_TIME: TimeMs = TimeMs(253_402_128_000_000);

/// `1997-01-01T00:00:00Z`, with a fraction only where there is one.
pub fn to_rfc3339(time: TimeMs) -> String {
    timestamp(time).to_string()
}

/// The day in UTC, `YYYY-MM-DD`.
pub fn day_of(time: TimeMs) -> String {
    timestamp(time).strftime("%Y-%m-%d").to_string()
}

/// The minute in UTC, `YYYY-MM-DDTHH:MM`.
pub fn minute_of(time: TimeMs) -> String {
    timestamp(time).strftime("%Y-%m-%dT%H:%M").to_string()
}

pub fn parse_rfc3339(text: &str) -> Result<TimeMs, String> {
    let time: Timestamp =
        text.parse().map_err(|_| String::from("expected a time in RFC 3339, like 2026-01-31T12:00:00Z"))?;
    u64::try_from(time.as_millisecond())
        .ok()
        .map(TimeMs)
        .filter(|time| *time <= MAX_TIME)
        .ok_or_else(|| String::from("expected a time from 1970 to 9999"))
}

fn timestamp(time: TimeMs) -> Timestamp {
    let ms = i64::try_from(time.0.min(MAX_TIME.0)).expect("MAX_TIME fits an i64");
    Timestamp::from_millisecond(ms).expect("MAX_TIME is within jiff's range")
}

/// For `#[serde(with = "crate::time::rfc3339")]`.
pub mod rfc3339 {
    use super::*;

    pub fn serialize<S: Serializer>(time: &TimeMs, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&timestamp(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TimeMs, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        parse_rfc3339(&text).map_err(D::Error::custom)
    }

    /// For `#[schemars(schema_with = "crate::time::rfc3339::schema")]`.
    pub fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_four_digit_years_are_refused() {
        for text in [
            "1969-12-31T23:59:59Z",
            "-000001-01-01T00:00:00Z",
            "yesterday",
            "1997-01-01",
            "1997-13-01T00:00:00Z",
            "9999-12-31T00:00:00Z",
        ] {
            assert!(parse_rfc3339(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_is_written_as_it_was_read() {
        for text in ["1970-01-01T00:00:00Z", "1997-01-01T00:00:00.25Z", "9999-12-29T22:00:00.999Z"] {
            assert_eq!(to_rfc3339(parse_rfc3339(text).unwrap()), text);
        }
        assert_eq!(day_of(parse_rfc3339("1997-01-01T23:30:00-02:00").unwrap()), "1997-01-02");
    }
}
