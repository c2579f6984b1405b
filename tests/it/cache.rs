//! The rules by which Redis is written, whoever writes it.

use schemas::cache::{ABSENT, ABSENT_TTL_SECS, ADVANCE, BEGIN, Keys, PUT_NEWER, ROW_TTL_SECS, value};
use uuid::Uuid;

use crate::fixture::Shop;

/// Since 1970: a deadline that will not pass.
const NEVER_MS: u64 = 1 << 52;

#[tokio::test]
async fn an_absence_takes_no_rows_place_and_a_row_takes_an_absences() {
    let shop = Shop::new(1).await;
    let mut redis = shop.redis().await;
    let key = format!("{}:{}", shop.prefix, Uuid::new_v4());
    let (absence, put_newer) = (value(ABSENT, b""), redis::Script::new(PUT_NEWER));
    let mut put = async |deadline: u64, ttl_secs: u64, version: u64, value: &[u8]| {
        let mut call = put_newer.key(&key);
        call.arg(deadline).arg(ttl_secs).arg(version).arg(value);
        let answer: i64 = call.invoke_async(&mut redis).await.unwrap();
        let standing: Option<Vec<u8>> = redis::cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
        let ttl: i64 = redis::cmd("TTL").arg(&key).query_async(&mut redis).await.unwrap();
        (answer, standing, ttl)
    };
    // Long after it was read: nobody knows what came and went in between.
    let (answer, standing, _) = put(1, ABSENT_TTL_SECS, ABSENT, &absence).await;
    assert_eq!((answer, standing), (-1, None));
    let (_, standing, ttl) = put(0, ABSENT_TTL_SECS, ABSENT, &absence).await;
    assert_eq!(standing, Some(absence.clone()));
    assert!(ttl <= ABSENT_TTL_SECS.cast_signed(), "{ttl}");
    let row = value(1, b"{}");
    let (_, standing, _) = put(0, ROW_TTL_SECS, 1, &row).await;
    assert_eq!(standing, Some(row.clone()));
    let (_, standing, ttl) = put(0, ABSENT_TTL_SECS, ABSENT, &absence).await;
    assert_eq!(standing, Some(row));
    assert!(ttl > ABSENT_TTL_SECS.cast_signed(), "{ttl}");
}

#[tokio::test]
async fn positions_move_only_in_time_and_from_where_their_writer_left_them() {
    let shop = Shop::new(1).await;
    let mut redis = shop.redis().await;
    let keys = Keys::new(&shop.prefix);
    let script = |script: &str| redis::Script::new(script);
    let (begin, advance) = (script(BEGIN), script(ADVANCE));
    let mut call = begin.key(keys.live());
    let begun = call.key(keys.applied()).arg(keys.applied()).arg("a").arg("product/0").arg(4);
    begun.invoke_async::<i64>(&mut redis).await.unwrap();

    let mut applied = async |deadline: u64, incarnation: &str, from: &str, to: i64| {
        let mut call = advance.key(keys.live());
        call.key(keys.applied()).arg(keys.applied()).arg(deadline).arg(incarnation).arg("product/0").arg(from).arg(to);
        let answer: i64 = call.invoke_async(&mut redis).await.unwrap();
        let stands: i64 =
            redis::cmd("HGET").arg(keys.applied()).arg("product/0").query_async(&mut redis).await.unwrap();
        (answer, stands)
    };
    // The rows that were sent before it came too late as well: nobody may take them for shown.
    assert_eq!(applied(1, "a", "4", 5).await, (-1, 4));
    assert_eq!(applied(NEVER_MS, "b", "4", 5).await, (0, 4), "of another incarnation");
    assert_eq!(applied(NEVER_MS, "a", "3", 5).await, (0, 4), "from elsewhere");
    assert_eq!(applied(NEVER_MS, "a", "", 5).await, (0, 4), "from the start");
    assert_eq!(applied(NEVER_MS, "a", "4", 5).await, (1, 5));
}
