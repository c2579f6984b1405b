//! Distinction between own, foreign and undecodable values, and round trips of records.

use std::borrow::Cow;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{Claim, Commit, Epoch, Fence, OtherPartitions, Record, RecordError};
use crate::events::WireEvent;
use crate::events::product::{ProductDiscontinuedV1, ProductRegisteredV1, ProductReservedV1};

const EPOCH: Epoch = Epoch { claim: 1042, nonce: 0x00c0_ffee_00c0_ffee };

const CLAIM: &[u8] = include_bytes!("../../golden/record.claim.st1");
const NUMBERED_CLAIM: &[u8] = include_bytes!("../../golden/record.claim-2.st1");
const COMMIT: &[u8] = include_bytes!("../../golden/record.commit.st1");
const FENCE: &[u8] = include_bytes!("../../golden/record.fence.st1");

fn claim() -> Record<'static> {
    Record::Claim(Claim { nonce: EPOCH.nonce, url: "http://10.0.0.7:8181".into(), partitions: Some(12) })
}

fn commit() -> Commit<'static> {
    Commit {
        epoch: EPOCH,
        seq: 17,
        command_id: "0198c5a2-7c00-7000-8000-000000000001".into(),
        at_ms: 852_121_800_250,
        aggregate: "product/cd-1".into(),
        version: 9,
        events: vec![
            WireEvent::ProductReservedV1(ProductReservedV1 { order: "o-17".into(), quantity: 2 }),
            WireEvent::ProductDiscontinuedV1(ProductDiscontinuedV1 {}),
        ],
        fingerprint: 0xfedc_ba98_7654_3210,
        cause: Some("k7x2.3-1041".into()),
        trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        origin: None,
    }
}

fn fence() -> Record<'static> {
    Record::Fence(Fence { epoch: EPOCH, seq: 18 })
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut bytes = vec![];
    record.encode(&mut bytes);
    bytes
}

/// Decodes a record from its JSON, without marker and format.
fn decode_json(text: &str) -> Result<(), RecordError> {
    Record::decode(format!("st1{text}").as_bytes()).map(|record| assert!(record.is_some()))
}

#[test]
fn golden_records_are_read_and_written_byte_for_byte() {
    let numberless = Record::Claim(Claim { nonce: EPOCH.nonce, url: "http://10.0.0.7:8181".into(), partitions: None });
    for (bytes, record) in
        [(CLAIM, numberless), (NUMBERED_CLAIM, claim()), (COMMIT, Record::Commit(commit())), (FENCE, fence())]
    {
        assert_eq!(Record::decode(bytes).unwrap().as_ref(), Some(&record));
        assert_eq!(encoded(&record).escape_ascii().to_string(), bytes.escape_ascii().to_string());
    }
}

#[test]
fn a_claim_with_a_partition_count_fits_only_such_a_topic_and_one_without_fits_any() {
    let claim = |partitions| Claim { nonce: 1, url: "http://h".into(), partitions };
    assert_eq!(claim(None).check_partitions(24), Ok(()));
    assert_eq!(claim(Some(24)).check_partitions(24), Ok(()));
    let grown = claim(Some(12)).check_partitions(24).unwrap_err();
    assert_eq!(grown, OtherPartitions { claimed: 12, found: 24 });
    assert!(grown.to_string().contains("the topic has 24 partitions, but the log was written with 12"), "{grown}");
}

#[test]
fn a_claim_names_the_log_that_it_copies_or_that_continues() {
    let all = [Claim::closing("e", 3), Claim::copying(1, "e", 3), Claim::copied(1, "e", 3)];
    assert_eq!(all.each_ref().map(Claim::continues_in), [Some("e"), None, None]);
    assert_eq!(all.each_ref().map(Claim::copies), [None, Some("e"), None]);
    assert_eq!(all.each_ref().map(Claim::ends_copy_of), [None, None, Some("e")]);
    let Record::Claim(owner) = claim() else { unreachable!("it is a claim") };
    assert_eq!((owner.continues_in(), owner.copies(), owner.ends_copy_of()), (None, None, None));
}

