//! Components that are shared by several operations.

use serde_json::{Map, Value, json};

use super::super::json_schema::{taken, written};
use super::{commands, headers, queries, reference};
use crate::commands::BatchLine;
use crate::headers::{CONSISTENCY_TOKEN, IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED, PARKED, TRACEPARENT};
use crate::idempotency::{MAX_BATCH_KEY_CHARS, MAX_KEY_CHARS};
use crate::problem::{CONTENT_TYPE, Problem, ProblemKind};
use crate::views::{CloudEvent, VIEWS};

const TOKEN: &str = "The ID of a log, and positions: `k7x2.3-1042,7-99` stands for all events of partition 3 up to and \
    including offset 1042, and of partition 7 up to and including 99. Treat it as opaque: the format may be extended.";

pub(super) fn all() -> Value {
    json!({
        "parameters": parameters(),
        "headers": answer_headers(),
        "responses": responses(),
        "schemas": schemas(),
        "securitySchemes": commands::security_schemes(),
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
         aggregate; a retry of an accepted command returns the original result. If absent, a key is generated and \
         returned."
    );
    let batch_key = format!(
        "1 to {MAX_BATCH_KEY_CHARS} visible characters, quoted or bare. Line n of the batch has this key followed by \
         `-n`, unless it has its own `key`, so the whole batch may be retried. If absent, a key is generated for each \
         such line and returned in its result."
    );
    let wait = |most: &str| format!("`wait=2`: number of seconds that the client waits; {most}.");
    let version = r#"(W/)?"[0-9]{1,15}(-[0-9]{1,9})?""#;
    let versions = format!(r"^(\*|{version}( ?, ?{version}){{0,3}})$");
    let any = json!({ "type": "string", "enum": ["*"] });
    let trace = "W3C trace context of version 00, which is stored in the log; other values are ignored.";
    let seconds = json!({ "type": "string", "examples": ["wait=2"] });
    Map::from_iter([
        ("id".to_owned(), json!({ "name": "id", "in": "path", "required": true, "schema": queries::id() })),
        (IDEMPOTENCY_KEY.name.to_owned(), header(IDEMPOTENCY_KEY.name, &key, &key_of(MAX_KEY_CHARS))),
        ("Idempotency-Key-batch".to_owned(), header(IDEMPOTENCY_KEY.name, &batch_key, &key_of(MAX_BATCH_KEY_CHARS))),
        (
            "If-Match".to_owned(),
            header(
                "If-Match",
                "Execute the command only at this version of the aggregate, or at one of up to four: `\"7\"`; `W/\"7\"` and \
                 `\"7-2\"`, the ETag of a query, are equivalent. `*`: at any version, if the aggregate exists.",
                &json!({ "type": "string", "pattern": versions }),
            ),
        ),
        (
            "If-None-Match-any".to_owned(),
            header("If-None-Match", "Execute the command only if the aggregate does not exist yet.", &any),
        ),
        (
            "Prefer-turn".to_owned(),
            header("Prefer", &wait("by default 1 in the queue and 10 in total, at most 25"), &seconds),
        ),
        ("Prefer-batch".to_owned(), header("Prefer", &wait("25 by default, which is also the maximum"), &seconds)),
        (TRACEPARENT.name.to_owned(), header(TRACEPARENT.name, trace, &text())),
    ])
}

fn query_parameters() -> Map<String, Value> {
    let prefer = "`wait=2`: number of seconds to wait for the views to reach the token; 1 by default, at most 10. \
        `handling=lenient`: return the current state when the time is over.";
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 50 });
    let token = format!("Token returned by a command or a query; several are joined by commas. {TOKEN}");
    let views = json!({ "type": "string", "enum": VIEWS.map(|view| view.name) });
    Map::from_iter([
        ("view".to_owned(), json!({ "name": "view", "in": "path", "required": true, "schema": views })),
        (CONSISTENCY_TOKEN.name.to_owned(), header(CONSISTENCY_TOKEN.name, &token, &reference("schemas", "Token"))),
        ("Prefer".to_owned(), header("Prefer", prefer, &text())),
        ("If-None-Match".to_owned(), header("If-None-Match", "Versions that the client has cached.", &text())),
        ("limit".to_owned(), query("limit", "Maximum number of rows on the page.", &limit)),
        ("after".to_owned(), query("after", "The `next` of the previous page of the same list.", &text())),
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
    let (then, at) = ("Deprecated: use `as-of?version=`.", "Deprecated: use `as-of?at=`.");
    Map::from_iter([
        ("history-limit".to_owned(), query("limit", "Maximum number of events on the page.", &limit)),
        ("history-after".to_owned(), query("after", "Only events after this version.", &version)),
        ("history-version".to_owned(), deprecated(query("version", then, &version))),
        ("history-at".to_owned(), deprecated(query("at", at, &time))),
        ("version".to_owned(), query("version", "Version of the row to return.", &version)),
        (
            "at".to_owned(),
            query("at", "Time of the state to return, which includes all events up to and including this time.", &time),
        ),
    ])
}

fn answer_headers() -> Value {
    let plain = |words: &str, schema: Value| json!({ "description": words, "schema": schema });
    let always = |value: &str| json!({ "type": "string", "enum": [value] });
    let shows =
        format!("Events that the response is guaranteed to reflect, or that the decision was based on. {TOKEN}");
    json!({
        (CONSISTENCY_TOKEN.name): plain(&shows, reference("schemas", "Token")),
        "ETag": plain("The version, e.g. `\"8\"`; after a rebuild of the view followed by its generation, e.g. `\"8-2\"`.", text()),
        (IDEMPOTENCY_KEY.name): plain("The key of the command or of the batch, to be used for a retry.", text()),
        (IDEMPOTENT_REPLAYED.name): plain("Set if the command had already been accepted.", always("true")),
        "Retry-After": plain("Number of seconds to wait before a retry.", json!({ "type": "integer" })),
        "Cache-Control": plain("Caches that may store the response, and for how long.", text()),
        "Vary": plain("Request headers that the response depends on.", text()),
        "Age": plain("Maximum age of the response in seconds, while Postgres is unavailable.", json!({ "type": "integer" })),
        (PARKED.name): plain("Set if the response omits a parked record that it should reflect.", always("true")),
        "X-Request-Id": plain("ID of the request, set by the client or generated.", text()),
        "Link": plain("Next page: `</v1/…>; rel=\"next\"`.", text()),
        "WWW-Authenticate": plain("The scheme by which to authenticate.", text()),
        "Deprecation": plain("Time since which the request is deprecated: `@` and seconds since 1970.", text()),
    })
}

fn responses() -> Value {
    let names = [CONSISTENCY_TOKEN.name, "ETag", IDEMPOTENCY_KEY.name, IDEMPOTENT_REPLAYED.name];
    let limited = ProblemKind::RateLimited;
    let mut all = commands::shared();
    all.extend(queries::shared());
    let own = json!({
        "Accepted": {
            "description": "The command was accepted and is stored durably in the log.",
            "headers": headers(&names),
            "content": { "application/json": { "schema": reference("schemas", "Accepted") } },
        },
        "RateLimited": {
            "description": format!("`{}`: {}", limited.slug(), limited.explanation()),
            "headers": headers(&["Retry-After", IDEMPOTENCY_KEY.name]),
            "content": { CONTENT_TYPE: { "schema": reference("schemas", "Problem") } },
        },
        "NoAnswer": {
            "description": "No instance answered. A retry is safe; retry a command with the same key.",
            "headers": headers(&["Retry-After", IDEMPOTENCY_KEY.name]),
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
            "version": { "type": "integer", "minimum": 0, "description": "Version of the aggregate after the events." },
            "events": {
                "type": "array",
                "items": { "type": "string", "examples": ["product.reserved.v2"] },
                "description": "Names of the events; empty if the aggregate already was in the requested state.",
            },
            "token": reference("schemas", "Token"),
            "order": {
                "type": "string",
                "description": "Only for a claim: ID of its order, which consists of the sale's ID, `~` and the name in the claim.",
            },
        },
        "required": ["id", "version", "events", "token"],
    })
}

fn batch_answer() -> Value {
    let key = json!({ "type": "string" });
    json!({
        "description": "Result of one line, equivalent to the response to the command in a request of its own.",
        "anyOf": [
            {
                "allOf": [reference("schemas", "Accepted")],
                "properties": {
                    "status": { "type": "integer", "enum": [200] },
                    "idempotency_key": key,
                    "replayed": { "type": "boolean", "description": "True if the command had already been accepted." },
                },
                "required": ["status", "idempotency_key"],
            },
            {
                "allOf": [reference("schemas", "Problem")],
                "properties": {
                    "id": { "type": "string" },
                    "idempotency_key": key,
                    "token": reference("schemas", "Token"),
                    "retry_after": { "type": "integer", "description": "Number of seconds to wait before a retry; present with status 503." },
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
        "order": { "type": "string", "description": "Name of a field, or `key`." },
        "descending": { "type": "boolean", "description": "Direction that applies if the request names no order." },
        "filters": names,
    }));
    let mut progress = object(json!({
        "applied": { "type": ["string", "null"], "description": "Progress as a token; `null` if the view shows nothing yet." },
        "behind_secs": {
            "type": ["number", "null"],
            "description": "Time, in whole seconds, for which the log has had records that are not shown yet; `null` if unknown.",
        },
    }));
    progress["type"] = json!(["object", "null"]);
    let view = object(json!({
        "name": text(),
        "about": { "type": "string", "description": "Description of the view." },
        "key": text(),
        "fields": { "type": "array", "items": field },
        "filters": { "type": "array", "items": text(), "description": "Filter parameters of the lists." },
        "generation": { "type": "integer", "description": "Generation of the view, which a rebuild increments." },
        "lists": { "type": "array", "items": list },
        "applied": { "type": ["string", "null"], "description": "Progress as a token; `null` if the view shows nothing yet." },
        "lag": { "type": ["integer", "null"], "description": "Number of records that another view shows but this one does not." },
        "redis": progress,
        "postgres": progress,
    }));
    object(json!({ "views": { "type": "array", "items": view } }))
}
