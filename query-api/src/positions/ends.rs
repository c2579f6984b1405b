//! Ends of the log's partitions, which the projectors publish every second.
//!
//! A token comes from an answer, so the records that it names were in the log before its request arrived. An end that
//! was read after that and does not lie beyond the token proves that no answer ever carried it.
//!
//! Past ends show for how long a place has lagged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::cache::End;
use schemas::token::Token;

use super::to_index;

/// Tolerance for the estimate of Redis's clock, whose error is at most a round trip to Redis.
const CLOCK_SLACK: Duration = Duration::from_secs(1);
/// Upper bound of the write rate of a partition: a token that is further beyond a known end than this rate allows is
/// refused at once.
const MAX_RECORDS_A_SECOND: i64 = 1_000_000;

/// Number of past ends kept per partition, about ten minutes: beyond that a lag is reported as a lower bound.
const MAX_KNOWN: usize = 600;
/// Maximum age of the last published end at which a partition without newer records counts as caught up. An end is
/// published every second.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// A reading of Redis's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RedisClock {
    /// Time that Redis's clock showed, in ms since 1970.
    pub(crate) ms: u64,
    /// Time of the reading by the local clock.
    pub(crate) read_at: Instant,
}

/// Latest ends, by partition.
#[derive(Debug, Clone)]
pub(super) struct Ends(Arc<[End]>);

/// Recent ends of all partitions, kept across an outage of Redis.
#[derive(Debug)]
pub(super) struct PastEnds {
    clock: RedisClock,
    by_partition: Vec<Past>,
}

#[derive(Debug, Clone, Default)]
struct Past {
    /// Ends at which the partition had grown.
    ends: VecDeque<End>,
    /// Time at which the latest end was published, by Redis's clock.
    heard_ms: i64,
}

/// Result of comparing a token with the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    Never,
    Unknown,
}

impl RedisClock {
    /// Converts a local instant to Redis's time; the result may be early by up to a round trip.
    fn at(self, instant: Instant) -> i64 {
        let read_ms = i64::try_from(self.ms).unwrap_or(i64::MAX);
        let after = instant.saturating_duration_since(self.read_at);
        let before = self.read_at.saturating_duration_since(instant);
        read_ms.saturating_add(ms(after)).saturating_sub(ms(before))
    }
}

impl Ends {
    pub(super) fn none(partitions: u32) -> Self {
        Self(vec![End::default(); to_index(partitions)].into())
    }

    /// Records the end of a partition. Partitions that do not exist are ignored.
    pub(super) fn know(&mut self, partition: u32, end: End) {
        if let Some(known) = Arc::make_mut(&mut self.0).get_mut(to_index(partition)) {
            *known = end;
        }
    }

    /// Returns whether the log contains the positions in `token`, whose request arrived at `arrived`.
    pub(super) fn have(&self, token: &Token, arrived: Instant, clock: RedisClock) -> Written {
        let (arrived_ms, now_ms) = (clock.at(arrived), clock.at(Instant::now()));
        let of_partition = |(partition, offset): (&u32, &i64)| {
            let Some(end) = self.0.get(to_index(*partition)).filter(|end| end.next_offset > 0) else {
                return Written::Unknown;
            };
            // Records may have been written since an older end. An end from the future means that Redis's clock went
            // back.
            let is_younger = (arrived_ms + ms(CLOCK_SLACK)..=now_ms + ms(CLOCK_SLACK)).contains(&end.at_ms);
            let since_secs = (now_ms - end.at_ms).max(0) / 1000 + 1;
            let ahead = offset.saturating_sub(end.next_offset);
            if ahead < 0 {
                Written::Yes
            } else if is_younger || ahead > since_secs.saturating_mul(MAX_RECORDS_A_SECOND) {
                Written::Never
            } else {
                Written::Unknown
            }
        };
        let found = token.positions.iter().map(of_partition);
        found.fold(Written::Yes, |all, one| match (all, one) {
            (Written::Never, _) | (_, Written::Never) => Written::Never,
            (Written::Unknown, _) | (_, Written::Unknown) => Written::Unknown,
            (Written::Yes, Written::Yes) => Written::Yes,
        })
    }
}

impl PastEnds {
    pub(super) fn none(partitions: u32, clock: RedisClock) -> Self {
        Self { clock, by_partition: vec![Past::default(); to_index(partitions)] }
    }

    pub(super) fn know_clock(&mut self, clock: RedisClock) {
        self.clock = clock;
    }

    pub(super) fn know(&mut self, partition: u32, end: End) {
        let Some(Past { ends, heard_ms }) = self.by_partition.get_mut(to_index(partition)) else { return };
        *heard_ms = end.at_ms;
        // If the log was replaced, the new one may end earlier.
        ends.retain(|earlier| earlier.next_offset <= end.next_offset);
        if ends.back().is_some_and(|last| last.next_offset == end.next_offset) {
            return;
        }
        if ends.len() == MAX_KNOWN {
            ends.pop_front();
        }
        ends.push_back(end);
    }

    /// Returns a lower bound of the age of the oldest record beyond these offsets, or `None` if the end of the log is
    /// unknown.
    pub(super) fn behind(&self, offsets: &[i64], now: Instant) -> Option<Duration> {
        let by_partition: Vec<_> = self.behind_by_partition(offsets, now).collect();
        let longest = by_partition.iter().flatten().max().copied();
        longest.filter(|behind| !behind.is_zero() || by_partition.iter().all(Option::is_some))
    }

