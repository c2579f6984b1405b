use std::collections::BTreeMap;

use axum::http::HeaderValue;
use schemas::token::LogId;

use super::super::caching::Asker;
use super::*;

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
fn a_token_of_another_log_or_of_no_partition_is_refused() {
    let log = Log { id: LogId::of_nonce(1), partitions: 2 };
    let asked = |text: String| {
        let mut headers = HeaderMap::new();
        headers.insert(CONSISTENCY_TOKEN, HeaderValue::try_from(text).unwrap());
        token(&headers, log)
    };
    assert_eq!(token(&HeaderMap::new(), log), Ok(None));
    assert_eq!(asked(format!("{}.1-5", log.id)).unwrap().unwrap().positions, BTreeMap::from([(1, 5)]));
    for text in [format!("{}.2-5", log.id), format!("{}.1-5", LogId::of_nonce(2)), "1-5".to_owned(), String::new()] {
        assert!(asked(text.clone()).is_err(), "{text:?}");
    }
}

#[test]
fn several_token_headers_are_joined() {
    let log = Log { id: LogId::of_nonce(1), partitions: 2 };
    let mut headers = HeaderMap::new();
    for text in [format!("{}.1-5", log.id), format!("{}.0-7", log.id)] {
        headers.append(CONSISTENCY_TOKEN, HeaderValue::try_from(text).unwrap());
    }
    assert_eq!(token(&headers, log).unwrap().unwrap().positions, BTreeMap::from([(0, 7), (1, 5)]));
}

#[test]
fn the_headers_of_a_request_determine_its_asker() {
    let asker = |name: HeaderName| Asker::of(&headers(name, &["x"]));
    assert_eq!(Asker::of(&HeaderMap::new()), Asker::Anyone);
    assert_eq!(asker(header::IF_NONE_MATCH), Asker::Anyone);
    assert_eq!([asker(HeaderName::from_static("prefer")), asker(CONSISTENCY_TOKEN)], [Asker::Particular; 2]);
    assert_eq!([asker(header::AUTHORIZATION), asker(header::COOKIE)], [Asker::Known; 2]);
}
