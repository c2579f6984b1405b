//! Sections of the reference documents `deploy/SETTINGS.md` and `deploy/METRICS.md`, which each service generates from
//! its code. A test of the service compares them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::env::{Env, Fallback, Setting};
use crate::telemetry::{Metric, Telemetry};

/// Variable that makes [`check`] write the section instead of comparing it.
const UPDATE: &str = "UPDATE_REFERENCE";

/// Sources of this crate whose comments tell the meanings of settings.
const SOURCES: [&str; 7] = [
    include_str!("kafka.rs"),
    include_str!("kafka/security.rs"),
    include_str!("listeners.rs"),
    include_str!("postgres/settings.rs"),
    include_str!("redis/settings.rs"),
    include_str!("telemetry.rs"),
    include_str!("tls.rs"),
];

/// Begins the part of a comment that says which services must have the same value.
const AGREES: &str = " Agrees with ";

/// Compares a service's section of `deploy/SETTINGS.md`, `deploy/settings.json` and `deploy/env.example` with the
/// variables that were read from `env`, or writes it. Their meanings are the comments in `sources` that begin with their
/// names.
///
/// # Panics
/// Panics if they differ, or a variable has no comment.
pub fn check_settings(service: &str, env: &Env, sources: &[&str]) {
    let mut settings = env.settings();
    settings.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let entries: Vec<_> = settings.iter().map(|setting| Entry::of(setting, sources)).collect();
    let rows: String = entries.iter().map(Entry::row).collect();
    check("SETTINGS.md", service, &format!("{HEAD}{rows}"));
    let examples: Vec<String> = entries.iter().map(Entry::example).collect();
    check_between("env.example", &format!("# ==== {service} ====\n\n"), "\n# ====", &examples.join("\n"));
    check_list(service, &entries);
}

const HEAD: &str = "| variable | type | default | restart | agrees with | meaning |\n|---|---|---|---|---|---|\n";

/// A setting with its comment.
struct Entry<'a> {
    setting: &'a Setting,
    meaning: String,
    /// The services that must have the same value, as text.
    agrees: String,
    /// Set if a change takes effect only after a restart.
    restart: bool,
}

impl<'a> Entry<'a> {
    fn of(setting: &'a Setting, sources: &[&str]) -> Self {
        let name = &setting.name;
        let has_value = matches!(setting.fallback, Fallback::Value(_));
        let told = sources.iter().copied().chain(SOURCES).find_map(|source| meaning(source, name, !has_value));
        let told = told.filter(|text| !text.is_empty());
        let told = told.unwrap_or_else(|| panic!("no comment that begins with `{name}` tells its meaning"));
        let (meaning, agrees) = told.split_once(AGREES).unwrap_or((&told, ""));
        let restart = !setting.is_live && !["re-read", "read again"].iter().any(|words| told.contains(words));
        Self { setting, meaning: meaning.to_owned(), agrees: agrees.trim_end_matches('.').to_owned(), restart }
    }

    fn kind(&self) -> &str {
        kind(&self.setting.name, self.setting.expected)
    }

    fn row(&self) -> String {
        let default = match &self.setting.fallback {
            Fallback::Value(value) => format!("`{value}`"),
            Fallback::Unset => "unset".to_owned(),
            Fallback::Required => "required".to_owned(),
        };
        let restart = if self.restart { "yes" } else { "no" };
        let (name, kind, agrees, meaning) = (&self.setting.name, self.kind(), &self.agrees, &self.meaning);
        format!("| `{name}` | {kind} | {default} | {restart} | {agrees} | {meaning} |\n")
    }

    fn example(&self) -> String {
        let name = &self.setting.name;
        let first = self.meaning.split_once(". ").map_or(self.meaning.as_str(), |(first, _)| first);
        let (first, file) = (first.trim_end_matches('.'), if self.setting.is_secret() { " Or by file." } else { "" });
        let line = match &self.setting.fallback {
            Fallback::Value(value) => format!("#{name}={value}"),
            Fallback::Unset => format!("#{name}="),
            Fallback::Required => format!("{name}="),
        };
        let required = if self.setting.fallback == Fallback::Required { " Required." } else { "" };
        format!("# {first}.{required}{file}\n{line}\n")
    }

    fn value(&self) -> Value {
        let default = match &self.setting.fallback {
            Fallback::Value(value) => Value::from(value.as_str()),
            Fallback::Unset | Fallback::Required => Value::Null,
        };
        json!({
            "name": self.setting.name,
            "type": self.kind(),
            "default": default,
            "required": self.setting.fallback == Fallback::Required,
            "secret": self.setting.is_secret(),
            "restart": self.restart,
            "agrees": self.agrees,
        })
    }
}

