//! What many operations share.

use serde_json::{Map, Value, json};

use super::super::json_schema::{taken, written};
use super::{commands, headers, queries, reference};
use crate::commands::BatchLine;
use crate::idempotency::{MAX_BATCH_KEY_CHARS, MAX_KEY_CHARS};
use crate::problem::{CONTENT_TYPE, Problem, ProblemKind};
use crate::views::{CloudEvent, VIEWS};

const TOKEN: &str = "A log's id, and positions: `k7x2.3-1042,7-99` names all events of partition 3 up to and with \
    offset 1042, and of partition 7 up to and with 99. Do not take it apart: positions may come to have more parts.";

pub(super) fn all() -> Value {
    json!({
        "parameters": parameters(),
        "headers": answer_headers(),
        "responses": responses(),
        "schemas": schemas(),
    })
}

fn parameters() -> Value {
    let mut all = command_parameters();
    all.extend(query_parameters());
    all.extend(history_parameters());
    all.into()
}

fn header(name: &str, words: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "header", "description": words, "schema": schema })
}

fn query(name: &str, words: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "query", "description": words, "schema": schema })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn command_parameters() -> Map<String, Value> {
    let key_of = |most: usize| {
        let quoted = format!(r#""([!#-\[\]-~]|\\["\\]){{1,{most}}}""#);
        json!({ "type": "string", "pattern": format!("^([!#-~][!-~]{{0,{}}}|{quoted})$", most - 1) })
    };
    let key = format!(
        "1 to {MAX_KEY_CHARS} visible characters, quoted or bare. The same key and data never take effect twice on an \
         aggregate, and an accepted answer is repeated. Absent: one is made, and the answer tells it."
    );
    let batch_key = format!(
        "1 to {MAX_BATCH_KEY_CHARS} visible characters, quoted or bare. Line n of the batch has this key with `-n` behind \
         it, unless it has a `key`: so the batch may be sent again as it was. Absent: each such line gets a key of its own, \
         and its answer tells it."
    );
    let wait = |most: &str| format!("`wait=2`: how many seconds the client waits, {most}.");
    let version = r#"(W/)?"[0-9]{1,15}(-[0-9]{1,9})?""#;
    let versions = format!(r"^(\*|{version}( ?, ?{version}){{0,3}})$");
    let any = json!({ "type": "string", "enum": ["*"] });
    let trace = "W3C trace context of version 00, carried into the log; anything else is passed over.";
    let seconds = json!({ "type": "string", "examples": ["wait=2"] });
    Map::from_iter([
        ("id".to_owned(), json!({ "name": "id", "in": "path", "required": true, "schema": queries::id() })),
        ("Idempotency-Key".to_owned(), header("Idempotency-Key", &key, &key_of(MAX_KEY_CHARS))),
        ("Idempotency-Key-batch".to_owned(), header("Idempotency-Key", &batch_key, &key_of(MAX_BATCH_KEY_CHARS))),
        (
            "If-Match".to_owned(),
            header(
                "If-Match",
                "Only at this version of the aggregate, or at one of up to four: `\"7\"`; `W/\"7\"` and a query's `\"7-2\"` \
                 are the same. `*`: at any version, where it exists.",
                &json!({ "type": "string", "pattern": versions }),
            ),
        ),
        ("If-None-Match-any".to_owned(), header("If-None-Match", "Only if the aggregate does not exist yet.", &any)),
        ("Prefer-turn".to_owned(), header("Prefer", &wait("1 for its turn and 10 in all, at most 25"), &seconds)),
        ("Prefer-batch".to_owned(), header("Prefer", &wait("25 unless it says so, which is the most"), &seconds)),
        ("traceparent".to_owned(), header("traceparent", trace, &text())),
    ])
}

fn query_parameters() -> Map<String, Value> {
    let prefer = "`wait=2`: how many seconds to wait for the views to reach the token, 1 unless it says so, at most 10. \
        `handling=lenient`: the row as it is when the time is over.";
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 50 });
    let token = format!("What a command or a query answered; several are joined by commas. {TOKEN}");
    let views = json!({ "type": "string", "enum": VIEWS.map(|view| view.name) });
    Map::from_iter([
        ("view".to_owned(), json!({ "name": "view", "in": "path", "required": true, "schema": views })),
        ("Consistency-Token".to_owned(), header("Consistency-Token", &token, &reference("schemas", "Token"))),
        ("Prefer".to_owned(), header("Prefer", prefer, &text())),
        ("If-None-Match".to_owned(), header("If-None-Match", "Versions that the client has.", &text())),
        ("limit".to_owned(), query("limit", "Rows on a page.", &limit)),
        ("after".to_owned(), query("after", "The `next` of the page before, of the same list.", &text())),
    ])
}

