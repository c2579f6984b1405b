//! Times on the wire, in RFC 3339 with millisecond precision, written in UTC.

pub use domain::TimeMs;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Latest accepted time, 9999-12-30T00:00:00Z, close to the last instant with a four-digit year.
pub const MAX_TIME: TimeMs = TimeMs(253_402_128_000_000);

/// Formats a time as `1997-01-01T00:00:00Z`, with a fraction only if it is not zero.
pub fn to_rfc3339(time: TimeMs) -> String {
    timestamp(time).to_string()
}

/// Returns the day in UTC as `YYYY-MM-DD`.
pub fn day_of(time: TimeMs) -> String {
    timestamp(time).strftime("%Y-%m-%d").to_string()
}

/// Returns the minute in UTC as `YYYY-MM-DDTHH:MM`.
pub fn minute_of(time: TimeMs) -> String {
    timestamp(time).strftime("%Y-%m-%dT%H:%M").to_string()
}

/// API documentation of times that clients send.
pub const TIME_ABOUT: &str = "A time in RFC 3339: a date, `T`, a time with seconds, and `Z` or an offset. Precision beyond \
                              milliseconds is truncated. Second 60 is accepted where UTC may have a leap second, at the \
                              end of a month, and is treated as 59.";

/// Parses a time in strict RFC 3339, from 1970 to [`MAX_TIME`]. Precision beyond milliseconds is truncated.
pub fn parse_rfc3339(text: &str) -> Result<TimeMs, String> {
    let ms = unix_ms(text).ok_or("expected a time in RFC 3339, such as 2026-01-31T12:00:00Z")?;
    u64::try_from(ms)
        .ok()
        .map(TimeMs)
        .filter(|time| *time <= MAX_TIME)
        .ok_or_else(|| String::from("expected a time from 1970 to 9999"))
}

/// Parses `YYYY-MM-DDThh:mm:ss[.f…](Z|±hh:mm)`, with both letters in either case.
fn unix_ms(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (time, rest) = bytes.split_at_checked("YYYY-MM-DDThh:mm:ss".len())?;
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !marks.iter().all(|(at, mark)| time[*at].eq_ignore_ascii_case(mark)) {
        return None;
    }
    let second = number(&time[17..19])?;
    let date_time = DateTime::new(
        i16::try_from(number(&time[0..4])?).ok()?,
        i8::try_from(number(&time[5..7])?).ok()?,
        i8::try_from(number(&time[8..10])?).ok()?,
        i8::try_from(number(&time[11..13])?).ok()?,
        i8::try_from(number(&time[14..16])?).ok()?,
        i8::try_from(second.min(59)).ok()?,
        0,
    );
    let (fraction_ms, offset) = fraction(rest)?;
    let local = date_time.ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    let utc = local - offset_secs(offset)?;
    let is_plain = second < 60 || second == 60 && may_be_leap(utc);
    is_plain.then_some(utc * 1000 + fraction_ms)
}

/// Splits off `[.f…]` and returns it in milliseconds, with the rest.
fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some(digits) = rest.strip_prefix(b".") else { return Some((0, rest)) };
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, offset) = digits.split_at(end);
    let digit = |at: usize| digits.get(at).map_or(0, |digit| i64::from(digit - b'0'));
    (end > 0).then_some((digit(0) * 100 + digit(1) * 10 + digit(2), offset))
}

fn offset_secs(offset: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match offset {
        [b'Z' | b'z'] => return Some(0),
        [b'+', h1, h2, b':', m1, m2] => (1, [*h1, *h2], [*m1, *m2]),
        [b'-', h1, h2, b':', m1, m2] => (-1, [*h1, *h2], [*m1, *m2]),
        _ => return None,
    };
    let (hours, minutes) = (number(&hours)?, number(&minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Returns whether the second after this one may be a leap second, which occur only at the end of a month.
fn may_be_leap(utc_secs: i64) -> bool {
    Timestamp::from_second(utc_secs + 1).is_ok_and(|next| next.strftime("%d %H:%M:%S").to_string() == "01 00:00:00")
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
}

fn timestamp(time: TimeMs) -> Timestamp {
    let ms = i64::try_from(time.0.min(MAX_TIME.0)).expect("MAX_TIME fits an i64");
    Timestamp::from_millisecond(ms).expect("MAX_TIME is within jiff's range")
}

/// Serialization for `#[serde(with = "crate::time::rfc3339")]`.
pub mod rfc3339 {
    use super::*;

    pub fn serialize<S: Serializer>(time: &TimeMs, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&timestamp(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TimeMs, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        parse_rfc3339(&text).map_err(D::Error::custom)
    }

    /// Serialization of an optional time.
    pub mod option {
        use super::*;

        pub fn serialize<S: Serializer>(time: &Option<TimeMs>, serializer: S) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => super::serialize(time, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TimeMs>, D::Error> {
            let text = Option::<std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
            text.map(|text| parse_rfc3339(&text).map_err(D::Error::custom)).transpose()
        }
    }

    /// Returns the schema for `#[schemars(schema_with = "crate::time::rfc3339::schema")]`.
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

    /// Similar formats are refused because other programs read them differently, or they name a zone whose rules
    /// change.
    #[test]
    fn a_time_that_only_resembles_rfc_3339_is_refused() {
        for text in [
            "",
            "2026-05-01 10:00:00Z",
            "2026-05-01T10:00Z",
            "2026-05-01T10Z",
            "20260501T100000Z",
            "2026-05-01T100000Z",
            "2026-W18-5T10:00:00Z",
            "2026-05-01T10:00:00",
            "2026-05-01T10:00:00+02",
            "2026-05-01T10:00:00+0200",
            "2026-05-01T10:00:00+24:00",
            "2026-05-01T10:00:00+02:60",
            "2026-05-01T10:00:00+02:00[Asia/Tokyo]",
            "2026-05-01T10:00:00Z[UTC]",
            "2026-05-01T10:00:00.Z",
            "2026-05-01T10:00:00.5",
            "2026-05-01T10:00:00,5Z",
            "2026-05-01T24:00:00Z",
            "2026-05-01T10:60:00Z",
            "2026-05-01T10:00:61Z",
            "2026-05-01T10:00:60Z",
            "2026-02-30T10:00:00Z",
            "+002026-05-01T10:00:00Z",
            "2026-05-01T10:00:00Z ",
            " 2026-05-01T10:00:00Z",
            "2026-05-01T1\u{660}:00:00Z",
        ] {
            assert!(parse_rfc3339(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_form_of_rfc_3339_is_read() {
        for (text, same) in [
            ("2026-05-01t10:00:00z", "2026-05-01T10:00:00Z"),
            ("2026-05-01T10:00:00-00:00", "2026-05-01T10:00:00Z"),
            ("2026-05-01T10:00:00+05:45", "2026-05-01T04:15:00Z"),
            ("2026-04-30T23:30:00-02:00", "2026-05-01T01:30:00Z"),
            ("2026-05-01T10:00:00.1Z", "2026-05-01T10:00:00.1Z"),
            ("2026-05-01T10:00:00.0019999999999Z", "2026-05-01T10:00:00.001Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
            ("2017-01-01T01:59:60.25+02:00", "2016-12-31T23:59:59.25Z"),
        ] {
            assert_eq!(to_rfc3339(parse_rfc3339(text).unwrap()), same, "{text}");
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
