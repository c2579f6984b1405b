//! The journal's closed segments hold every record exactly once, as it is in the log, and an index to each.

use domain::TimeMs;
use projector::audit::audit;
use schemas::aggregate::{AggregateType, partition};
use schemas::idempotency::IdempotencyKey;
use schemas::tables::repeat_key;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{Service, Shop, batch_line, eventually};

const RESTOCKS: usize = 3_000;

struct Closed {
    shop: Shop,
    command_api: Service,
    query_api: Service,
    _projector: Service,
    /// Idempotency keys with which the products were registered.
    keys: [String; 2],
}

const PRODUCTS: [&str; 2] = ["even", "odd"];

fn registration() -> Value {
    json!({ "name": "A", "price_cents": 1, "stock": 0 })
}

impl Closed {
    /// Creates two products that were restocked alternately, most of it in closed segments.
    async fn new() -> Self {
        let shop = Shop::with_views(1).await;
        let (command_api, projector, query_api) =
            (shop.command_api().await, shop.projector().await, shop.query_api().await);
        let client = command_api.client();
        let keys = ["the-first".to_owned(), Uuid::now_v7().to_string()];
        for (product, key) in PRODUCTS.iter().zip(&keys) {
            let product = format!("/v1/products/{product}/register");
            client.post_with(&product, &[("idempotency-key", key)], registration()).await.token();
        }
        let restock = |n: usize| batch_line("products", PRODUCTS[n % 2], "restock", json!({ "quantity": n + 1 }));
        let answers = client.batch(&(0..RESTOCKS).map(restock).collect::<Vec<_>>()).await;
        assert!(answers.iter().all(|answer| answer["status"] == 200));
        let tokens: Vec<_> = answers.iter().map(|answer| answer["token"].as_str().unwrap()).collect();
        query_api.client().is_stored(tokens[RESTOCKS - 1]).await;
        eventually("full segments are closed", async || {
            (shop.sql("SELECT count(*) FROM segments").await >= Some(2)).then_some(())
        })
        .await;
        Self { shop, command_api, query_api, _projector: projector, keys }
    }

    /// Returns the only difference that the audit reports.
    async fn difference(&self, most: Option<usize>) -> Option<String> {
        let config = projector::Config::from_env(&self.shop.env([])).unwrap();
        let differences = audit(&config, most).await.unwrap().differences;
        assert!(differences.len() <= 1, "{differences:#?}");
        differences.first().map(|difference| format!("{} {}", difference.view, difference.key))
    }
}

#[tokio::test]
async fn every_record_is_in_one_place_and_found_by_aggregate_and_version() {
    let closed = Closed::new().await;
    let next = "SELECT next_offset FROM checkpoints WHERE view = 'journal'";
    let offsets = "SELECT unnest(offsets) AS o FROM journal_tail UNION ALL SELECT unnest(offsets) FROM segment_blocks";
    let next = closed.shop.sql(next).await;
    for count in ["count(o)", "count(DISTINCT o)", "max(o) + 1"] {
        assert_eq!(closed.shop.sql(&format!("SELECT {count} FROM ({offsets}) AS all_of_them")).await, next, "{count}");
    }
    let queries = closed.query_api.client();
    let (mut events, mut page) = (Vec::<Value>::new(), "/v1/products/odd/history?limit=400".to_owned());
    loop {
        let answer = queries.get(&page).await;
        events.extend(answer.json().as_array().unwrap().iter().cloned());
        let Some(link) = answer.header("link") else { break };
        page = link[1..link.find('>').unwrap()].to_owned();
    }
    assert!(events.iter().map(|event| event["version"].as_u64().unwrap()).eq(1..=1 + RESTOCKS as u64 / 2));
    let quantities: Vec<_> = events[1..].iter().map(|event| event["data"]["quantity"].as_u64().unwrap()).collect();
    // Lines of a batch have no order across partitions or aggregates.
    let mut sorted = quantities.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq((2..=RESTOCKS as u64).step_by(2)));
    for version in [4, 800, 1_500] {
        let then = queries.get(&format!("/v1/products/odd/as-of?version={version}")).await;
        let available: u64 = quantities[..version - 1].iter().sum();
        assert_eq!(then.json()["data"]["available"], available, "{}", then.text);
    }

    // A new owner has none of it in memory.
    let Closed { shop, command_api, .. } = closed;
    command_api.crash().await;
    let second = shop.command_api().await;
    let restocked = second.client().post("/v1/products/even/restock", json!({ "quantity": 1 })).await;
    assert_eq!(restocked.accepted(&["product.restocked.v1"]).header("etag"), Some("\"1502\""));
}

