//! Human-readable catalogue of the events: `EVENTS.md`.

use std::fmt::Write as _;

use serde_json::Value;

use crate::aggregate::{TYPES, type_name};
use crate::events::WireEvent;

/// Catalogue entry of one version of an event.
#[derive(Debug)]
pub struct Entry<'a> {
    pub name: &'a str,
    /// Version of the system that introduced the event.
    pub since: &'a str,
    /// Name of the version in which the event is written today.
    pub written_as: &'a str,
    pub schema: &'a Value,
}

const HEAD: &str = "# The events

Generated from the types that write them, with `UPDATE_CONTRACTS=1 cargo test -p schemas contracts`. A published event
never changes; a different form is a new version. Every version that was ever written remains readable forever.
";

/// Returns the name of the newest version of an event.
pub fn written_as(event: &WireEvent<'_>) -> &'static str {
    WireEvent::newest(&event.upcast()).name()
}

/// Returns the catalogue as Markdown. Within an aggregate, entries keep the order of `entries`.
pub fn markdown(entries: &[Entry<'_>]) -> String {
    let mut text = HEAD.to_owned();
    for aggregate in TYPES.map(type_name) {
        let own = || entries.iter().filter(|entry| entry.name.split('.').next() == Some(aggregate));
        text.push_str(&format!("\n## {aggregate}\n\n| event | since | today |\n|---|---|---|\n"));
        for entry in own() {
            let today = match entry.written_as {
                same if same == entry.name => "written and read".to_owned(),
                newer => format!("read only, as `{newer}`"),
            };
            line(&mut text, &[&format!("[`{name}`](json/{name}.json)", name = entry.name), entry.since, &today]);
        }
        own().for_each(|entry| describe(&mut text, entry));
    }
    text
}

fn describe(text: &mut String, entry: &Entry<'_>) {
    let words = entry.schema["description"].as_str().unwrap_or_default();
    write!(text, "\n### {}\n\n{words}\n", entry.name).expect("writing to a string cannot fail");
    let fields = rows("", entry.schema);
    if fields.is_empty() {
        text.push_str("\nThis event has no fields.\n");
        return;
    }
    text.push_str("\n| field | type | |\n|---|---|---|\n");
    for [name, kind, words] in &fields {
        line(text, &[&format!("`{name}`"), kind, words]);
    }
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
        let words = member["description"].as_str().unwrap_or_default();
        let optional = if is_required { "" } else { "optional" };
        let words = [optional, words].into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join("; ");
        rows.push([format!("{prefix}{name}"), kind(member), words]);
        rows.extend(self::rows(&format!("{prefix}{name}[]."), &member["items"]));
    }
    rows
}

fn kind(schema: &Value) -> String {
    let name = schema["type"].as_str().unwrap_or("any");
    match (name, schema["format"].as_str()) {
        ("array", _) => format!("array of {}", kind(&schema["items"])),
        (name, Some(format)) => format!("{name}, {format}"),
        (name, None) => name.to_owned(),
    }
}

fn line(text: &mut String, cells: &[&str]) {
    writeln!(text, "| {} |", cells.join(" | ")).expect("writing to a string cannot fail");
}
