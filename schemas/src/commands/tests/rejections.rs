//! Completeness of the documented rejections: a command lists exactly the rules that can reject it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use domain::{State, TimeMs, decide, evolve};

use super::super::*;
use crate::aggregate::TYPES;
use crate::answers::rejection_name;
use crate::events::WireEvent;
use crate::time::parse_rfc3339;

/// Length of the longest history before a rejection: an order that is placed, confirmed, paid and shipped, then
/// cancelled.
const COMMANDS: usize = 5;

/// ID of an order that is placed by a customer with the same ID.
const RESERVED: &str = "s~o";

const PRODUCT_WISHES: &[(&str, &str)] = &[
    ("register", r#"{"name":"A","price_cents":1,"stock":5,"limit_per_order":3}"#),
    ("register", r#"{"name":"B","price_cents":1,"stock":5}"#),
    ("restock", r#"{"quantity":1}"#),
    ("reprice", r#"{"price_cents":2}"#),
    ("reserve", r#"{"order":"o","quantity":3}"#),
    ("reserve", r#"{"order":"o","quantity":2}"#),
    ("reserve", r#"{"order":"p","quantity":3}"#),
    ("reserve", r#"{"order":"p","quantity":4}"#),
    ("release", r#"{"order":"o"}"#),
    ("lapse-holds", "{}"),
    ("lapse-holds", r#"{"due_at":"2026-01-03T00:00:00Z"}"#),
    ("commit", r#"{"order":"o","amount_cents":3}"#),
    ("allot", r#"{"sale":"s","units":2}"#),
    ("allot", r#"{"sale":"s","units":1}"#),
    ("allot", r#"{"sale":"t","units":9}"#),
    ("take-back", r#"{"sale":"s","total":2}"#),
    ("discontinue", "{}"),
];

const ORDER_WISHES: &[(&str, &str)] = &[
    ("place", r#"{"customer":"c","lines":[{"product":"p","quantity":1,"amount_cents":7}]}"#),
    ("place", r#"{"customer":"d","lines":[{"product":"p","quantity":1,"amount_cents":7}]}"#),
    ("place", r#"{"customer":"c","lines":[]}"#),
    ("place", "too many lines"),
    ("place", r#"{"customer":"s~o","lines":[{"product":"p","quantity":1,"amount_cents":7}]}"#),
    (
        "record",
        r#"{"customer":"s~o","lines":[{"product":"p","quantity":1,"amount_cents":7}],"ordered_at":"2026-01-01T00:00:00Z"}"#,
    ),
    (
        "place",
        r#"{"customer":"c","lines":[{"product":"p","quantity":1000000000,"amount_cents":7},{"product":"p","quantity":1,"amount_cents":7}]}"#,
    ),
    (
        "record",
        r#"{"customer":"c","lines":[{"product":"p","quantity":1,"amount_cents":7}],"ordered_at":"2026-01-01T00:00:00Z"}"#,
    ),
    (
        "record",
        r#"{"customer":"c","lines":[{"product":"p","quantity":1,"amount_cents":7}],"ordered_at":"2026-01-03T00:00:00Z"}"#,
    ),
    ("record", r#"{"customer":"c","lines":[],"ordered_at":"2026-01-01T00:00:00Z"}"#),
    ("record", "too many lines"),
    (
        "record",
        r#"{"customer":"c","lines":[{"product":"p","quantity":1,"amount_cents":1000000000000},{"product":"p","quantity":1,"amount_cents":1}],"ordered_at":"2026-01-01T00:00:00Z"}"#,
    ),
    ("confirm-line", r#"{"product":"p"}"#),
    ("confirm-line", r#"{"product":"q"}"#),
    ("reject-line", r#"{"product":"p"}"#),
    ("reject-line", r#"{"product":"q"}"#),
    ("pay", r#"{"payment":"x","amount_cents":7}"#),
    ("pay", r#"{"payment":"y","amount_cents":7}"#),
    ("pay", r#"{"payment":"x","amount_cents":8}"#),
    ("ship", "{}"),
    ("deliver", "{}"),
    ("cancel", "{}"),
    ("expire", "{}"),
    ("expire", r#"{"due_at":"2026-01-03T00:00:00Z"}"#),
];

const SALE_WISHES: &[(&str, &str)] = &[
    ("schedule", "2026-01-03"),
    ("schedule", "2026-01-04"),
    ("schedule", "2026-01-01"),
    ("stock", "{}"),
    ("refuse", "{}"),
    ("open", "{}"),
    ("close", "{}"),
    ("open", r#"{"due_at":"2026-01-03T00:00:00Z"}"#),
    ("close", r#"{"due_at":"2026-01-03T00:00:00Z"}"#),
    ("claim", r#"{"customer":"c","quantity":1,"order":"o"}"#),
    ("claim", r#"{"customer":"c","quantity":3,"order":"o"}"#),
    ("claim", r#"{"customer":"c","quantity":9,"order":"o"}"#),
    ("hold", r#"{"customer":"c","quantity":1,"order":"o","product":"p"}"#),
    ("hold", r#"{"customer":"c","quantity":3,"order":"o","product":"p"}"#),
    ("hold", r#"{"customer":"c","quantity":9,"order":"o","product":"p"}"#),
    ("hold", r#"{"customer":"c","quantity":1,"order":"o","product":"q"}"#),
    ("hold", r#"{"customer":"c","quantity":1,"order":"o","product":"p","amount_cents":2}"#),
    ("return", r#"{"order":"o"}"#),
    ("commit", r#"{"order":"o"}"#),
];

/// Commands whose bodies only this origin may send.
const WISHES_BY_ORIGIN: &[(AggregateType, Origin, &str, &str)] = &[
    (AggregateType::Product, Origin::Client, "reserve", r#"{"order":"q","quantity":1,"hold_secs":1}"#),
    (AggregateType::Product, Origin::Reaction, "reserve", r#"{"order":"p","quantity":1,"amount_cents":9}"#),
    (
        AggregateType::Order,
        Origin::Reaction,
        "place",
        r#"{"customer":"c","lines":[{"product":"p","quantity":1,"amount_cents":7}],"sale":"s"}"#,
    ),
];

/// Returns commands that reach every relevant state.
fn wishes(aggregate: AggregateType) -> Vec<(&'static str, String)> {
    let wishes = match aggregate {
        AggregateType::Product => PRODUCT_WISHES,
        AggregateType::Order => ORDER_WISHES,
        AggregateType::Sale => SALE_WISHES,
    };
    wishes.iter().map(|(command, body)| (*command, whole(command, body))).collect()
}

/// Expands abbreviated bodies.
fn whole(command: &str, body: &str) -> String {
    match command {
        "place" if body == "too many lines" => {
            let lines = [r#"{"product":"p","quantity":1,"amount_cents":7}"#; domain::order::MAX_LINES + 1].join(",");
            format!(r#"{{"customer":"c","lines":[{lines}]}}"#)
        }
        "record" if body == "too many lines" => {
            whole("place", body).replace("]}", r#"],"ordered_at":"2026-01-01T00:00:00Z"}"#)
        }
        "schedule" => format!(
            r#"{{"product":"p","opens_at":"2026-01-01T00:00:00Z","closes_at":"{body}T00:00:00Z","price_cents":1,"units":4,"limit_per_customer":2}}"#
        ),
        _ => body.to_owned(),
    }
}

/// The names of a command's rejections and events.
#[derive(Default)]
pub(crate) struct Outcomes {
    rejections: BTreeSet<&'static str>,
    pub(crate) events: BTreeSet<&'static str>,
}

/// Returns the outcomes that occur in histories of up to [`COMMANDS`] commands, by command.
pub(crate) fn outcomes(aggregate: AggregateType) -> BTreeMap<&'static str, Outcomes> {
    let at = parse_rfc3339("2026-01-02T00:00:00Z").unwrap();
    let read = |name, body: &str, origin| {
        let id = if body.contains(RESERVED) { RESERVED } else { "x" };
        let id = AggregateId::new(aggregate, id).unwrap();
        let parsed = parse(&id, name, body.as_bytes(), Precondition::None, origin);
        parsed.unwrap_or_else(|error| panic!("{name} {body}: {error}")).command
    };
    let later = TimeMs(at.0 + 60_000);
    let by_origin = WISHES_BY_ORIGIN.iter().filter(|(of, ..)| *of == aggregate);
    // The reaction's command is included if it differs from the client's.
    let wishes: Vec<_> = wishes(aggregate)
        .iter()
        .flat_map(|(name, body)| {
            let commands = [Origin::Client, Origin::Reaction].map(|origin| (*name, read(name, body, origin)));
            let is_same = commands[0] == commands[1];
            commands.into_iter().take(if is_same { 1 } else { 2 })
        })
        .chain(by_origin.map(|(_, origin, name, body)| (*name, read(name, body, *origin))))
        .collect();
    let mut met: BTreeMap<_, Outcomes> = BTreeMap::new();
    let (mut known, mut states) = (HashSet::new(), vec![State::initial(aggregate)]);
    for _ in 0..COMMANDS {
        let mut next = Vec::new();
        let all = states.iter().flat_map(|state| wishes.iter().map(move |wish| (state, wish)));
        for ((state, (name, command)), at) in all.flat_map(|all| [(all, at), (all, later)]) {
            let met = met.entry(*name).or_default();
            match decide(state, command, at) {
                Ok(events) => {
                    met.events.extend(events.iter().map(|event| WireEvent::newest(event).name()));
                    next.push(events.iter().fold(state.clone(), evolve));
                }
                Err(rejection) => drop(met.rejections.insert(rejection_name(&rejection))),
            }
        }
        next.retain(|state| known.insert(format!("{state:?}")));
        states = next;
    }
    met
}

/// Returns whether a command adds an entry to its aggregate and may find it full, which no short history achieves.
fn may_find_it_full(aggregate: AggregateType, command: &str) -> bool {
    matches!(
        (aggregate, command),
        (AggregateType::Product, "reserve" | "allot") | (AggregateType::Sale, "claim" | "hold")
    )
}

#[test]
fn a_command_is_rejected_exactly_by_the_documented_rules() {
    for aggregate in TYPES {
        let mut met = outcomes(aggregate);
        for contract in contracts(aggregate) {
            let by_reaction = contract.by_reaction.map_or(&[][..], |form| form.rejections);
            let told = contract.rejections.iter().chain(by_reaction).copied().collect();
            let met = &mut met.entry(contract.name).or_default().rejections;
            if may_find_it_full(aggregate, contract.name) {
                met.insert(rejection_name(&domain::Rejection::Full));
            }
            assert_eq!(met, &told, "{}", contract.name);
        }
    }
}
