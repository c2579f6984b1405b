//! Layout of the Redis cache, under a configurable prefix. All keys of a partition share a hash tag, because scripts
//! access several of them.
//!
//! - `{st:7}:product`: the view's position in partition 7, `{incarnation}.{generation}.{revision}/{offset}`, followed
//!   by `~` and the hash of the records counted so far. A trailing `+` while the rows of a large batch are being
//!   written means that the view shows nothing. For the journal, and for views whose rows are written by readers, the
//!   position at which the incarnation began.
//! - `{st:7}:product.ahead`: sorted set of the rows that may not be in Postgres yet, scored by the offset that they
//!   show; the empty member has the offset that Postgres is known to show.
//! - `{st:7}:{incarnation}:product:{key}`: the row as `{version}\n{body}`, with the body as it is served; `0\n` if it
//!   does not exist.
//! - `{st:7}:revenue.{generation}.{revisions}:{key}`: the row of a view fed by many aggregates,
//!   `{version} {offset},…\n{body}`, with the offset that it shows of each partition. The hash of its key determines
//!   its partition; the revisions are the sum over all partitions.
//! - `{st:7}:end`: the offset after the log's last record, and the Redis time in ms before Kafka was queried,
//!   `{offset}/{ms}`.
//!
//! The channel `st:news` announces changes of a partition in the format of these values, together with the progress of
//! Postgres: `7 product=00ab.1.0/1234 product@=1234 end=…`.
//!
//! Invariant: rows and the position that covers them are written by one script, which requires that the position is
//! unchanged since its writer last set it. A position and a row returned by one MGET are therefore consistent,
//! regardless of evictions, losses, restores or failovers: the row shows everything up to the position. A row read from
//! Postgres, of the same generation and revision, is filled in only if Postgres showed at least that position, or if
//! the set of rows ahead of Postgres proves that the row has not changed since.
//!
//! A position that differs from the one its writer set begins a new incarnation of the view in that partition: older
//! rows have other keys and expire. Other views and partitions are not affected.
//!
//! Rows fed by many aggregates are written only by readers, from Postgres, and expire after a second, because no single
//! writer can track when they change. Each row carries the offsets that it shows and answers only tokens that these
//! cover.

use std::fmt::{self, Write as _};

use xxhash_rust::xxh3::xxh3_64;

use crate::feeds::StoredView;

/// Time to live of a row after its last write, in seconds.
pub const ROW_TTL_SECS: u64 = 3600;
/// Time to live of a row fed by many aggregates, in seconds, which is the maximum age of an answer without a token.
pub const SUM_TTL_SECS: u64 = 1;
/// Time to live of a missing row, in seconds. It is short because it only absorbs requests for unknown keys.
pub const ABSENT_TTL_SECS: u64 = 5;
/// Version of a row that does not exist.
pub const ABSENT: u64 = 0;

/// Name used instead of a view's for the end of the log. Builds that do not recognize it ignore it.
pub const END: &str = "end";
/// Suffix of a view's name in news, for the offset up to which Postgres is known to show it.
pub const STORED: &str = "@";

/// Script that publishes a batch, see `redis/show.lua`.
pub const SHOW: &str = include_str!("../redis/show.lua");
/// Script that writes rows of an incarnation not yet in use, see `redis/put.lua`.
pub const PUT: &str = include_str!("../redis/put.lua");
/// Script that caches a row read from Postgres, see `redis/fill.lua`.
pub const FILL: &str = include_str!("../redis/fill.lua");

/// Identity of a view's rows in a partition. Rows of another incarnation or generation do not belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Making {
    pub incarnation: u64,
    /// Generation of the view's rows in Postgres.
    pub generation: u32,
    /// Number of times that the rows changed without a record: by a rebuild, or by folding a parked record later.
    pub revision: u32,
}

/// Position up to which Redis shows a view in a partition, including the offset; −1 if it shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    pub making: Making,
    pub offset: i64,
    /// Hash of the records that its writer counted, see [`Tally`]; a writer that resumes from here compares it.
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
    /// Parses the value of a position; `None` if it has the format of another build.
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

