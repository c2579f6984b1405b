//! JSON Schemas of the events and other types, in the dialect of 2020-12. Each stands alone: it refers to no other.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use super::schema_path;
use crate::events::{NAMES, WireEvent};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of every version's data, by name, in the order of [`NAMES`].
pub fn events() -> Vec<(&'static str, Value)> {
    let whole = written::<WireEvent<'_>>();
    let versions = whole["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
    let find = |name| versions.iter().find(|version| version["properties"]["type"]["const"] == name);
    let event = |name| (name, of_data(name, find(name).expect("NAMES has the names of WireEvent's variants alone")));
    NAMES.into_iter().map(event).collect()
}

/// Of what is written as a `T`: a member that may be absent is never `null`.
pub fn written<T: JsonSchema>() -> Value {
    let mut schema = bare(generator(SchemaSettings::draft2020_12().for_serialize()).into_root_schema_for::<T>());
    leave_null_out(&mut schema);
    schema
}

/// Of what is taken for the type that `schema` asks for: a member that may be absent may be `null`, too.
pub fn taken(schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
    bare(schema(&mut generator(SchemaSettings::draft2020_12().for_deserialize())))
}

fn generator(settings: SchemaSettings) -> SchemaGenerator {
    settings.with(|settings| settings.inline_subschemas = true).into_generator()
}

/// Without what names a document, and without the names of Rust's types.
fn bare(schema: Schema) -> Value {
    let mut schema = schema.to_value();
    if let Some(members) = schema.as_object_mut() {
        members.retain(|name, _| name != "$schema" && name != "title");
    }
    schema
}

/// `version`: a variant of [`WireEvent`], whose words say what happened; those of its data say what else there is.
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

/// Options that are `None` are not written.
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
