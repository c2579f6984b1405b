//! What stands in Redis, under a prefix of the system's own. Keys of one partition have one hash tag: a script names several.
//!
//! | key | value |
//! |---|---|
//! | `{st:7}:product` | what is shown of the view in partition 7: `{incarnation}.{generation}.{revision}/{offset}`, and `~` \
//!   with the hash of the records that it counted; with a `+` behind it while the rows of a large batch are written: nothing. \
//!   Of the journal, and of views whose rows readers put there, where its incarnation began |
//! | `{st:7}:product.ahead` | a sorted set: rows that are shown and may not be in Postgres yet, each by the offset that it shows; and \
//!   the empty name, by the offset that Postgres is known to show |
//! | `{st:7}:{incarnation}:product:{key}` | the row: `{version}\n{body}`, the body as it is served; `0\n`: there is no such row |
//! | `{st:7}:revenue.{generation}.{revisions}:{key}` | the row of a view that many aggregates feed: `{version} {offset},…\n{body}`, \
//!   with the offset that it shows of each partition. It lives in the partition that its key's hash names; the revisions are those \
//!   of all partitions, added up |
//! | `{st:7}:end` | the offset behind the log's last record, and Redis's time in ms from before that was asked of Kafka: `{offset}/{ms}` |
//!
//! The channel `st:news` tells what changed of a partition, in the words of these values, and how far Postgres is:
//! `7 product=00ab.1.0/1234 product@=1234 end=…`.
//!
//! Invariant: rows and the position that covers them are written by one script, which demands that the position is where
//! its writer left it. So a position and a row that one MGET gave belong together, whatever was evicted, lost, put back or
//! failed over before: the row shows everything up to the position. A row that was read in Postgres, of the same generation
//! and revision, is filled in only if Postgres showed at least that position, or if the row has not changed since what it
//! showed: the set of those that are ahead of Postgres tells.
//!
//! A position that is not what its writer left there begins a new incarnation of that view in that partition: rows from
//! before go by other keys, and die by their time to live. No other view and no other partition is touched.
//!
//! Rows that many aggregates feed are written by readers alone, from Postgres, and live for a second: no single writer knows
//! when they change. They tell themselves what they show, and answer no token that they do not cover.

use std::fmt::{self, Write as _};

use xxhash_rust::xxh3::xxh3_64;

use crate::feeds::StoredView;

/// Seconds that a row lives after it was written last.
pub const ROW_TTL_SECS: u64 = 3600;
/// Seconds that a row lives which many aggregates feed: as old as an answer without a token may be.
pub const SUM_TTL_SECS: u64 = 1;
/// Seconds for which a row is known not to be there. Only what asks for strangers' keys is spared by it, so it is short.
pub const ABSENT_TTL_SECS: u64 = 5;
/// The version of what is not there.
pub const ABSENT: u64 = 0;

/// In the place of a view's name: where the log ends. A build that does not know it passes it over.
pub const END: &str = "end";
/// Behind a view's name, in news: up to and with which offset Postgres shows it, at least.
pub const STORED: &str = "@";

/// See `redis/show.lua`.
pub const SHOW: &str = include_str!("../redis/show.lua");
/// See `redis/put.lua`.
pub const PUT: &str = include_str!("../redis/put.lua");
/// See `redis/fill.lua`.
pub const FILL: &str = include_str!("../redis/fill.lua");

/// Names the rows of a view in a partition: those of another incarnation, or of another generation, are none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Making {
    pub incarnation: u64,
    /// Which making of its rows in Postgres it is.
    pub generation: u32,
    /// How often its rows have changed without a record: by a rebuild, or by what was parked and was folded after all.
    pub revision: u32,
}

/// What Redis shows of a view in a partition: everything up to and with the offset; −1: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    pub making: Making,
    pub offset: i64,
    /// Of the records that its writer counted, see [`Tally`]; whoever goes on from there compares it.
    ///
    /// [`Tally`]: crate::chain::Tally
    pub hash: Option<u64>,
}

impl fmt::Display for Making {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}.{}", self.incarnation, self.generation, self.revision)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.making, self.offset)?;
        self.hash.map_or(Ok(()), |hash| write!(f, "~{hash:x}"))
    }
}

impl Shown {
    /// Reads the value of a position. `None`: another build wrote it.
    pub fn parse(text: &str) -> Option<Self> {
        let (making, offset) = text.split_once('/')?;
        let (incarnation, rest) = making.split_once('.')?;
        let (generation, revision) = rest.split_once('.')?;
        let incarnation = u64::from_str_radix(incarnation, 16).ok()?;
        let making = Making { incarnation, generation: generation.parse().ok()?, revision: revision.parse().ok()? };
        let (offset, hash) = match offset.split_once('~') {
            Some((offset, hash)) => (offset, Some(u64::from_str_radix(hash, 16).ok()?)),
            None => (offset, None),
        };
        Some(Self { making, offset: offset.parse().ok()?, hash })
    }
}

