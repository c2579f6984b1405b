//! Which changes of a schema break those who build against it.
//!
//! Both sides count: who reads new events by the old schema, and who reads old events by the new one. A log has events
//! of all times, and its readers are of all ages.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Say something to people, nothing to validators.
const WORDS: [&str; 6] = ["$schema", "$id", "title", "description", "examples", "default"];

/// A schema without its words: what must not change.
pub fn without_words(schema: &Value) -> Value {
    match schema {
        Value::Object(members) => {
            let kept = members.iter().filter(|(name, _)| !WORDS.contains(&name.as_str()));
            kept.map(|(name, member)| (name.clone(), member_without_words(name, member))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.iter().map(without_words).collect(),
        other => other.clone(),
    }
}

fn member_without_words(name: &str, member: &Value) -> Value {
    match (name, member) {
        // Their names are the events', and may be words of ours.
        ("properties", Value::Object(members)) => {
            members.iter().map(|(name, schema)| (name.clone(), without_words(schema))).collect::<Map<_, _>>().into()
        }
        ("const" | "enum" | "required", value) => value.clone(),
        (_, member) => without_words(member),
    }
}

/// What breaks, each in words that begin with its place; empty where `new` may follow `old`.
///
/// A member that is new and may be absent breaks nobody where `old` leaves its object open. Where it closes it by
/// `additionalProperties`, those who read by `old` refuse what they do not know: then it takes a new version.
pub fn breaking_changes(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("data", &without_words(old), &without_words(new), &mut found);
    found
}

fn compare(place: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        if old != new {
            found.push(format!("{place}: {old} became {new}"));
        }
        return;
    };
    compare_members(place, old, new, found);
    if let (Some(old), Some(new)) = (old.get("items"), new.get("items")) {
        compare(&format!("{place}[]"), old, new, found);
    }
    let mut keywords: Vec<_> = old.keys().chain(new.keys()).collect();
    keywords.sort();
    keywords.dedup();
    for keyword in keywords {
        let is_structure = matches!(keyword.as_str(), "properties" | "required");
        let is_list = keyword == "items" && old.contains_key(keyword) && new.contains_key(keyword);
        if !is_structure && !is_list && old.get(keyword) != new.get(keyword) {
            let [old, new] =
                [old, new].map(|schema| schema.get(keyword).map_or("nothing".to_owned(), Value::to_string));
            found.push(format!("{place}: {keyword} was {old} and is {new}"));
        }
    }
}

fn compare_members(place: &str, old: &Map<String, Value>, new: &Map<String, Value>, found: &mut Vec<String>) {
    let (was, is) = (members(old), members(new));
    let is_closed = old.get("additionalProperties") == Some(&Value::Bool(false));
    for (name, (schema, was_required)) in &was {
        let place = format!("{place}.{name}");
        match is.get(name) {
            None => found.push(format!("{place}: was removed")),
            Some((new_schema, is_required)) => {
                compare(&place, schema, new_schema, found);
                match (was_required, is_required) {
                    (false, true) => found.push(format!("{place}: is newly required, and old events may lack it")),
                    (true, false) => found.push(format!("{place}: may be absent now, and readers count on it")),
                    (true, true) | (false, false) => {}
                }
            }
        }
    }
    for (name, (_, is_required)) in is.iter().filter(|(name, _)| !was.contains_key(*name)) {
        if *is_required {
            found.push(format!("{place}.{name}: is newly required, and old events lack it"));
        } else if is_closed {
            found.push(format!("{place}.{name}: is new, and who reads by the published schema refuses it"));
        }
    }
}

/// Each with its schema, and whether it is required. One may be required without a schema of its own.
fn members(schema: &Map<String, Value>) -> BTreeMap<&str, (&Value, bool)> {
    let required = schema.get("required").and_then(Value::as_array);
    let required: Vec<_> = required.into_iter().flatten().filter_map(Value::as_str).collect();
    let described = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let described = described.map(|(name, schema)| (name.as_str(), schema));
    let named = required.iter().map(|name| (*name, &Value::Bool(true)));
    named.chain(described).map(|(name, schema)| (name, (schema, required.contains(&name)))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn published() -> Value {
        json!({
            "title": "x.happened.v1",
            "type": "object",
            "properties": {
                "title": { "type": "string" },
                "note": { "type": "string" },
                "lines": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": { "quantity": { "type": "integer", "minimum": 0 } },
                        "required": ["quantity"],
                        "additionalProperties": false,
                    },
                },
            },
            "required": ["title", "lines"],
            "additionalProperties": false,
        })
    }

    /// `null` takes a value out.
    fn changed(pointer: &str, value: Value) -> Vec<String> {
        let mut new = published();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = new.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Value::Null => drop(parent.remove(name).unwrap()),
            value => drop(parent.insert(name.to_owned(), value)),
        }
        breaking_changes(&published(), &new)
    }

    #[test]
    fn each_break_is_named_with_its_place() {
        let item = "/properties/lines/items";
        for (pointer, value, words) in [
            ("/properties/note".to_owned(), json!(null), "data.note: was removed"),
            // It is still required, by no schema of its own.
            ("/properties/title".to_owned(), json!(null), "data.title: "),
            ("/properties/title".to_owned(), json!({ "type": "integer" }), "data.title: type was \"string\""),
            ("/properties/note".to_owned(), json!({ "type": ["string", "null"] }), "data.note: type was"),
            ("/required".to_owned(), json!(["title", "lines", "note"]), "data.note: is newly required"),
            ("/required".to_owned(), json!(["title", "lines", "gift"]), "data.gift: is newly required"),
            ("/required".to_owned(), json!(["lines"]), "data.title: may be absent now"),
            ("/properties/gift".to_owned(), json!({ "type": "string" }), "data.gift: is new"),
            ("/additionalProperties".to_owned(), json!(true), "data: additionalProperties was false and is true"),
            ("/additionalProperties".to_owned(), json!(null), "data: additionalProperties was false and is nothing"),
            (format!("{item}/properties/quantity/minimum"), json!(1), "data.lines[].quantity: minimum was 0 and is 1"),
            (format!("{item}/properties/quantity/maximum"), json!(9), "data.lines[].quantity: maximum was nothing"),
            (
                format!("{item}/properties/quantity"),
                json!({ "type": "string" }),
                "data.lines[].quantity: minimum was 0",
            ),
            (format!("{item}/properties/gift"), json!({ "type": "string" }), "data.lines[].gift: is new"),
            ("/properties/lines/items".to_owned(), json!(null), "data.lines: items was"),
        ] {
            let found = changed(&pointer, value);
            assert!(found.iter().any(|found| found.starts_with(words)), "{pointer}: {found:?}");
        }
    }

    #[test]
    fn words_may_change() {
        assert_eq!(changed("/title", json!("x.happened")), [""; 0]);
        assert_eq!(changed("/description", json!("It happened.")), [""; 0]);
        let note = json!({ "type": "string", "description": "For people.", "examples": ["a"] });
        assert_eq!(changed("/properties/note", note), [""; 0]);
        assert_eq!(breaking_changes(&published(), &published()), [""; 0]);
    }

    #[test]
    fn a_member_named_like_a_word_is_a_member() {
        assert!(without_words(&published())["properties"]["title"].is_object());
        assert!(without_words(&published()).get("title").is_none());
    }

    #[test]
    fn an_open_object_takes_more_that_may_be_absent() {
        let open = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"] });
        let mut more = open.clone();
        more["properties"]["b"] = json!({ "type": "string" });
        assert_eq!(breaking_changes(&open, &more), [""; 0]);
        more["required"] = json!(["a", "b"]);
        assert_eq!(breaking_changes(&open, &more), ["data.b: is newly required, and old events lack it"]);
    }
}
