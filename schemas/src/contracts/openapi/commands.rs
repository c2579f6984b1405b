//! Operations `POST /v1/{aggregates}/{id}/{command}` for each command, and `POST /v1/commands`.

use serde_json::{Map, Value, json};

use super::super::json_schema::taken;
use super::{Operation, edge_problems, headers, problems, reference, references, with_article};
use crate::aggregate::{AggregateType, TYPES, route_name, type_name};
use crate::commands::{CommandContract, MAX_BATCH_BYTES, MAX_BATCH_LINES, MAX_BODY_BYTES, Who, contracts};
use crate::headers::{CONSISTENCY_TOKEN, IDEMPOTENCY_KEY, TRACEPARENT};
use crate::problem::ProblemKind;

/// Name of the security scheme of staff.
const STAFF: &str = "staff";
/// Response headers of a command that was decided, accepted or not.
const DECIDED: [&str; 3] = [CONSISTENCY_TOKEN.name, "ETag", IDEMPOTENCY_KEY.name];

pub(super) fn operations() -> Vec<Operation> {
    let mut all = vec![("/v1/commands".to_owned(), "post", batch())];
    for (aggregate, command) in public() {
        let path = format!("/v1/{}/{{id}}/{}", route_name(aggregate), command.name);
        all.push((path, "post", operation(aggregate, command)));
    }
    all
}

pub(super) fn public() -> impl Iterator<Item = (AggregateType, &'static CommandContract)> {
    TYPES.into_iter().flat_map(|aggregate| {
        let own = contracts(aggregate).iter().filter(|command| match command.who {
            Who::Client | Who::Staff => true,
            Who::Internal => false,
        });
        own.map(move |command| (aggregate, command))
    })
}

/// Returns the component name of a command's body schema.
pub(super) fn schema_name(aggregate: AggregateType, command: &str) -> String {
    format!("{}.{command}", route_name(aggregate))
}

/// Returns a command's name as an imperative: "Cancel an order".
fn imperative(aggregate: AggregateType, command: &str) -> String {
    let words = format!("{} {}", command.replace('-', " "), with_article(type_name(aggregate)));
    words[..1].to_ascii_uppercase() + &words[1..]
}

fn operation(aggregate: AggregateType, command: &CommandContract) -> Value {
    let name = schema_name(aggregate, command.name);
    let parameters = ["id", IDEMPOTENCY_KEY.name, "If-Match", "If-None-Match-any", "Prefer-turn", TRACEPARENT.name];
    let mut responses: Map<_, _> =
        problems_of_all().keys().map(|status| (status.clone(), reference("responses", &shared_name(status)))).collect();
    responses.extend(problems(&[ProblemKind::Rejected, ProblemKind::KeyReused], &DECIDED));
    responses["422"]["content"]["application/problem+json"]["schema"] = json!({
        "allOf": [
            reference("schemas", "Problem"),
            { "properties": { "rejection": { "type": "string", "enum": command.rejections } } },
        ],
    });
    responses.insert("200".to_owned(), reference("responses", "Accepted"));
    responses.extend(edge_problems());
    let is_staffs = match command.who {
        Who::Staff => true,
        Who::Client | Who::Internal => false,
    };
    if is_staffs {
        responses.extend(problems(&[ProblemKind::Unauthenticated], &["WWW-Authenticate", IDEMPOTENCY_KEY.name]));
    }
    let schema = taken(command.schema);
    let is_needed = schema["required"].as_array().is_some_and(|required| !required.is_empty());
    let of_none = if is_needed { "" } else { " An empty body is equivalent to `{}`." };
    let mut operation = json!({
        "operationId": name,
        "tags": [route_name(aggregate)],
        "summary": imperative(aggregate, command.name),
        "description": format!("{} Rejections: {}.", command.about, command.rejections.join(", ")),
        "parameters": references("parameters", parameters),
        "requestBody": {
            "required": is_needed,
            "description": format!("At most {} KiB.{of_none}", MAX_BODY_BYTES / 1024),
            "content": { "application/json": { "schema": reference("schemas", &name) } },
        },
        "responses": responses,
    });
    if is_staffs {
        operation["security"] = staff_security();
    }
    operation
}

/// Returns the `security` of an operation that wants the staff token where one is required.
fn staff_security() -> Value {
    json!([{ STAFF: [] }, {}])
}

/// Returns the schemes by which callers prove that they are staff.
pub(super) fn security_schemes() -> Value {
    json!({
        STAFF: {
            "type": "http",
            "scheme": "bearer",
            "description": "The staff token. Required for the commands of staff, unless the service listens on loopback only \
                and has no token configured.",
        },
    })
}

/// Returns the problems that every command may be answered with, by status.
fn problems_of_all() -> Map<String, Value> {
    let mut responses = problems(
        &[
            ProblemKind::InvalidRequest,
            ProblemKind::Forbidden,
            ProblemKind::NotFound,
            ProblemKind::KeyExpired,
            ProblemKind::TooLarge,
            ProblemKind::UnsupportedMediaType,
            ProblemKind::Overloaded,
            ProblemKind::Quarantined,
            ProblemKind::NoOwner,
            ProblemKind::OutcomeUnknown,
            ProblemKind::Unavailable,
        ],
        &[IDEMPOTENCY_KEY.name],
    );
    responses.extend(problems(&[ProblemKind::PreconditionFailed], &DECIDED));
    responses
}

fn shared_name(status: &str) -> String {
    format!("command.{status}")
}

/// Returns the responses that all commands share, by component name.
pub(super) fn shared() -> Map<String, Value> {
    problems_of_all().into_iter().map(|(status, answer)| (shared_name(&status), answer)).collect()
}

fn batch() -> Value {
    let mut responses = problems(
        &[
            ProblemKind::InvalidRequest,
            ProblemKind::Forbidden,
            ProblemKind::TooLarge,
            ProblemKind::UnsupportedMediaType,
            ProblemKind::Overloaded,
            ProblemKind::Unavailable,
        ],
        &[IDEMPOTENCY_KEY.name],
    );
    responses.insert(
        "200".to_owned(),
        json!({
            "description": "One result per line, in the order of the lines, streamed as they become available. Lines fail \
                independently, except that after a 503 the later lines of the same aggregate also get a 503.",
            "headers": headers(&[IDEMPOTENCY_KEY.name]),
            "content": { "application/x-ndjson": { "schema": lines("BatchAnswer") } },
        }),
    );
    responses.extend(edge_problems());
    json!({
        "operationId": "commands.batch",
        "tags": ["batch"],
        "summary": "Send many commands",
        "description": "Commands for the same aggregate are decided in the order of their lines. A line with a command of staff \
            gets a 401 unless the batch has the staff token, where one is required.",
        "parameters": references("parameters", ["Idempotency-Key-batch", "Prefer-batch"]),
        "requestBody": {
            "required": true,
            "description": format!(
                "One command per line, at most {MAX_BATCH_LINES} lines and {} MiB.",
                MAX_BATCH_BYTES / 1024 / 1024
            ),
            "content": { "application/x-ndjson": { "schema": lines("BatchLine") } },
        },
        "responses": responses,
        "security": staff_security(),
    })
}

/// Returns the schema of a text with a JSON document of the schema `each` on every line. Declared as JSON instead,
/// client generators would send a single document.
fn lines(each: &str) -> Value {
    json!({
        "type": "string",
        "format": "binary",
        "contentMediaType": "application/x-ndjson",
        "contentSchema": reference("schemas", each),
        "description": format!("Lines of JSON, each a {each}."),
    })
}