/// Returns the partition in which the row of a view with many aggregates lives.
pub fn partition_of_sum(key: &str, partitions: u32) -> u32 {
    u32::try_from(xxh3_64(key.as_bytes()) % u64::from(partitions)).expect("a remainder of a u32 fits one")
}

/// Enough for most names.
const NAME_CAPACITY: usize = 96;

// Two names are made for each read and one for each row that is written: there `write!` shows in a profile.

fn push_decimal(to: &mut String, number: u32) {
    if number >= 10 {
        push_decimal(to, number / 10);
    }
    to.push(char::from(b'0' + (number % 10) as u8));
}

/// With 16 digits.
fn push_hex(to: &mut String, number: u64) {
    for digit in (0..16).rev() {
        to.push(char::from(b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]));
    }
}

/// Names of keys.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// What builds had there whose rows had one incarnation in all partitions.
    pub fn of_older_builds(&self) -> [String; 2] {
        ["live", "applied"].map(|name| format!("{}:{name}", self.prefix))
    }

    /// Of a position.
    pub fn shown(&self, feed: &str, partition: u32) -> String {
        let mut name = self.of_partition(partition);
        name.push_str(feed);
        name
    }

    pub fn row(&self, partition: u32, incarnation: u64, view: StoredView, key: &str) -> String {
        let mut name = self.of_partition(partition);
        push_hex(&mut name, incarnation);
        for part in [":", view.name(), ":", key] {
            name.push_str(part);
        }
        name
    }

    /// Of a row that many aggregates feed.
    pub fn sum(&self, partition: u32, (generation, revisions): (u32, i64), view: StoredView, key: &str) -> String {
        let mut name = self.of_partition(partition);
        write!(name, "{}.{generation}.{revisions}:{key}", view.name()).expect("a string takes all");
        name
    }

    /// Returns what the names of a partition begin with.
    fn of_partition(&self, partition: u32) -> String {
        let mut name = String::with_capacity(NAME_CAPACITY);
        name.push('{');
        name.push_str(&self.prefix);
        name.push(':');
        push_decimal(&mut name, partition);
        name.push_str("}:");
        name
    }

    /// Matches the keys of a view's rows, of whatever partition and incarnation, and maybe others.
    pub fn rows(&self, view: StoredView) -> String {
        format!("{{{}:*}}:*:{}:*", self.prefix, view.name())
    }

    /// Of the rows that are ahead of Postgres.
    pub fn ahead(&self, feed: &str, partition: u32) -> String {
        let mut name = self.shown(feed, partition);
        name.push_str(".ahead");
        name
    }

    pub fn end(&self, partition: u32) -> String {
        self.shown(END, partition)
    }

    pub fn news(&self) -> String {
        format!("{}:news", self.prefix)
    }
}

/// What changed of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News<'a> {
    pub partition: u32,
    /// Names of views, or [`END`], with their values.
    pub values: Vec<(&'a str, &'a str)>,
}

impl<'a> News<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        let partition = words.next()?.parse().ok()?;
        Some(Self { partition, values: words.map(|word| word.split_once('=')).collect::<Option<_>>()? })
    }

    /// Returns the views that Postgres shows up to and with an offset.
    pub fn stored(&self) -> impl Iterator<Item = (&'a str, i64)> {
        self.values.iter().filter_map(|(name, value)| Some((name.strip_suffix(STORED)?, value.parse().ok()?)))
    }
}

/// Where the log ends, as a key or news tell it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    /// Behind the last record; 0: nothing is known.
    pub next_offset: i64,
    /// By Redis's clock: what was acknowledged before is in front of it.
    pub at_ms: i64,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.next_offset, self.at_ms)
    }
}

impl End {
    pub fn parse(text: &str) -> Option<Self> {
        let (next_offset, at_ms) = text.split_once('/')?;
        Some(Self { next_offset: next_offset.parse().ok()?, at_ms: at_ms.parse().ok()? })
    }
}

/// Returns a row's value. `offsets`: what it shows of each partition; none of a row that one aggregate feeds, which its
/// partition's position covers.
pub fn value(version: u64, offsets: &[i64], body: &[u8]) -> Vec<u8> {
    let mut head = version.to_string();
    for (partition, offset) in offsets.iter().enumerate() {
        head.push(if partition == 0 { ' ' } else { ',' });
        head.push_str(&offset.to_string());
    }
    [head.as_bytes(), b"\n", body].concat()
}

