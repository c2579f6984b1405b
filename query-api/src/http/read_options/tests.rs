use std::collections::BTreeMap;

use axum::http::HeaderValue;
use schemas::token::LogId;

use super::*;

fn log() -> Log {
    Log { id: LogId::of_nonce(1), partitions: 2 }
}

fn headers(name: HeaderName, values: &[&'static str]) -> HeaderMap {
    values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
}

#[test]
fn if_none_match_compares_weakly_and_accepts_lists() {
    let asked = |values: &[&'static str]| if_none_match(&headers(header::IF_NONE_MATCH, values));
    assert_eq!(asked(&[]), None);
    assert_eq!(asked(&["*"]), Some(IfNoneMatch::Any));
    assert_eq!(
        asked(&["\"7\", W/\"8\"", "\"9-2\""]),
        Some(IfNoneMatch::These(vec!["7".into(), "8".into(), "9-2".into()]))
    );
    assert_eq!(asked(&["7, \"x, W/8"]), Some(IfNoneMatch::These(vec![])));
}

#[test]
fn a_token_of_a_former_log_names_the_end_of_its_copy() {
    let (log, former, positions) = (log(), LogId::of_nonce(2), Positions::default());
    positions.know_log(log, BTreeMap::from([(former.to_string(), BTreeMap::from([(0, 4), (1, 5)]))]));
    for (text, named) in [
        (format!("{former}.7-900"), [(0, 4), (1, 5)]),
        (format!("{former}.0-1,{}.1-9", log.id), [(0, 4), (1, 9)]),
        (format!("{}.1-2,0-6,{former}.3-3", log.id), [(0, 6), (1, 5)]),
    ] {
        let headers = HeaderMap::from_iter([(CONSISTENCY_TOKEN, HeaderValue::try_from(text).unwrap())]);
        assert_eq!(token(&headers, log, &positions).unwrap().unwrap().positions, BTreeMap::from(named));
    }
    let headers = headers(CONSISTENCY_TOKEN, &["0003.1-1"]);
    assert!(token(&headers, log, &positions).is_err());
}

#[test]
fn a_token_of_another_log_or_of_no_partition_is_refused() {
    let log = log();
    let asked = |text: String| {
        let mut headers = HeaderMap::new();
        headers.insert(CONSISTENCY_TOKEN, HeaderValue::try_from(text).unwrap());
        token(&headers, log, &Positions::default())
    };
    assert_eq!(token(&HeaderMap::new(), log, &Positions::default()), Ok(None));
    assert_eq!(asked(format!("{}.1-5", log.id)).unwrap().unwrap().positions, BTreeMap::from([(1, 5)]));
    for text in [format!("{}.2-5", log.id), format!("{}.1-5", LogId::of_nonce(2)), "1-5".to_owned(), String::new()] {
        assert!(asked(text.clone()).is_err(), "{text:?}");
    }
}

#[test]
fn several_token_headers_are_joined() {
    let log = log();
    let mut headers = HeaderMap::new();
    for text in [format!("{}.1-5", log.id), format!("{}.0-7", log.id)] {
        headers.append(CONSISTENCY_TOKEN, HeaderValue::try_from(text).unwrap());
    }
    assert_eq!(
        token(&headers, log, &Positions::default()).unwrap().unwrap().positions,
        BTreeMap::from([(0, 7), (1, 5)])
    );
}

#[test]
fn a_version_is_known_if_the_client_names_it_or_any() {
    let has = |values: &[&'static str], tag| {
        ReadOptions::parse(&headers(header::IF_NONE_MATCH, values), log(), &Positions::default()).unwrap().has(tag)
    };
    assert!(!has(&[], "7"));
    assert!(has(&["*"], "7"));
    assert!(has(&["\"6\", W/\"7\""], "7"));
    assert!(!has(&["\"7\""], "7-2"), "another generation");
    assert!(!has(&["7"], "7"), "without quotes");
}

#[test]
fn a_version_that_is_not_text_matches_nothing() {
    let value = HeaderValue::from_bytes(b"\"7\xff\"").unwrap();
    let options =
        ReadOptions::parse(&HeaderMap::from_iter([(header::IF_NONE_MATCH, value)]), log(), &Positions::default())
            .unwrap();
    assert_eq!(options.if_none_match, None);
}

#[test]
fn a_condition_of_commands_is_refused() {
    let error = ReadOptions::parse(&headers(header::IF_MATCH, &["\"7\""]), log(), &Positions::default()).unwrap_err();
    assert!(error.contains("If-Match"), "{error}");
}

#[test]
fn a_token_that_is_not_text_is_refused_by_its_headers_name() {
    let value = HeaderValue::from_bytes(b"\xff").unwrap();
    let error = ReadOptions::parse(&HeaderMap::from_iter([(CONSISTENCY_TOKEN, value)]), log(), &Positions::default())
        .unwrap_err();
    assert!(error.starts_with("consistency-token"), "{error}");
}

#[test]
fn a_request_waits_as_long_as_it_prefers_within_the_maximum() {
    let fresh = |values: &[&'static str]| {
        let fresh =
            ReadOptions::parse(&headers(HeaderName::from_static("prefer"), values), log(), &Positions::default())
                .unwrap()
                .fresh;
        (fresh.wait, fresh.lenient)
    };
    assert_eq!(fresh(&[]), (DEFAULT_WAIT, false));
    assert_eq!(fresh(&["wait=0"]), (Duration::ZERO, false));
    assert_eq!(fresh(&["wait=3, handling=lenient"]), (Duration::from_secs(3), true));
    assert_eq!(fresh(&["wait=3600"]), (MAX_WAIT, false));
    assert_eq!(fresh(&["wait=soon"]), (DEFAULT_WAIT, false));
}

#[test]
fn the_clients_address_is_the_last_one_which_the_edge_added() {
    let client = |values: &[&'static str]| client(&headers(FORWARDED_FOR, values)).map(|address| address.to_string());
    assert_eq!(client(&[]), None);
    assert_eq!(client(&["192.0.2.1"]).as_deref(), Some("192.0.2.1"));
    assert_eq!(client(&["203.0.113.9, 192.0.2.1"]).as_deref(), Some("192.0.2.1"), "the first may be forged");
    assert_eq!(client(&["203.0.113.9", "2001:db8::1"]).as_deref(), Some("2001:db8::1"));
    for malformed in ["", "unknown", "192.0.2.1,", "192.0.2.1:443", "192.0.2.256"] {
        assert_eq!(client(&[malformed]), None, "{malformed:?}");
    }
}

#[test]
fn only_requests_with_a_token_are_counted_by_address() {
    let log = log();
    let mut headers = headers(FORWARDED_FOR, &["192.0.2.1"]);
    assert_eq!(ReadOptions::parse(&headers, log, &Positions::default()).unwrap().fresh.from, None);
    headers.insert(CONSISTENCY_TOKEN, HeaderValue::try_from(format!("{}.1-5", log.id)).unwrap());
    assert!(ReadOptions::parse(&headers, log, &Positions::default()).unwrap().fresh.from.is_some());
}