fn history_parameters() -> Map<String, Value> {
    let version = json!({ "type": "integer", "format": "int64", "minimum": 0 });
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 1000 });
    let time = json!({ "type": "string", "format": "date-time" });
    let deprecated = |mut parameter: Value| {
        parameter["deprecated"] = true.into();
        parameter
    };
    let (then, at) = ("Deprecated: ask `as-of?version=`.", "Deprecated: ask `as-of?at=`.");
    Map::from_iter([
        ("history-limit".to_owned(), query("limit", "Events on a page.", &limit)),
        ("history-after".to_owned(), query("after", "Events behind this version.", &version)),
        ("history-version".to_owned(), deprecated(query("version", then, &version))),
        ("history-at".to_owned(), deprecated(query("at", at, &time))),
        ("version".to_owned(), query("version", "The row after that many events.", &version)),
        ("at".to_owned(), query("at", "The row at that time, of all events up to and with it.", &time)),
    ])
}

fn answer_headers() -> Value {
    let plain = |words: &str, schema: Value| json!({ "description": words, "schema": schema });
    let always = |value: &str| json!({ "type": "string", "enum": [value] });
    let shows = format!("What the answer is sure to show, or was decided on. {TOKEN}");
    json!({
        "Consistency-Token": plain(&shows, reference("schemas", "Token")),
        "ETag": plain("The version: `\"8\"`; behind a rebuild of its view, with the generation: `\"8-2\"`.", text()),
        "Idempotency-Key": plain("The key of the command or of the batch, for a retry.", text()),
        "Idempotent-Replayed": plain("The command was accepted before.", always("true")),
        "Retry-After": plain("Seconds.", json!({ "type": "integer" })),
        "Cache-Control": plain("Who may keep the answer, and for how long.", text()),
        "Vary": plain("What else the answer depends on.", text()),
        "Age": plain("Seconds: how old the answer may be while Postgres is away.", json!({ "type": "integer" })),
        "Stampede-Parked": plain("Something that the answer should show is left out.", always("true")),
        "X-Request-Id": plain("The request's name: the client's own, or one that was made for it.", text()),
        "Link": plain("The next page: `</v1/…>; rel=\"next\"`.", text()),
        "Deprecation": plain("Since when another route is to be asked: `@` and seconds since 1970.", text()),
    })
}

fn responses() -> Value {
    let names = ["Consistency-Token", "ETag", "Idempotency-Key", "Idempotent-Replayed"];
    let limited = ProblemKind::RateLimited;
    let mut all = commands::shared();
    all.extend(queries::shared());
    let own = json!({
        "Accepted": {
            "description": "Accepted, and in the log for ever.",
            "headers": headers(&names),
            "content": { "application/json": { "schema": reference("schemas", "Accepted") } },
        },
        "RateLimited": {
            "description": format!("`{}`: {}", limited.slug(), limited.explanation()),
            "headers": headers(&["Retry-After", "Idempotency-Key"]),
            "content": { CONTENT_TYPE: { "schema": reference("schemas", "Problem") } },
        },
        "NoAnswer": {
            "description": "No instance answered. A retry, of a command under the same key, is safe.",
            "headers": headers(&["Retry-After", "Idempotency-Key"]),
            "content": { CONTENT_TYPE: { "schema": reference("schemas", "Problem") } },
        },
    });
    all.extend(own.as_object().cloned().unwrap_or_default());
    all.into()
}