/// What stands in front of a row's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub version: u64,
    pub offsets: Vec<i64>,
    /// Where the body begins.
    pub len: usize,
}

impl Head {
    pub fn of(value: &[u8]) -> Option<Self> {
        let end = value.iter().position(|byte| *byte == b'\n')?;
        let head = std::str::from_utf8(&value[..end]).ok()?;
        let (version, offsets) = match head.split_once(' ') {
            Some((version, offsets)) => (version, offsets.split(',').map(str::parse).collect::<Result<_, _>>().ok()?),
            None => (head, Vec::new()),
        };
        Some(Self { version: version.parse().ok()?, offsets, len: end + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeds::FeedId;

    #[test]
    fn names_have_the_digits_that_format_gives() {
        let (keys, view) = (Keys::new("st"), StoredView::named("product").unwrap());
        for partition in [0, 9, 10, 4_294_967_295] {
            for incarnation in [0, 0xab, u64::MAX] {
                let name = keys.row(partition, incarnation, view, "cd");
                assert_eq!(name, format!("{{st:{partition}}}:{incarnation:016x}:product:cd"));
            }
            assert_eq!(keys.shown("product", partition), format!("{{st:{partition}}}:product"));
        }
    }

    #[test]
    fn keys_of_a_partition_share_a_hash_tag_and_rows_have_their_incarnation_in_their_names() {
        let (keys, order) = (Keys::new("st"), StoredView::named("order").unwrap());
        assert_eq!(keys.shown("order", 7), "{st:7}:order");
        assert_eq!(keys.row(7, 0xab, order, "o-1"), "{st:7}:00000000000000ab:order:o-1");
        assert_eq!(keys.sum(7, (2, 5), order, "o-1"), "{st:7}:order.2.5:o-1");
        assert_eq!((keys.end(7), keys.news()), ("{st:7}:end".to_owned(), "st:news".to_owned()));
    }

    #[test]
    fn a_position_gives_back_what_it_was_written_from() {
        let shown = Shown { making: Making { incarnation: 0xab, generation: 3, revision: 2 }, offset: -1, hash: None };
        assert_eq!(shown.to_string(), "00000000000000ab.3.2/-1");
        assert_eq!(Shown::parse(&shown.to_string()), Some(shown));
        let shown = Shown { offset: 17, hash: Some(0xcd), ..shown };
        assert_eq!(shown.to_string(), "00000000000000ab.3.2/17~cd");
        assert_eq!(Shown::parse(&shown.to_string()), Some(shown));
        for broken in [
            "",
            "ab",
            "ab.1.1",
            "ab/1",
            "ab.1/2",
            "x.1.1/2",
            "ab.x.1/2",
            "ab.1.x/2",
            "ab.1.1/x",
            "ab.1.1.1/2",
            "ab.1.1/2+",
            "ab.1.1/2~",
            "ab.1.1/2~cd+",
        ] {
            assert_eq!(Shown::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_value_gives_back_its_version_its_offsets_and_its_body() {
        for offsets in [&[][..], &[4], &[4, -1, 17]] {
            let bytes = value(8, offsets, b"{\n}");
            let head = Head::of(&bytes).unwrap();
            assert_eq!((head.version, &head.offsets[..], &bytes[head.len..]), (8, offsets, &b"{\n}"[..]));
        }
        for broken in ["", "8", "x\n{}", "\n{}", "-1\n{}", "8 \n{}", "8 x\n{}", "8 1,\n{}"] {
            assert_eq!(Head::of(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn no_view_goes_by_a_name_that_means_something_else_in_news() {
        assert!(FeedId::names().iter().all(|feed| *feed != END && !feed.ends_with(STORED)));
    }

    #[test]
    fn news_name_their_partition_and_every_value() {
        let news = News::parse("3 product=ab.1/17 end=18/1000").unwrap();
        assert_eq!(news, News { partition: 3, values: vec![("product", "ab.1/17"), ("end", "18/1000")] });
        assert_eq!(End::parse(news.values[1].1), Some(End { next_offset: 18, at_ms: 1000 }));
        assert_eq!(News::parse("3"), Some(News { partition: 3, values: vec![] }));
        let news = News::parse("3 product=ab.1.0/17 product@=16 journal@=x sale@=9").unwrap();
        assert!(news.stored().eq([("product", 16), ("sale", 9)]));
        for broken in ["", "x product=1", "3 product"] {
            assert_eq!(News::parse(broken), None, "{broken:?}");
        }
    }
}
