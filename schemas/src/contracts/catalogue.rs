//! The events' catalogue, for people: `EVENTS.md`.

use std::fmt::Write as _;

use serde_json::Value;

use crate::aggregate::{TYPES, type_name};
use crate::events::WireEvent;

/// What the catalogue says of one version of an event.
#[derive(Debug)]
pub struct Entry<'a> {
    pub name: &'a str,
    /// The version of the system that had it first.
    pub since: &'a str,
    /// What the same event is written as today.
    pub written_as: &'a str,
    pub schema: &'a Value,
}

const HEAD: &str = "# The events

Made from the types that write them, by `UPDATE_CONTRACTS=1 cargo test -p schemas contracts`. An event that was
published never changes; another form of it is another version. Every version that was ever written is read for ever.
";

/// The newest form of what an event means.
pub fn written_as(event: &WireEvent<'_>) -> &'static str {
    WireEvent::newest(&event.upcast()).name()
}

/// `entries` in the order in which each aggregate's are to be shown.
pub fn markdown(entries: &[Entry<'_>]) -> String {
    let mut text = HEAD.to_owned();
    for aggregate in TYPES.map(type_name) {
        let own = || entries.iter().filter(|entry| entry.name.split('.').next() == Some(aggregate));
        text.push_str(&format!("\n## {aggregate}\n\n| event | since | today |\n|---|---|---|\n"));
        for entry in own() {
            let today = match entry.written_as {
                same if same == entry.name => "written and read".to_owned(),
                newer => format!("only read, as `{newer}`"),
            };
            line(&mut text, &[&format!("[`{name}`](json/{name}.json)", name = entry.name), entry.since, &today]);
        }
        own().for_each(|entry| describe(&mut text, entry));
    }
    text
}

fn describe(text: &mut String, entry: &Entry<'_>) {
    let words = entry.schema["description"].as_str().unwrap_or_default();
    write!(text, "\n### {}\n\n{words}\n", entry.name).expect("a string takes all");
    let fields = rows("", entry.schema);
    if fields.is_empty() {
        text.push_str("\nIt has no fields.\n");
        return;
    }
    text.push_str("\n| field | type | |\n|---|---|---|\n");
    for [name, kind, words] in &fields {
        line(text, &[&format!("`{name}`"), kind, words]);
    }
}

/// Of an object's members, and of those of the objects in its lists.
fn rows(prefix: &str, schema: &Value) -> Vec<[String; 3]> {
    let members = schema["properties"].as_object();
    // Sorted here: the order of a map's members hangs on the features of a build.
    let mut members: Vec<_> = members.into_iter().flatten().collect();
    members.sort_by_key(|(name, _)| name.as_str());
    let mut rows = Vec::new();
    for (name, member) in members {
        let is_required = schema["required"].as_array().is_some_and(|names| names.iter().any(|known| known == name));
        let words = member["description"].as_str().unwrap_or_default();
        let optional = if is_required { "" } else { "may be absent" };
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
    writeln!(text, "| {} |", cells.join(" | ")).expect("a string takes all");
}
