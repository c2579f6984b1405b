//! Bodies of commands, which are validated at the system boundary and converted to domain commands.
//!
//! Invariant: every command accepted by [`parse`] can be decided, written and projected without further validation.
//! Unknown fields are refused, numbers are within their limits, IDs consist of the allowed characters, and text has
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

/// Maximum size of the body of a command, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum size of the body of a batch, in bytes.
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Maximum number of lines in a batch.
pub const MAX_BATCH_LINES: usize = 10_000;

/// Maximum length of an aggregate type or command name in a line of a batch, in characters; longer than any actual
/// name.
const MAX_NAME_CHARS: usize = 64;
/// Maximum length of the precondition in a line of a batch, in characters.
const MAX_CONDITION_CHARS: usize = 64;

/// Maximum number of versions that one precondition may list.
pub const MAX_CONDITION_VERSIONS: usize = 4;

/// A validated command, with the fingerprint that distinguishes it from another one under the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCommand {
    pub command: Command,
    pub fingerprint: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("there is no such command")]
    Unknown,
    /// The body is invalid; the message names the field.
    #[error("{0}")]
    Body(String),
}

/// Version of the aggregate that the client requires.
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
    /// `If-Match: "7", "9"`: any of these versions. Unused places repeat the first one.
    #[serde(rename = "one_of")]
    OneOf([u64; MAX_CONDITION_VERSIONS]),
    /// `If-Match: *`: any version at all.
    #[serde(rename = "present")]
    Present,
}

impl Precondition {
    /// Returns whether the precondition holds at `version`, which is 0 if the aggregate does not exist.
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

/// One command of a batch, `POST /v1/commands`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchLine<'a> {
    /// Aggregate type as in routes, e.g. `products`.
    #[serde(borrow)]
    #[schemars(extend("maxLength" = MAX_NAME_CHARS))]
    pub aggregate: Cow<'a, str>,
    #[serde(borrow)]
    #[schemars(with = "fields::Id")]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    #[schemars(extend("maxLength" = MAX_NAME_CHARS))]
    pub command: Cow<'a, str>,
    /// Body of the command, as in a request of its own.
    #[serde(borrow, default)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub data: Option<&'a serde_json::value::RawValue>,
    /// Idempotency key, without the quotes that the header `Idempotency-Key` may have.
    #[serde(borrow, default)]
    #[schemars(extend("minLength" = 1, "maxLength" = MAX_KEY_CHARS))]
    pub key: Option<Cow<'a, str>>,
    /// Event that caused the command; accepted only by the internal listener.
    #[serde(borrow, default)]
    #[schemars(skip)]
    pub cause: Option<Cow<'a, str>>,
    /// Precondition as in the header `If-Match`: `"7"` including the quotes, or the bare number.
    #[serde(borrow, default)]
    #[schemars(extend("maxLength" = MAX_CONDITION_CHARS))]
    pub if_match: Option<Cow<'a, str>>,
}

/// Those who may send a command. The check, the API documentation and the catalogue derive from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Every client.
    Client,
    /// A client with the staff token, where one is required.
    Staff,
    /// Holders of the service token, because the command is a step of a saga. Only the internal listener serves it.
    Internal,
}

/// API documentation of a command, and who may send it.
#[derive(Debug, Clone, Copy)]
pub struct CommandContract {
    pub name: &'static str,
    pub about: &'static str,
    /// Schema of the body.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Names of the rules that may reject the command.
    pub rejections: &'static [&'static str],
    pub who: Who,
    /// Set if the command has another form when a reaction sends it.
    pub by_reaction: Option<ReactionContract>,
}

/// Body and rejections of a command that clients send in another form.
#[derive(Debug, Clone, Copy)]
pub struct ReactionContract {
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    pub rejections: &'static [&'static str],
}

/// Creates the contract of a command with the body `T`.
const fn contract<T: JsonSchema>(
    name: &'static str,
    who: Who,
    about: &'static str,
    rejections: &'static [&'static str],
) -> CommandContract {
    let schema = SchemaGenerator::subschema_for::<T>;
    CommandContract { name, about, schema, rejections, who, by_reaction: None }
}