/// Returns the names of all variables that a service reads, as `deploy/settings.json` lists them, with those that name
/// the files of secrets. For tests of files that set variables.
///
/// # Panics
/// Panics if the file cannot be read or has no such service.
pub fn variables(service: &str) -> BTreeSet<String> {
    let settings = list().remove(service).unwrap_or_else(|| panic!("{LIST} has no service {service}"));
    let names = settings.iter().flat_map(|setting| {
        let name = setting["name"].as_str().expect("a setting has a name").to_owned();
        let file = (setting["secret"] == true).then(|| format!("{name}_FILE"));
        [Some(name), file].into_iter().flatten()
    });
    names.collect()
}

const LIST: &str = "settings.json";

/// Reads `deploy/settings.json`: settings by service.
fn list() -> BTreeMap<String, Vec<Value>> {
    let text = std::fs::read_to_string(path(LIST)).unwrap_or_else(|error| panic!("{LIST} cannot be read: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{LIST} cannot be parsed: {error}"))
}

/// Compares a service's part of `deploy/settings.json`, or writes it, with one setting a line.
fn check_list(service: &str, entries: &[Entry<'_>]) {
    let is = list();
    let mut wanted = is.clone();
    wanted.insert(service.to_owned(), entries.iter().map(Entry::value).collect());
    let section = |(service, settings): (&String, &Vec<Value>)| {
        let lines: Vec<_> = settings.iter().map(|setting| format!("    {setting}")).collect();
        format!("  \"{service}\": [\n{}\n  ]", lines.join(",\n"))
    };
    let text = format!("{{\n{}\n}}\n", wanted.iter().map(section).collect::<Vec<_>>().join(",\n"));
    write_or_compare(LIST, service, is == wanted, &text);
}

/// Returns the type of a setting for readers who do not know Rust.
fn kind<'a>(name: &str, expected: &'a str) -> &'a str {
    match expected {
        _ if name.ends_with("_MIB") => "MiB",
        "SocketAddr" => "address",
        "PathBuf" => "file",
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
    let lines: Vec<Option<String>> = lines.map(comment).collect();
    // Comments that only mention the name in a later line are not about it.
    let mut comments = lines.split(Option::is_none).map(|lines| lines.iter().flatten().cloned().collect::<Vec<_>>());
    let begins = format!("`{name}`");
    let text = comments.find(|lines| lines.first().is_some_and(|line| line.starts_with(&begins)))?.join(" ");
    let rest = &text[begins.len()..];
    let rest = match rest.strip_prefix(", default ") {
        Some(default) if !is_told => default.split_once(": ").map_or("", |(_, rest)| rest),
        Some(_) | None => rest.trim_start_matches([',', ':', '.']).trim(),
    };
    let mut letters = rest.chars();
    Some(letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str()))
}

/// Compares a section of a document in `deploy` with its text, or writes it if `UPDATE_REFERENCE` is set.
fn check(document: &str, section: &str, text: &str) {
    check_between(document, &format!("## {section}\n\n"), "\n## ", text);
}

/// Compares the part of a document after `heading` and before `next` with its text, or writes it.
fn check_between(document: &str, heading: &str, next: &str, text: &str) {
    let all =
        std::fs::read_to_string(path(document)).unwrap_or_else(|error| panic!("{document} cannot be read: {error}"));
    let section = heading.trim_matches(['#', '=', ' ', '\n']);
    let (before, rest) = all.split_once(heading).unwrap_or_else(|| panic!("{document} has no section {section}"));
    let after = rest.find(next).map_or("", |at| &rest[at..]);
    let wanted = format!("{before}{heading}{text}{after}");
    write_or_compare(document, section, all == wanted, &wanted);
}

fn write_or_compare(document: &str, service: &str, is_same: bool, wanted: &str) {
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path(document), wanted).unwrap_or_else(|error| panic!("{document} cannot be written: {error}"));
    } else {
        let how = format!("{UPDATE}=1 cargo test -p {service} reference");
        assert!(is_same, "{document} differs from the code; write it with {how}");
    }
}

fn path(document: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meaning_of_a_setting_is_its_comment_without_the_default() {
        let source = "/// `A`, default 7: number\n/// of things, not\n/// `B`.\npub a: u8,\n// `B`, such as `x`: a place. Default: none.\nb: 1";
        assert_eq!(meaning(source, "A", false).as_deref(), Some("Number of things, not `B`."));
        assert_eq!(meaning(source, "A", true).as_deref(), Some("Default 7: number of things, not `B`."));
        assert_eq!(meaning(source, "B", true).as_deref(), Some("Such as `x`: a place. Default: none."));
        assert_eq!(meaning(source, "C", false), None);
    }
}
