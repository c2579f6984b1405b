//! The rules by which Redis is written, whoever writes it.

use schemas::cache::{
    ABSENT, ABSENT_TTL_SECS, ADVANCE, BEGIN, Keys, PUT_NEWER, ROW_TTL_SECS, WITHDRAW, is_withdrawn, split_value, value,
};
use schemas::feeds::StoredView;
use serde_json::json;
use uuid::Uuid;

use crate::fixture::{Shop, batch_line, eventually};

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
        call.arg(deadline).arg(ttl_secs).arg(0).arg(version).arg(value);
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

#[tokio::test]
async fn what_was_withdrawn_is_put_back_by_what_was_read_later_alone() {
    let shop = Shop::new(1).await;
    let mut redis = shop.redis().await;
    let key = format!("{}:{}", shop.prefix, Uuid::new_v4());
    let (withdraw, put_newer) = (redis::Script::new(WITHDRAW), redis::Script::new(PUT_NEWER));
    let mut call = withdraw.key(&key);
    let at: u64 = call.arg(ROW_TTL_SECS).invoke_async(&mut redis).await.unwrap();
    let mut put = async |read_at: u64, version: u64| {
        let mut call = put_newer.key(&key);
        call.arg(0).arg(ROW_TTL_SECS).arg(read_at).arg(version).arg(value(version, b"{}"));
        call.invoke_async::<u64>(&mut redis).await.unwrap();
        redis::cmd("GET").arg(&key).query_async::<Vec<u8>>(&mut redis).await.unwrap()
    };
    for read_at in [0, at - 1, at] {
        let standing = put(read_at, 9).await;
        assert!(is_withdrawn(&standing) && split_value(&standing).is_none(), "{standing:?}");
    }
    assert_eq!(put(at + 1, 3).await, value(3, b"{}"));
    assert_eq!(put(0, 4).await, value(4, b"{}"), "and then its version tells again");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_behind_its_commit_is_withdrawn_and_others_are_shown() {
    let shop = Shop::with_views(2).await;
    let command_api = shop.command_api().await;
    let projector = shop.projector().await;
    let services = [command_api, shop.query_api().await];
    let (commands, queries) = (services[0].client(), services[1].client());
    let place = async |round: u32| {
        let line = |customer: u32| {
            let lines = json!([{ "product": "p", "quantity": 1, "amount_cents": 1 }]);
            let data = json!({ "customer": format!("c-{customer}"), "lines": lines });
            batch_line("orders", &format!("o-{round}-{customer}"), "place", data)
        };
        let answers = commands.batch(&(0..9).map(line).collect::<Vec<_>>()).await;
        answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect::<Vec<_>>().join(",")
    };
    let orders = async |customer: &str, token: &str| {
        let fresh = [("consistency-token", token), ("prefer", "wait=10")];
        let row = queries.get_with(&format!("/v1/customers/{customer}"), &fresh).await;
        assert_eq!(row.status, 200, "{row:?}");
        row.json()["data"]["orders"].clone()
    };
    let mut redis = shop.redis().await;
    let keys = Keys::new(&shop.prefix);
    let mut standing = async |customer: &str| {
        let live: String = redis::cmd("GET").arg(keys.live()).query_async(&mut redis).await.unwrap();
        let view = StoredView::named("customer").unwrap();
        let key = keys.row(&live, view, customer);
        redis::cmd("GET").arg(key).query_async::<Option<Vec<u8>>>(&mut redis).await.unwrap().unwrap_or_default()
    };
    let incarnations = async || {
        let text = projector.admin_client().get("/metrics").await.text;
        text.lines().find(|line| line.starts_with("stampede_incarnations_total")).map(str::to_owned)
    };
    let token = place(1).await;
    assert_eq!(orders("c-3", &token).await, 1);
    assert_eq!(orders("c-4", &token).await, 1);
    let before = incarnations().await;

    // The projector alone fails at two rows.
    let definitions = "SELECT rtrim(pg_get_viewdef('view_customer'), ';') AS definition";
    shop.sql(&format!("CREATE TABLE definitions AS {definitions}")).await;
    let broken = "WHERE CASE WHEN key IN (''c-3'', ''c-5'') AND current_setting(''application_name'') = ''projector'' \
                  THEN 1 / (length(key) - 3) > 0 ELSE true END";
    let replace = format!("'CREATE OR REPLACE VIEW view_customer AS SELECT * FROM (%s) AS whole {broken}'");
    shop.sql(&format!("DO $$ BEGIN EXECUTE format({replace}, (SELECT definition FROM definitions)); END $$")).await;
    let token = place(2).await;
    assert_eq!(orders("c-4", &token).await, 2);
    assert_eq!(split_value(&standing("c-4").await).unwrap().0, 2);
    for customer in ["c-3", "c-5"] {
        let withdrawn = standing(customer).await;
        assert!(is_withdrawn(&withdrawn), "{withdrawn:?}");
    }
    assert_eq!(orders("c-3", &token).await, 2, "Postgres knows it");
    assert_eq!(incarnations().await, before, "what Redis has of others stays");

    let restore = "'CREATE OR REPLACE VIEW view_customer AS ' || (SELECT definition FROM definitions)";
    shop.sql(&format!("DO $$ BEGIN EXECUTE {restore}; END $$")).await;
    let mut round = 2;
    eventually("an event shows the other row again", async || {
        round += 1;
        place(round).await;
        split_value(&standing("c-5").await).filter(|(version, _)| *version > 2)
    })
    .await;
}
