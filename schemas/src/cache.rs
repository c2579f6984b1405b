//! What stands in Redis, under a prefix of the system's own:
//!
//! | key | value |
//! |---|---|
//! | `{prefix}:live` | the live incarnation: 16 hexadecimal digits, then each view's generation behind a dot |
//! | `{prefix}:{digits}:{view}.{generation}:{key}` | `{version}\n{body}`, the body as it is served; `0\n`: there is no such row; \
//!   `-{Redis's time in ms}\n`: withdrawn then |
//! | `{prefix}:applied` | hash: `{view}/{partition}` → the offset that the view shows; `end/{partition}` → the offset behind \
//!   the log's last record, and `end_at/{partition}` → Redis's time in ms from before that was asked of Kafka |
//!
//! The channel `{prefix}:applied` tells what moved in that hash: `{incarnation} {view}/{partition}={offset} …`.
//!
//! A view that was rebuilt has another generation: its rows are under other keys from one moment to the next, while all
//! other views' stay. What stands behind a generation's number (`2-9f3c`) keeps apart the attempts to get to it.
//!
//! Invariant: rows are written after their transaction committed and before the positions that cover them, and
//! never over a newer row: so a row read after its position was seen shows at least that position.
//!
//! A guard sees only what still stands. So every write has a deadline, which times to live outlast; and Redis is to evict
//! what was used longest ago (`allkeys-lru`), and to have room for far more than is written until that deadline.
//!
//! A row that changed and could not be read behind its commit is withdrawn before its positions move. To delete it would
//! not do: what was read before the commit may still be under way, and its version be above nothing. So what stands there
//! names the time, and is taken off by what was read later alone. To a reader it is no row, and not its absence either.
//!
//! That there is no row is written by readers alone, under the same guard, as version 0, which every row's version is
//! above. It never hides a row whose position its reader has seen: that row was written before its position. Written
//! before the absence, it stands, for it outlives the deadline of whatever was read earlier, and 0 is not newer; written
//! after, it took the absence's place.

use crate::feeds::StoredView;

/// Seconds that a row lives after it was written last.
pub const ROW_TTL_SECS: u64 = 3600;
/// Seconds for which a row is known not to be there. Only what asks for strangers' keys is spared by it, so it is short.
pub const ABSENT_TTL_SECS: u64 = 5;
/// The version of what is not there.
pub const ABSENT: u64 = 0;
/// A write that took longer than this to reach Redis is refused there: it may be older than what was evicted since.
pub const WRITE_WITHIN_MS: u64 = 2000;

/// In the place of a view's name: the log's end. A build that does not know it passes it over.
pub const END: &str = "end";
/// When that was so at the latest.
pub const END_AT: &str = "end_at";

/// See `redis/put_newer.lua`.
pub const PUT_NEWER: &str = include_str!("../redis/put_newer.lua");
/// See `redis/withdraw.lua`.
pub const WITHDRAW: &str = include_str!("../redis/withdraw.lua");
/// See `redis/advance.lua`.
pub const ADVANCE: &str = include_str!("../redis/advance.lua");
/// See `redis/switch.lua`.
pub const SWITCH: &str = include_str!("../redis/switch.lua");
/// See `redis/begin.lua`.
pub const BEGIN: &str = include_str!("../redis/begin.lua");

/// Returns an incarnation in which nothing was written yet. `generations`: of the stored views, in their order.
pub fn incarnation(digits: u64, generations: impl IntoIterator<Item = u32>) -> String {
    let mut text = format!("{digits:016x}");
    for generation in generations {
        text.push('.');
        text.push_str(&generation.to_string());
    }
    text
}

/// The same, with another generation of one view; `attempt`: as no other one's.
pub fn switched(incarnation: &str, view: StoredView, generation: u32, attempt: u32) -> String {
    let mut parts: Vec<_> = incarnation.split('.').collect();
    let another = format!("{generation}-{attempt:08x}");
    if let Some(part) = parts.get_mut(view.index() + 1) {
        *part = &another;
    }
    parts.join(".")
}

/// Returns a view's generation in an incarnation, unless that is another build's.
pub fn generation(incarnation: &str, view: StoredView) -> Option<u32> {
    let part = generation_part(incarnation, view)?;
    part.split_once('-').map_or(part, |(number, _)| number).parse().ok()
}

