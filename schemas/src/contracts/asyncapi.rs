//! Description of the log's topic as AsyncAPI 3.0.

use serde_json::{Value, json};

use super::json_schema;
use crate::record::Record;
use crate::topic::SETTINGS;

/// Media type of a record: a marker, a format number and JSON.
const CONTENT_TYPE: &str = "application/vnd.stampede.record";
const RULE: &str = "Within a partition, offset order is commit order, and all records of an aggregate are in one partition. A \
    record counts if it names the last claim before it (`epoch`: the claim's offset and nonce) and its `seq` is one more \
    than that of the last record that counted, or 1 after a claim. All other records are ignored; they were sent by an \
    owner that had already lost the partition. A value consists of `st`, the number of the record's format in decimal, \
    and JSON; the payloads below describe that JSON. A value without `st` does not belong to the log. A reader must stop \
    at a format or an event that it does not recognize.";

const ABOUT: &str = "Every accepted command with its events, in Apache Kafka. The topic is internal to the system: only \
    its own processes append to it, every reader must follow the rule below, and the format of the records may change \
    with a release. The public form of events is CloudEvents 1.0, served by `GET /v1/{aggregates}/{id}/history` of the \
    [HTTP API](/docs); the data of an event is the same in both.";

/// Returns the AsyncAPI document of the topic `events`.
pub fn document() -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Stampede's log",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": { "events": channel() },
        "operations": {
            "append": {
                "action": "send",
                "channel": { "$ref": "#/channels/events" },
                "summary": "An owner claims a partition, commits commands, and proves that it still owns the partition.",
            },
            "read": {
                "action": "receive",
                "channel": { "$ref": "#/channels/events" },
                "summary": "Projectors, and owners during startup, fold the records that count.",
            },
        },
        "components": { "messages": messages(), "schemas": schemas() },
    })
}

fn channel() -> Value {
    let names = ["claim", "commit", "fence"];
    let references = names.map(|name| (name.to_owned(), json!({ "$ref": format!("#/components/messages/{name}") })));
    let setting = |name| SETTINGS.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
    let number = |name| setting(name).parse::<i64>().unwrap_or(-1);
    json!({
        "address": "events",
        "title": "The log",
        "description": RULE,
        "messages": serde_json::Map::from_iter(references),
        "bindings": {
            "kafka": {
                "topic": "events",
                "topicConfiguration": {
                    "cleanup.policy": [setting("cleanup.policy")],
                    "retention.ms": number("retention.ms"),
                    "retention.bytes": number("retention.bytes"),
                },
                "bindingVersion": "0.5.0",
            },
        },
    })
}

fn messages() -> Value {
    let mut commit = message("commit", "An accepted command with all its events");
    commit["bindings"]["kafka"]["key"] =
        json!({ "type": "string", "description": "Aggregate, as in the member `aggregate`, e.g. `product/cd-1`." });
    json!({
        "claim": message("claim", "Makes its sender the owner of the partition from this offset on"),
        "commit": commit,
        "fence": message("fence", "Proves, once acknowledged, that its sender still owned the partition"),
    })
}

fn message(name: &str, title: &str) -> Value {
    json!({
        "name": name,
        "title": title,
        "contentType": CONTENT_TYPE,
        "payload": { "$ref": format!("#/components/schemas/{name}") },
        "bindings": { "kafka": { "bindingVersion": "0.5.0" } },
    })
}

/// Returns the schemas of the three kinds of records, and those of every event's data by the event's name.
fn schemas() -> Value {
    let events = json_schema::events();
    let versions = events.iter().map(|(name, schema)| event(name, schema));
    let versions: Vec<_> = versions.collect();
    let records = json_schema::written::<Record<'_>>();
    let kinds = records["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
    let mut schemas = serde_json::Map::new();
    for kind in kinds {
        let Some(name) = kind["required"][0].as_str() else { continue };
        let mut kind = kind.clone();
        if let Some(list) = kind.pointer_mut("/properties/commit/properties/events") {
            list["items"] = json!({ "oneOf": versions });
        }
        schemas.insert(name.to_owned(), kind);
    }
    for (name, mut schema) in events {
        // An embedded schema has neither an ID nor a dialect of its own.
        if let Some(members) = schema.as_object_mut() {
            members.retain(|name, _| name != "$id" && name != "$schema");
        }
        schemas.insert(name.to_owned(), schema);
    }
    schemas.into()
}

fn event(name: &str, schema: &Value) -> Value {
    json!({
        "type": "object",
        "description": schema["description"],
        "properties": {
            "type": { "type": "string", "const": name },
            "data": { "$ref": format!("#/components/schemas/{name}") },
        },
        "required": ["type", "data"],
        "additionalProperties": false,
    })
}
