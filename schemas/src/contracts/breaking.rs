//! Detection of schema changes that break consumers.
//!
//! A change must be compatible in both directions: for readers of new events with the old schema, and for readers of
//! old events with the new one. A log contains events of all versions, and its readers are of all versions as well.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Keywords that validators ignore.
const WORDS: [&str; 6] = ["$schema", "$id", "title", "description", "examples", "default"];

/// Returns a schema without its descriptive keywords, which is the part that must not change.
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
        // Member names come from the events and may coincide with a descriptive keyword.
        ("properties", Value::Object(members)) => {
            members.iter().map(|(name, schema)| (name.clone(), without_words(schema))).collect::<Map<_, _>>().into()
        }
        ("const" | "enum" | "required", value) => value.clone(),
        (_, member) => without_words(member),
    }
}

/// Returns the breaking changes from `old` to `new`, each as a message that begins with its location; empty if they are
/// compatible.
///
/// A new optional member is compatible if `old` leaves the object open. If `old` closes it with `additionalProperties`,
/// readers with the old schema refuse unknown members, and the change requires a new version.
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
                    (false, true) => found.push(format!("{place}: is newly required, but old events may lack it")),
                    (true, false) => found.push(format!("{place}: may be absent now, but readers rely on it")),
                    (true, true) | (false, false) => {}
                }
            }
        }
    }
    for (name, (_, is_required)) in is.iter().filter(|(name, _)| !was.contains_key(*name)) {
        if *is_required {
            found.push(format!("{place}.{name}: is newly required, but old events lack it"));
        } else if is_closed {
            found.push(format!("{place}.{name}: is new, but readers with the published schema refuse it"));
        }
    }
}

/// Returns the members by name, each with its schema and whether it is required. A required member may have no schema.
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

    /// Returns the breaks after setting the value at `pointer`; `null` removes it.
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
            // The member is still required but has no schema anymore.
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
    fn descriptive_keywords_may_change() {
        assert_eq!(changed("/title", json!("x.happened")), [""; 0]);
        assert_eq!(changed("/description", json!("It happened.")), [""; 0]);
        let note = json!({ "type": "string", "description": "For people.", "examples": ["a"] });
        assert_eq!(changed("/properties/note", note), [""; 0]);
        assert_eq!(breaking_changes(&published(), &published()), [""; 0]);
    }

    #[test]
    fn a_member_named_like_a_descriptive_keyword_is_kept() {
        assert!(without_words(&published())["properties"]["title"].is_object());
        assert!(without_words(&published()).get("title").is_none());
    }

    #[test]
    fn an_open_object_accepts_new_optional_members() {
        let open = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"] });
        let mut more = open.clone();
        more["properties"]["b"] = json!({ "type": "string" });
        assert_eq!(breaking_changes(&open, &more), [""; 0]);
        more["required"] = json!(["a", "b"]);
        assert_eq!(breaking_changes(&open, &more), ["data.b: is newly required, but old events lack it"]);
    }
}
