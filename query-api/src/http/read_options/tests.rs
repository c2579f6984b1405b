use axum::http::HeaderValue;
use axum::http::Request;
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
        headers.insert(answers::CONSISTENCY_TOKEN, HeaderValue::try_from(text).unwrap());
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
        headers.append(answers::CONSISTENCY_TOKEN, HeaderValue::try_from(text).unwrap());
    }
    assert_eq!(token(&headers, log).unwrap().unwrap().positions, BTreeMap::from([(0, 7), (1, 5)]));
}

#[tokio::test]
async fn a_parameter_that_is_given_twice_or_is_unknown_is_refused() {
    let parameters = async |uri: &str| {
        let (mut parts, ()) = Request::builder().uri(uri).body(()).unwrap().into_parts();
        Parameters::from_request_parts(&mut parts, &()).await
    };
    assert!(parameters("/?limit=1&limit=2").await.is_err());
    let mut some = parameters("/?limit=5&after=a%7Eb&x=").await.unwrap();
    assert_eq!(some.take_limit(50, 1000), Ok(5));
    assert_eq!(some.take("after").as_deref(), Some("a~b"));
    assert!(some.end().is_err());
    for uri in ["/", "/?", "/?&", "/?after=", "/?after", "/?_=1784&_=1785"] {
        let mut none = parameters(uri).await.unwrap();
        assert_eq!(none.take_after(), None, "{uri}");
        assert_eq!(none.end(), Ok(()), "{uri}");
    }
    for uri in ["/?limit=0", "/?limit=1001", "/?limit=-1", "/?limit=x", "/?limit="] {
        assert!(parameters(uri).await.unwrap().take_limit(50, 1000).is_err(), "{uri}");
    }
}

#[test]
fn malformed_percent_encoding_is_refused_and_names_the_parameter() {
    let taken = |query: &str, name: &str| Parameters::parse(query).map(|mut parameters| parameters.take(name));
    assert_eq!(taken("after=a+b%20%c3%A4&x", "after"), Ok(Some("a b ä".to_owned())));
    for (query, named) in [
        ("after=%", "after: "),
        ("after=%4", "after: "),
        ("after=%zz", "after: "),
        ("after=%+4", "after: "),
        ("after=%ff", "after: "),
        ("limit=5&order=%C3", "order: "),
        ("%ff=1", "\"%ff\""),
        ("a%66ter=1&after=2", "is given twice"),
    ] {
        let error = taken(query, "after").unwrap_err();
        assert!(error.contains(named), "{query}: {error}");
    }
}

#[test]
fn the_headers_of_a_request_determine_its_asker() {
    let asker = |name: HeaderName| Asker::of(&headers(name, &["x"]));
    assert_eq!(Asker::of(&HeaderMap::new()), Asker::Anyone);
    assert_eq!(asker(header::IF_NONE_MATCH), Asker::Anyone);
    assert_eq!([asker(HeaderName::from_static("prefer")), asker(answers::CONSISTENCY_TOKEN)], [Asker::Particular; 2]);
    assert_eq!([asker(header::AUTHORIZATION), asker(header::COOKIE)], [Asker::Known; 2]);
}
