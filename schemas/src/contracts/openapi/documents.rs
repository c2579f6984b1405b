//! Operations that serve the descriptions of the API.

use serde_json::{Value, json};

use super::{Operation, edge_problems, headers, problems, references};
use crate::events::NAMES;
use crate::problem::ProblemKind;

pub(super) fn operations() -> Vec<Operation> {
    let event = json!({
        "name": "event",
        "in": "path",
        "required": true,
        "schema": { "type": "string", "enum": NAMES.as_slice() },
    });
    let slug = json!({
        "name": "slug",
        "in": "path",
        "required": true,
        "schema": { "type": "string", "enum": ProblemKind::ALL.map(ProblemKind::slug) },
    });
    let cached = |id: &str, summary: &str, media_type: &str, parameters: &[Value], kinds: &[ProblemKind]| {
        document(id, summary, media_type, parameters, kinds, &["ETag", "Cache-Control"])
    };
    let none = [ProblemKind::InvalidRequest, ProblemKind::NotFound];
    [
        ("/openapi.json", cached("openapi", "Get this description", "application/json", &[], &[])),
        ("/asyncapi.json", cached("asyncapi", "Get the description of the log", "application/json", &[], &[])),
        (
            "/schemas/{event}.json",
            cached("schema", "Get the JSON Schema of an event's data", "application/schema+json", &[event], &none),
        ),
        ("/docs", cached("docs", "Read this description, or with `?api=log` that of the log", "text/html", &[], &[])),
        ("/problems/{slug}", document("problem", "Explain the `type` of a problem", "text/plain", &[slug], &none, &[])),
    ]
    .map(|(path, operation)| (path.to_owned(), "get", operation))
    .into()
}

fn document(
    id: &str,
    summary: &str,
    media_type: &str,
    parameters: &[Value],
    kinds: &[ProblemKind],
    with: &[&str],
) -> Value {
    let mut responses = problems(kinds, &[]);
    responses.extend(edge_problems());
    let schema = match media_type {
        "application/json" | "application/schema+json" => json!({ "type": "object" }),
        _ => json!({ "type": "string" }),
    };
    let mut parameters = parameters.to_vec();
    if with.contains(&"ETag") {
        parameters.extend(references("parameters", ["If-None-Match"]));
        let unchanged = json!({ "description": "The document matches `If-None-Match`.", "headers": headers(with) });
        responses.insert("304".to_owned(), unchanged);
    }
    responses.insert(
        "200".to_owned(),
        json!({ "description": "The document.", "headers": headers(with), "content": { media_type: { "schema": schema } } }),
    );
    json!({
        "operationId": format!("documents.{id}"),
        "tags": ["documents"],
        "summary": summary,
        "parameters": parameters,
        "responses": responses,
    })
}
