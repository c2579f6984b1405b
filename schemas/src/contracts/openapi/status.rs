//! The operation that says what is degraded.

use serde_json::{Value, json};

use super::{Operation, edge_problems, headers, problems};
use crate::problem::ProblemKind;

pub(super) fn operations() -> Vec<Operation> {
    let mut responses = problems(&[ProblemKind::InvalidRequest, ProblemKind::Unavailable], &["Cache-Control"]);
    responses.extend(edge_problems());
    let found = json!({
        "description": "The status, at most a few seconds old.",
        "headers": headers(&["Cache-Control"]),
        "content": { "application/json": { "schema": schema() } },
    });
    responses.insert("200".to_owned(), found);
    let operation = json!({
        "operationId": "status",
        "tags": ["documents"],
        "summary": "Get what is degraded",
        "description": "Says what is degraded, since when, and what a client should do. Nothing is cached.",
        "responses": responses,
    });
    vec![("/v1/status".to_owned(), "get", operation)]
}

fn schema() -> Value {
    let time = |words: &str| json!({ "type": "string", "format": "date-time", "description": words });
    let problem = json!({
        "type": "object",
        "properties": {
            "what": {
                "type": "string",
                "enum": ["commands", "queries", "freshness", "operation"],
                "description": "The affected part: `commands` may be refused, `queries` may be slow or refused, answers \
                    without a `Consistency-Token` may be older than usual (`freshness`), or clients notice nothing \
                    (`operation`).",
            },
            "since": time("Time since which it is affected."),
            "do": { "type": "string", "description": "What a client should do." },
        },
        "required": ["what", "since", "do"],
    });
    json!({
        "type": "object",
        "properties": {
            "status": {
                "type": "string",
                "enum": ["ok", "degraded", "down"],
                "description": "`down`: no commands are accepted, or no queries are answered.",
            },
            "since": time("Time since which the status is this."),
            "problems": { "type": "array", "items": problem },
        },
        "required": ["status", "since", "problems"],
    })
}