#[test]
fn one_commits_bytes_are_these() {
    let commit = Commit {
        events: vec![WireEvent::ProductRegisteredV1(ProductRegisteredV1 {
            name: "A \"b\"\n\u{1f3ab}".into(),
            price_cents: u64::MAX,
            stock: 0,
            limit_per_order: None,
        })],
        cause: None,
        trace: None,
        ..commit()
    };
    let expected = concat!(
        r#"st1{"commit":{"epoch":[1042,"00c0ffee00c0ffee"],"seq":17,"#,
        r#""command_id":"0198c5a2-7c00-7000-8000-000000000001","at_ms":852121800250,"#,
        r#""aggregate":"product/cd-1","version":9,"events":[{"type":"product.registered.v1","#,
        r#""data":{"name":"A \"b\"\n🎫","price_cents":18446744073709551615,"stock":0}}],"#,
        r#""fingerprint":"fedcba9876543210"}}"#,
    );
    assert_eq!(String::from_utf8(encoded(&Record::Commit(commit))).unwrap(), expected);
}

#[test]
fn encoding_appends_to_the_buffer() {
    let mut buffer = b"before".to_vec();
    fence().encode(&mut buffer);
    assert_eq!(buffer, [b"before", FENCE].concat());
}

#[test]
fn a_value_without_the_marker_is_foreign() {
    for foreign in ["", "s", "S", "St1{}", " st1{}", "{\"fence\":{}}", "\u{feff}st1", "\0"] {
        assert!(matches!(Record::decode(foreign.as_bytes()), Ok(None)), "{foreign:?}");
    }
}

#[test]
fn a_newer_format_stops_the_reader_whatever_follows_it() {
    for (bytes, format) in [("st2{}", 2), ("st2", 2), ("st10{\"fence\":{}}", 10), ("st4294967295\0", u32::MAX)] {
        let error = Record::decode(bytes.as_bytes()).unwrap_err();
        assert!(matches!(error, RecordError::NewerFormat(newer) if newer == format), "{bytes}: {error}");
    }
}

#[test]
fn a_mark_without_a_format_stops_the_reader() {
    for bytes in ["st", "stampede", "st{\"fence\":{}}", "st-1{}", "st+1{}", "st 1{}", "st0{}", "st4294967296{}"] {
        let error = Record::decode(bytes.as_bytes()).unwrap_err();
        assert!(matches!(error, RecordError::NoFormat), "{bytes}: {error}");
    }
}

#[test]
fn an_undecodable_record_of_this_system_stops_the_reader() {
    for text in [
        "",
        "{}",
        "null",
        r#"{"note":{}}"#,
        r#"{"fence":{"epoch":[1042,"00c0ffee00c0ffee"]}}"#,
        r#"{"fence":{"epoch":[1042],"seq":1}}"#,
        r#"{"fence":{"epoch":[1042,"00c0ffee00c0ffee",1],"seq":1}}"#,
        r#"{"fence":{"epoch":[1042,"c0ffee"],"seq":1}}"#,
        r#"{"fence":{"epoch":[1042,"00c0ffee00c0ffeg"],"seq":1}}"#,
        r#"{"fence":{"epoch":[1042,"+0c0ffee00c0ffee"],"seq":1}}"#,
        r#"{"fence":{"epoch":[1042,12648430],"seq":1}}"#,
        r#"{"fence":{"epoch":[1042,"00c0ffee00c0ffee"],"seq":-1}}"#,
        r#"{"fence":{"epoch":[1042,"00c0ffee00c0ffee"],"seq":1}} x"#,
        r#"{"claim":{"nonce":"00c0ffee00c0ffee"}}"#,
        r#"{"claim":{"nonce":"c0ffee","url":"http://h"}}"#,
    ] {
        let error = decode_json(text).unwrap_err();
        assert!(matches!(error, RecordError::Unreadable(_)), "{text}: {error}");
    }
    for cut in b"st1".len()..COMMIT.len() {
        let error = Record::decode(&COMMIT[..cut]).unwrap_err();
        assert!(matches!(error, RecordError::Unreadable(_)), "cut at {cut}: {error}");
    }
    let mut no_text = CLAIM.to_vec();
    let host = no_text.iter().rposition(|byte| *byte == b'7').unwrap();
    no_text[host] = 0xff;
    assert!(matches!(Record::decode(&no_text), Err(RecordError::Unreadable(_))));
}

#[test]
fn a_commit_with_an_event_that_this_build_does_not_know_stops_the_reader() {
    let text = std::str::from_utf8(COMMIT).unwrap();
    for (known, unknown) in
        [("product.reserved.v1", "product.reserved.v3"), ("\"quantity\":2", "\"quantity\":2,\"x\":1")]
    {
        let changed = text.replacen(known, unknown, 1);
        assert_ne!(changed, text);
        assert!(matches!(Record::decode(changed.as_bytes()), Err(RecordError::Unreadable(_))), "{unknown}");
    }
}

