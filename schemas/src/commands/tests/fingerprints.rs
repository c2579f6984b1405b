//! Stability of fingerprints across builds.

use serde::{Deserialize, Serialize};

use super::*;

const PRODUCT: AggregateType = AggregateType::Product;
const ORDER: AggregateType = AggregateType::Order;
const SALE: AggregateType = AggregateType::Sale;

/// Bodies of commands, without and with optional fields, and the canonical form that the first release hashed of each.
/// Such hashes are stored in the log, so no line of this table may change.
const HASHED: &[(AggregateType, &str, &str, &str)] = &[
    (
        PRODUCT,
        "register",
        r#"{"name":"Blue","price_cents":1999,"stock":3}"#,
        r#"{"name":"Blue","price_cents":1999,"stock":3,"limit_per_order":null}"#,
    ),
    (
        PRODUCT,
        "register",
        r#"{"limit_per_order":2,"name":"Blue","price_cents":1999,"stock":3}"#,
        r#"{"name":"Blue","price_cents":1999,"stock":3,"limit_per_order":2}"#,
    ),
    (PRODUCT, "restock", r#"{"quantity":5}"#, r#"{"quantity":5}"#),
    (PRODUCT, "reprice", r#"{"price_cents":5}"#, r#"{"price_cents":5}"#),
    (PRODUCT, "reserve", r#"{"order":"o","quantity":2}"#, r#"{"order":"o","quantity":2}"#),
    (
        PRODUCT,
        "reserve",
        r#"{"order":"o","quantity":2,"hold_secs":60}"#,
        r#"{"order":"o","quantity":2,"hold_secs":60}"#,
    ),
    (PRODUCT, "release", r#"{"order":"o"}"#, r#"{"order":"o"}"#),
    (PRODUCT, "commit", r#"{"order":"o"}"#, r#"{"order":"o","amount_cents":null}"#),
    (PRODUCT, "commit", r#"{"order":"o","amount_cents":700}"#, r#"{"order":"o","amount_cents":700}"#),
    (PRODUCT, "allot", r#"{"sale":"s","units":9}"#, r#"{"sale":"s","units":9}"#),
    (PRODUCT, "take-back", r#"{"sale":"s","total":0}"#, r#"{"sale":"s","total":0}"#),
    (PRODUCT, "lapse-holds", "{}", r#"{"due_at":null}"#),
    (PRODUCT, "discontinue", "{}", "{}"),
    (
        ORDER,
        "place",
        r#"{"customer":"c","lines":[{"product":"p","quantity":2,"amount_cents":7}]}"#,
        r#"{"customer":"c","lines":[{"product":"p","quantity":2,"amount_cents":7}],"sale":null,"ordered_at":null}"#,
    ),
    (
        ORDER,
        "place",
        r#"{"customer":"c","sale":"s","lines":[]}"#,
        r#"{"customer":"c","lines":[],"sale":"s","ordered_at":null}"#,
    ),
    (
        ORDER,
        "record",
        r#"{"ordered_at":"1997-01-01T00:00:00Z","customer":"c","lines":[{"amount_cents":7,"product":"p","quantity":2}]}"#,
        r#"{"customer":"c","lines":[{"product":"p","quantity":2,"amount_cents":7}],"ordered_at":"1997-01-01T00:00:00Z"}"#,
    ),
    (ORDER, "confirm-line", r#"{"product":"p"}"#, r#"{"product":"p"}"#),
    (ORDER, "reject-line", r#"{"product":"p"}"#, r#"{"product":"p","reason":null}"#),
    (ORDER, "pay", r#"{"payment":"y","amount_cents":7}"#, r#"{"payment":"y","amount_cents":7}"#),
    (ORDER, "ship", "{}", r#"{"carrier":null,"tracking":null}"#),
    (ORDER, "ship", r#"{"carrier":"by bike"}"#, r#"{"carrier":"by bike","tracking":null}"#),
    (ORDER, "deliver", r#"{"tracking":"1"}"#, r#"{"carrier":null,"tracking":"1"}"#),
    (ORDER, "deliver", r#"{"carrier":"b","tracking":"1"}"#, r#"{"carrier":"b","tracking":"1"}"#),
    (ORDER, "cancel", "{}", r#"{"reason":null}"#),
    (ORDER, "cancel", r#"{"reason":"null"}"#, r#"{"reason":"null"}"#),
    (ORDER, "cancel", r#"{"reason":"{ \" \\ \u0001 }"}"#, r#"{"reason":"{ \" \\ \u0001 }"}"#),
    (ORDER, "expire", "{}", r#"{"due_at":null}"#),
    (
        SALE,
        "schedule",
        r#"{"units":9,"limit_per_customer":2,"price_cents":7,"product":"p","opens_at":"2026-01-01T00:00:00Z","closes_at":"2026-01-01T01:00:00.5Z"}"#,
        r#"{"product":"p","opens_at":"2026-01-01T00:00:00Z","closes_at":"2026-01-01T01:00:00.5Z","price_cents":7,"units":9,"limit_per_customer":2}"#,
    ),
    (SALE, "claim", r#"{"order":"o","customer":"c","quantity":1}"#, r#"{"customer":"c","quantity":1,"order":"o"}"#),
    (
        SALE,
        "hold",
        r#"{"product":"p","order":"o","customer":"c","quantity":1}"#,
        r#"{"customer":"c","quantity":1,"order":"o","product":"p"}"#,
    ),
    (
        SALE,
        "hold",
        r#"{"product":"p","order":"o","customer":"c","quantity":1,"amount_cents":7}"#,
        r#"{"customer":"c","quantity":1,"order":"o","product":"p","amount_cents":7}"#,
    ),
    (SALE, "stock", "{}", "{}"),
    (SALE, "refuse", "{}", r#"{"reason":null}"#),
    (SALE, "open", "{}", r#"{"due_at":null}"#),
    (SALE, "close", r#"{"due_at":"2026-01-01T00:00:00Z"}"#, r#"{"due_at":"2026-01-01T00:00:00Z"}"#),
    (SALE, "return", r#"{"order":"o"}"#, r#"{"order":"o","is_ordered":null}"#),
    (SALE, "return", r#"{"order":"o","is_ordered":false}"#, r#"{"order":"o","is_ordered":false}"#),
    (SALE, "commit", r#"{"order":"o"}"#, r#"{"order":"o"}"#),
    (SALE, "commit", r#"{"order":"o","amount_cents":7}"#, r#"{"order":"o","amount_cents":7}"#),
];

fn hash_of(command: &str, canonical: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(format!("{command}\0*{canonical}").as_bytes())
}

#[test]
fn fingerprints_in_the_log_are_recognized() {
    for (aggregate, command, body, canonical) in HASHED {
        let parsed = parse(*aggregate, command, body.as_bytes(), Precondition::None, Origin::Client).unwrap();
        assert_eq!(parsed.fingerprint, hash_of(command, canonical), "{command} {body}");
    }
}

#[test]
fn the_table_covers_every_command() {
    for (aggregate, contracts) in [(PRODUCT, product::CONTRACTS), (ORDER, order::CONTRACTS), (SALE, sale::CONTRACTS)] {
        for contract in contracts {
            let name = contract.name;
            assert!(HASHED.iter().any(|(of, command, ..)| (*of, *command) == (aggregate, name)), "{name}");
        }
    }
}

#[test]
fn a_field_that_a_later_build_may_leave_out_does_not_change_what_is_hashed_without_it() {
    #[derive(Serialize, Deserialize)]
    struct Later {
        first: Option<u32>,
        quantity: u32,
        inner: Option<Box<Later>>,
        due_at: Option<u32>,
        last: Option<u32>,
    }
    let hash = |command: &str, body: &str| {
        let mut fingerprint = Fingerprint::of(SALE, command, Precondition::None);
        fingerprint.body::<Later>(body.as_bytes()).unwrap();
        fingerprint.digest()
    };
    let without = r#"{"quantity":5}"#;
    assert_eq!(hash("new", without), hash_of("new", without));
    assert_eq!(hash("close", without), hash_of("close", r#"{"quantity":5,"due_at":null}"#));
    let with = r#"{"first":1,"quantity":5,"inner":{"quantity":6,"due_at":7},"last":8}"#;
    assert_eq!(hash("new", with), hash_of("new", with));
    assert_ne!(hash("new", with), hash("new", without));
}
