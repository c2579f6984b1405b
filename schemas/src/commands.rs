//! Bodies of commands: checked at the border, then the domain's commands.
//!
//! Invariant: what [`parse`] accepts can be decided, written and projected; no later place checks it again.
//! Unknown fields are refused, numbers are within their limits, ids have the agreed characters, and text has
//! no U+0000, which Postgres cannot hold.

mod canonical;
mod fields;
mod order;
mod product;
mod sale;

use std::borrow::Cow;

use domain::{AggregateType, Command};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::aggregate::AggregateId;
use crate::idempotency::MAX_KEY_CHARS;

pub use fields::{MAX_CENTS, MAX_QUANTITY, MAX_TEXT_CHARS};

/// The largest body of one command, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// The largest body of a batch, in bytes.
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// The most lines of a batch.
pub const MAX_BATCH_LINES: usize = 10_000;

/// The longest name of an aggregate's type or of a command that a line of a batch may hold, in characters: beyond what
/// any has.
const MAX_NAME_CHARS: usize = 64;
/// The longest condition that a line of a batch may hold, in characters.
const MAX_CONDITION_CHARS: usize = 64;

/// The most versions that one condition may list.
pub const MAX_CONDITION_VERSIONS: usize = 4;

/// The header by which a batch to the internal listener says, in milliseconds since 1970, when its sender waits no
/// longer: what was not decided by then must not be, whoever slept in between. It is a time of the clock that
/// [`SERVER_TIME`] tells.
pub const UNTIL: &str = "stampede-until";
/// The header by which the answer to such a batch tells the time, in milliseconds since 1970.
pub const SERVER_TIME: &str = "stampede-time";

/// A command as it came in, checked, with what tells it from another one under the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCommand {
    pub command: Command,
    pub fingerprint: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("there is no such command")]
    Unknown,
    /// Names the field.
    #[error("{0}")]
    Body(String),
}

/// The version that the client wants to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Precondition {
    #[default]
    #[serde(rename = "none")]
    None,
    /// `If-Match: "7"`.
    #[serde(rename = "version")]
    Version(u64),
    /// `If-None-Match: *`.
    #[serde(rename = "absent")]
    Absent,
    /// `If-Match: "7", "9"`: any of these versions. One that stands twice fills what is left.
    #[serde(rename = "one_of")]
    OneOf([u64; MAX_CONDITION_VERSIONS]),
    /// `If-Match: *`: any version at all.
    #[serde(rename = "present")]
    Present,
}

impl Precondition {
    /// Tells whether a command may be decided at a version; 0: there is nothing yet.
    pub fn holds_at(self, version: u64) -> bool {
        match self {
            Self::None => true,
            Self::Version(wanted) => wanted == version,
            Self::OneOf(wanted) => wanted.contains(&version),
            Self::Absent => version == 0,
            Self::Present => version > 0,
        }
    }
}

/// A line of `POST /v1/commands`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchLine<'a> {
    /// As in routes: `products`.
    #[serde(borrow)]
    #[schemars(extend("maxLength" = MAX_NAME_CHARS))]
    pub aggregate: Cow<'a, str>,
    #[serde(borrow)]
    #[schemars(with = "fields::Id")]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    #[schemars(extend("maxLength" = MAX_NAME_CHARS))]
    pub command: Cow<'a, str>,
    /// The body that the command would have by itself.
    #[serde(borrow, default)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub data: Option<&'a serde_json::value::RawValue>,
    /// As the header `Idempotency-Key`, without quotes.
    #[serde(borrow, default)]
    #[schemars(extend("minLength" = 1, "maxLength" = MAX_KEY_CHARS))]
    pub key: Option<Cow<'a, str>>,
    /// The event that the command follows from; only the internal listener takes it.
    #[serde(borrow, default)]
    #[schemars(skip)]
    pub cause: Option<Cow<'a, str>>,
    /// As the header: `"7"` with its quotes, or the bare number.
    #[serde(borrow, default)]
    #[schemars(extend("maxLength" = MAX_CONDITION_CHARS))]
    pub if_match: Option<Cow<'a, str>>,
}

/// What the API's description says of a command.
#[derive(Debug, Clone, Copy)]
pub struct CommandContract {
    pub name: &'static str,
    pub about: &'static str,
    /// Of its body.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// The names of the rules by which it may be rejected.
    pub rejections: &'static [&'static str],
}

/// `T`: the command's body.
const fn contract<T: JsonSchema>(
    name: &'static str,
    about: &'static str,
    rejections: &'static [&'static str],
) -> CommandContract {
    CommandContract { name, about, schema: SchemaGenerator::subschema_for::<T>, rejections }
}

/// Of an aggregate's commands, in the order of [`names`].
pub fn contracts(aggregate: AggregateType) -> &'static [CommandContract] {
    match aggregate {
        AggregateType::Product => &product::CONTRACTS,
        AggregateType::Order => &order::CONTRACTS,
        AggregateType::Sale => &sale::CONTRACTS,
    }
}

/// The names of an aggregate's commands, as in routes.
pub fn names(aggregate: AggregateType) -> &'static [&'static str] {
    match aggregate {
        AggregateType::Product => &product::NAMES,
        AggregateType::Order => &order::NAMES,
        AggregateType::Sale => &sale::NAMES,
    }
}

/// Whether `command` finishes what an event began: served on the internal listener only.
pub fn is_internal(aggregate: AggregateType, command: &str) -> bool {
    match aggregate {
        AggregateType::Product => product::is_internal(command),
        AggregateType::Order => order::is_internal(command),
        AggregateType::Sale => sale::is_internal(command),
    }
}

