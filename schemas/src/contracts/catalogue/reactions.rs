//! Catalogue of the reactions: `REACTIONS.md`.

use std::collections::VecDeque;

use domain::reactions::{Next, Outcome, Reaction, Step, react};
use domain::{Event, TimeMs};
use serde_json::Value;

use super::{line, names};
use crate::aggregate::{TYPES, route_name, type_name};
use crate::commands::encode;
use crate::events::WireEvent;
use crate::settings::PAYMENT_WINDOW_SECS;
use crate::time::{parse_rfc3339, to_rfc3339};

const HEAD: &str = "# The reactions

Generated from the rules (`domain::reactions`), with `UPDATE_CONTRACTS=1 cargo test -p schemas contracts`. An event sets
off steps, each a command that the reactor sends to another aggregate, and deadlines, which send a command at their time.
A step's outcome leads to the next step, which has a row of its own. Its key makes a repetition of it recognizable.

Two rules hold for every step: one that confirmed its order ends the saga, and one that is too early (`not_due`) is sent
again. *Parked* means that a promise cannot be kept, and an operator has to intervene.
";

const PAYMENT_WINDOW_MS: u64 = 600_000;

/// Reason of a step that follows a rejection, in the place of the rule's name.
const RULE: &str = "{rule}";

/// An event as one of its variants.
struct Case {
    /// Title of the variant; empty if the event always has the same reaction.
    when: &'static str,
    /// Members that the event's data has in this variant.
    members: &'static str,
    /// A step of a reaction caused the event.
    is_caused: bool,
}

const fn case(when: &'static str, members: &'static str) -> Case {
    Case { when, members, is_caused: false }
}

