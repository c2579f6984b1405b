//! Checks beyond the meta-schemas of the specifications: the schemas inside a document, and the parameters in paths.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::{asyncapi, openapi};

/// Returns the faults of a document, each with its location.
fn faults(document: &Value) -> Vec<String> {
    let mut schemas = Vec::new();
    collect("", document, &mut schemas);
    let mut found = Vec::new();
    for place in &schemas {
        let schema = document.pointer(place).unwrap();
        found.extend(jsonschema::draft202012::meta::validate(schema).err().map(|error| format!("{place}: {error}")));
    }
    // One validator for all schemas, because creating one processes the whole document. It compiles patterns and
    // resolves references.
    let mut whole = document.clone();
    // Braces have to be escaped in a reference, unlike in a JSON pointer.
    let references = schemas.iter().map(|place| format!("#{place}").replace('{', "%7B").replace('}', "%7D"));
    whole["allOf"] = references.map(|reference| json!({ "$ref": reference })).collect();
    found.extend(jsonschema::draft202012::new(&whole).err().map(|error| error.to_string()));
    found.extend(path_faults(document));
    found
}

/// Collects the JSON pointers of all schemas that are not part of another one.
fn collect(place: &str, json: &Value, found: &mut Vec<String>) {
    match json {
        Value::Object(members) => {
            for (name, member) in members {
                let inside = format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"));
                let is_key = name == "key" && place.ends_with("/bindings/kafka");
                if is_key || name == "schema" || name == "payload" || place == "/components/schemas" {
                    found.push(inside);
                } else {
                    collect(&inside, member, found);
                }
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| collect(&format!("{place}/{index}"), item, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns the paths whose names and path parameters do not correspond, and operations with duplicate parameters.
fn path_faults(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let named: BTreeSet<_> = path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
        for (method, operation) in item.as_object().unwrap() {
            let parameters = super::parameters(document, operation);
            let of_path = parameters.iter().filter(|parameter| parameter["in"] == "path");
            let required = of_path.clone().filter(|parameter| parameter["required"] == true);
            let required: BTreeSet<_> = required.filter_map(|parameter| parameter["name"].as_str()).collect();
            if required != named || of_path.count() != named.len() {
                found.push(format!("{method} {path}: the path parameters are {required:?}"));
            }
            let names: BTreeSet<_> = parameters.iter().map(|own| (own["in"].as_str(), own["name"].as_str())).collect();
            if names.len() != parameters.len() {
                found.push(format!("{method} {path}: duplicate parameter"));
            }
        }
    }
    found
}

#[test]
fn every_schema_of_both_descriptions_is_valid_and_every_name_in_a_path_has_a_parameter() {
    assert_eq!(faults(&openapi::document()), [""; 0]);
    assert_eq!(faults(&asyncapi::document()), [""; 0]);
}

#[test]
fn a_fault_inside_a_description_is_found() {
    let version = "/components/schemas/Accepted/properties/version";
    let id = "/components/parameters/id";
    let order = "/paths/~1v1~1best-sellers/get/parameters/0";
    for (place, name, value) in [
        (version, "type", json!("strings")),
        (version, "pattern", json!("([")),
        (version, "$ref", json!("#/components/schemas/Nothing")),
        ("/components/schemas/Accepted", "required", json!("id")),
        (order, "schema", json!({ "enum": "units" })),
        (order, "in", json!("path")),
        (id, "required", json!(false)),
        (id, "name", json!("key")),
        ("/paths", "/v1/{gift}", json!({ "get": { "operationId": "gift" } })),
    ] {
        let mut document = openapi::document();
        document.pointer_mut(place).unwrap_or_else(|| panic!("{place} exists"))[name] = value.clone();
        assert_ne!(faults(&document), [""; 0], "{place}: {name} {value}");
    }
    for (place, value) in [
        ("/components/schemas/claim/type", json!("strings")),
        ("/components/messages/commit/bindings/kafka/key/type", json!("strings")),
        ("/components/messages/commit/payload/$ref", json!("#/components/schemas/gift")),
    ] {
        let mut document = asyncapi::document();
        *document.pointer_mut(place).unwrap_or_else(|| panic!("{place} exists")) = value;
        assert_ne!(faults(&document), [""; 0], "{place}");
    }
}
