//! Tests that the checked-in contracts match the code, are valid, and do not break published ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use domain::Event;
use serde_json::{Value, json};

use super::breaking::{breaking_changes, without_words};
use super::catalogue::events::{Entry, written_as};
use super::{asyncapi, catalogue, json_schema, openapi};
use crate::aggregate::{TYPES, type_name};
use crate::commands::tests::rejections::outcomes;
use crate::commands::{self, Who};
use crate::events::{NAMES, WireEvent};
use crate::views::VIEWS;

mod parameters;
mod validity;

const ANEW: &str = "UPDATE_CONTRACTS=1 cargo test -p schemas contracts";

type Published = BTreeMap<String, Value>;

fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn read(relative: &str) -> Option<String> {
    std::fs::read_to_string(path(relative)).ok()
}

fn read_json(relative: &str) -> Value {
    let text = read(relative).unwrap_or_else(|| panic!("{relative} does not exist; generate it with {ANEW}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// Returns the parameters of an operation, with references resolved.
fn parameters<'a>(document: &'a Value, operation: &'a Value) -> Vec<&'a Value> {
    let own = operation["parameters"].as_array().into_iter().flatten();
    let whole = |own: &'a Value| match own["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => own,
    };
    own.map(whole).collect()
}

fn golden(name: &str) -> Value {
    read_json(&format!("golden/{name}.json"))
}

/// Returns the entries of `known` and of new events, or the breaking changes. A missing list is an error, because
/// regenerating it would hide every break.
fn published(known: Option<&str>, events: &[(&'static str, Value)]) -> Result<Published, Vec<String>> {
    let Some(known) = known else {
        return Err(vec![
            "json/published.json: does not exist, and the published schemas cannot be derived otherwise".to_owned(),
        ]);
    };
    let mut published: Published = serde_json::from_str(known).unwrap();
    let mut broken = Vec::new();
    for name in published.keys().filter(|name| !events.iter().any(|(known, _)| known == name)) {
        broken.push(format!("{name}: was published but is no longer in the code"));
    }
    for (name, schema) in events {
        match published.get_mut(*name) {
            Some(entry) => {
                let found = breaking_changes(&entry["schema"], schema);
                broken.extend(found.iter().map(|change| format!("{name}: {change}")));
                entry["schema"] = without_words(schema);
            }
            None => {
                let entry = json!({ "since": env!("CARGO_PKG_VERSION"), "schema": without_words(schema) });
                published.insert((*name).to_owned(), entry);
            }
        }
    }
    if broken.is_empty() { Ok(published) } else { Err(broken) }
}

/// Returns the sample of an event in its golden file.
fn sample(name: &str) -> Event {
    serde_json::from_str::<WireEvent<'_>>(&golden(name).to_string()).unwrap().upcast()
}

fn events_document(events: &[(&'static str, Value)], published: &Published) -> String {
    let newest: Vec<_> = events.iter().map(|(name, _)| written_as(&sample(name))).collect();
    let entries = events.iter().zip(&newest).map(|((name, schema), written_as)| {
        let since = published[*name]["since"].as_str().unwrap();
        Entry { name, since, written_as, schema }
    });
    catalogue::events::markdown(&entries.collect::<Vec<_>>())
}

/// Returns the catalogues of the commands, the views and the reactions, by path.
fn documents() -> [(String, String); 3] {
    let newest = || NAMES.into_iter().filter(|name| written_as(&sample(name)) == *name);
    let met = BTreeMap::from_iter(TYPES.map(|aggregate| (type_name(aggregate), outcomes(aggregate))));
    let events = |aggregate, command: &str| {
        let met = met[type_name(aggregate)].get(command);
        NAMES.into_iter().filter(|name| met.is_some_and(|met| met.events.contains(name))).collect()
    };
    let samples: Vec<_> = newest().map(|name| (name, sample(name))).collect();
    let data: Vec<_> = newest().map(|name| (name, golden(name)["data"].clone())).collect();
    [
        ("COMMANDS.md".to_owned(), catalogue::commands::markdown(events)),
        ("VIEWS.md".to_owned(), catalogue::views::markdown(&samples)),
        ("REACTIONS.md".to_owned(), catalogue::reactions::markdown(&data)),
    ]
}

/// Returns the content of every generated file, by path.
fn files() -> Result<BTreeMap<String, String>, Vec<String>> {
    let events = json_schema::events();
    let published = published(read("json/published.json").as_deref(), &events)?;
    let mut files = BTreeMap::from([
        ("EVENTS.md".to_owned(), events_document(&events, &published)),
        ("json/openapi.json".to_owned(), text(&openapi::document())),
        ("json/asyncapi.json".to_owned(), text(&asyncapi::document())),
        ("json/published.json".to_owned(), text(&serde_json::to_value(&published).unwrap())),
    ]);
    files.extend(documents());
    files.extend(events.iter().map(|(name, schema)| (format!("json/{name}.json"), text(schema))));
    Ok(files)
}

fn text(json: &Value) -> String {
    let mut text = serde_json::to_string_pretty(json).unwrap();
    text.push('\n');
    text
}

/// Compares contents; JSON regardless of the order of members, which depends on the features of the build.
fn is_same(file: &str, found: &str, wanted: &str) -> bool {
    if file.ends_with(".json") {
        let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
        return parsed(found).is_some() && parsed(found) == parsed(wanted);
    }
    found == wanted
}

#[test]
fn the_checked_in_contracts_match_the_code() {
    let files = files().unwrap_or_else(|broken| {
        panic!(
            "these changes break consumers of a published event:\n  {}\nKeep the version unchanged and add a new one.",
            broken.join("\n  ")
        )
    });
    let stale: Vec<_> =
        files.iter().filter(|(file, wanted)| !read(file).is_some_and(|found| is_same(file, &found, wanted))).collect();
    if std::env::var_os("UPDATE_CONTRACTS").is_some() {
        for (file, wanted) in &stale {
            std::fs::write(path(file), wanted).unwrap();
        }
    } else {
        let names: Vec<_> = stale.iter().map(|(file, _)| file.as_str()).collect();
        assert!(names.is_empty(), "{} differ from the code; regenerate them with {ANEW}", names.join(", "));
    }
    let json = path("json").read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let there: BTreeSet<_> = json.map(|path| format!("json/{}", path.file_name().unwrap().display())).collect();
    let stray: Vec<_> = there.iter().filter(|file| !files.contains_key(*file)).collect();
    assert!(stray.is_empty(), "no generator writes {stray:?}");
}

#[test]
fn nothing_is_published_over_a_break_or_without_the_list_of_published_events() {
    let events = json_schema::events();
    let known = read("json/published.json").unwrap();
    assert!(published(Some(&known), &events).is_ok());
    assert!(published(None, &events).is_err());
    assert!(published(Some(&known), &events[1..]).is_err(), "an event was removed");
    let mut changed = events.clone();
    changed[0].1["properties"]["gift"] = json!({ "type": "string" });
    assert!(published(Some(&known), &changed).is_err(), "the schema is closed");
    let fewer: Published = serde_json::from_str::<Published>(&known).unwrap().into_iter().skip(1).collect();
    let fewer = serde_json::to_string(&fewer).unwrap();
    let added = published(Some(&fewer), &events).unwrap();
    assert_eq!(added.len(), events.len());
}

#[test]
fn every_event_of_the_golden_files_is_valid_by_its_schema_and_by_no_more() {
    for (name, schema) in json_schema::events() {
        let validator = jsonschema::draft202012::new(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        let data = golden(name)["data"].clone();
        assert_eq!(validator.validate(&data).map_err(|error| error.to_string()), Ok(()), "{name}");
        let places = objects(&data);
        assert!(!places.is_empty());
        for place in places {
            let mut more = data.clone();
            more.pointer_mut(&place).unwrap()["gift"] = json!(true);
            assert!(!validator.is_valid(&more), "{name}{place}");
            let more = json!({ "type": name, "data": more }).to_string();
            assert!(serde_json::from_str::<WireEvent<'_>>(&more).is_err(), "{more}");
        }
        assert_eq!(open_objects(&schema), [""; 0], "{name}");
        assert!(schema["description"].as_str().is_some_and(|words| words.len() > 10), "{name} has no description");
    }
}

/// Returns the JSON pointers of all objects in a value, including the value itself.
fn objects(json: &Value) -> Vec<String> {
    let inside = |(name, member): (String, &Value)| {
        objects(member).into_iter().map(|place| format!("/{name}{place}")).collect::<Vec<_>>()
    };
    match json {
        Value::Object(members) => {
            let inner = members.iter().flat_map(|(name, member)| inside((name.clone(), member)));
            [String::new()].into_iter().chain(inner).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, item)| inside((index.to_string(), item))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![],
    }
}

/// Returns the JSON pointers of a schema's objects that allow unknown members.
fn open_objects(schema: &Value) -> Vec<String> {
    let mut places = objects(schema);
    places.retain(|place| {
        let object = schema.pointer(place).unwrap();
        object["type"] == "object" && object["additionalProperties"] != false
    });
    places
}

#[test]
fn every_command_has_a_contract_whose_body_can_be_read() {
    for aggregate in TYPES {
        for contract in commands::contracts(aggregate) {
            for form in [Some(contract.schema), contract.by_reaction.map(|form| form.schema)].into_iter().flatten() {
                let schema = json_schema::taken(form);
                assert_eq!(schema["type"], "object", "{}: {schema}", contract.name);
                assert_eq!(open_objects(&schema), [""; 0], "{}", contract.name);
            }
        }
    }
}

#[test]
fn a_body_that_the_border_refuses_is_invalid_by_its_schema() {
    for (command, body, is_valid) in [
        ("register", json!({ "name": "Blue", "price_cents": 1, "stock": 0 }), true),
        ("register", json!({ "name": "Blue", "price_cents": 1, "stock": 0, "limit_per_order": null }), true),
        ("register", json!({ "name": "", "price_cents": 1, "stock": 0 }), false),
        ("register", json!({ "name": "a\u{0}", "price_cents": 1, "stock": 0 }), false),
        ("register", json!({ "name": "Blue", "price_cents": -1, "stock": 0 }), false),
        ("register", json!({ "name": "Blue", "price_cents": 1_000_000_000_001_u64, "stock": 0 }), false),
        ("register", json!({ "name": "Blue", "price_cents": 1, "stock": 0, "limit_per_order": 0 }), false),
        ("reserve", json!({ "order": "o-1", "quantity": 1 }), true),
        ("reserve", json!({ "order": "o-1", "quantity": 1.0 }), true),
        ("reserve", json!({ "order": "o-1", "quantity": 1.5 }), false),
        ("reserve", json!({ "order": "o 1", "quantity": 1 }), false),
        ("reserve", json!({ "order": ".", "quantity": 1 }), false),
        ("reserve", json!({ "order": "..", "quantity": 1 }), false),
        ("reserve", json!({ "order": "...", "quantity": 1 }), true),
        ("reserve", json!({ "order": "..a", "quantity": 1 }), true),
        ("reserve", json!({ "order": "x".repeat(129), "quantity": 1 }), false),
        ("reserve", json!({ "order": "o-1" }), false),
        ("reserve", json!({ "order": "o-1", "quantity": 1, "gift": true }), false),
        ("discontinue", json!({}), true),
    ] {
        let product = domain::AggregateType::Product;
        let contract = commands::contracts(product).iter().find(|contract| contract.name == command).unwrap();
        let validator = jsonschema::draft202012::new(&json_schema::taken(contract.schema)).unwrap();
        assert_eq!(validator.is_valid(&body), is_valid, "{command}: {body}");
        let (bytes, none) = (body.to_string().into_bytes(), commands::Precondition::None);
        let id = crate::aggregate::AggregateId::new(product, "x").unwrap();
        let parsed = commands::parse(&id, command, &bytes, none, commands::Origin::Client);
        assert_eq!(parsed.is_ok(), is_valid, "{command}: {body}");
    }
}

/// Collects the locations of strings of unlimited length in a body.
fn endless(place: &str, schema: &Value, found: &mut Vec<String>) {
    let is_string = match &schema["type"] {
        Value::Array(types) => types.contains(&json!("string")),
        only => only == "string",
    };
    let has_end = ["maxLength", "enum", "const", "format"].iter().any(|limit| schema.get(limit).is_some());
    if is_string && !has_end {
        found.push(place.to_owned());
    }
    match schema {
        Value::Object(members) => {
            members.iter().for_each(|(name, inner)| endless(&format!("{place}/{name}"), inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| endless(place, inner, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_accepted_text_has_a_documented_limit() {
    let mut found = Vec::new();
    for contract in crate::aggregate::TYPES.into_iter().flat_map(commands::contracts) {
        endless(contract.name, &json_schema::taken(contract.schema), &mut found);
    }
    endless(
        "line",
        &json_schema::taken(schemars::SchemaGenerator::subschema_for::<commands::BatchLine<'_>>),
        &mut found,
    );
    assert_eq!(found, [""; 0]);
    endless("x", &json!({ "properties": { "y": { "type": ["string", "null"] } } }), &mut found);
    assert_eq!(found, ["x/properties/y"], "a string without a limit is found");
}

#[test]
fn the_rows_of_the_interface_have_the_fields_of_their_views() {
    let document = openapi::document();
    for view in VIEWS {
        let data = &document["components"]["schemas"][format!("views.{}", view.name)]["properties"]["data"];
        let told: BTreeSet<_> = data["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        // Rows may have more fields than can be queried.
        assert!(view.fields.iter().all(|field| told.contains(field.name)), "{}: {told:?}", view.name);
    }
}

#[test]
fn internal_commands_are_not_documented() {
    let document = openapi::document();
    let paths: BTreeSet<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(paths.contains("/v1/products/{id}/reserve"));
    for aggregate in TYPES {
        for command in commands::contracts(aggregate) {
            let path = format!("/v1/{}/{{id}}/{}", crate::aggregate::route_name(aggregate), command.name);
            assert_eq!(paths.contains(&*path), command.who != Who::Internal, "{path}");
            let staff = &document["paths"][&path]["post"]["security"][0]["staff"];
            assert_eq!(staff.is_array(), command.who == Who::Staff, "{path}");
        }
    }
    let mut ids: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "every operation has a unique ID");
}

#[test]
fn both_descriptions_conform_to_their_specifications() {
    let openapi = jsonschema::draft202012::new(&read_json("json/meta/openapi-3.1.json")).unwrap();
    let asyncapi = jsonschema::draft7::new(&read_json("json/meta/asyncapi-3.0.json")).unwrap();
    for (validator, document) in [(openapi, openapi::document()), (asyncapi, asyncapi::document())] {
        let errors: Vec<_> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0]);
        let mut other = document;
        other["paths"] = json!(7);
        assert!(!validator.is_valid(&other));
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_referred_to() {
    for document in [openapi::document(), asyncapi::document()] {
        let mut references = BTreeSet::new();
        collect(&document, &mut references);
        for reference in &references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for (kind, components) in document["components"].as_object().unwrap() {
            for name in components.as_object().unwrap().keys() {
                let reference = format!("#/components/{kind}/{name}");
                // Security schemes are referred to by their names alone.
                let is_exempt = matches!(kind.as_str(), "messages" | "securitySchemes");
                assert!(references.contains(&reference) || is_exempt, "{reference} is not referenced");
            }
        }
    }
}

fn collect(json: &Value, references: &mut BTreeSet<String>) {
    match json {
        Value::Object(members) => {
            references.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|member| collect(member, references));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_record_of_the_golden_files_is_valid_by_the_description_of_the_log() {
    let mut document = asyncapi::document();
    for name in ["claim", "commit", "fence"] {
        document["$ref"] = format!("#/components/schemas/{name}").into();
        let validator = jsonschema::draft202012::new(&document).unwrap();
        let text = read(&format!("golden/record.{name}.st1")).unwrap();
        let record: Value = serde_json::from_str(text.strip_prefix("st1").unwrap()).unwrap();
        assert_eq!(validator.validate(&record).map_err(|error| error.to_string()), Ok(()), "{name}");
        assert!(!validator.is_valid(&json!({ name: {} })));
    }
}
