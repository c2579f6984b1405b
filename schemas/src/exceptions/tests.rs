use super::*;

/// Value that a foreign program wrote to the log.
const VALUE: &[u8] = b"stop";
const PLACE: (u32, i64) = (3, 17);
const FENCE: &[u8] = br#"st1{"fence":{"epoch":[0,"00000000000000aa"],"seq":1}}"#;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

/// Returns the exceptions of readers that honour the key with seed 1.
fn knowing(values: &[Vec<u8>]) -> Exceptions {
    let exceptions = Exceptions::honouring(key(1).public().parse().unwrap());
    exceptions.learn(values);
    exceptions
}

fn exception(place: (u32, i64), value: &[u8]) -> Exception {
    Stray::new(place.0, place.1, value).exception("a stranger wrote it", 1_700_000_000_000)
}

fn passes(values: &[Vec<u8>]) -> bool {
    matches!(knowing(values).decode(PLACE, VALUE), Ok(None))
}

#[test]
fn a_value_that_cannot_be_read_is_passed_over_by_the_exception_for_it_alone() {
    assert!(!passes(&[]));
    assert!(passes(&[key(1).sign(exception(PLACE, VALUE))]));
    for other in [exception((4, 17), VALUE), exception((3, 18), VALUE), exception(PLACE, b"stops")] {
        assert!(!passes(&[key(1).sign(other.clone())]), "{other:?}");
    }
}

#[test]
fn an_exception_without_a_known_signature_is_not_honoured() {
    let signed = key(1).sign(exception(PLACE, VALUE));
    assert!(!passes(&[key(2).sign(exception(PLACE, VALUE))]), "an unknown key");
    let text = String::from_utf8(signed.clone()).unwrap();
    let with_other_reason = text.replace("a stranger", "no stranger").into_bytes();
    let Signed { signature, .. } = serde_json::from_slice(&key(1).sign(exception((4, 17), VALUE))).unwrap();
    let with_other_signature =
        serde_json::to_vec(&Signed { exception: exception(PLACE, VALUE), signature: signature.clone() }).unwrap();
    let unsigned = serde_json::to_vec(&exception(PLACE, VALUE)).unwrap();
    let cut = signed[..signed.len() - 1].to_vec();
    for forged in [with_other_reason, with_other_signature, unsigned, cut, b"".to_vec(), b"null".to_vec()] {
        assert!(!passes(std::slice::from_ref(&forged)), "{}", forged.escape_ascii());
    }
    let keyless = Exceptions::default();
    keyless.learn(std::slice::from_ref(&signed));
    assert!(keyless.decode(PLACE, VALUE).is_err(), "without keys no exception is honoured");
    assert!(passes(&[b"garbage".to_vec(), signed]), "foreign values on the topic do not hide an exception");
}

#[test]
fn a_record_that_can_be_read_is_never_passed_over() {
    let exceptions = knowing(&[key(1).sign(exception(PLACE, FENCE))]);
    assert!(matches!(exceptions.decode(PLACE, FENCE), Ok(Some(Record::Fence(_)))));
}

#[test]
fn a_value_that_a_newer_build_may_read_is_distinguished_from_one_that_none_can() {
    let may = |value: &[u8]| may_be_of_a_newer_build(value, &Record::decode(value).unwrap_err());
    for value in [&b"st2{}"[..], b"st2\x00", b"st99", br#"st1{"commit":{"of":"another kind"}}"#, br#"st1{"note":1}"#] {
        assert!(may(value), "{}", value.escape_ascii());
    }
    for value in [&b"stop"[..], b"st1x", b"st{}", b"st", b"st1", br#"st1{"commit":{"#] {
        assert!(!may(value), "{}", value.escape_ascii());
    }
}

#[test]
fn keys_are_read_from_a_setting_and_a_signing_key_is_never_shown() {
    let (one, two) = (key(1), key(2));
    let keys: Keys = format!("{},{}\n", one.public(), two.public()).parse().unwrap();
    assert!(keys.contain(&one) && keys.contain(&two) && !keys.contain(&key(3)));
    assert!("".parse::<Keys>().unwrap().0.is_empty());
    for text in ["x", &one.public()[1..], &one.public().replace(|_| true, "g")] {
        assert!(text.parse::<Keys>().is_err() && text.parse::<SigningKey>().is_err(), "{text:?}");
    }
    let seed = "ab".repeat(32);
    let parsed: SigningKey = seed.parse().unwrap();
    assert_eq!(
        (parsed.public(), format!("{parsed:?}")),
        (SigningKey::from_seed(&[0xab; 32]).public(), "***".to_owned())
    );
}

/// Exceptions are kept forever, so their format and signature must not change.
#[test]
fn the_golden_exception_is_honoured() {
    let golden = include_bytes!("../../golden/log.exception").trim_ascii_end();
    assert_eq!(key(1).sign(exception(PLACE, VALUE)).escape_ascii().to_string(), golden.escape_ascii().to_string());
    assert!(passes(&[golden.to_vec()]));
}
