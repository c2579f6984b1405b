//! Removes secrets and personal data from texts.
//!
//! What is kept of a line is listed; anything else that could name a person is replaced by `*`. Too much may be
//! removed, too little must not be.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Map, Value};

use crate::layout::{Layout, root};

const GONE: &str = "*";
/// Fields of lines in JSON whose texts are kept, with ids and quoted values replaced. Numbers are kept anyway.
const KEPT_FIELDS: [&str; 29] = [
    "admin.addr",
    "build",
    "cache",
    "cause",
    "code.location",
    "condition.name",
    "condition.reason",
    "error",
    "http.addr",
    "http.method",
    "http.path",
    "internal.addr",
    "kafka.topic",
    "level",
    "log.filter",
    "message",
    "method",
    "path",
    "reader",
    "reason",
    "service.instance.id",
    "signal.name",
    "target",
    "timestamp",
    "traceparent",
    "upstream",
    "upstream_seconds",
    "view",
    "what_to_do",
];
/// Fields with ids that clients may choose; kept if they look generated.
const ID_FIELDS: [&str; 3] = ["request.id", "request_id", "trace.id"];
/// Segments of a path behind which ids follow.
const TYPES: [&str; 9] = ["v1", "product", "products", "order", "orders", "sale", "sales", "customer", "customers"];
/// Segments that are kept among ids.
const WORDS: [&str; 8] = ["views", "commands", "status", "history", "as-of", "retry", "discard", "release"];
/// Words in the name of a setting whose value is a secret.
const SECRET_NAMES: [&str; 4] = ["password", "token", "secret", "credential"];
/// Beginnings of further lines about an error of Postgres, which have values of rows and statements.
const POSTGRES_DETAILS: [&str; 5] = ["DETAIL:", "STATEMENT:", "CONTEXT:", "QUERY:", "HINT:"];

/// Texts to remove, besides those that look like an id or a secret.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrubber {
    /// Texts and their replacements, in this order.
    replaced: Vec<(String, &'static str)>,
}

impl Scrubber {
    /// Reads the secrets of a stack, and the names of the machine and of the folders.
    pub(super) fn of(layout: &Layout) -> Self {
        let mut replaced: Vec<_> = secrets(layout).into_iter().map(|secret| (secret, "***")).collect();
        replaced.push((layout.state.to_string_lossy().into_owned(), "STATE"));
        replaced.push((root().to_string_lossy().into_owned(), "CHECKOUT"));
        replaced.extend(std::env::var("HOME").ok().filter(|home| home.len() > 1).map(|home| (home, "HOME")));
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        // A name such as `localhost` tells nothing, and a very short one is part of other words.
        replaced.extend((host.len() > 3 && host != "localhost").then_some((host, "HOST")));
        Self { replaced }
    }

    /// Returns the text without secrets, names of folders and of the machine, and ids in paths.
    pub(super) fn text(&self, text: &str) -> String {
        let known = self.replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        known.split_inclusive('\n').map(without_ids).collect()
    }

    /// Returns a log without what may name a person.
    pub(super) fn log(&self, name: &str, text: &str) -> String {
        let lines = text.lines().filter_map(|line| match serde_json::from_str::<Map<String, Value>>(line) {
            Ok(fields) => Some(Value::Object(fields.into_iter().map(field).collect()).to_string()),
            Err(_) if name == crate::postgres::NAME => of_postgres(line),
            Err(_) => Some(line.to_owned()),
        });
        self.text(&lines.map(|line| line + "\n").collect::<String>())
    }
}

/// Returns the lines of all private files at the top of the state directory: tokens, passwords, keys.
fn secrets(layout: &Layout) -> Vec<String> {
    let files = fs::read_dir(&layout.state).into_iter().flatten().flatten();
    let is_private = |file: &fs::DirEntry| {
        let of = file.metadata().ok().filter(|of| of.is_file() && of.len() < 4096);
        of.is_some_and(|of| of.permissions().mode() & 0o077 == 0)
    };
    let texts = files.filter(is_private).filter_map(|file| fs::read_to_string(file.path()).ok());
    let lines = texts.flat_map(|text| text.lines().map(str::trim).map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.len() >= 8).collect()
}

fn field((name, value): (String, Value)) -> (String, Value) {
    let kept = match &value {
        Value::Number(_) | Value::Bool(_) | Value::Null => value,
        Value::String(text) if KEPT_FIELDS.contains(&name.as_str()) => without_quoted(text).into(),
        Value::String(text) if ID_FIELDS.contains(&name.as_str()) && is_generated(text) => value,
        Value::String(_) | Value::Array(_) | Value::Object(_) => GONE.into(),
    };
    (name, kept)
}

