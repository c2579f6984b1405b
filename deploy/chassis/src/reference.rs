//! Sections of the reference documents `deploy/SETTINGS.md` and `deploy/METRICS.md`, which each service generates from
//! its code. A test of the service compares them.

use std::path::Path;

use crate::env::{Env, Setting, UNSET};
use crate::telemetry::{Metric, Telemetry};

/// Variable that makes [`check`] write the section instead of comparing it.
const UPDATE: &str = "UPDATE_REFERENCE";

/// Compares a service's section of `deploy/SETTINGS.md` with the variables that were read from `env`, or writes it.
/// Their meanings are the comments in `source` that begin with their names.
///
/// # Panics
/// Panics if they differ, or a variable has no comment.
pub fn check_settings(service: &str, env: &Env, source: &str) {
    let sources = [source, include_str!("kafka.rs"), include_str!("telemetry.rs")];
    let row = |setting: &Setting| {
        let name = &setting.name;
        let meaning = sources.iter().find_map(|source| meaning(source, name, setting.default == UNSET));
        let meaning = meaning.filter(|text| !text.is_empty());
        let meaning = meaning.unwrap_or_else(|| panic!("no comment that begins with `{name}` tells its meaning"));
        format!("| `{name}` | {} | {} | {meaning} |\n", kind(setting.expected), setting.default)
    };
    let mut settings = env.settings();
    settings.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let rows: String = settings.iter().map(row).collect();
    check("SETTINGS.md", service, &format!("| variable | type | default | meaning |\n|---|---|---|---|\n{rows}"));
}

/// Returns the type of a setting for readers who do not know Rust.
fn kind(expected: &str) -> &str {
    match expected {
        "SocketAddr" => "address",
        "usize" | "u16" | "u32" | "i32" | "u64" | "Producers" => "number",
        "seconds" | "milliseconds" | "secret" => expected,
        _ => "text",
    }
}

/// Compares a service's section of `deploy/METRICS.md` with the metrics of its telemetry, or writes it.
///
/// # Panics
/// Panics if they differ.
pub fn check_metrics(service: &str, telemetry: &Telemetry) {
    let row = |metric: &Metric| {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{}` | {} | {} | {} |\n", metric.name, metric.kind, labels.join(", "), metric.description)
    };
    let mut metrics = telemetry.metrics();
    metrics.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let rows: String = metrics.iter().map(row).collect();
    check("METRICS.md", service, &format!("| metric | type | labels | meaning |\n|---|---|---|---|\n{rows}"));
}

/// Returns the rest of the comment that begins with `name`, without the default if the table has it from the code.
fn meaning(source: &str, name: &str, is_told: bool) -> Option<String> {
    let lines = source.lines().map(str::trim);
    let comment =
        |line: &str| line.strip_prefix("///").or_else(|| line.strip_prefix("//")).map(str::trim).map(str::to_owned);
    let mut from = lines.skip_while(|line| !comment(line).is_some_and(|text| text.starts_with(&format!("`{name}`"))));
    let text = from.by_ref().map_while(comment).collect::<Vec<_>>().join(" ");
    let rest = text.strip_prefix(&format!("`{name}`"))?;
    let rest = match rest.strip_prefix(", default ") {
        Some(default) if !is_told => default.split_once(": ").map_or("", |(_, rest)| rest),
        Some(_) | None => rest.trim_start_matches([',', ':', '.']).trim(),
    };
    let mut letters = rest.chars();
    Some(letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str()))
}

/// Compares a section of a document in `deploy` with its text, or writes it if `UPDATE_REFERENCE` is set.
fn check(document: &str, section: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
    let all = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{document} cannot be read: {error}"));
    let heading = format!("## {section}\n\n");
    let (before, rest) = all.split_once(&heading).unwrap_or_else(|| panic!("{document} has no section {section}"));
    let after = rest.find("\n## ").map_or("", |at| &rest[at..]);
    let wanted = format!("{before}{heading}{text}{after}");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, wanted).unwrap_or_else(|error| panic!("{document} cannot be written: {error}"));
    } else {
        let is_same = all == wanted;
        assert!(
            is_same,
            "{document} differs from the code; write it with {UPDATE}=1 cargo test -p {section} reference"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meaning_of_a_setting_is_its_comment_without_the_default() {
        let source = "/// `A`, default 7: number\n/// of things.\npub a: u8,\n// `B`, such as `x`: a place. Default: none.\nb: 1";
        assert_eq!(meaning(source, "A", false).as_deref(), Some("Number of things."));
        assert_eq!(meaning(source, "A", true).as_deref(), Some("Default 7: number of things."));
        assert_eq!(meaning(source, "B", true).as_deref(), Some("Such as `x`: a place. Default: none."));
        assert_eq!(meaning(source, "C", false), None);
    }
}
