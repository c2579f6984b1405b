//! Human-readable catalogues, in Markdown: `EVENTS.md`, `COMMANDS.md`, `VIEWS.md`, `REACTIONS.md`.

pub mod events;
pub mod commands;
pub mod views;
pub mod reactions;

use std::fmt::Write as _;

use serde_json::Value;

use crate::aggregate::ID_PATTERN;

/// Returns the table of an object's members; `None` if it has none.
fn fields(schema: &Value) -> Option<String> {
    let rows = rows("", schema);
    let mut text = "\n| field | type | |\n|---|---|---|\n".to_owned();
    for [name, kind, words] in &rows {
        line(&mut text, &[&format!("`{name}`"), kind, words]);
    }
    (!rows.is_empty()).then_some(text)
}

/// Returns a row for each member of an object, including the members of objects in its arrays.
fn rows(prefix: &str, schema: &Value) -> Vec<[String; 3]> {
    let members = schema["properties"].as_object();
    // The order of a map's members depends on the features of the build, so they are sorted.
    let mut members: Vec<_> = members.into_iter().flatten().collect();
    members.sort_by_key(|(name, _)| name.as_str());
    let mut rows = Vec::new();
    for (name, member) in members {
        let is_required = schema["required"].as_array().is_some_and(|names| names.iter().any(|known| known == name));
        // A row of a table is one line.
        let words = member["description"].as_str().unwrap_or_default().replace('\n', " ");
        let optional = if is_required { "" } else { "optional" };
        let words =
            [optional, words.as_str()].into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join("; ");
        rows.push([format!("{prefix}{name}"), kind(member), words]);
        rows.extend(self::rows(&format!("{prefix}{name}[]."), &member["items"]));
    }
    rows
}

fn kind(schema: &Value) -> String {
    let types = schema["type"].as_array().map_or(std::slice::from_ref(&schema["type"]), Vec::as_slice);
    let name = types.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("any");
    let limits = ["minimum", "maximum", "minLength", "maxLength"].map(|limit| schema[limit].as_u64());
    match (name, limits, schema["format"].as_str()) {
        _ if !values(schema).is_empty() => format!("one of {}", names(values(schema))),
        ("array", ..) => format!("array of {}", kind(&schema["items"])),
        ("string", ..) if schema["pattern"] == ID_PATTERN => "id".to_owned(),
        ("string", [.., Some(min), Some(max)], _) => format!("string, {min} to {max} characters"),
        (name, [Some(min), Some(max), ..], _) => format!("{name}, {} to {}", grouped(min), grouped(max)),
        (name, _, Some(format)) => format!("{name}, {format}"),
        (name, _, None) => name.to_owned(),
    }
}

/// Returns the values of a closed set of strings.
fn values(schema: &Value) -> Vec<&str> {
    let own = schema["enum"].as_array().into_iter().flatten().chain([&schema["const"]]).filter_map(Value::as_str);
    own.chain(schema["oneOf"].as_array().into_iter().flatten().flat_map(values)).collect()
}

/// Returns a number with a comma before every third digit from the right.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let is_next = |at: usize| at > 0 && (digits.len() - at).is_multiple_of(3);
    digits.char_indices().flat_map(|(at, digit)| is_next(at).then_some(',').into_iter().chain([digit])).collect()
}

/// Returns names as code, separated by commas; a dash if there are none.
fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if quoted.is_empty() { "–".to_owned() } else { quoted.join(", ") }
}

fn line(text: &mut String, cells: &[&str]) {
    writeln!(text, "| {} |", cells.join(" | ")).expect("writing to a string cannot fail");
}
