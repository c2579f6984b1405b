//! Rights of each service's role in the database.

use projector::rebuild::{Options, rebuild};
use serde_json::json;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::fixture::{Shop, eventually};

const COMMAND_API: &str = "stampede_command_api";
const QUERY_API: &str = "stampede_query_api";
const PROJECTOR: &str = "stampede_projector";

/// Returns the same shop, whose services have the rights of a role alone.
fn with_role(shop: &Shop, role: &str) -> Shop {
    Shop { postgres_url: format!("{}?options=-c%20role%3D{role}", shop.postgres_url), ..shop.clone() }
}

#[tokio::test]
async fn each_service_works_with_the_rights_of_its_role() {
    let shop = Shop::with_views(2).await;
    let writing = with_role(&shop, COMMAND_API);
    let first = writing.command_api().await;
    let _projector = with_role(&shop, PROJECTOR).projector().await;
    let queries = with_role(&shop, QUERY_API).query_api().await;

    let key = [("idempotency-key", "the-first")];
    let register = json!({ "name": "A", "price_cents": 5, "stock": 10 });
    first.client().post_with("/v1/products/cd/register", &key, register.clone()).await;
    let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 5 }]);
    let placed = first.client().post("/v1/orders/o-1/place", json!({ "customer": "ann", "lines": lines })).await;
    let token = placed.accepted(&["order.placed.v1"]).token();
    queries.client().is_stored(&token).await;
    first.crash().await;

    // The next owner reads states and used keys from Postgres.
    let second = writing.command_api().await;
    let again = second.client().post_with("/v1/products/cd/register", &key, register).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"), "{again:?}");
    let restocked = second.client().post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    let token = format!("{token},{}", restocked.accepted(&["product.restocked.v1"]).token());
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let read = async || {
        for path in [
            "/v1/products/cd",
            "/v1/products/cd/history",
            "/v1/products/cd/as-of?version=1",
            "/v1/orders/o-1",
            "/v1/customers/ann",
            "/v1/views/product",
            "/v1/views/order",
            "/v1/views/customer",
            "/v1/views/revenue",
        ] {
            let answer = queries.client().get_with(path, &fresh).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
        }
    };
    read().await;
    let _reactor = with_role(&shop, PROJECTOR).reactor(&second, 600).await;
    let covered = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'repeats'::regclass";
    assert!(shop.sql(covered).await > Some(0), "the projector created partitions");

    // The owner rebuilds a view; its readers keep their rights.
    let wish = Options::from_args(["product", "--accept"].map(str::to_owned).into_iter()).unwrap();
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    rebuild(&config, &wish, |_| ()).await.unwrap();
    eventually("the rebuilt rows are served", async || {
        let answer = queries.client().get_with("/v1/views/product", &fresh).await;
        (answer.status == 200).then_some(())
    })
    .await;
    read().await;
}

#[tokio::test]
async fn a_role_may_do_nothing_that_its_service_does_not() {
    let shop = Shop::with_views(1).await;
    let (client, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    tokio::spawn(connection);
    for (role, statement) in [
        (QUERY_API, "INSERT INTO product_rows (key, version, data) VALUES ('cd', 1, '{}')"),
        (QUERY_API, "UPDATE checkpoints SET next_offset = 0"),
        (QUERY_API, "DELETE FROM parked"),
        (QUERY_API, "SELECT record FROM parked"),
        (QUERY_API, "SELECT FROM repeats"),
        (QUERY_API, "SELECT FROM state_snapshots"),
        (QUERY_API, "SELECT FROM deadlines"),
        (QUERY_API, "SELECT FROM discarded"),
        (QUERY_API, "SELECT attach_repeats(1)"),
        (QUERY_API, "CREATE TABLE own (key int)"),
        (COMMAND_API, "UPDATE settings SET value = '1'"),
        (COMMAND_API, "DELETE FROM state_snapshots"),
        (COMMAND_API, "DELETE FROM repeats"),
        (COMMAND_API, "SELECT FROM order_rows"),
        (COMMAND_API, "SELECT FROM view_order"),
        (COMMAND_API, "SELECT FROM parked"),
        (COMMAND_API, "SELECT drop_repeats(1)"),
        (COMMAND_API, "CREATE TABLE own (key int)"),
        (PROJECTOR, "TRUNCATE journal_tail"),
        (PROJECTOR, "DROP TABLE repeats"),
        (PROJECTOR, "ALTER TABLE order_rows ADD COLUMN more int"),
        (PROJECTOR, "CREATE TABLE own (key int)"),
        (PROJECTOR, "CREATE ROLE own"),
        (PROJECTOR, "DELETE FROM refinery_schema_history"),
    ] {
        client.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
        let error = client.batch_execute(statement).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{role}: {statement}: {error}");
    }
    for (role, statement) in [
        (COMMAND_API, "INSERT INTO settings (name, value) VALUES ('n', 'v') ON CONFLICT (name) DO NOTHING"),
        (QUERY_API, "SELECT \"offset\" FROM parked WHERE view = 'order' AND aggregate = 'order/o'"),
    ] {
        client.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{role}: {statement}: {error}"));
    }
}

/// A later migration need not grant the projector what it creates.
#[tokio::test]
async fn the_projector_may_use_tables_of_later_migrations() {
    let shop = Shop::with_views(1).await;
    shop.sql("CREATE TABLE later (key int)").await;
    let may = "SELECT has_table_privilege('stampede_projector', 'later', 'INSERT')::int::bigint";
    assert_eq!(shop.sql(may).await, Some(1));
    let may = "SELECT has_table_privilege('stampede_query_api', 'later', 'SELECT')::int::bigint";
    assert_eq!(shop.sql(may).await, Some(0));
}
