//! JSON Schemas of the events and other types, in the 2020-12 dialect. Each is self-contained.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use super::schema_path;
use crate::events::{NAMES, WireEvent};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Returns the name and the data schema of every event version, in the order of [`NAMES`].
pub fn events() -> Vec<(&'static str, Value)> {
    let whole = written::<WireEvent<'_>>();
    let versions = whole["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
    let find = |name| versions.iter().find(|version| version["properties"]["type"]["const"] == name);
    let event = |name| (name, of_data(name, find(name).expect("NAMES contains only names of WireEvent's variants")));
    NAMES.into_iter().map(event).collect()
}

/// Returns the schema for serializing a `T`, in which an optional member is never `null`.
pub fn written<T: JsonSchema>() -> Value {
    written_by(SchemaGenerator::subschema_for::<T>)
}

/// Returns the schema for serializing the type of `schema`, see [`written`].
pub fn written_by(schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
    let mut schema = bare(schema(&mut generator(SchemaSettings::draft2020_12().for_serialize())));
    leave_null_out(&mut schema);
    schema
}

/// Returns the schema for deserializing the type of `schema`, in which an optional member may also be `null`.
pub fn taken(schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
    bare(schema(&mut generator(SchemaSettings::draft2020_12().for_deserialize())))
}

fn generator(settings: SchemaSettings) -> SchemaGenerator {
    settings.with(|settings| settings.inline_subschemas = true).into_generator()
}

/// Removes the dialect and the Rust type name from the root of a schema.
fn bare(schema: Schema) -> Value {
    let mut schema = schema.to_value();
    if let Some(members) = schema.as_object_mut() {
        members.retain(|name, _| name != "$schema" && name != "title");
    }
    schema
}

/// Returns the schema of an event's data. The description of `version`, a variant of [`WireEvent`], comes before that
/// of the data.
fn of_data(name: &str, version: &Value) -> Value {
    let data = &version["properties"]["data"];
    let words: Vec<_> = [version, data].into_iter().filter_map(|schema| schema["description"].as_str()).collect();
    let mut schema: Map<String, Value> = data.as_object().cloned().unwrap_or_default();
    schema.insert("$schema".to_owned(), DIALECT.into());
    schema.insert("$id".to_owned(), schema_path(name).into());
    schema.insert("title".to_owned(), name.into());
    schema.insert("description".to_owned(), words.join(" ").into());
    schema.into()
}

/// Removes `null` from all types, because options that are `None` are not serialized.
fn leave_null_out(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::Array(types)) = members.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    members.insert("type".to_owned(), only);
                }
            }
            members.values_mut().for_each(leave_null_out);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_null_out),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