const ANY: [Case; 1] = [case("", "{}")];
const BY_SALE: [Case; 2] =
    [case("An order without a sale", r#"{"sale":null}"#), case("An order of a sale", r#"{"sale":"{sale}"}"#)];
const PLACED: [Case; 4] = [
    case("An order without a sale", r#"{"sale":null}"#),
    case("An order of a sale, placed by a client", r#"{"sale":"{sale}"}"#),
    Case { when: "An order of a sale, placed for a claim", members: r#"{"sale":"{sale}"}"#, is_caused: true },
    case("An order dated over a day before its record", r#"{"ordered_at":"1997-01-01T00:00:00Z"}"#),
];
const CANCELLED: [Case; 3] = [
    case("An order without a sale", r#"{"sale":null}"#),
    case("An order of a sale", r#"{"sale":"{sale}"}"#),
    case("An order that was paid", r#"{"sale":null,"held":[]}"#),
];
const CLAIMED: [Case; 2] = [
    case("A claim by a buyer", r#"{"is_ordered":false}"#),
    case("A claim for a placed order", r#"{"is_ordered":true}"#),
];
const RETURNED: [Case; 2] = [
    case("A return before the close", r#"{"given_back":null}"#),
    case("A return after the close", r#"{"given_back":9}"#),
];
const RESERVED: [Case; 2] = [
    case("A reservation with an alarm", r#"{"alarm_at":"2026-11-27T08:05:00Z"}"#),
    case("A reservation without an alarm", r#"{"alarm_at":null}"#),
];

/// Returns the variants of an event, by its name without a version, that differ in their reactions.
fn cases(event: &str) -> &'static [Case] {
    match event {
        "order.placed" => &PLACED,
        "order.paid" | "order.rejected" | "order.expired" => &BY_SALE,
        "order.cancelled" => &CANCELLED,
        "sale.claimed" => &CLAIMED,
        "sale.returned" => &RETURNED,
        "product.reserved" => &RESERVED,
        _ => &ANY,
    }
}

/// Returns the catalogue as Markdown. `events` has the data of a sample of each event that is written today.
pub fn markdown(events: &[(&'static str, Value)]) -> String {
    let mut text = HEAD.to_owned();
    let mut without = Vec::new();
    let of = |aggregate| events.iter().filter(move |(name, _)| name.split('.').next() == Some(aggregate));
    for (name, data) in TYPES.map(type_name).into_iter().flat_map(of) {
        let (known, _) = name.rsplit_once('.').expect("an event's name ends with its version");
        let reactions: Vec<_> = cases(known).iter().map(|case| Sample::of(name, data, case)).collect();
        if reactions.iter().all(|sample| sample.reaction == Reaction::default()) {
            without.push(*name);
            continue;
        }
        text.push_str(&format!("\n## {name}\n"));
        reactions.iter().for_each(|sample| sample.describe(&mut text));
    }
    text.push_str(&format!("\n## Events without reactions\n\n{}\n", names(without)));
    text
}

/// A variant of an event, and its reaction.
struct Sample {
    when: &'static str,
    id: String,
    data: Value,
    at: TimeMs,
    reaction: Reaction,
}

impl Sample {
    fn of(name: &str, data: &Value, case: &Case) -> Self {
        let time = "2026-11-27T00:00:00Z";
        let at = parse_rfc3339(time).expect("it is a time");
        let mut data = data.clone();
        name_ids(&mut data);
        if data.get("ordered_at").is_some() {
            data["ordered_at"] = time.into();
        }
        let members: Value = serde_json::from_str(case.members).expect("it is an object");
        members.as_object().into_iter().flatten().for_each(|(member, value)| data[member] = value.clone());
        let json = serde_json::json!({ "type": name, "data": data }).to_string();
        let event: Event = serde_json::from_str::<WireEvent<'_>>(&json).expect("it is a golden event").upcast();
        let id = format!("{{{}}}", type_name(event.aggregate()));
        let reaction = react(&id, &event, at, case.is_caused, PAYMENT_WINDOW_MS);
        Self { when: case.when, id, data, at, reaction }
    }

    fn describe(&self, text: &mut String) {
        if !self.when.is_empty() {
            text.push_str(&format!("\n### {}\n", self.when));
        }
        let Reaction { steps, deadlines } = &self.reaction;
        if steps.is_empty() && deadlines.is_empty() {
            text.push_str("\nNothing follows.\n");
        }
        if !steps.is_empty() {
            describe_steps(text, steps);
        }
        if !deadlines.is_empty() {
            text.push_str("\n| deadline | key | time |\n|---|---|---|\n");
        }
        for (deadline, due) in deadlines {
            let step = Step::Due { deadline: *deadline, id: self.id.as_str().into(), due_at: due.unwrap_or_default() };
            line(text, &[&command(&step), &key(&step), &self.time(*due)]);
        }
    }

    /// Returns the time of a deadline as the member of the event that has it.
    fn time(&self, due: Option<TimeMs>) -> String {
        let Some(due) = due else { return "cancelled".to_owned() };
        let mut members = self.data.as_object().into_iter().flatten();
        let is_due = |value: &Value| value.as_str().is_some_and(|text| parse_rfc3339(text) == Ok(due));
        match members.find(|(_, value)| is_due(value)) {
            Some((member, _)) => format!("`{member}` of the event"),
            None if due.0 == self.at.0 + PAYMENT_WINDOW_MS => format!("`{PAYMENT_WINDOW_SECS}` after the event"),
            None => panic!("the catalogue cannot tell where {} comes from", to_rfc3339(due)),
        }
    }
}

/// Replaces the ids in an event's data by the names of their members.
fn name_ids(data: &mut Value) {
    match data {
        Value::Object(members) => {
            for (name, value) in members {
                if ["product", "order", "sale", "customer", "payment"].contains(&name.as_str()) {
                    *value = format!("{{{name}}}").into();
                }
                name_ids(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(name_ids),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn describe_steps(text: &mut String, first: &[Step]) {
    text.push_str("\n| step | data | key | accepted | rejected |\n|---|---|---|---|---|\n");
    let (mut seen, mut waiting) = (first.to_vec(), VecDeque::from(first.to_vec()));
    while let Some(step) = waiting.pop_front() {
        let accepted = step.next(Outcome::Accepted { is_confirmed: false });
        let rejected = step.next(Outcome::Rejected(RULE));
        line(text, &[&command(&step), &data(&step), &key(&step), &continuation(&accepted), &continuation(&rejected)]);
        for next in [accepted, rejected] {
            if let Next::Step(step) = next
                && !seen.contains(&step)
            {
                seen.push(step.clone());
                waiting.push_back(step);
            }
        }
    }
    for last in first.iter().filter_map(Step::given_up) {
        text.push_str(&format!("\nIf the first step is refused for too long: {}, {}.\n", command(&last), data(&last)));
    }
}

fn command(step: &Step) -> String {
    let (aggregate, id, command) = step.command();
    format!("`{}/{id}/{}`", route_name(aggregate), encode(&command).0)
}

/// Returns the members of a step's body, with the values that do not come from the event.
fn data(step: &Step) -> String {
    let (_, _, command) = step.command();
    let body: Value = serde_json::from_str(&encode(&command).1).expect("a body is JSON");
    let member = |(name, value): (&String, &Value)| match value {
        Value::Bool(value) => Some(format!("{name}: {value}")),
        Value::String(value) if name == "reason" => Some(format!("{name}: {value}")),
        Value::Null => None,
        _ => Some(name.clone()),
    };
    let mut members: Vec<_> = body.as_object().into_iter().flatten().filter_map(member).collect();
    // The order of a map's members depends on the features of the build.
    members.sort_unstable();
    names(members.iter().map(String::as_str))
}

/// Returns the key of a step, with a placeholder for a number, which comes from the event.
fn key(step: &Step) -> String {
    let key = step.dedup_key();
    let words = key.split(' ').map(|word| if word.parse::<u64>().is_ok() { "{units}" } else { word });
    format!("`{}`", words.collect::<Vec<_>>().join(" "))
}

fn continuation(next: &Next) -> String {
    match next {
        Next::Step(step) => command(step),
        Next::Done => "–".to_owned(),
        Next::NotDue => "sent again".to_owned(),
        Next::Stuck => "parked".to_owned(),
    }
}
