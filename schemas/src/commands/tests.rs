//! Validation of commands, and the messages with which they are refused.

mod fingerprints;
pub(crate) mod rejections;

use domain::order::Placer;
use domain::product::{By, Command as ProductCommand, Registration};

use super::*;

fn parse(
    aggregate: AggregateType,
    command: &str,
    body: &[u8],
    precondition: Precondition,
    origin: Origin,
) -> Result<ParsedCommand, CommandError> {
    super::parse(&AggregateId::new(aggregate, "x").unwrap(), command, body, precondition, origin)
}

fn detail(aggregate: AggregateType, command: &str, body: &str) -> String {
    match parse(aggregate, command, body.as_bytes(), Precondition::None, Origin::Client) {
        Err(CommandError::Body(detail)) => detail,
        other => panic!("expected a refused body, got {other:?}"),
    }
}

fn fingerprint(command: &str, body: &str, precondition: Precondition) -> u64 {
    parse(AggregateType::Product, command, body.as_bytes(), precondition, Origin::Client).unwrap().fingerprint
}

#[test]
fn a_good_body_becomes_the_domains_command() {
    let body = br#"{"name":"Blue","price_cents":1999,"stock":0}"#;
    let parsed = parse(AggregateType::Product, "register", body, Precondition::None, Origin::Client).unwrap();
    let wish = Registration { name: "Blue".into(), price_cents: 1999, stock: 0, limit_per_order: None };
    assert_eq!(parsed.command, Command::Product(ProductCommand::Register(wish)));
}

