//! Rows of views, and the results of reading them from Redis and from Postgres.

use bytes::Bytes;
use schemas::cache::Shown;
use schemas::feeds::ViewId;

use crate::positions::{Scope, Shows};

/// Identity of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowKey<'a> {
    pub(crate) view: ViewId,
    pub(crate) key: &'a str,
    /// The partitions that feed the row.
    pub(crate) scope: Scope,
}

/// A row of a view, as the bytes that are served.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) version: u64,
    /// Generation of the view that the row belongs to.
    pub(crate) generation: u32,
    pub(crate) body: Bytes,
}

impl Row {
    /// Returns the entity tag. It includes the generation, because a rebuilt view may have other bytes at the same
    /// version.
    pub(crate) fn tag(&self) -> String {
        match self.generation {
            1 => self.version.to_string(),
            generation => format!("{}-{generation}", self.version),
        }
    }
}

/// Outcome of a lookup in Redis.
#[derive(Clone)]
pub(crate) enum Hit {
    /// The row, or `None` if it did not exist in Postgres and no projector has written it since.
    Found(Option<Row>, Shows),
    /// Redis does not have the row; Postgres must be read.
    Miss,
    /// Redis shows another making than the place names: this one, or `None` if this build cannot parse the value.
    Elsewhere(Option<Shown>),
}

/// A result from Postgres, with the positions that it is guaranteed to show.
#[derive(Debug)]
pub(crate) struct Loaded<T> {
    pub(crate) found: T,
    pub(crate) shows: Shows,
    /// Whether the result came from a replica, which may lag.
    pub(crate) is_copy: bool,
    pub(crate) parked: Option<Parked>,
}

/// Parked records that a result does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// A row fed by one aggregate lacks the record at this offset and all later ones.
    From(i64),
    /// Some records of the view are parked, which may or may not affect the result.
    Something,
}

impl<T> Loaded<T> {
    /// Returns the positions that an answer's token may name: if the row lacks records, those before the first of them.
    pub(crate) fn named(&self) -> Shows {
        match (&self.shows, self.parked) {
            (Shows::One(partition, offset), Some(Parked::From(parked))) => {
                Shows::One(*partition, (*offset).min(parked - 1))
            }
            (shows, _) => shows.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuilt_row_has_another_tag_at_the_same_version() {
        let tag = |version, generation| Row { version, generation, body: Bytes::new() }.tag();
        assert_eq!([tag(7, 1), tag(7, 2), tag(8, 2)], ["7", "7-2", "8-2"]);
    }

    #[test]
    fn a_row_that_lacks_a_parked_record_names_only_positions_before_it() {
        let named = |shows, parked| Loaded { found: (), shows, is_copy: false, parked }.named();
        assert_eq!(named(Shows::One(1, 9), None), Shows::One(1, 9));
        assert_eq!(named(Shows::One(1, 9), Some(Parked::From(5))), Shows::One(1, 4));
        assert_eq!(named(Shows::One(1, 3), Some(Parked::From(5))), Shows::One(1, 3), "the replica lags");
        let all = Shows::All([9, 7].into());
        assert_eq!(named(all.clone(), Some(Parked::Something)), all);
    }
}
