//! Catalogue of the commands: `COMMANDS.md`.

use domain::AggregateType;
use serde_json::Value;

use super::{fields, line, names};
use crate::aggregate::{MAX_ID_CHARS, TYPES, route_name};
use crate::commands::{CommandContract, Who, contracts};
use crate::contracts::json_schema::taken;

const HEAD: &str = "# The commands

Generated from the types that read them, with `UPDATE_CONTRACTS=1 cargo test -p schemas contracts`. A command is
`POST /v1/{aggregates}/{id}/{command}` with a JSON object as its body. No events means that its intent was fulfilled
before. The reactor sends the internal commands, which no other client reaches; see [the reactions](REACTIONS.md). The
commands of staff want [the staff token](../deploy/README.md#staff) wherever clients reach the service from other machines.
";

/// Returns the catalogue as Markdown. `events` returns the names of the events that a command leads to.
pub fn markdown(events: impl Fn(AggregateType, &str) -> Vec<&'static str>) -> String {
    let mut text = HEAD.to_owned();
    text.push_str(&format!(
        "\nAn id has 1 to {MAX_ID_CHARS} characters of `A-Z a-z 0-9 . _ ~ -`, and is neither `.` nor `..`. Amounts are in cents.\n"
    ));
    for aggregate in TYPES {
        let route = route_name(aggregate);
        text.push_str(&format!("\n## {route}\n\n| command | sent by | events |\n|---|---|---|\n"));
        for command in contracts(aggregate) {
            let name = command.name;
            let anchor = format!("[`{route}/{name}`](#{route}{name})");
            line(&mut text, &[&anchor, senders(command), &names(events(aggregate, name))]);
        }
        for command in contracts(aggregate) {
            describe(&mut text, route, command);
        }
    }
    text
}

fn senders(command: &CommandContract) -> &'static str {
    match (command.who, command.by_reaction) {
        (Who::Internal, _) => "the reactor alone (internal)",
        (Who::Staff, _) => "staff",
        (Who::Client, Some(_)) => "clients; by the reactor in another form",
        (Who::Client, None) => "clients",
    }
}

fn describe(text: &mut String, route: &str, command: &CommandContract) {
    let who = match command.who {
        Who::Client => "",
        Who::Staff => " For staff.",
        Who::Internal => " Internal.",
    };
    text.push_str(&format!("\n### {route}/{}\n\n{}{who}\n", command.name, command.about));
    form(text, &taken(command.schema), command.rejections);
    if let Some(by_reaction) = command.by_reaction {
        text.push_str("\nAs the reactor sends it, for an order:\n");
        form(text, &taken(by_reaction.schema), by_reaction.rejections);
    }
}

fn form(text: &mut String, schema: &Value, rejections: &[&str]) {
    text.push_str(&fields(schema).unwrap_or_else(|| "\nThe body has no fields.\n".to_owned()));
    text.push_str(&format!("\nRejections: {}.\n", names(rejections.iter().copied())));
}
