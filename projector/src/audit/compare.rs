//! Compares the actual state with the one that the log implies.

use std::collections::HashSet;
use std::{fmt, iter};

use schemas::chain::{Reader, Tally};
use schemas::feeds::FeedId;
use schemas::journal::Hash;
use schemas::views::row_body;
use serde_json::Value;

use super::actual::{Checkpoint, ReadRow, Rows, Segment};

/// A difference between the actual state and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub view: String,
    /// Key of the row, the partition, or the segment.
    pub key: String,
    /// `Postgres`, `Redis`, or the part of a checkpoint that differs.
    pub place: &'static str,
    pub expected: String,
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { view, key, place, expected, found } = self;
        write!(f, "{view} {key}, {place}: expected {expected}, found {found}")
    }
}

/// Outcome of comparing the rows of a view in one place.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) rows: usize,
    /// Number of rows that Redis does not have. It may evict them, Postgres may not.
    pub(super) absent: usize,
    /// Rows in Redis of a later version than the expected one.
    pub(super) newer: Vec<(String, ReadRow)>,
    pub(super) differences: Vec<Difference>,
}

pub(super) fn checkpoint(
    view: &str,
    partition: u32,
    expected: &Checkpoint,
    found: Option<&Checkpoint>,
) -> Vec<Difference> {
    let difference = |place, expected: String, found: String| Difference {
        view: view.to_owned(),
        key: format!("partition {partition}"),
        place,
        expected,
        found,
    };
    let Some(found) = found else {
        return vec![difference("checkpoint", reader(&expected.reader), "none".to_owned())];
    };
    let mut differences = Vec::new();
    if found.reader != expected.reader {
        differences.push(difference("checkpoint", reader(&expected.reader), reader(&found.reader)));
    }
    if found.tally != expected.tally {
        differences.push(difference("tally of its checkpoint", tally(expected.tally), tally(found.tally)));
    }
    differences
}

/// Compares a segment with the hash of its records in the log; `None`: the log has none.
pub(super) fn segment(found: &Segment, expected: Option<Hash>) -> Option<Difference> {
    let hex = |hash: &[u8]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let is_other = |hash: &&[u8]| expected.is_none_or(|expected| **hash != expected);
    let of_records = found.of_records.as_ref().map(|hash| &hash[..]);
    let other = iter::once(&found.hash[..]).chain(of_records).find(is_other)?;
    Some(Difference {
        view: FeedId::Journal.name().to_owned(),
        key: format!("segment {} of partition {}", found.number, found.partition),
        place: "Postgres",
        expected: expected.map_or("no records".to_owned(), |hash| hex(&hash)),
        found: hex(other),
    })
}

fn reader(reader: &Reader) -> String {
    let Reader { next_offset, epoch, last_seq, last_counted } = reader;
    let claim = epoch.map_or("no claim".to_owned(), |epoch| format!("claim {} of {:016x}", epoch.claim, epoch.nonce));
    format!("next offset {next_offset}, {claim}, sequence {last_seq}, last counted {last_counted}")
}

fn tally(Tally { counted, hash }: Tally) -> String {
    format!("{counted} records with hash {hash:016x}")
}

/// Compares rows in Postgres. `all`: rows that the log does not have are differences, too.
pub(super) fn postgres(view: &str, expected: &[(&str, ReadRow)], found: &Rows, all: bool) -> Compared {
    let mut compared = Compared::default();
    let difference = |key: &str, expected: String, found: String| Difference {
        view: view.to_owned(),
        key: key.to_owned(),
        place: "Postgres",
        expected,
        found,
    };
    for (key, expected) in expected {
        compared.rows += 1;
        match found.get(*key) {
            None => compared.differences.push(difference(key, text(expected), "no row".to_owned())),
            Some(found) if found.version == expected.version && same(&found.data, &expected.data) => {}
            Some(found) => compared.differences.push(difference(key, text(expected), text(found))),
        }
    }
    if all {
        let known: HashSet<_> = expected.iter().map(|(key, _)| *key).collect();
        let surplus = found.iter().filter(|(key, _)| !known.contains(key.as_str()));
        compared.differences.extend(surplus.map(|(key, row)| difference(key, "no row".to_owned(), text(row))));
    }
    compared
}