fn schemas() -> Value {
    let mut all = queries::schemas();
    for (aggregate, command) in commands::public() {
        let mut schema = taken(command.schema);
        schema["description"] = command.about.into();
        all.insert(commands::schema_name(aggregate, command.name), schema);
    }
    all.extend([
        ("Token".to_owned(), json!({ "type": "string", "examples": ["k7x2.3-1042,7-99"] })),
        ("Problem".to_owned(), written::<Problem>()),
        ("CloudEvent".to_owned(), written::<CloudEvent<'_>>()),
        ("BatchLine".to_owned(), taken(schemars::SchemaGenerator::subschema_for::<BatchLine<'_>>)),
        ("Accepted".to_owned(), accepted()),
        ("BatchAnswer".to_owned(), batch_answer()),
        ("Views".to_owned(), views()),
    ]);
    all.into()
}

fn accepted() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": queries::id(),
            "version": { "type": "integer", "minimum": 0, "description": "Of the aggregate, after the events." },
            "events": {
                "type": "array",
                "items": { "type": "string", "examples": ["product.reserved.v2"] },
                "description": "Empty where the command found its wish already so.",
            },
            "token": reference("schemas", "Token"),
            "order": {
                "type": "string",
                "description": "Of a claim: the name of its order, which is the sale's, `~` and the one in the claim.",
            },
        },
        "required": ["id", "version", "events", "token"],
    })
}

fn batch_answer() -> Value {
    let key = json!({ "type": "string" });
    json!({
        "description": "A line: what the command would have been answered by itself.",
        "anyOf": [
            {
                "allOf": [reference("schemas", "Accepted")],
                "properties": {
                    "status": { "type": "integer", "enum": [200] },
                    "idempotency_key": key,
                    "replayed": { "type": "boolean", "description": "Set where the command was accepted before." },
                },
                "required": ["status", "idempotency_key"],
            },
            {
                "allOf": [reference("schemas", "Problem")],
                "properties": {
                    "id": { "type": "string" },
                    "idempotency_key": key,
                    "token": reference("schemas", "Token"),
                    "retry_after": { "type": "integer", "description": "Seconds, with a 503." },
                },
                "required": ["id"],
            },
        ],
    })
}

fn views() -> Value {
    let names = json!({ "type": "array", "items": text() });
    let object = |properties: Value| {
        let required: Vec<_> = properties.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
        json!({ "type": "object", "properties": properties, "required": required })
    };
    let field = object(json!({ "name": text(), "kind": text() }));
    let list = object(json!({
        "order": { "type": "string", "description": "A field, or `key`." },
        "descending": { "type": "boolean", "description": "Which way it goes where the reader names no order." },
        "filters": names,
    }));
    let mut progress = object(json!({
        "applied": { "type": ["string", "null"], "description": "As a token; `null`: it shows nothing yet." },
        "behind_secs": {
            "type": ["number", "null"],
            "description": "For how long the log has had records that it does not show, to the second; `null`: not known.",
        },
    }));
    progress["type"] = json!(["object", "null"]);
    let view = object(json!({
        "name": text(),
        "about": { "type": "string", "description": "What it shows." },
        "key": text(),
        "fields": { "type": "array", "items": field },
        "filters": { "type": "array", "items": text(), "description": "Parameters of its lists." },
        "generation": { "type": "integer", "description": "How often the view was made." },
        "lists": { "type": "array", "items": list },
        "applied": { "type": ["string", "null"], "description": "As a token; `null`: it shows nothing yet." },
        "lag": { "type": ["integer", "null"], "description": "Records that another view shows and this one does not." },
        "redis": progress,
        "postgres": progress,
    }));
    object(json!({ "views": { "type": "array", "items": view } }))
}