/// Who asks for a command. The same name may take other fields, or mean more, when an order's own reaction uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Client,
    /// The reactor, by the internal listener and with the event that the command follows from.
    Reaction,
}

/// Reads and checks a command to this aggregate. `body` is its data as JSON; empty stands for `{}`.
pub fn parse(
    aggregate: &AggregateId,
    command: &str,
    body: &[u8],
    precondition: Precondition,
    origin: Origin,
) -> Result<ParsedCommand, CommandError> {
    let body = if body.is_empty() { b"{}" } else { body };
    let mut fingerprint = Fingerprint::of(aggregate.aggregate(), command, precondition);
    let id = aggregate.id();
    let command = match aggregate.aggregate() {
        AggregateType::Product => Command::Product(product::parse(command, body, origin, &mut fingerprint)?),
        AggregateType::Order => Command::Order(order::parse(id, command, body, origin, &mut fingerprint)?),
        AggregateType::Sale => Command::Sale(sale::parse(id, command, body, &mut fingerprint)?),
    };
    Ok(ParsedCommand { command, fingerprint: fingerprint.digest() })
}

/// A command's name and body, from which [`parse`] makes it again.
pub fn encode(command: &Command) -> (&'static str, String) {
    match command {
        Command::Product(command) => product::encode(command),
        Command::Order(command) => order::encode(command),
        Command::Sale(command) => sale::encode(command),
    }
}

fn to_body(fields: &impl Serialize) -> String {
    serde_json::to_string(fields).expect("bodies hold nothing that JSON cannot")
}

/// Reads `If-Match`, of which a request may have several lines: `*`, or versions with commas in between, as `"7"`, or
/// as `W/"7"`, which nginx makes of it when it compresses. A query's ETag is one, too: the generation behind its version
/// (`"7-2"`) says nothing of the aggregate.
pub fn parse_if_match<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Precondition> {
    let mut all = lines.into_iter().flat_map(|line| line.split(',')).map(str::trim).filter(|tag| !tag.is_empty());
    let first = all.next()?;
    if first == "*" {
        return all.next().is_none().then_some(Precondition::Present);
    }
    let first = parse_tag(first)?;
    let mut versions = [first; MAX_CONDITION_VERSIONS];
    let mut count = 1;
    for tag in all {
        let version = parse_tag(tag)?;
        if !versions.contains(&version) {
            *versions.get_mut(count)? = version;
            count += 1;
        }
    }
    Some(if count == 1 { Precondition::Version(first) } else { Precondition::OneOf(versions) })
}

/// As [`parse_if_match`], and the bare number too: in JSON the quotes are a nuisance.
pub fn parse_if_match_field(text: &str) -> Option<Precondition> {
    let text = Some(text).filter(|text| text.len() <= MAX_CONDITION_CHARS)?;
    parse_if_match([text]).or_else(|| parse_version(text).map(Precondition::Version))
}

fn parse_tag(text: &str) -> Option<u64> {
    let quoted = text.strip_prefix("W/").unwrap_or(text);
    let tag = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))?;
    match tag.split_once('-') {
        Some((version, generation)) => parse_version(generation).and_then(|_| parse_version(version)),
        None => parse_version(tag),
    }
}

fn parse_version(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Enough for the canonical form of most commands.
const FORM_CAPACITY: usize = 256;

/// A hash of the canonical form of a command: its name, its condition, its fields in their order. Blanks, the
/// order of fields and `null` for an absent field do not change it, nor does a new field that may be left out: the hash
/// stands in the log, and a retry may come to another build than the one that wrote it.
struct Fingerprint {
    form: Vec<u8>,
    nulls: &'static [&'static str],
}

impl Fingerprint {
    fn of(aggregate: AggregateType, command: &str, precondition: Precondition) -> Self {
        let mut form = Vec::with_capacity(FORM_CAPACITY);
        form.extend_from_slice(command.as_bytes());
        match precondition {
            Precondition::None => form.extend_from_slice(b"\0*"),
            Precondition::Absent => form.extend_from_slice(b"\0-"),
            Precondition::Present => form.extend_from_slice(b"\0+"),
            Precondition::OneOf(versions) => {
                form.extend_from_slice(b"\0|");
                versions.iter().for_each(|version| form.extend_from_slice(&version.to_le_bytes()));
            }
            Precondition::Version(version) => form.extend_from_slice(&version.to_le_bytes()),
        }
        Self { form, nulls: canonical::written_as_null(aggregate, command) }
    }

    /// Reads a body and takes its canonical form in.
    fn body<T: DeserializeOwned + Serialize>(&mut self, body: &[u8]) -> Result<T, CommandError> {
        let fields::Object(parsed) = serde_json::from_slice(body).map_err(|_| explain::<T>(body))?;
        canonical::write(&parsed, self.nulls, &mut self.form);
        Ok(parsed)
    }

    /// The form is hashed at once: to hash each of its many small pieces takes longer than to put them together.
    fn digest(&self) -> u64 {
        xxh3_64(&self.form)
    }
}

/// Reads a bad body once more, slower, to name the field.
fn explain<T: DeserializeOwned>(body: &[u8]) -> CommandError {
    let mut json = serde_json::Deserializer::from_slice(body);
    let error = match serde_path_to_error::deserialize::<_, fields::Object<T>>(&mut json) {
        Err(error) if error.path().iter().next().is_some() => format!("{}: {}", error.path(), error.inner()),
        Err(error) => error.inner().to_string(),
        Ok(_) => json.end().map_or_else(|error| error.to_string(), |()| String::from("the body cannot be read")),
    };
    CommandError::Body(error)
}

#[cfg(test)]
mod tests;
