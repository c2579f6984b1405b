//! Human-readable catalogue of the events: `EVENTS.md`.

use domain::Event;
use serde_json::Value;

use super::{fields, line};
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
pub fn written_as(event: &Event) -> &'static str {
    WireEvent::newest(event).name()
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
    text.push_str(&format!("\n### {}\n\n{words}\n", entry.name));
    match fields(entry.schema) {
        None => text.push_str("\nThis event has no fields.\n"),
        Some(table) => text.push_str(&table),
    }
}
