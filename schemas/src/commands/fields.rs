//! Field types with limits, which are enforced when they are deserialized from JSON.

use std::borrow::Cow;
use std::fmt::{self, Formatter};
use std::marker::PhantomData;

use domain::TimeMs;
use domain::ids::CLAIM_MARK;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::aggregate::{ID_PATTERN, MAX_ID_CHARS, check_id};
use crate::time::{TIME_ABOUT, parse_rfc3339, rfc3339};

/// Maximum number of units in one command, which keeps sums exact in 64 bits.
pub const MAX_QUANTITY: u32 = 1_000_000_000;
/// Maximum amount in one field, in cents.
pub const MAX_CENTS: u64 = 1_000_000_000_000;
pub const MAX_TEXT_CHARS: usize = 500;
/// Maximum duration of a client's reservation with an end, in seconds.
const MAX_HOLD_SECS: u32 = 86_400;
/// Maximum length of the name of a claim's order, which fits after the shortest sale ID.
const MAX_ORDER_NAME_CHARS: usize = MAX_ID_CHARS - 2;
/// Pattern like [`ID_PATTERN`], but without the marker of a claim's order.
const ORDER_NAME_PATTERN: &str = r"^(\.*[A-Za-z0-9_-][A-Za-z0-9._-]*|\.{3,})$";
/// Regular expression for text without U+0000.
const TEXT_PATTERN: &str = r"^[^\u0000]*$";

/// Number of units, from 1 to [`MAX_QUANTITY`].
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(description = "Number of units.", extend("minimum" = 1, "maximum" = MAX_QUANTITY))]
pub(super) struct Quantity(pub(super) u32);

/// Number of units, from 0 to [`MAX_QUANTITY`].
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(description = "Number of units.", extend("minimum" = 0, "maximum" = MAX_QUANTITY))]
pub(super) struct Stock(pub(super) u32);

/// Amount in cents, from 0 to [`MAX_CENTS`].
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(description = "Amount in cents.", extend("minimum" = 0, "maximum" = MAX_CENTS))]
pub(super) struct Cents(pub(super) u64);

/// Duration in seconds, from 1 to [`MAX_HOLD_SECS`].
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(description = "Duration in seconds.", extend("minimum" = 1, "maximum" = MAX_HOLD_SECS))]
pub(super) struct HoldSecs(pub(super) u32);

/// ID assigned by a client.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(extend("minLength" = 1, "maxLength" = MAX_ID_CHARS, "pattern" = ID_PATTERN))]
pub(super) struct Id(pub(super) Box<str>);

/// Name that a client gives to the order of a claim. It does not contain the marker that separates it from the sale's
/// ID.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(extend("minLength" = 1, "maxLength" = MAX_ORDER_NAME_CHARS, "pattern" = ORDER_NAME_PATTERN))]
pub(super) struct OrderName(pub(super) Box<str>);

/// Text of 1 to [`MAX_TEXT_CHARS`] characters without U+0000.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(description = "Text.", extend("minLength" = 1, "maxLength" = MAX_TEXT_CHARS, "pattern" = TEXT_PATTERN))]
pub(super) struct Text(pub(super) Box<str>);

/// Time in RFC 3339.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(description = TIME_ABOUT, extend("format" = "date-time"))]
pub(super) struct Time(#[schemars(with = "String")] pub(super) TimeMs);

/// Accepts only a JSON object, where serde would also accept an array of the field values.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<T, M::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Parses a whole number, including one written as `2.0` or `2e0`, because `integer` in JSON Schema refers to the
/// value, and some clients can only write floats.
fn integer<'de, T: TryFrom<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_u64(IntegerVisitor(PhantomData))
}

struct IntegerVisitor<T>(PhantomData<T>);

impl<T: TryFrom<u64>> Visitor<'_> for IntegerVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("a non-negative whole number")
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        T::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &"a smaller number"))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the number is whole and well within the limits"
    )]
    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        /// 2^53, from which on a float may differ from the number that was written.
        const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;
        if number.fract() != 0.0 {
            return Err(E::invalid_type(Unexpected::Float(number), &self));
        }
        if !(0.0..EXACT_BELOW).contains(&number) {
            return Err(E::invalid_value(Unexpected::Float(number), &self));
        }
        self.visit_u64(number as u64)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match integer(deserializer)? {
            quantity @ 1..=MAX_QUANTITY => Ok(Self(quantity)),
            _ => Err(D::Error::custom(format_args!("expected 1 to {MAX_QUANTITY}"))),
        }
    }
}

impl<'de> Deserialize<'de> for Stock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match integer(deserializer)? {
            stock @ 0..=MAX_QUANTITY => Ok(Self(stock)),
            _ => Err(D::Error::custom(format_args!("expected 0 to {MAX_QUANTITY}"))),
        }
    }
}

impl<'de> Deserialize<'de> for Cents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match integer(deserializer)? {
            cents @ 0..=MAX_CENTS => Ok(Self(cents)),
            _ => Err(D::Error::custom(format_args!("expected 0 to {MAX_CENTS} cents"))),
        }
    }
}

impl<'de> Deserialize<'de> for HoldSecs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match integer(deserializer)? {
            secs @ 1..=MAX_HOLD_SECS => Ok(Self(secs)),
            _ => Err(D::Error::custom(format_args!("expected 1 to {MAX_HOLD_SECS} seconds"))),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        check_id(&text).map_err(D::Error::custom)?;
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for OrderName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Id(name) = Id::deserialize(deserializer)?;
        if name.contains(CLAIM_MARK) {
            return Err(D::Error::custom(format_args!(
                "the name of a claim's order must not contain {CLAIM_MARK}, which separates it from the sale's ID"
            )));
        }
        Ok(Self(name))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        if text.is_empty() || text.chars().nth(MAX_TEXT_CHARS).is_some() {
            return Err(D::Error::custom(format_args!("expected 1 to {MAX_TEXT_CHARS} characters")));
        }
        if text.contains('\0') {
            return Err(D::Error::custom("text must not contain U+0000"));
        }
        Ok(Self(text.into()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        rfc3339::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        parse_rfc3339(&text).map(Self).map_err(D::Error::custom)
    }
}