/// Compares rows in Redis, read once it shows at least the position of `expected`: then an older row is stale.
pub(super) fn redis(view: &str, expected: &[(&str, ReadRow)], found: &Rows) -> Compared {
    let mut compared = Compared::default();
    for (key, expected) in expected {
        let Some(found) = found.get(*key) else {
            compared.absent += 1;
            continue;
        };
        if found.version > expected.version {
            compared.newer.push(((*key).to_owned(), found.clone()));
            continue;
        }
        compared.rows += 1;
        compared.differences.extend(cached(view, key, expected, found));
    }
    compared
}

/// Compares a row in Redis with the expected one.
pub(super) fn cached(view: &str, key: &str, expected: &ReadRow, found: &ReadRow) -> Option<Difference> {
    let body = row_body(key, expected.version, &expected.data);
    (found.version != expected.version || !same(&found.data, &body)).then(|| Difference {
        view: view.to_owned(),
        key: key.to_owned(),
        place: "Redis",
        expected: text(&ReadRow { version: expected.version, data: body }),
        found: text(found),
    })
}

/// Returns the difference of a row in Redis whose version the log does not have.
pub(super) fn unknown(view: &str, key: &str, found: &ReadRow) -> Difference {
    Difference {
        view: view.to_owned(),
        key: key.to_owned(),
        place: "Redis",
        expected: "a version in the log".to_owned(),
        found: text(found),
    }
}

/// Returns whether two JSON texts have the same value, whatever their whitespace and member order.
fn same(one: &str, other: &str) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    one == other || parse(one).is_some_and(|one| parse(other) == Some(one))
}

fn text(ReadRow { version, data }: &ReadRow) -> String {
    format!("version {version} {data}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(version: u64, data: &str) -> ReadRow {
        ReadRow { version, data: data.to_owned() }
    }

    fn rows(rows: &[(&str, ReadRow)]) -> Rows {
        rows.iter().map(|(key, row)| ((*key).to_owned(), row.clone())).collect()
    }

    #[test]
    fn a_missing_changed_or_surplus_row_is_a_difference() {
        let expected = [("a", row(1, "{\"x\":1}")), ("b", row(2, "{}")), ("c", row(3, "{}")), ("d", row(4, "{}"))];
        let found = rows(&[
            ("a", row(1, "{ \"x\": 1 }")),
            ("b", row(9, "{}")),
            ("c", row(3, "{\"x\":1}")),
            ("e", row(1, "{}")),
        ]);
        let named = |all| postgres("v", &expected, &found, all).differences.into_iter().map(|found| found.key);
        assert!(named(false).eq(["b", "c", "d"]));
        assert!(named(true).eq(["b", "c", "d", "e"]));
    }

    #[test]
    fn redis_may_lack_a_row_or_have_a_newer_one_but_no_older_or_other_one() {
        let expected = ["a", "b", "c", "d", "e"].map(|key| (key, row(5, "{}")));
        let body = |key, version, data| row(version, &row_body(key, version, data));
        let found = rows(&[
            ("a", body("a", 5, "{}")),
            ("b", body("b", 6, "{}")),
            ("c", body("c", 4, "{}")),
            ("d", body("d", 5, "{\"x\":1}")),
        ]);
        let Compared { rows, absent, newer, differences } = redis("v", &expected, &found);
        assert_eq!((rows, absent, newer), (3, 1, vec![("b".to_owned(), found["b"].clone())]));
        assert!(differences.iter().map(|difference| difference.key.as_str()).eq(["c", "d"]));
    }
}