fn generation_part(incarnation: &str, view: StoredView) -> Option<&str> {
    incarnation.split('.').nth(view.index() + 1)
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

    pub fn live(&self) -> String {
        format!("{}:live", self.prefix)
    }

    pub fn row(&self, incarnation: &str, view: StoredView, key: &str) -> String {
        let digits = incarnation.split('.').next().unwrap_or_default();
        let generation = generation_part(incarnation, view).unwrap_or_default();
        [&self.prefix, ":", digits, ":", view.name(), ".", generation, ":", key].concat()
    }

    /// Both the hash and the channel.
    pub fn applied(&self) -> String {
        format!("{}:applied", self.prefix)
    }
}

pub fn position_field(view: &str, partition: u32) -> String {
    format!("{view}/{partition}")
}

pub fn parse_position_field(field: &str) -> Option<(&str, u32)> {
    let (view, partition) = field.split_once('/')?;
    Some((view, partition.parse().ok()?))
}

/// A view shows a partition up to and with this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied<'a> {
    pub view: &'a str,
    pub partition: u32,
    pub offset: i64,
}

/// The incarnation, and the positions that moved in it.
pub fn parse_news(news: &str) -> Option<(&str, Vec<Applied<'_>>)> {
    let mut words = news.split(' ');
    let incarnation = words.next()?;
    Some((incarnation, words.map(parse_position).collect::<Option<_>>()?))
}

fn parse_position(word: &str) -> Option<Applied<'_>> {
    let (field, offset) = word.split_once('=')?;
    let (view, partition) = parse_position_field(field)?;
    Some(Applied { view, partition, offset: offset.parse().ok()? })
}

/// A row's value.
pub fn value(version: u64, body: &[u8]) -> Vec<u8> {
    [version.to_string().as_bytes(), b"\n", body].concat()
}

/// Tells whether a row was withdrawn.
pub fn is_withdrawn(value: &[u8]) -> bool {
    value.first() == Some(&b'-')
}

/// The version, and where in `value` the body begins.
pub fn split_value(value: &[u8]) -> Option<(u64, usize)> {
    let end = value.iter().take(21).position(|byte| *byte == b'\n')?;
    let version = std::str::from_utf8(&value[..end]).ok()?.parse().ok()?;
    Some((version, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeds::FeedId;

    #[test]
    fn a_switch_moves_the_rows_of_one_view_to_other_keys() {
        let (keys, began) = (Keys::new("st"), incarnation(0xab, [1, 7, 1, 1]));
        let [product, order] = ["product", "order"].map(|name| StoredView::named(name).unwrap());
        assert_eq!(began, "00000000000000ab.1.7.1.1");
        assert_eq!(keys.row(&began, order, "o-1"), "st:00000000000000ab:order.7:o-1");
        let switched = switched(&began, order, 8, 0x9f3c);
        assert_eq!(keys.row(&switched, order, "o-1"), "st:00000000000000ab:order.8-00009f3c:o-1");
        assert_eq!(keys.row(&switched, product, "cd"), keys.row(&began, product, "cd"));
        assert_eq!([product, order].map(|view| generation(&switched, view)), [Some(1), Some(8)]);
        assert_eq!(generation("00000000000000ab", product), None, "of another build");
    }

    #[test]
    fn a_value_gives_back_its_version_and_body() {
        let bytes = value(8, b"{}");
        let (version, body) = split_value(&bytes).unwrap();
        assert_eq!((version, &bytes[body..]), (8, &b"{}"[..]));
        for broken in ["", "8", "x\n{}", "\n{}", "-1\n{}"] {
            assert_eq!(split_value(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn no_view_goes_by_the_name_of_the_logs_end() {
        assert!(FeedId::names().iter().all(|feed| ![END, END_AT].contains(feed)));
    }

    #[test]
    fn news_name_the_incarnation_and_every_position() {
        let at = |view, partition, offset| Applied { view, partition, offset };
        assert_eq!(
            parse_news("ab product/3=17 journal/0=0"),
            Some(("ab", vec![at("product", 3, 17), at("journal", 0, 0)]))
        );
        assert_eq!(parse_news("ab"), Some(("ab", vec![])));
        for broken in ["ab product=1", "ab product/x=1", "ab product/1=y"] {
            assert_eq!(parse_news(broken), None, "{broken:?}");
        }
    }
}