#[test]
fn a_refusal_names_the_field() {
    let order = AggregateType::Order;
    let product = AggregateType::Product;
    for (aggregate, command, body, field) in [
        (product, "reserve", r#"{"order":"o-1","quantity":0}"#, "quantity: expected 1 to"),
        (product, "reserve", r#"{"order":"o-1","quantity":-1}"#, "quantity: invalid value"),
        (product, "reserve", r#"{"order":"o-1","quantity":99999999999}"#, "quantity: invalid value"),
        (product, "reserve", r#"{"order":"o-1","quantity":1.5}"#, "quantity: invalid type"),
        (product, "reserve", r#"{"order":"o-1","quantity":-1.0}"#, "quantity: invalid value"),
        (product, "reserve", r#"{"order":"o-1","quantity":"1"}"#, "quantity: invalid type"),
        (product, "reserve", r#"{"order":"o-1","quantity":1e300}"#, "quantity: invalid value"),
        (product, "reserve", r#"{"order":"o 1","quantity":1}"#, "order: an id has"),
        (product, "reserve", r#"{"order":"..","quantity":1}"#, "order: an id is not . or .."),
        (order, "place", r#"{"customer":".","lines":[]}"#, "customer: an id is not . or .."),
        (product, "reserve", r#"{"order":"o-1"}"#, "missing field `quantity`"),
        (product, "reserve", r#"{"order":"o-1","quantity":1,"gift":true}"#, "unknown field `gift`"),
        (product, "register", r#"{"name":"a\u0000b","price_cents":1,"stock":1}"#, "name: text must not contain U+0000"),
        (product, "register", r#"{"name":"","price_cents":1,"stock":1}"#, "name: expected 1 to 500"),
        (product, "register", r#"{"name":"a","price_cents":1000000000001,"stock":1}"#, "price_cents: expected 0 to"),
        (
            order,
            "place",
            r#"{"customer":"c","lines":[{"product":"p","quantity":0,"amount_cents":1}]}"#,
            "lines[0].quantity",
        ),
        (order, "record", r#"{"customer":"c","lines":[],"ordered_at":"1997"}"#, "ordered_at: expected a time"),
        (product, "reserve", "{", "EOF"),
        (product, "reserve", r#"["o-1",1]"#, "expected a JSON object"),
        (order, "place", r#"{"customer":"c","lines":[["p",1,1]]}"#, "lines[0]: invalid type: sequence"),
        (product, "discontinue", "{} x", "trailing characters"),
    ] {
        let detail = detail(aggregate, command, body);
        assert!(detail.contains(field), "{body}: {detail}");
    }
}

#[test]
fn a_reservation_has_other_terms_when_an_orders_reaction_makes_it() {
    let read = |body: &str, origin| {
        let parsed = parse(AggregateType::Product, "reserve", body.as_bytes(), Precondition::None, origin);
        match parsed.map(|parsed| parsed.command) {
            Ok(Command::Product(ProductCommand::Reserve { by, .. })) => Ok(by),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    };
    let bare = r#"{"order":"o","quantity":1}"#;
    assert_eq!(read(bare, Origin::Client), Ok(By::Client { hold_secs: None }));
    assert_eq!(read(bare, Origin::Reaction), Ok(By::Order { amount_cents: None }));
    let held = r#"{"order":"o","quantity":1,"hold_secs":60}"#;
    assert_eq!(read(held, Origin::Client), Ok(By::Client { hold_secs: Some(60) }));
    assert!(read(held, Origin::Reaction).unwrap_err().contains("unknown field `hold_secs`"));
    let priced = r#"{"order":"o","quantity":1,"amount_cents":7}"#;
    assert_eq!(read(priced, Origin::Reaction), Ok(By::Order { amount_cents: Some(7) }));
    assert!(read(priced, Origin::Client).unwrap_err().contains("unknown field `amount_cents`"));
    for secs in [0, 86_401] {
        let held = format!(r#"{{"order":"o","quantity":1,"hold_secs":{secs}}}"#);
        assert!(read(&held, Origin::Client).unwrap_err().contains("hold_secs: expected 1 to 86400"), "{secs}");
    }
    // The optional field affects the fingerprint only if it is present.
    assert_ne!(fingerprint("reserve", held, Precondition::None), fingerprint("reserve", bare, Precondition::None));
}

#[test]
fn an_unknown_command_is_not_a_bad_body() {
    assert_eq!(
        parse(AggregateType::Order, "reserve", b"{}", Precondition::None, Origin::Client),
        Err(CommandError::Unknown)
    );
}

#[test]
fn the_fingerprint_depends_on_the_content_and_not_on_the_notation() {
    let bare = fingerprint("register", r#"{"name":"a","price_cents":1,"stock":1}"#, Precondition::None);
    let other = r#" { "stock" : 1, "limit_per_order": null, "price_cents": 1, "name": "\u0061" } "#;
    assert_eq!(fingerprint("register", other, Precondition::None), bare);
    assert_ne!(fingerprint("register", r#"{"name":"a","price_cents":1,"stock":2}"#, Precondition::None), bare);
    assert_ne!(fingerprint("register", other, Precondition::Version(1)), bare);
    assert_ne!(fingerprint("register", other, Precondition::Absent), bare);
    let whole = r#"{"name":"a","price_cents":1.0,"stock":10e-1}"#;
    assert_eq!(fingerprint("register", whole, Precondition::None), bare);
    let [release, commit] = ["release", "commit"].map(|name| fingerprint(name, r#"{"order":"o"}"#, Precondition::None));
    assert_ne!(release, commit);
}

#[test]
fn a_condition_is_a_version_or_several_strong_or_weak_and_nothing_else_is() {
    let version = Some(Precondition::Version(7));
    assert_eq!(parse_if_match(["\"7\""]), version);
    assert_eq!(parse_if_match([" W/\"7\""]), version);
    assert_eq!(parse_if_match(["\"7-2\""]), version, "the ETag of a query to a rebuilt view");
    assert_eq!(parse_if_match(["\"7\"", "\"7-2\""]), version, "the same version twice");
    assert_eq!(parse_if_match(["\"1\", W/\"2\""]), Some(Precondition::OneOf([1, 2, 1, 1])));
    assert_eq!(parse_if_match(["\"1\"", "\"2\", \"3\""]), Some(Precondition::OneOf([1, 2, 3, 1])));
    assert_eq!(parse_if_match(["*"]), Some(Precondition::Present));
    for text in ["", "7", "*, \"7\"", "\"7\", *", "\"\"", "\"x\"", "\"-1\"", "\"+1\"", "\"7-\"", "\"7-x\""] {
        assert_eq!(parse_if_match([text]), None, "{text}");
    }
    assert_eq!(parse_if_match(["\"1\",\"2\",\"3\",\"4\",\"5\""]), None, "more versions than a condition may list");
    assert_eq!(parse_if_match_field("7"), Some(Precondition::Version(7)));
}

#[test]
fn a_condition_holds_at_each_version_that_it_lists() {
    let holds = |condition: Precondition| [0, 1, 2, 3].map(|version| condition.holds_at(version));
    assert_eq!(holds(Precondition::None), [true; 4]);
    assert_eq!(holds(Precondition::Version(2)), [false, false, true, false]);
    assert_eq!(holds(Precondition::OneOf([1, 3, 1, 1])), [false, true, false, true]);
    assert_eq!(holds(Precondition::Absent), [true, false, false, false]);
    assert_eq!(holds(Precondition::Present), [false, true, true, true]);
}

#[test]
fn an_encoded_command_is_parsed_back_unchanged() {
    for (aggregate, command, body) in [
        (AggregateType::Product, "register", r#"{"name":"Blue","price_cents":1999,"stock":0,"limit_per_order":3}"#),
        (AggregateType::Product, "restock", r#"{"quantity":5}"#),
        (AggregateType::Product, "reprice", r#"{"price_cents":5}"#),
        (AggregateType::Product, "reserve", r#"{"order":"o","quantity":2}"#),
        (AggregateType::Product, "reserve", r#"{"order":"o","quantity":2,"hold_secs":60}"#),
        (AggregateType::Product, "lapse-holds", r#"{"due_at":"2026-01-01T00:00:00Z"}"#),
        (AggregateType::Product, "release", r#"{"order":"o"}"#),
        (AggregateType::Product, "commit", r#"{"order":"o","amount_cents":700}"#),
        (AggregateType::Product, "allot", r#"{"sale":"s","units":9}"#),
        (AggregateType::Product, "take-back", r#"{"sale":"s","total":0}"#),
        (AggregateType::Product, "discontinue", "{}"),
        (
            AggregateType::Order,
            "place",
            r#"{"customer":"c","lines":[{"product":"p","quantity":2,"amount_cents":7}],"sale":"s"}"#,
        ),
        (
            AggregateType::Order,
            "record",
            r#"{"customer":"c","lines":[{"product":"p","quantity":2,"amount_cents":7}],"ordered_at":"1997-01-01T00:00:00Z"}"#,
        ),
        (AggregateType::Order, "confirm-line", r#"{"product":"p"}"#),
        (AggregateType::Order, "reject-line", r#"{"product":"p","reason":"out_of_stock"}"#),
        (AggregateType::Order, "pay", r#"{"payment":"y","amount_cents":7}"#),
        (AggregateType::Order, "ship", r#"{"carrier":"by bike"}"#),
        (AggregateType::Order, "deliver", r#"{"tracking":"1"}"#),
        (AggregateType::Order, "cancel", "{}"),
        (AggregateType::Order, "expire", "{}"),
        (
            AggregateType::Sale,
            "schedule",
            r#"{"product":"p","opens_at":"2026-01-01T00:00:00Z","closes_at":"2026-01-02T00:00:00Z","price_cents":1,"units":9,"limit_per_customer":2}"#,
        ),
        (AggregateType::Sale, "stock", "{}"),
        (AggregateType::Sale, "refuse", r#"{"reason":"out_of_stock"}"#),
        (AggregateType::Sale, "open", "{}"),
        (AggregateType::Sale, "close", "{}"),
        (AggregateType::Sale, "claim", r#"{"customer":"c","quantity":1,"order":"o"}"#),
        (AggregateType::Sale, "hold", r#"{"customer":"c","quantity":1,"order":"o","product":"p"}"#),
        (AggregateType::Sale, "hold", r#"{"customer":"c","quantity":1,"order":"o","product":"p","amount_cents":7}"#),
        (AggregateType::Sale, "return", r#"{"order":"o","is_ordered":false}"#),
        (AggregateType::Sale, "commit", r#"{"order":"o"}"#),
        (AggregateType::Sale, "commit", r#"{"order":"o","amount_cents":7}"#),
    ] {
        assert!(contract_named(aggregate, command).is_some(), "{command}");
        let read = parse(aggregate, command, body.as_bytes(), Precondition::None, Origin::Client).unwrap();
        let (name, written) = encode(&read.command);
        assert_eq!(name, command);
        assert_eq!(
            parse(aggregate, name, written.as_bytes(), Precondition::None, Origin::Client),
            Ok(read),
            "{written}"
        );
    }
}

#[test]
fn the_name_of_a_claims_order_is_one_that_only_the_sale_gives() {
    let claim = |sale: &str, order: &str| {
        let sale = AggregateId::new(AggregateType::Sale, sale).unwrap();
        let body = format!(r#"{{"customer":"c","quantity":1,"order":"{order}"}}"#);
        super::parse(&sale, "claim", body.as_bytes(), Precondition::None, Origin::Client).map(|parsed| parsed.command)
    };
    for (sale, order, whole) in [("drop", "o-1", "drop~o-1"), ("a~b", "c", "a~b~c"), ("s", &"x".repeat(126), "")] {
        let Ok(Command::Sale(domain::sale::Command::Claim(claim))) = claim(sale, order) else {
            panic!("{sale} {order}")
        };
        assert!(whole.is_empty() || *claim.order.0 == *whole, "{claim:?}");
    }
    let detail = |sale: &str, order: &str| match claim(sale, order) {
        Err(CommandError::Body(detail)) => detail,
        other => panic!("{other:?}"),
    };
    assert!(detail("drop", "a~b").starts_with("order: the name of a claim's order must not contain ~"));
    assert!(detail("drop", &"x".repeat(124)).starts_with("order: with the sale's ID in front"));
    assert!(detail("drop", "").starts_with("order: an id has"));
}

#[test]
fn only_the_reaction_to_a_claim_may_place_an_order_with_a_reserved_name() {
    let place = |id: &str, origin| {
        let id = AggregateId::new(AggregateType::Order, id).unwrap();
        let body = br#"{"customer":"c","lines":[{"product":"p","quantity":1,"amount_cents":7}],"sale":"drop"}"#;
        let parsed = super::parse(&id, "place", body, Precondition::None, origin).unwrap();
        let Command::Order(domain::order::Command::Place { by, .. }) = parsed.command else { panic!() };
        by
    };
    assert_eq!(place("drop~o-1", Origin::Client), Placer::Client { has_reserved_name: true });
    assert_eq!(place("o-1", Origin::Client), Placer::Client { has_reserved_name: false });
    assert_eq!(place("drop~o-1", Origin::Reaction), Placer::Claim);
}