#[tokio::test]
async fn a_key_is_found_beside_its_record_in_the_tail_and_in_a_closed_segment_or_in_a_row_of_its_own() {
    let Closed { shop, command_api, query_api, _projector, keys } = Closed::new().await;
    let now = IdempotencyKey::random();
    let long_ago = IdempotencyKey::from_dedup_key(TimeMs(now.time().unwrap().0 - 60_000), "restock");
    let made = [long_ago.to_string(), Uuid::new_v4().to_string(), now.to_string()];
    let restocks = made.map(|key| ("/v1/products/odd/restock".to_owned(), key, json!({ "quantity": 1 })));
    let registered = PRODUCTS.map(|product| format!("/v1/products/{product}/register"));
    let registered = registered.into_iter().zip(keys).map(|(path, key)| (path, key, registration()));
    let mut first = Vec::new();
    for (path, key, data) in registered.chain(restocks) {
        let answer = command_api.client().post_with(&path, &[("idempotency-key", &key)], data.clone()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        first.push((path, key, data, answer));
    }
    query_api.client().is_stored(&first.last().unwrap().3.token()).await;
    assert_eq!(
        shop.sql("SELECT count(*) FROM repeats").await,
        Some(3),
        "only keys whose timestamp is not near their record's have rows"
    );
    command_api.crash().await;

    // The new owner has none of the keys in memory.
    let second = shop.command_api().await;
    for (path, key, data, answer) in first {
        let key = [("idempotency-key", key.as_str())];
        let again = second.client().post_with(&path, &key, data).await;
        assert_eq!(
            (again.header("idempotent-replayed"), again.json()),
            (Some("true"), answer.json()),
            "{path} {key:?}"
        );
        let other = second.client().post_with("/v1/products/odd/restock", &key, json!({ "quantity": 2 })).await;
        match path.contains("even") {
            true => assert_eq!(other.status, 200, "a key is scoped to one aggregate: {other:?}"),
            false => drop(other.problem(422, "idempotency-key-reused", "")),
        }
    }
}

#[tokio::test]
async fn keys_whose_hashes_collide_are_distinguished_by_aggregate_and_key() {
    let shop = Shop::with_views(1).await;
    let (first, _projector, query_api) = (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let register = |price: u32| json!({ "name": "A", "price_cents": price, "stock": 0 });
    let commands = [
        ("cd", "the-first", "register", register(1)),
        ("lp", "the-first", "register", register(2)),
        ("cd", "the-second", "restock", json!({ "quantity": 3 })),
        ("lp", "the-second", "restock", json!({ "quantity": 4 })),
    ];
    let send = async |service: &Service, (product, key, command, data): &(&str, &str, &str, Value)| {
        let path = format!("/v1/products/{product}/{command}");
        service.client().post_with(&path, &[("idempotency-key", key)], data.clone()).await
    };
    let mut answers = Vec::new();
    for command in &commands {
        answers.push(send(&first, command).await);
    }
    query_api.client().is_stored(&answers[3].token()).await;
    first.crash().await;

    // Makes every hash lead to every command, so that the matching one is at another position for each.
    let unused = IdempotencyKey::parse("the-third").unwrap();
    let unused = ["cd", "lp"].map(|product| repeat_key(&format!("product/{product}"), &unused));
    let meet = format!(
        "WITH own AS (DELETE FROM repeats RETURNING *)
         INSERT INTO repeats (key, at, partition, \"offset\")
         SELECT keys.key, at, partition, \"offset\"
         FROM own, (SELECT key FROM own UNION ALL VALUES ('{}'::uuid), ('{}'::uuid)) AS keys
         ORDER BY \"offset\"",
        unused[0], unused[1]
    );
    shop.sql(&meet).await;
    assert_eq!(shop.sql("SELECT count(*) FROM repeats").await, Some(6 * 4));

    let second = shop.command_api().await;
    for (command, answer) in commands.iter().zip(&answers) {
        let again = send(&second, command).await;
        assert_eq!((again.json(), again.header("idempotent-replayed")), (answer.json(), Some("true")), "{command:?}");
    }
    for product in ["cd", "lp"] {
        let command = (product, "the-third", "restock", json!({ "quantity": 5 }));
        let new = send(&second, &command).await.accepted(&["product.restocked.v1"]);
        assert_eq!((new.header("etag"), new.header("idempotent-replayed")), (Some("\"3\""), None), "{product}");
        let again = send(&second, &command).await;
        assert_eq!((again.json(), again.header("idempotent-replayed")), (new.json(), Some("true")), "{product}");
    }
}

#[tokio::test]
async fn an_audit_names_the_segment_that_was_changed() {
    let closed = Closed::new().await;
    for most in [None, Some(10)] {
        assert_eq!(closed.difference(most).await, None);
    }
    let record = "UPDATE segment_blocks SET records[3] = set_byte(records[3], 40, get_byte(records[3], 40) # 1) \
                  WHERE segment = 1 AND block = 2";
    closed.shop.sql(record).await;
    assert_eq!(closed.difference(None).await.as_deref(), Some("journal segment 1 of partition 0"));
    closed.shop.sql(record).await;
    closed.shop.sql("UPDATE segments SET hash = sha256('') WHERE segment = 1").await;
    assert_eq!(closed.difference(Some(10)).await.as_deref(), Some("journal segment 1 of partition 0"));
}

#[tokio::test]
async fn a_projector_that_dies_after_a_record_that_does_not_count_leaves_the_next_one_none_to_add_twice() {
    let shop = Shop::with_views(2).await;
    // Its claims, in both partitions, are records that do not count.
    let command_api = shop.command_api().await;
    let register = async |wanted: u32| {
        let id =
            (0..).map(|n| format!("cd-{n}")).find(|id| partition(AggregateType::Product, id, 2) == wanted).unwrap();
        let data = json!({ "name": "A", "price_cents": 1, "stock": 0 });
        command_api.client().post(&format!("/v1/products/{id}/register"), data).await.token()
    };
    let journalled = async |wanted: i64| (shop.sql("SELECT count(*) FROM journal").await == Some(wanted)).then_some(());
    register(0).await;
    let first = shop.projector().await;
    eventually("the journal has the first event", async || journalled(1).await).await;
    first.crash().await;
    let _second = shop.projector().await;
    register(1).await;
    eventually("the journal has both events", async || journalled(2).await).await;
    let twice = "SELECT count(*) - count(DISTINCT (partition, o)) FROM journal_tail, unnest(offsets) AS o";
    assert_eq!(shop.sql(twice).await, Some(0));
}
