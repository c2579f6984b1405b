//! The HTTP API of both tiers as OpenAPI 3.1, as clients reach it through the edge. Internal commands, which are steps
//! of sagas, are not included.

mod commands;
mod queries;
mod documents;
mod status;
mod components;

use serde_json::{Map, Value, json};

use crate::aggregate::{AggregateType, TYPES, route_name, type_name};
use crate::problem::{CONTENT_TYPE, ProblemKind};
use crate::views::View;

const ABOUT: &str = "Commands are decided by the write tier and stored in a log; queries are served by the read tier from \
    views of the log. The response to a command has a `Consistency-Token`; a query that sends this token sees at least \
    the effects of the command.\n\nTimes are RFC 3339 in UTC, amounts are integer cents, and IDs are assigned by the \
    client. Errors are RFC 9457 problems; the path in `type` serves an explanation. A request may set its own ID in \
    `X-Request-Id`, 1 to 64 characters of `A-Z a-z 0-9 . _ ~ -`; every response returns the ID. Every path that supports \
    GET also supports HEAD. A method that a path does not support is answered with 405.\n\nThe log is described by \
    [/asyncapi.json](/asyncapi.json), [readable here](/docs?api=log), and every event by a JSON Schema under `/schemas/`.";

/// Returns the OpenAPI document of everything that the edge serves.
pub fn document() -> Value {
    let mut paths = Map::new();
    let operations = [commands::operations(), queries::operations(), status::operations(), documents::operations()];
    for (path, method, operation) in operations.concat() {
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[method] = operation;
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Stampede",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Commerce under a stampede: commands, and queries that reflect them.",
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "servers": [{ "url": "/", "description": "The edge, which serves both tiers. Each tier also serves its own part directly." }],
        "tags": tags(),
        "security": [],
        "paths": paths,
        "components": components::all(),
    });
    close_sets(&mut document);
    name_requests(&mut document);
    document
}

/// Returns the schema of the data of a view's row.
pub fn row_data(view: &View) -> Value {
    queries::data(view)
}

/// Adds the header with the request's ID to every response.
fn name_requests(document: &mut Value) {
    let own = document["components"]["responses"].as_object_mut().into_iter().flat_map(Map::values_mut);
    own.for_each(name_request);
    let items = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    let operations = items.flat_map(|item| item.as_object_mut().into_iter().flat_map(Map::values_mut));
    for operation in operations {
        let answers = operation["responses"].as_object_mut().into_iter().flat_map(Map::values_mut);
        answers.filter(|answer| answer.get("$ref").is_none()).for_each(name_request);
    }
}

fn name_request(answer: &mut Value) {
    answer["headers"]["X-Request-Id"] = reference("headers", "X-Request-Id");
}

/// Returns the tags: one for each aggregate by its name in routes, then the shared ones.
fn tags() -> Vec<Value> {
    let tag = |name: &str, words: &str| json!({ "name": name, "description": words });
    let own = TYPES.iter().map(|aggregate| {
        let name = route_name(*aggregate);
        tag(name, &format!("Commands for {name}, their rows, their events, and their past states."))
    });
    let others = [
        ("views", "Rows and lists of every view."),
        ("batch", "Many commands in one request."),
        ("documents", "Descriptions of the API, and the status of the system."),
    ];
    own.chain(others.map(|(name, words)| tag(name, words))).collect()
}

/// Rewrites each closed set of strings, and each constant, as an `enum`, the only form that client generators support.
/// The meanings of the values are moved to the description of the set.
fn close_sets(json: &mut Value) {
    if let Some(values) = json["oneOf"].as_array().and_then(|all| all.iter().map(texts).collect::<Option<Vec<_>>>()) {
        let of = |part: &Value| part["description"].as_str().map(str::to_owned);
        let meanings =
            values.iter().flatten().filter_map(|(value, words)| Some(format!("`{value}`: {}", words.as_ref()?)));
        let words: Vec<_> = of(json).into_iter().chain(meanings).collect();
        let values: Vec<_> = values.iter().flatten().map(|(value, _)| value).collect();
        let mut set = json!({ "type": "string", "enum": values });
        if !words.is_empty() {
            set["description"] = words.join(" ").into();
        }
        *json = set;
        return;
    }
    match json {
        Value::Object(members) => {
            if let Some(only) = members.remove("const") {
                members.insert("enum".to_owned(), json!([only]));
            }
            members.values_mut().for_each(close_sets);
        }
        Value::Array(items) => items.iter_mut().for_each(close_sets),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns the values of a closed set of strings or of a constant, each with its meaning; `None` for other schemas.
fn texts(schema: &Value) -> Option<Vec<(String, Option<String>)>> {
    let values = match (&schema["const"], &schema["enum"]) {
        (Value::String(only), _) => vec![only.clone()],
        (_, Value::Array(values)) => {
            values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    let words = schema["description"].as_str().map(str::to_owned);
    Some(values.into_iter().map(|value| (value, words.clone())).collect())
}

fn with_article(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

fn possessive(aggregate: AggregateType) -> String {
    format!("{}'s", with_article(type_name(aggregate)))
}

/// Path, method and operation object.
type Operation = (String, &'static str, Value);

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

fn references<'a>(kind: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
    names.into_iter().map(|name| reference(kind, name)).collect()
}

/// Returns references to the headers of these names.
fn headers(names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), reference("headers", name))).collect::<Map<_, _>>().into()
}

/// Returns a response for each status of the problems, with these headers.
fn problems(kinds: &[ProblemKind], with: &[&str]) -> Map<String, Value> {
    let mut answers = Map::new();
    for kind in kinds {
        let words = format!("`{}`: {}", kind.slug(), kind.explanation());
        let answer = answers.entry(kind.status().to_string()).or_insert_with(|| {
            let retry: &[&str] = if kind.status() == 503 { &["Retry-After"] } else { &[] };
            json!({
                "description": "",
                "headers": headers(&[with, retry].concat()),
                "content": { CONTENT_TYPE: { "schema": reference("schemas", "Problem") } },
            })
        });
        let known = answer["description"].as_str().filter(|known| !known.is_empty());
        answer["description"] = known.map_or(words.clone(), |known| format!("{known}\n\n{words}")).into();
    }
    answers
}

/// Returns the responses of the edge itself: for an exceeded rate limit, and if no instance answers.
fn edge_problems() -> [(String, Value); 3] {
    [("429", "RateLimited"), ("502", "NoAnswer"), ("504", "NoAnswer")]
        .map(|(status, name)| (status.to_owned(), reference("responses", name)))
}
