//! Statements that read one partition at a time, so that a second Postgres can have some of the partitions.

use std::collections::BTreeSet;

use schemas::aggregate::{AggregateType, partition};
use serde_json::json;
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::fixture::{Service, Shop, free_addr};

/// A row security policy that lets every row be read, and records each statement that has read rows of two partitions.
const WATCH: &str = "
    CREATE TABLE crossings (query text PRIMARY KEY);
    CREATE FUNCTION watched(partition int) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE
        here text := statement_timestamp()::text;
        seen text[] := string_to_array(current_setting('watched.seen', true), '|');
    BEGIN
        IF seen[1] = here AND seen[2] <> partition::text THEN
            INSERT INTO crossings VALUES (current_query()) ON CONFLICT DO NOTHING;
        END IF;
        PERFORM set_config('watched.seen', here || '|' || partition, false);
        RETURN true;
    END $$;
    DO $$
    DECLARE
        name text;
    BEGIN
        FOR name IN
            SELECT table_name FROM information_schema.columns
            JOIN information_schema.tables USING (table_schema, table_name)
            WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND column_name = 'partition'
        LOOP
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
            EXECUTE format('CREATE POLICY watched ON %I FOR SELECT USING (watched(partition))', name);
        END LOOP;
    END $$";

/// Statements that read the progress of every partition.
const HOW_FAR: [&str; 4] = [
    "SELECT view, partition, next_offset - 1, generation FROM checkpoints",
    "SELECT partition, nonce FROM log_partitions",
    include_str!("../../query-api/src/postgres/log.sql"),
    include_str!("../../command-api/src/loader/checkpoints.sql"),
];

/// Returns the same shop with a role to which the policies apply.
async fn watched(shop: &Shop) -> Shop {
    let role = &shop.topic;
    for statement in
        [WATCH, &format!("CREATE ROLE {role}"), &format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")]
    {
        let (client, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(statement).await.unwrap();
    }
    Shop { postgres_url: format!("{}?options=-c%20role%3D{role}", shop.postgres_url), ..shop.clone() }
}

async fn crossings(shop: &Shop) -> BTreeSet<String> {
    let (client, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let rows = client.query("SELECT query FROM crossings", &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, String>(0)).filter(|query| !HOW_FAR.contains(&query.as_str())).collect()
}

#[tokio::test]
async fn only_lists_and_sums_read_rows_of_two_partitions_in_one_statement() {
    let shop = Shop::with_views(2).await;
    let (first, _projector) = (shop.command_api().await, shop.projector().await);
    let product =
        |wanted| (0..).map(|n| format!("p-{n}")).find(|id| partition(AggregateType::Product, id, 2) == wanted).unwrap();
    let products = [0, 1].map(product);
    let keys = ["the-first".to_owned(), Uuid::now_v7().to_string()];
    let mut token = Vec::new();
    for id in &products {
        for key in &keys {
            let key = [("idempotency-key", key.as_str())];
            let register = json!({ "name": "A", "price_cents": 1, "stock": 5 });
            first.client().post_with(&format!("/v1/products/{id}/register"), &key, register).await;
        }
        let place = json!({ "customer": "ann", "lines": [{ "product": id, "quantity": 1, "amount_cents": 1 }] });
        let placed = first.client().post(&format!("/v1/orders/o-{id}/place"), place).await;
        token.push(placed.accepted(&["order.placed.v1"]).token());
    }
    let token = token.join(",");

    let watched = watched(&shop).await;
    let queries = without_redis(&watched).await;
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let get = async |path: &str| {
        let answer = queries.client().get_with(path, &fresh).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    };
    first.crash().await;
    let second = watched.command_api().await;
    for id in &products {
        for path in ["", "/history", "/as-of?version=1", "/as-of?at=2100-01-01T00:00:00Z"] {
            get(&format!("/v1/products/{id}{path}")).await;
        }
        get(&format!("/v1/orders/o-{id}")).await;
        let repeated = [("idempotency-key", keys[0].as_str())];
        let register = json!({ "name": "A", "price_cents": 1, "stock": 5 });
        let again = second.client().post_with(&format!("/v1/products/{id}/register"), &repeated, register).await;
        assert_eq!(again.header("idempotent-replayed"), Some("true"), "{again:?}");
        let restocked = second.client().post(&format!("/v1/products/{id}/restock"), json!({ "quantity": 1 })).await;
        restocked.accepted(&["product.restocked.v1"]);
    }
    assert_eq!(crossings(&shop).await, BTreeSet::new());

    for path in ["/v1/views/product", "/v1/views/revenue"] {
        let before = crossings(&shop).await.len();
        get(path).await;
        assert_eq!(crossings(&shop).await.len(), before + 1, "{path} was not recorded");
    }
}

/// Starts a query-api without a Redis.
async fn without_redis(shop: &Shop) -> Service {
    let shop = Shop { redis_url: format!("redis://{}", free_addr()), ..shop.clone() };
    let service = shop.start_query_api().await;
    service.wait_for_waiting_only("redis").await;
    service
}