/// Returns the partition whose keys hold the row of a view fed by many aggregates.
pub fn partition_of_sum(key: &str, partitions: u32) -> u32 {
    u32::try_from(xxh3_64(key.as_bytes()) % u64::from(partitions)).expect("a remainder of a u32 fits one")
}

/// Initial capacity of a key, enough for most.
const NAME_CAPACITY: usize = 96;

// Every read formats two keys and every written row one, so often that the cost of `write!` shows up in profiles.

fn push_decimal(to: &mut String, number: u32) {
    if number >= 10 {
        push_decimal(to, number / 10);
    }
    to.push(char::from(b'0' + (number % 10) as u8));
}

/// Appends `number` as 16 hexadecimal digits.
fn push_hex(to: &mut String, number: u64) {
    for digit in (0..16).rev() {
        to.push(char::from(b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]));
    }
}

/// Formats the names of Redis keys.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Returns the obsolete keys of builds whose rows had one incarnation across all partitions.
    pub fn of_older_builds(&self) -> [String; 2] {
        ["live", "applied"].map(|name| format!("{}:{name}", self.prefix))
    }

    /// Returns the key of a feed's position.
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

    /// Returns the key of a row fed by many aggregates.
    pub fn sum(&self, partition: u32, generation: u32, revisions: i64, view: StoredView, key: &str) -> String {
        let mut name = self.of_partition(partition);
        write!(name, "{}.{generation}.{revisions}:{key}", view.name()).expect("writing to a string cannot fail");
        name
    }

    /// Returns the common prefix of a partition's keys.
    fn of_partition(&self, partition: u32) -> String {
        let mut name = String::with_capacity(NAME_CAPACITY);
        name.push('{');
        name.push_str(&self.prefix);
        name.push(':');
        push_decimal(&mut name, partition);
        name.push_str("}:");
        name
    }

    /// Returns a pattern that matches the keys of a view's rows in any partition and incarnation, and possibly others.
    pub fn rows(&self, view: StoredView) -> String {
        format!("{{{}:*}}:*:{}:*", self.prefix, view.name())
    }

    /// Returns the key of the set of rows that are ahead of Postgres.
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

/// Announcement of changes in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News<'a> {
    pub partition: u32,
    /// Names of views or [`END`], each with its value.
    pub values: Vec<(&'a str, &'a str)>,
}

impl<'a> News<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        let partition = words.next()?.parse().ok()?;
        Some(Self { partition, values: words.map(|word| word.split_once('=')).collect::<Option<_>>()? })
    }

    /// Returns the views whose progress in Postgres is announced, each with the offset that it includes.
    pub fn stored(&self) -> impl Iterator<Item = (&'a str, i64)> {
        self.values.iter().filter_map(|(name, value)| Some((name.strip_suffix(STORED)?, value.parse().ok()?)))
    }
}

/// End of the log in a partition, as found in a key or in news.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    /// Offset after the last record; 0 if it is unknown.
    pub next_offset: i64,
    /// Time by the clock of Redis, in ms; records acknowledged before it lie before `next_offset`.
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

/// Returns the value of a row. `offsets` are the offsets that it shows of each partition; empty for a row fed by one
/// aggregate, which the position of its partition covers.
pub fn value(version: u64, offsets: &[i64], body: &[u8]) -> Vec<u8> {
    let mut head = version.to_string();
    for (partition, offset) in offsets.iter().enumerate() {
        head.push(if partition == 0 { ' ' } else { ',' });
        head.push_str(&offset.to_string());
    }
    [head.as_bytes(), b"\n", body].concat()
}

/// Header in front of a row's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub version: u64,
    pub offsets: Vec<i64>,
    /// Length of the header in bytes, which is where the body begins.
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
    fn keys_have_the_same_digits_as_with_format() {
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
        assert_eq!(keys.sum(7, 2, 5, order, "o-1"), "{st:7}:order.2.5:o-1");
        assert_eq!((keys.end(7), keys.news()), ("{st:7}:end".to_owned(), "st:news".to_owned()));
    }

    #[test]
    fn a_position_survives_a_round_trip() {
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
    fn a_value_yields_its_version_its_offsets_and_its_body() {
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
    fn no_view_has_a_name_with_another_meaning_in_news() {
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