fn is_generated(id: &str) -> bool {
    id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Returns the line without values, or `None` if it is a further line about the one before.
fn of_postgres(line: &str) -> Option<String> {
    let is_detail = line.starts_with('\t') || POSTGRES_DETAILS.iter().any(|detail| line.contains(detail));
    (!is_detail).then(|| without_quoted(line))
}

/// Replaces what is in double quotes. What follows a single one is replaced as well.
fn without_quoted(text: &str) -> String {
    let parts = text.split('"').enumerate().map(|(index, part)| if index % 2 == 0 { part } else { GONE });
    parts.collect::<Vec<_>>().join("\"")
}

/// Replaces ids in paths, addresses of e-mail, credentials in URLs, bearer tokens, and values of secret settings.
fn without_ids(line: &str) -> String {
    let is_between = |letter: char| letter.is_whitespace() || "\"'`(),;[]{}<>|".contains(letter);
    let (mut text, mut rest, mut is_bearer) = (String::with_capacity(line.len()), line, false);
    while let Some(first) = rest.chars().next() {
        let length = match is_between(first) {
            true => first.len_utf8(),
            false => rest.find(is_between).unwrap_or(rest.len()),
        };
        let (word, behind) = rest.split_at(length);
        match is_between(first) {
            true => text.push_str(word),
            false if is_bearer => text.push_str(GONE),
            false => text.push_str(&without_id(word)),
        }
        is_bearer = word.eq_ignore_ascii_case("bearer") || is_bearer && word.trim().is_empty();
        rest = behind;
    }
    text
}

fn without_id(word: &str) -> String {
    if let Some((name, value)) = word.split_once(['=', ':'])
        && !value.is_empty()
        && SECRET_NAMES.iter().any(|secret| name.to_ascii_lowercase().contains(secret))
        // The settings say the path of a file.
        && !name.ends_with("_FILE")
    {
        return format!("{name}={GONE}");
    }
    if let Some((scheme, rest)) = word.split_once("://") {
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = host.rsplit_once('@').map_or(host.to_owned(), |(_, host)| format!("{GONE}@{host}"));
        return format!("{scheme}://{host}{}", without_segments(path));
    }
    let is_instance = |name: &str| crate::services::Service::ALL.iter().any(|service| service.name() == name);
    match word.split_once('@') {
        Some((before, _)) if !is_instance(before) => format!("{GONE}@{GONE}"),
        _ => without_segments(word),
    }
}

/// Replaces the segments of a path that follow a type, and its query.
fn without_segments(word: &str) -> String {
    if !word.contains('/') {
        return word.to_owned();
    }
    let path = word.split('?').next().unwrap_or_default();
    let mut has_ids = false;
    let segments = path.split('/').map(|segment| {
        let is_kept = TYPES.contains(&segment) || WORDS.contains(&segment) || segment.is_empty();
        let shown = if has_ids && !is_kept { GONE } else { segment };
        // A word may begin with something else: `path=/v1/…`.
        has_ids |= TYPES.iter().any(|kind| segment == *kind || segment.ends_with(&format!("={kind}")));
        shown
    });
    segments.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_secrets_are_replaced_wherever_they_stand() {
        for (line, expected) in [
            ("GET /v1/customers/ann?limit=1 HTTP/1.1", "GET /v1/customers/* HTTP/1.1"),
            ("POST /v1/views/order/ann-1, x", "POST /v1/views/order/*, x"),
            ("\"/parked/customer/customer/ann/retry\"", "\"/parked/customer/customer/*/retry\""),
            ("quarantined: order/ann~1", "quarantined: order/*"),
            ("aggregate=customer/ann", "aggregate=customer/*"),
            ("postgresql://me:hunter2@db:5432/shop", "postgresql://*@db:5432/shop"),
            ("Authorization: Bearer  abc.def end", "Authorization: Bearer  * end"),
            ("SASL_PASSWORD=hunter2", "SASL_PASSWORD=*"),
            ("POSTGRES_PASSWORD_FILE=/run/x", "POSTGRES_PASSWORD_FILE=/run/x"),
            ("mail to ann@example.org", "mail to *@*"),
            ("query-api@HOST:18229 is ready", "query-api@HOST:18229 is ready"),
            ("deploy/RUNBOOKS.md#viewbehind", "deploy/RUNBOOKS.md#viewbehind"),
            ("stampede_parked{view=\"customer\"} 3", "stampede_parked{view=\"customer\"} 3"),
        ] {
            assert_eq!(without_ids(line), expected);
        }
    }

    #[test]
    fn of_a_line_in_json_only_known_fields_stay() {
        let line = r#"{"level":"WARN","message":"parked","customer":"ann","n":3,"error":"no \"ann\" here",
            "http.path":"/v1/customers/ann","request.id":"ann","trace.id":"0af7651916cd43dd8448eb211c80319c","panic.message":"ann"}"#
            .replace('\n', " ");
        let clean = Scrubber::default().log("query-api-1", &line);
        assert!(!clean.contains("ann"), "{clean}");
        for kept in ["WARN", "parked", "\"n\":3", "0af7651916cd43dd8448eb211c80319c", "/v1/customers/*"] {
            assert!(clean.contains(kept), "{kept}: {clean}");
        }
    }

    #[test]
    fn postgres_tells_no_values() {
        let log = "2026 ERROR:  invalid input syntax for type bigint: \"ann\"\n\
            2026 DETAIL:  Key (key)=(ann) already exists.\n2026 STATEMENT:  SELECT 'ann'\n\t'ann'\n";
        let clean = Scrubber::default().log("postgres", log);
        assert_eq!(clean, "2026 ERROR:  invalid input syntax for type bigint: \"*\"\n");
    }

    #[test]
    fn the_secrets_of_the_state_directory_are_replaced() {
        let state = std::env::temp_dir().join(format!("stack-scrub-{}", std::process::id()));
        let layout = Layout::new(Some(&state), None).unwrap();
        layout.create().unwrap();
        let secret = layout.secret("service-token").unwrap();
        let clean = Scrubber::of(&layout).text(&format!("the token {secret} in {}", state.display()));
        fs::remove_dir_all(&state).unwrap();
        assert_eq!(clean, "the token *** in STATE");
    }
}
