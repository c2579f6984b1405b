//! Copies of commits for another log.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::{Epoch, PREFIX, RecordError, epoch};

const COMMIT: &str = "commit";
/// See [`super::Commit::origin`].
const ORIGIN: &str = "origin";

/// Returns the record of a commit with another place in a chain, and with `origin` unless it has one already. All of
/// its other members are copied as they are, also those that this build does not know.
///
/// # Errors
/// [`RecordError`] if the value is not a commit in this build's format.
pub fn copied(value: &[u8], epoch: Epoch, seq: u64, origin: &str) -> Result<Vec<u8>, RecordError> {
    let body = value.strip_prefix(PREFIX).ok_or(RecordError::NoFormat)?;
    let mut record: BTreeMap<&str, BTreeMap<&str, &RawValue>> =
        serde_json::from_slice(body).map_err(RecordError::Unreadable)?;
    let commit = record.get_mut(COMMIT).ok_or(RecordError::NoFormat)?;
    let [epoch, seq, origin] = [
        serde_json::value::to_raw_value(&epoch::Pair(epoch)),
        serde_json::value::to_raw_value(&seq),
        serde_json::value::to_raw_value(origin),
    ]
    .map(|raw| raw.expect("numbers and texts have a JSON form"));
    commit.insert("epoch", &epoch);
    commit.insert("seq", &seq);
    commit.entry(ORIGIN).or_insert(&origin);
    let mut copy = PREFIX.to_vec();
    serde_json::to_writer(&mut copy, &record).expect("the members are JSON");
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::StoredCommit;
    use crate::record::{Commit, Record};

    const COMMIT: &[u8] = include_bytes!("../../golden/record.commit.st1");

    fn read(value: &[u8]) -> Commit<'_> {
        match Record::decode(value).unwrap() {
            Some(Record::Commit(commit)) => commit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_copy_differs_in_its_place_alone_and_keeps_its_first_origin() {
        let (first, second) = (Epoch { claim: 0, nonce: 1 }, Epoch { claim: 7, nonce: 2 });
        let once = copied(COMMIT, first, 5, "k7x2.3-1042").unwrap();
        let origin = Some("k7x2.3-1042".into());
        assert_eq!(read(&once), Commit { epoch: first, seq: 5, origin: origin.clone(), ..read(COMMIT) });
        let twice = copied(&once, second, 9, "abcd.1-2").unwrap();
        assert_eq!(read(&twice), Commit { epoch: second, seq: 9, origin, ..read(COMMIT) });
        assert_eq!(read(&twice).event_name((5, 9), 2), "k7x2.3-1042-2");
        assert_eq!(read(COMMIT).event_name((5, 9), 2), "5-9-2");
        assert_eq!(StoredCommit::read(&twice).unwrap().origin.as_deref(), Some("k7x2.3-1042"));
        assert_eq!(StoredCommit::read(COMMIT).unwrap().origin, None);
    }

    #[test]
    fn members_that_this_build_does_not_know_are_copied_as_they_are() {
        let text =
            String::from_utf8(COMMIT.to_vec()).unwrap().replacen("\"seq\":17", "\"seq\":17,\"later\":[1.50,{}]", 1);
        let copy = copied(text.as_bytes(), Epoch { claim: 0, nonce: 1 }, 1, "k7x2.0-1").unwrap();
        assert!(String::from_utf8(copy).unwrap().contains("\"later\":[1.50,{}]"));
    }

    #[test]
    fn only_a_commit_is_copied() {
        let claim = include_bytes!("../../golden/record.claim.st1");
        assert!(copied(claim, Epoch { claim: 0, nonce: 1 }, 1, "k7x2.0-1").is_err());
        assert!(copied(b"hello", Epoch { claim: 0, nonce: 1 }, 1, "k7x2.0-1").is_err());
    }
}
