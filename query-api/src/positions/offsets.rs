//! Visible offsets, and the tokens that they cover.

use std::sync::Arc;

use schemas::feeds::{FeedId, PerFeed};
use schemas::token::{LogId, Token};

use super::{NOTHING, Scope, to_index};

/// Offsets by feed and partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offsets(pub(super) PerFeed<Arc<[i64]>>);

/// Position of a view: it shows the partition up to and including this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied<'a> {
    pub(crate) view: &'a str,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
}

impl Offsets {
    pub(crate) fn none(partitions: u32) -> Self {
        let offsets: Arc<[i64]> = vec![NOTHING; to_index(partitions)].into();
        Self(FeedId::all().map(|_| offsets.clone()))
    }

    pub(crate) fn of(&self, feed: FeedId) -> &[i64] {
        &self.0[feed]
    }

    /// Advances to the given positions and returns those that moved: feed, partition, offset. Views that are unknown to
    /// this build are ignored.
    pub(crate) fn advance<'a>(&mut self, applied: impl IntoIterator<Item = Applied<'a>>) -> Vec<(FeedId, u32, i64)> {
        let mut moved = Vec::new();
        for Applied { view, partition, offset } in applied {
            let Some(feed) = FeedId::named(view) else { continue };
            let Some(standing) = self.0[feed].get(to_index(partition)) else { continue };
            if offset > *standing {
                Arc::make_mut(&mut self.0[feed])[to_index(partition)] = offset;
                moved.push((feed, partition, offset));
            }
        }
        moved
    }
}

/// The positions that an answer shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shows {
    /// The partition of its aggregate, up to and including the offset.
    One(u32, i64),
    /// All partitions, each up to and including its offset.
    All(Arc<[i64]>),
}

impl Shows {
    /// Returns whether the answer shows the token's positions, as far as it depends on their partitions.
    pub(crate) fn covers(&self, token: &Token) -> bool {
        match self {
            Self::One(partition, offset) => token.positions.get(partition).is_none_or(|wanted| wanted <= offset),
            Self::All(offsets) => covers(offsets, token),
        }
    }

    pub(crate) fn token(&self, log: LogId) -> Option<String> {
        match self {
            Self::One(_, offset) if *offset < 0 => None,
            Self::One(partition, offset) => Some(format!("{log}.{partition}-{offset}")),
            Self::All(offsets) => token_text(log, offsets, Scope::All),
        }
    }
}

/// Returns whether these offsets cover every position in the token.
pub(crate) fn covers(offsets: &[i64], token: &Token) -> bool {
    token.positions.iter().all(|(partition, offset)| offsets.get(to_index(*partition)).is_some_and(|at| at >= offset))
}

/// Formats these offsets as a token; returns `None` if no record is shown.
pub(crate) fn token_text(log: LogId, offsets: &[i64], scope: Scope) -> Option<String> {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut write = |partition: usize, offset: i64| {
        if offset == NOTHING {
            return;
        }
        let written = match text.as_str() {
            "" => write!(text, "{log}.{partition}-{offset}"),
            _ => write!(text, ",{partition}-{offset}"),
        };
        written.expect("writing to a string cannot fail");
    };
    match scope {
        Scope::One(partition) => write(to_index(partition), offsets[to_index(partition)]),
        Scope::All => offsets.iter().enumerate().for_each(|(partition, offset)| write(partition, *offset)),
    }
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_one_aggregate_answers_for_its_partition_and_one_of_many_for_all() {
        let log = LogId::of_nonce(1);
        let token = |text: &str| format!("{log}.{text}").parse::<Token>().unwrap();
        let (one, all) = (Shows::One(1, 5), Shows::All([5, -1].into()));
        assert!(one.covers(&token("1-5")) && one.covers(&token("0-9,1-5")) && one.covers(&token("0-9")));
        assert!(!one.covers(&token("1-6")));
        assert!(all.covers(&token("0-5")));
        assert!(!all.covers(&token("0-6")) && !all.covers(&token("0-5,1-0")));
        let texts = [one, all, Shows::One(1, -1), Shows::All([-1].into())].map(|shows| shows.token(log));
        assert_eq!(texts, [Some(format!("{log}.1-5")), Some(format!("{log}.0-5")), None, None]);
    }
}