impl CommandContract {
    const fn by_reaction<T: JsonSchema>(self, rejections: &'static [&'static str]) -> Self {
        let schema = SchemaGenerator::subschema_for::<T>;
        Self { by_reaction: Some(ReactionContract { schema, rejections }), ..self }
    }
}

/// Returns the contracts of an aggregate's commands.
pub fn contracts(aggregate: AggregateType) -> &'static [CommandContract] {
    match aggregate {
        AggregateType::Product => product::CONTRACTS,
        AggregateType::Order => order::CONTRACTS,
        AggregateType::Sale => sale::CONTRACTS,
    }
}

/// Returns the contract of a command by its name in routes; `None` if there is no such command.
pub fn contract_named(aggregate: AggregateType, command: &str) -> Option<&'static CommandContract> {
    contracts(aggregate).iter().find(|contract| contract.name == command)
}

/// Returns who may send `command`; `None` if there is no such command.
pub fn who(aggregate: AggregateType, command: &str) -> Option<Who> {
    contract_named(aggregate, command).map(|contract| contract.who)
}

/// Sender of a command. A command may have other fields or effects when it is sent by a reaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Client,
    /// The reactor, through the internal listener and with the event that caused the command.
    Reaction,
}

/// Parses and validates a command for this aggregate. `body` is its data as JSON; an empty body is equivalent to `{}`.
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

/// Returns a command's name and body, from which [`parse`] restores it.
pub fn encode(command: &Command) -> (&'static str, String) {
    match command {
        Command::Product(command) => product::encode(command),
        Command::Order(command) => order::encode(command),
        Command::Sale(command) => sale::encode(command),
    }
}

fn to_body(fields: &impl Serialize) -> String {
    serde_json::to_string(fields).expect("bodies consist of values that JSON can represent")
}

/// Parses `If-Match`, which may occur on several lines of a request: `*`, or comma-separated versions, as `"7"` or as
/// `W/"7"`, into which nginx turns the former when it compresses. The ETag of a query is accepted as well; the
/// generation after its version (`"7-2"`) is ignored because it does not concern the aggregate.
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

/// Parses a precondition like [`parse_if_match`], or from the bare number, because quotes are inconvenient in JSON.
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

/// Initial capacity for the canonical form, enough for most commands.
const FORM_CAPACITY: usize = 256;

/// Hash of the canonical form of a command: its name, its precondition, and its fields in a fixed order. White space,
/// the order of fields and `null` for an absent field do not affect it. Neither does the introduction of an optional
/// field, because the hash is stored in the log and a retry may reach a different build than the one that wrote it.
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

    /// Parses a body and appends its canonical form.
    fn body<T: DeserializeOwned + Serialize>(&mut self, body: &[u8]) -> Result<T, CommandError> {
        let fields::Object(parsed) = serde_json::from_slice(body).map_err(|_| explain::<T>(body))?;
        canonical::write(&parsed, self.nulls, &mut self.form);
        Ok(parsed)
    }

    /// Returns the hash of the whole form. Hashing its many small pieces one by one is slower than concatenating them.
    fn digest(&self) -> u64 {
        xxh3_64(&self.form)
    }
}

/// Parses an invalid body again, more slowly, to name the invalid field.
fn explain<T: DeserializeOwned>(body: &[u8]) -> CommandError {
    let mut json = serde_json::Deserializer::from_slice(body);
    let error = match serde_path_to_error::deserialize::<_, fields::Object<T>>(&mut json) {
        Err(error) if error.path().iter().next().is_some() => format!("{}: {}", error.path(), error.inner()),
        Err(error) => error.inner().to_string(),
        Ok(_) => json.end().map_or_else(|error| error.to_string(), |()| String::from("the body is malformed")),
    };
    CommandError::Body(error)
}

#[cfg(test)]
pub(crate) mod tests;
