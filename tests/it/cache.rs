//! Rules of the Redis scripts, for concurrent writers of every kind.

use redis::aio::MultiplexedConnection;
use schemas::cache::{ABSENT, ABSENT_TTL_SECS, FILL, Head, Keys, Making, ROW_TTL_SECS, SHOW, Shown, value};
use schemas::feeds::StoredView;

use crate::fixture::Shop;

/// A view's keys in one partition, in a Redis without other writers.
struct Place {
    redis: MultiplexedConnection,
    keys: Keys,
    position: String,
    ahead: String,
    row: String,
}

const BEGUN: Making = Making { incarnation: 0xab, generation: 1, revision: 0 };

fn at(offset: i64) -> String {
    Shown { making: BEGUN, offset, hash: None }.to_string()
}

impl Place {
    async fn new() -> Self {
        let shop = Shop::new(1).await;
        let (keys, view) = (Keys::new(&shop.prefix), StoredView::named("product").unwrap());
        let (position, ahead) = (keys.shown(view.name(), 0), keys.ahead(view.name(), 0));
        let row = keys.row(0, BEGUN.incarnation, view, "cd");
        Self { redis: shop.redis().await, keys, position, ahead, row }
    }

    /// Shows a row and returns whether the position was the expected one.
    async fn show(&mut self, expected: &str, to: &str, version: u64) -> bool {
        self.show_with(expected, to, "", Some(version)).await
    }

    /// Shows a row; `stored` is the offset up to which Postgres shows the view.
    async fn show_with(&mut self, expected: &str, to: &str, stored: &str, version: Option<u64>) -> bool {
        let script = redis::Script::new(SHOW);
        let mut call = script.key(&self.position);
        call.key(&self.ahead);
        if version.is_some() {
            call.key(&self.row);
        }
        call.arg(self.keys.news()).arg(0).arg(1).arg(ROW_TTL_SECS);
        let offset = Shown::parse(to).map_or(0, |shown| shown.offset);
        call.arg("product").arg(expected).arg(to).arg(offset).arg(stored);
        if let Some(version) = version {
            call.arg(1).arg(version).arg(value(version, &[], b"{}"));
        }
        call.invoke_async::<u64>(&mut self.redis).await.unwrap() == 0
    }

    async fn fill(&mut self, offset: i64, version: u64) -> i64 {
        let script = redis::Script::new(FILL);
        let mut call = script.key(&self.position);
        let ttl_secs = if version == ABSENT { ABSENT_TTL_SECS } else { ROW_TTL_SECS };
        call.key(&self.row).key(&self.ahead).arg(BEGUN.to_string()).arg(offset).arg(ttl_secs);
        call.arg(version).arg(value(version, &[], b"{}")).invoke_async(&mut self.redis).await.unwrap()
    }

    /// Returns the position and the row's version.
    async fn stands(&mut self) -> (Option<String>, Option<u64>) {
        let (position, row): (Option<String>, Option<Vec<u8>>) =
            redis::cmd("MGET").arg(&self.position).arg(&self.row).query_async(&mut self.redis).await.unwrap();
        (position, row.map(|row| Head::of(&row).unwrap().version))
    }

    async fn evict(&mut self) {
        redis::cmd("DEL").arg(&self.row).query_async::<i64>(&mut self.redis).await.unwrap();
    }
}

#[tokio::test]
async fn rows_and_positions_move_together_and_only_from_where_their_writer_left_them() {
    let mut place = Place::new().await;
    assert!(!place.show(&at(4), &at(5), 1).await, "moved from a position that does not exist");
    assert_eq!(place.stands().await, (None, None));
    assert!(place.show("", &at(4), 1).await);
    for from in ["", &at(3), &at(5), "00000000000000ab.2.0/4", "00000000000000ab.1.1/4", "00000000000000ac.1.0/4"] {
        assert!(!place.show(from, &at(9), 9).await, "{from}");
    }
    assert_eq!(place.stands().await, (Some(at(4)), Some(1)));
    assert!(place.show(&at(4), &at(5), 2).await);
    // A newer row stays.
    assert!(place.show(&at(5), &at(6), 1).await);
    assert_eq!(place.stands().await, (Some(at(6)), Some(2)));
    // Nothing is filled in between two calls of one batch.
    let between = format!("{}+", at(6));
    assert!(place.show(&at(6), &between, 3).await);
    place.evict().await;
    assert_eq!((place.fill(6, 2).await, place.fill(9, 2).await), (0, 0));
    assert!(place.show(&between, &at(7), 3).await);
    assert_eq!(place.stands().await, (Some(at(7)), Some(3)));
}