    /// Returns the same of each partition.
    pub(super) fn behind_by_partition(&self, offsets: &[i64], now: Instant) -> impl Iterator<Item = Option<Duration>> {
        let now_ms = self.clock.at(now);
        self.by_partition.iter().zip(offsets).map(move |(Past { ends, heard_ms }, shown)| {
            let first = ends.get(ends.partition_point(|end| end.next_offset <= shown + 1));
            let shows_all = || (now_ms - heard_ms < ms(HEARD_WITHIN)).then_some(0);
            let behind_ms = first.map(|first| now_ms - first.at_ms).or_else(shows_all)?;
            Some(Duration::from_millis(u64::try_from(behind_ms).unwrap_or(0)))
        })
    }
}

fn ms(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use schemas::token::LogId;

    use super::*;

    /// Compares a token with an end of partition 0 (of two) that was published at `at_ms`. Redis's clock shows 60,000
    /// when the request arrives.
    fn told(next_offset: i64, at_ms: i64, token: &str, waits: Duration) -> Written {
        let mut ends = Ends::none(2);
        ends.know(0, End { next_offset, at_ms });
        let arrived = Instant::now().checked_sub(waits).unwrap();
        let token = format!("{}.{token}", LogId::of_nonce(1)).parse().unwrap();
        ends.have(&token, arrived, RedisClock { ms: 60_000, read_at: arrived })
    }

    #[test]
    fn a_token_before_an_end_was_written_at_whatever_time_the_end_is() {
        for at_ms in [0, 60_000, 90_000] {
            assert_eq!(told(5, at_ms, "0-4", Duration::ZERO), Written::Yes);
        }
    }

    #[test]
    fn a_token_beyond_an_end_that_is_younger_than_its_request_was_never_written() {
        let waits = Duration::from_secs(2);
        assert_eq!(told(5, 59_000, "0-5", waits), Written::Unknown, "older than the request");
        assert_eq!(told(5, 60_500, "0-5", waits), Written::Unknown, "within the tolerance");
        assert_eq!(told(5, 61_500, "0-5", waits), Written::Never);
        assert_eq!(told(5, 99_000, "0-5", waits), Written::Unknown, "from the future");
    }

    #[test]
    fn a_token_that_no_log_reaches_is_refused_by_an_end_of_any_time() {
        for at_ms in [0, 59_000] {
            assert_eq!(told(5, at_ms, "0-999999999999", Duration::ZERO), Written::Never);
        }
        assert_eq!(told(5, 0, "0-50000000", Duration::ZERO), Written::Unknown, "reachable within a minute");
    }

    #[test]
    fn a_token_is_undecided_while_the_end_of_its_partition_is_unknown() {
        assert_eq!(told(5, 61_500, "1-5", Duration::from_secs(2)), Written::Unknown);
        assert_eq!(told(0, 0, "0-999999999999", Duration::ZERO), Written::Unknown);
        assert_eq!(told(5, 61_500, "0-4,1-5", Duration::from_secs(2)), Written::Unknown);
        assert_eq!(told(5, 61_500, "0-5,1-5", Duration::from_secs(2)), Written::Never);
    }

    #[test]
    fn the_lag_of_a_place_is_the_age_of_the_oldest_record_it_does_not_show() {
        let begun = Instant::now();
        let mut ends = PastEnds::none(2, RedisClock { ms: 60_000, read_at: begun });
        // Redis's clock shows 70,000.
        let behind = |ends: &PastEnds, offsets: [i64; 2]| {
            ends.behind(&offsets, begun + Duration::from_secs(10)).map(|behind| behind.as_secs())
        };
        assert_eq!(behind(&ends, [-1, -1]), None);
        for (next_offset, at_ms) in [(5, 60_000), (5, 61_000), (8, 62_000), (8, 63_000), (9, 64_000), (9, 69_000)] {
            ends.know(0, End { next_offset, at_ms });
        }
        assert_eq!(behind(&ends, [8, -1]), None, "the end of the other partition is unknown");
        ends.know(1, End { next_offset: 1, at_ms: 65_500 });
        let told = [-1, 3, 4, 6, 7, 8, 20].map(|shown| behind(&ends, [shown, 0]));
        assert_eq!(told, [10, 10, 8, 8, 6, 0, 0].map(Some));
        assert_eq!(behind(&ends, [8, -1]), Some(4));
        assert_eq!(behind(&ends, [7, -1]), Some(6));
        let by_partition = ends.behind_by_partition(&[7, 0], begun + Duration::from_secs(10));
        assert_eq!(by_partition.collect::<Vec<_>>(), [6, 0].map(|secs| Some(Duration::from_secs(secs))));
        let later = begun + Duration::from_secs(20);
        assert_eq!(ends.behind(&[8, 0], later), None, "the end is no longer published");
        assert_eq!(ends.behind(&[7, 0], later), Some(Duration::from_secs(16)), "a lower bound");
    }

    #[test]
    fn past_ends_are_bounded_and_discarded_with_their_log() {
        let mut ends = PastEnds::none(1, RedisClock { ms: 0, read_at: Instant::now() });
        (0..1_000).for_each(|second| ends.know(0, End { next_offset: 10 + second, at_ms: second * 1_000 }));
        assert_eq!(ends.by_partition[0].ends.len(), MAX_KNOWN);
        ends.know(0, End { next_offset: 3, at_ms: 0 });
        assert_eq!(ends.by_partition[0].ends.len(), 1, "the log was replaced");
    }

    #[test]
    fn an_end_of_a_partition_that_does_not_exist_is_ignored() {
        Ends::none(1).know(7, End { next_offset: 7, at_ms: 0 });
    }
}