#[test]
fn a_commit_that_lacks_any_required_member_stops_the_reader() {
    let whole: serde_json::Value = serde_json::from_slice(&COMMIT[b"st1".len()..]).unwrap();
    for member in whole["commit"].as_object().unwrap().keys() {
        let mut rest = whole.clone();
        rest["commit"].as_object_mut().unwrap().remove(member);
        let optional = matches!(member.as_str(), "cause" | "trace" | "origin");
        assert_eq!(decode_json(&rest.to_string()).is_ok(), optional, "without {member}");
    }
}

#[test]
fn strings_are_borrowed_from_the_log_and_owned_only_where_they_hold_escapes() {
    let Some(Record::Commit(plain)) = Record::decode(COMMIT).unwrap() else { panic!("a commit") };
    assert!(matches!((&plain.command_id, &plain.aggregate), (Cow::Borrowed(_), Cow::Borrowed(_))));
    let WireEvent::ProductReservedV1(reserved) = &plain.events[0] else { panic!("a reservation") };
    assert!(matches!(reserved.order, Cow::Borrowed("o-17")));

    let escaped = encoded(&Record::Commit(Commit { command_id: "a\"b".into(), aggregate: "ü".into(), ..commit() }));
    let Some(Record::Commit(read)) = Record::decode(&escaped).unwrap() else { panic!("a commit") };
    assert!(matches!(&read.command_id, Cow::Owned(text) if text == "a\"b"));
    assert!(matches!(read.aggregate, Cow::Borrowed("ü")));
}

fn any_text() -> impl Strategy<Value = Cow<'static, str>> {
    let plain = "[a-z0-9/.-]{0,12}".prop_map(Cow::Owned);
    let wild = vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect::<String>().into());
    let escapes = Just("\"\\\u{0}\u{7f}\u{2028}\n\t/🎫".into());
    prop_oneof![plain, wild, escapes]
}

fn any_epoch() -> impl Strategy<Value = Epoch> {
    (any::<i64>(), any::<u64>()).prop_map(|(claim, nonce)| Epoch { claim, nonce })
}

fn any_wire_event() -> impl Strategy<Value = WireEvent<'static>> {
    prop_oneof![
        (any_text(), any::<u32>())
            .prop_map(|(order, quantity)| WireEvent::ProductReservedV1(ProductReservedV1 { order, quantity })),
        (any_text(), any::<u64>(), any::<Option<u32>>()).prop_map(|(name, price_cents, limit_per_order)| {
            WireEvent::ProductRegisteredV1(ProductRegisteredV1 { name, price_cents, stock: 1, limit_per_order })
        }),
        Just(WireEvent::ProductDiscontinuedV1(ProductDiscontinuedV1 {})),
    ]
}

fn any_commit() -> impl Strategy<Value = Record<'static>> {
    let optional = (option::of(any_text()), option::of(any_text()), option::of(any_text()));
    let numbers = (any_epoch(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let names = (any_text(), any_text(), optional);
    (names, numbers, vec(any_wire_event(), 0..4)).prop_map(|(names, numbers, events)| {
        let (command_id, aggregate, (cause, trace, origin)) = names;
        let (epoch, seq, at_ms, version, fingerprint) = numbers;
        let commit =
            Commit { epoch, seq, command_id, at_ms, aggregate, version, events, fingerprint, cause, trace, origin };
        Record::Commit(commit)
    })
}

fn any_record() -> impl Strategy<Value = Record<'static>> {
    prop_oneof![
        1 => (any::<u64>(), any_text(), any::<Option<u32>>())
            .prop_map(|(nonce, url, partitions)| Record::Claim(Claim { nonce, url, partitions })),
        3 => any_commit(),
        1 => (any_epoch(), any::<u64>()).prop_map(|(epoch, seq)| Record::Fence(Fence { epoch, seq })),
    ]
}

proptest! {
    #[test]
    fn a_record_is_read_as_it_was_written(record in any_record()) {
        let bytes = encoded(&record);
        prop_assert_eq!(Record::decode(&bytes).unwrap(), Some(record));
    }

    #[test]
    fn bytes_are_ours_if_and_only_if_they_begin_with_the_mark(bytes in vec(any::<u8>(), 0..16), marked in any::<bool>()) {
        let bytes = if marked { [b"st", &bytes[..]].concat() } else { bytes };
        prop_assert_eq!(matches!(Record::decode(&bytes), Ok(None)), !bytes.starts_with(b"st"));
    }
}