#[tokio::test]
async fn a_view_whose_position_is_another_holds_up_no_other_of_its_partition() {
    let mut place = Place::new().await;
    assert!(place.show("", &at(4), 1).await);
    let (order, view) = (place.keys.shown("order", 0), StoredView::named("order").unwrap());
    let row = place.keys.row(0, BEGUN.incarnation, view, "o");
    let script = redis::Script::new(SHOW);
    let mut call = script.key(&order);
    call.key(&place.position).key(place.keys.ahead("order", 0)).key(&place.ahead).key(&row).key(&place.row);
    call.arg(place.keys.news()).arg(0).arg(2).arg(ROW_TTL_SECS);
    call.arg("order").arg(at(4)).arg(at(5)).arg(5).arg("").arg("product").arg(at(4)).arg(at(5)).arg(5).arg("");
    call.arg(1).arg(2).arg(value(2, &[], b"{}")).arg(2).arg(2).arg(value(2, &[], b"{}"));
    assert_eq!(
        call.invoke_async::<u64>(&mut place.redis).await.unwrap(),
        1,
        "the first view should not have a position"
    );
    assert_eq!(place.stands().await, (Some(at(5)), Some(2)));
    let found: [Option<String>; 2] =
        redis::cmd("MGET").arg(&order).arg(&row).query_async(&mut place.redis).await.unwrap();
    assert_eq!(found, [None, None]);
}

#[tokio::test]
async fn a_row_is_filled_in_only_if_postgres_showed_what_redis_does() {
    let mut place = Place::new().await;
    assert_eq!(place.fill(9, 1).await, 0, "filled in without a position");
    place.show("", &at(4), 2).await;
    // The row was evicted; a slow reader has an old version of it.
    place.evict().await;
    assert_eq!(place.fill(3, 1).await, 0);
    assert_eq!(place.stands().await, (Some(at(4)), None));
    assert_eq!(place.fill(4, 2).await, 1);
    assert_eq!(place.fill(9, 1).await, 1);
    assert_eq!(place.stands().await, (Some(at(4)), Some(2)), "an older row replaced a newer one");
    assert_eq!(place.fill(9, 3).await, 1);
    assert_eq!(place.stands().await, (Some(at(4)), Some(3)));
    let another = Shown { making: Making { generation: 2, ..BEGUN }, offset: 4, hash: None }.to_string();
    assert!(place.show(&at(4), &another, 0).await);
    assert_eq!(place.fill(9, 4).await, 0, "filled in a row of another generation");
}

#[tokio::test]
async fn beside_rows_that_are_ahead_of_postgres_only_those_are_filled_in_that_have_not_changed() {
    let mut place = Place::new().await;
    let hashed = |offset| format!("{}~ab", at(offset));
    assert!(place.show_with("", &hashed(4), "4", None).await);
    // Only other rows have changed since Postgres showed offset 4.
    assert!(place.show_with(&hashed(4), &hashed(6), "", None).await);
    assert_eq!(place.fill(3, 1).await, 0, "filled in from before Postgres showed offset 4");
    assert_eq!(place.fill(4, 1).await, 1);
    // The row is changed, written and evicted.
    assert!(place.show(&hashed(6), &hashed(7), 2).await);
    place.evict().await;
    assert_eq!(place.fill(4, 1).await, 0);
    assert_eq!(place.fill(6, 1).await, 0);
    // Postgres shows the row.
    assert!(place.show_with(&hashed(7), &hashed(7), "7", None).await);
    assert_eq!(place.fill(6, 1).await, 0, "filled in a row from before");
    assert_eq!(place.stands().await, (Some(hashed(7)), None));
    assert!(place.show_with(&hashed(7), &hashed(9), "", None).await);
    assert_eq!(place.fill(7, 2).await, 1);
    // A writer that is out of step or late changes nothing.
    assert!(!place.show_with(&hashed(7), &hashed(7), "9", None).await);
    assert!(place.show_with(&hashed(9), &hashed(9), "6", None).await);
    place.evict().await;
    assert_eq!(place.fill(6, 1).await, 0);
    // A build that does not record changed rows has written meanwhile.
    assert!(place.show_with(&hashed(9), &at(10), "", None).await);
    assert_eq!((place.fill(9, 2).await, place.fill(10, 2).await), (0, 1));
}

#[tokio::test]
async fn an_absence_takes_no_rows_place_and_a_row_takes_an_absences() {
    let mut place = Place::new().await;
    place.show("", &at(4), 1).await;
    place.evict().await;
    assert_eq!(place.fill(3, ABSENT).await, 0, "filled in an absence older than the position");
    assert_eq!(place.fill(4, ABSENT).await, 1);
    assert_eq!(place.stands().await.1, Some(ABSENT));
    let ttl: i64 = redis::cmd("TTL").arg(&place.row).query_async(&mut place.redis).await.unwrap();
    assert!(ttl <= ABSENT_TTL_SECS.cast_signed(), "{ttl}");
    assert!(place.show(&at(4), &at(5), 1).await);
    assert_eq!(place.stands().await.1, Some(1));
    assert_eq!(place.fill(5, ABSENT).await, 1);
    assert_eq!(place.stands().await.1, Some(1));
}
