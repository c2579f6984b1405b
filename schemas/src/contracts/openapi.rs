//! The HTTP interface of both tiers as OpenAPI 3.1: what clients reach through the edge. Commands that finish what an
//! event began are not in it; they are the system's own.

mod commands;
mod queries;
mod documents;
mod components;

use serde_json::{Map, Value, json};

use crate::aggregate::{AggregateType, TYPES, route_name, type_name};
use crate::problem::{CONTENT_TYPE, ProblemKind};

const ABOUT: &str = "Commands are decided by the write tier and end in a log; queries are answered by the read tier from \
    views of it. A command's answer carries a `Consistency-Token`; a query that sends it back sees at least what the \
    command did.\n\nTimes are RFC 3339 in UTC, money is in integer cents, ids are the client's own. Errors are RFC 9457 \
    problems; the path in `type` explains each. A request may give its own name by `X-Request-Id`, 1 to 64 of \
    `A-Z a-z 0-9 . _ ~ -`; every answer tells it. What can be got by GET can be asked for by HEAD. A method that does not \
    fit a path is answered 405.\n\nThe log itself is described by [/asyncapi.json](/asyncapi.json), [to be read \
    here](/docs?api=log), every event by a JSON Schema under `/schemas/`.";

/// Of everything that the edge serves.
pub fn document() -> Value {
    let mut paths = Map::new();
    for (path, method, operation) in [commands::operations(), queries::operations(), documents::operations()].concat() {
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[method] = operation;
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Stampede",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Commerce under a stampede: commands, and queries that show them.",
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "servers": [{ "url": "/", "description": "The edge, which serves both tiers. Each tier serves its own part, too." }],
        "tags": tags(),
        "security": [],
        "paths": paths,
        "components": components::all(),
    });
    close_sets(&mut document);
    name_requests(&mut document);
    document
}

/// Tells that every answer names its request.
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

/// What there is by its name in routes, then what goes for all of it.
fn tags() -> Vec<Value> {
    let tag = |name: &str, words: &str| json!({ "name": name, "description": words });
    let own = TYPES.iter().map(|aggregate| {
        let name = route_name(*aggregate);
        tag(name, &format!("Commands to {name}, their rows, their events, and what each was as of a time."))
    });
    let others = [
        ("views", "Rows and lists of every view."),
        ("batch", "Many commands in one request."),
        ("documents", "What describes all this."),
    ];
    own.chain(others.map(|(name, words)| tag(name, words))).collect()
}

/// Writes each closed set of texts as one `enum`, and each single one, too: generators of clients know no other form.
/// What a value means goes into the description of the set.
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

/// Returns the values of a closed set of texts, or of a single one, each with its meaning. `None`: it is none.
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

/// A path, a method, and what they do.
type Operation = (String, &'static str, Value);

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

fn references<'a>(kind: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
    names.into_iter().map(|name| reference(kind, name)).collect()
}

/// By their names on the wire.
fn headers(names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), reference("headers", name))).collect::<Map<_, _>>().into()
}

/// An answer for each status that the problems have, with these headers.
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

/// What the edge says by itself: of who asks too much, and where no instance answers.
fn edge_problems() -> [(String, Value); 3] {
    [("429", "RateLimited"), ("502", "NoAnswer"), ("504", "NoAnswer")]
        .map(|(status, name)| (status.to_owned(), reference("responses", name)))
}
