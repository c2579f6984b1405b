//! Limits on the load that the query tier passes on to its servers, and its answers while they are unavailable.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use schemas::views::VIEWS;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_postgres::NoTls;

use crate::fixture::{Answer, Client, Crowd, Proxy, QueryProcess, Service, Shop, crowd_size, eventually, server};
use crate::stack::Stack;

fn record() -> Value {
    json!({ "name": "Kind of Blue", "price_cents": 1177, "stock": 10 })
}

/// Returns how many reads of `product` have been answered by `origin`.
pub(crate) async fn reads(service: &Service, origin: &str) -> u64 {
    metric(&service.admin_client(), &reads_by(origin)).await
}

fn reads_by(origin: &str) -> String {
    format!("stampede_reads_total{{origin=\"{origin}\",view=\"product\"}}")
}

/// Returns a metric's value, 0 if there is none.
async fn metric(admin: &Client, name: &str) -> u64 {
    let text = admin.get("/metrics").await.text;
    let line = text.lines().find(|line| line.starts_with(name));
    line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

async fn shown(queries: &Client, id: &str, token: &str) -> Answer {
    let headers = [("consistency-token", token), ("prefer", "wait=10")];
    queries.get_with(&format!("/v1/products/{id}"), &headers).await
}

/// Returns once Redis answers a query for the product. With a token alone, Postgres answers while Redis is a moment
/// behind.
pub(crate) async fn given_by_redis(admin: &Client, queries: &Client, id: &str, token: &str) {
    let by_redis = async || metric(admin, &reads_by("redis")).await;
    eventually("Redis answers the query", async || {
        let before = by_redis().await;
        assert_eq!(shown(queries, id, token).await.status, 200);
        (by_redis().await > before).then_some(())
    })
    .await;
}

/// Registers a product and returns the token.
async fn register(commands: &Client, id: &str) -> String {
    commands.post(&format!("/v1/products/{id}/register"), record()).await.accepted(&["product.registered.v1"]).token()
}

#[tokio::test]
async fn postgres_is_not_asked_again_for_what_it_just_did_not_have() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let token = register(&commands, "cd").await;
    queries.get_with("/v1/products/cd", &[("consistency-token", &token), ("prefer", "wait=10")]).await.json();
    let begun = Instant::now();
    eventually("Redis has the absence of the row", async || {
        queries.get("/v1/products/none").await.problem(404, "not-found", "none");
        (reads(&query_api, "redis").await > 1).then_some(())
    })
    .await;
    let asked = reads(&query_api, "postgres").await;
    for _ in 0..50 {
        queries.get("/v1/products/none").await.problem(404, "not-found", "none");
    }
    // Redis keeps the absence for five seconds; a busy machine may take longer.
    let again = reads(&query_api, "postgres").await - asked;
    assert!(again <= begun.elapsed().as_secs() / 5, "{again} times in {:?}", begun.elapsed());
}

#[tokio::test]
async fn that_a_row_was_not_there_never_hides_it_from_a_reader_with_its_token() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    for round in 0..40 {
        let path = format!("/v1/products/p-{round}");
        // Absences are being written all the time.
        let strangers = tokio::spawn({
            let (queries, path) = (queries.clone(), path.clone());
            async move { while queries.get(&path).await.status == 404 {} }
        });
        let token = register(&commands, &format!("p-{round}")).await;
        for _ in 0..3 {
            let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
            assert_eq!(queries.get_with(&path, &headers).await.status, 200, "{path} {token}");
        }
        strangers.await.unwrap();
    }
}

#[tokio::test]
async fn postgres_is_asked_within_a_limit_and_what_is_over_it_is_refused_at_once() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector) = (shop.command_api().await, shop.projector().await);
    let limits = [("POSTGRES_CONNECTIONS", "2"), ("POSTGRES_QUEUE", "3"), ("POSTGRES_QUEUE_MS", "60000")];
    let query_api = shop.query_api_with(limits.map(|(name, value)| (name, value.to_owned()))).await;
    let (commands, queries) = (command_api.client(), query_api.client());
    let token = register(&commands, "cd").await;
    given_by_redis(&query_api.admin_client(), &queries, "cd", &token).await;
    queries.is_stored(&token).await;

    let (client, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = |path: String| {
        let queries = queries.clone();
        tokio::spawn(async move { queries.get(&path).await })
    };
    let refusals =
        async || metric(&query_api.admin_client(), "stampede_reads_refused_total{server=\"postgres\"}").await;
    // Postgres ends a wait for a lock after two seconds, so a round that takes that long proves nothing.
    let mut round = 0;
    eventually("a round ends in time", async || {
        round += 1;
        let (asked, refused) = (reads(&query_api, "postgres").await, refusals().await);
        let begun = Instant::now();
        client.batch_execute("BEGIN; LOCK TABLE product_rows IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let first: Vec<_> = (0..5).map(|n| ask(format!("/v1/products/first-{round}-{n}"))).collect();
        let under_way = async || reads(&query_api, "postgres").await - asked;
        eventually("five queries are in flight or queued", async || (under_way().await == 5).then_some(())).await;
        let others = (0..25).map(|n| ask(format!("/v1/products/other-{round}-{n}")));
        let others = futures_util::future::join_all(others).await;
        let from_redis = shown(&queries, "cd", &token).await;
        let is_in_time = begun.elapsed() < Duration::from_millis(1500);
        client.batch_execute("COMMIT").await.unwrap();
        let first = futures_util::future::join_all(first).await;
        if !is_in_time {
            return None;
        }
        for answer in others {
            let answer = answer.unwrap().problem(503, "overloaded", "");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        assert_eq!(refusals().await - refused, 25);
        assert_eq!(from_redis.status, 200, "Redis did not answer");
        for answer in first {
            answer.unwrap().problem(404, "not-found", "");
        }
        Some(())
    })
    .await;
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn many_who_ask_for_rows_of_long_ago_hold_up_no_other_reads_of_postgres() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector) = (shop.command_api().await, shop.projector().await);
    let limits = [("POSTGRES_CONNECTIONS", "4"), ("POSTGRES_QUEUE", "100"), ("POSTGRES_QUEUE_MS", "30000")];
    let query_api = shop.query_api_with(limits.map(|(name, value)| (name, value.to_owned()))).await;
    let queries = query_api.client();
    let token = register(&command_api.client(), "cd").await;
    queries.is_stored(&token).await;

    let (client, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute("BEGIN; LOCK TABLE journal IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let asked: Vec<_> = (0..40)
        .map(|n| {
            let (queries, way) = (queries.clone(), ["as-of", "history"][n % 2]);
            tokio::spawn(async move { queries.get(&format!("/v1/products/cd/{way}?version=1&_={n}")).await })
        })
        .collect();
    eventually("one of the queries waits for the lock", async || {
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", shop.topic);
        let stuck = format!("{sessions} AND application_name = 'query-api' AND wait_event_type = 'Lock'");
        (shop.sql(&stuck).await > Some(0)).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(queries.get("/v1/views/product").await.status, 200);
    }
    client.batch_execute("COMMIT").await.unwrap();
    for answer in asked {
        let status = answer.await.unwrap().status.as_u16();
        // A query that met the lock may have waited longer than the limit for Postgres.
        assert!([200, 503].contains(&status), "{status}");
    }
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_query_that_waited_long_enough_for_its_turn_is_refused() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector) = (shop.command_api().await, shop.projector().await);
    let limits = [("POSTGRES_CONNECTIONS", "1"), ("POSTGRES_QUEUE", "100"), ("POSTGRES_QUEUE_MS", "50")];
    let query_api = shop.query_api_with(limits.map(|(name, value)| (name, value.to_owned()))).await;
    let (commands, queries) = (command_api.client(), query_api.client());
    let token = register(&commands, "cd").await;
    assert_eq!(shown(&queries, "cd", &token).await.status, 200);

    let (client, connection) = tokio_postgres::connect(&shop.postgres_url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute("BEGIN; LOCK TABLE product_rows IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let answers =
        futures_util::future::join_all((0..20).map(async |n| queries.get(&format!("/v1/products/stranger-{n}")).await));
    let refused = |answers: Vec<Answer>| answers.iter().filter(|answer| answer.status == 503).count();
    // The query in flight is refused by Postgres, whose lock timeout is shorter.
    assert_eq!(refused(answers.await), 20);
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_postgres_what_redis_has_is_served_with_its_age() {
    let mut shop = Shop::with_views(2).await;
    let (command_api, projector) = (shop.command_api().await, shop.projector().await);
    let postgres = Proxy::in_url(&mut shop.postgres_url).await;
    let redis = Proxy::in_url(&mut shop.redis_url).await;
    postgres.restore().await;
    redis.restore().await;
    let query_api = shop.query_api().await;
    let (commands, queries) = (command_api.client(), query_api.client());
    let token = register(&commands, "cd").await;
    assert_eq!(shown(&queries, "cd", &token).await.header("age"), None);

    // Only query-api has lost Postgres. Notifications from Redis still show that the views progress.
    postgres.cut().await;
    let token = commands.post("/v1/products/cd/reprice", json!({ "price_cents": 7 })).await.token();
    let answer = shown(&queries, "cd", &token).await;
    assert_eq!((answer.status.as_u16(), answer.header("age")), (200, None), "Redis should have reached the token");
    projector.stop().await;
    let aged = eventually("the views have not progressed for a while", async || {
        Some(queries.get("/v1/products/cd").await).filter(|answer| answer.header("age").is_some())
    });
    let aged = aged.await;
    assert_eq!((aged.json()["data"]["price_cents"].clone(), aged.token()), (json!(7), token.clone()));
    assert!(aged.header("age").unwrap().parse::<u64>().unwrap() >= 5, "{aged:?}");
    queries.get("/v1/products/stranger").await.problem(503, "unavailable", "");
    assert_eq!(shown(&queries, "cd", &token).await.status, 200);

    redis.cut().await;
    queries.get("/v1/products/cd").await.problem(503, "unavailable", "");
    postgres.restore().await;
    let answer = eventually("Postgres answers again", async || {
        Some(shown(&queries, "cd", &token).await).filter(|answer| answer.status == 200)
    });
    assert_eq!(answer.await.header("age"), None);
}

/// Serializes the crowds, each of which needs the machine to itself.
static CROWDED: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_at_once_for_a_row_that_redis_lacks_are_a_handful_of_queries_to_postgres() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector) = (shop.command_api().await, shop.projector().await);
    let (_turn, crowd_size) = (CROWDED.lock().await, crowd_size(10_000));
    let query_api = QueryProcess::start(&shop).await;
    let queries = Client::new(&format!("http://{}", query_api.addr));
    let token = register(&command_api.client(), "cd").await;
    given_by_redis(&query_api.admin, &queries, "cd", &token).await;
    queries.is_stored(&token).await;

    // One connection is the client's own.
    let request = "GET /v1/products/cd HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
    let crowd = Crowd::gather(crowd_size - 1, &query_api.addr, request).await;
    let mut redis = shop.redis().await;
    let rows = format!("{{{}:*:product:cd", shop.prefix);
    let rows: Vec<String> = redis::cmd("KEYS").arg(rows).query_async(&mut redis).await.unwrap();
    let before = metric(&query_api.admin, &reads_by("postgres")).await;
    redis::cmd("DEL").arg(rows).query_async::<i64>(&mut redis).await.unwrap();
    let begun = Instant::now();
    crowd.ask().await;
    let statuses = crowd.statuses().await;
    let elapsed = begun.elapsed();
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(
        served > crowd_size / 2 && statuses.iter().all(|status| [200, 503].contains(status)),
        "{served} were served"
    );
    let queries = metric(&query_api.admin, &reads_by("postgres")).await - before;
    let joined = metric(&query_api.admin, &reads_by("joined")).await;
    println!("{} requests at once, {served} served: {queries} to Postgres, {joined} joined one", statuses.len());
    // Bound: one query, and one more per 100 ms until all are answered; or two, if Redis was late and is read again.
    let most = 1 + u64::try_from(elapsed.as_millis()).unwrap() / 50;
    assert!((1..=most).contains(&queries), "{queries} in {elapsed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_wait_for_their_token_cost_little_and_are_all_answered() {
    let shop = Shop::with_views(2).await;
    let (command_api, projector) = (shop.command_api().await, shop.projector().await);
    let (_turn, crowd_size) = (CROWDED.lock().await, crowd_size(10_000));
    let query_api = QueryProcess::start(&shop).await;
    let queries = Client::new(&format!("http://{}", query_api.addr));
    let token = register(&command_api.client(), "cd").await;
    assert_eq!(shown(&queries, "cd", &token).await.status, 200);

    // The views stay behind a command that has been decided.
    projector.stop().await;
    let token = command_api.client().post("/v1/products/cd/reprice", json!({ "price_cents": 7 })).await.token();
    let request = format!(
        "GET /v1/products/cd HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nPrefer: wait=10\r\n\
         Consistency-Token: {token}\r\n\r\n"
    );
    let crowd = Crowd::gather(crowd_size - 1, &query_api.addr, &request).await;
    let connected = query_api.resident_kib();
    crowd.ask().await;
    eventually("all requests wait for their token", async || {
        let waiters = metric(&query_api.admin, "stampede_token_waiters").await;
        (waiters == u64::try_from(crowd_size - 1).unwrap()).then_some(())
    })
    .await;
    let waiting = query_api.resident_kib();
    let _projector = shop.start_projector();
    let statuses = crowd.statuses().await;
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(
        served > crowd_size / 2 && statuses.iter().all(|status| [200, 503].contains(status)),
        "{served} were served"
    );
    println!("{} that wait, {served} served: from {connected} to {waiting} KiB", statuses.len());
    // Includes the connections' buffers, which are allocated on the first read.
    assert!(waiting - connected < 20 * u64::try_from(crowd_size).unwrap(), "from {connected} to {waiting} KiB");
}

#[tokio::test]
async fn a_query_that_waits_while_its_instance_drains_gets_what_it_waits_for() {
    let shop = Shop::with_views(1).await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let token = register(&command_api.client(), "cd").await;
    assert_eq!(shown(&query_api.client(), "cd", &token).await.status, 200);
    projector.stop().await;
    let token = command_api.client().post("/v1/products/cd/reprice", json!({ "price_cents": 7 })).await.token();
    let client = query_api.client();
    let waiting = tokio::spawn(async move {
        let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=5")];
        client.get_with("/v1/products/cd", &fresh).await
    });
    eventually("the query waits", async || {
        (metric(&query_api.admin_client(), "stampede_token_waiters").await == 1).then_some(())
    })
    .await;
    let (ended, projector) = tokio::join!(query_api.stop(), shop.projector());
    assert_eq!(waiting.await.unwrap().status, 200);
    drop((ended, projector));
}

#[tokio::test]
async fn a_token_that_was_never_given_is_refused_within_three_seconds_and_a_true_one_waits() {
    let shop = Shop::with_views(2).await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let token = register(&commands, "cd").await;
    assert_eq!(shown(&queries, "cd", &token).await.status, 200);
    let (place, offset) = token.rsplit_once('-').unwrap();
    let ahead = format!("{place}-{}", offset.parse::<u64>().unwrap() + 50);
    for token in [format!("{place}-999999999999"), ahead.clone()] {
        let asked = Instant::now();
        for path in
            ["/v1/products/cd", "/v1/views/product", "/v1/products/cd/history", "/v1/products/cd/as-of?version=1"]
        {
            let lenient = [("consistency-token", token.as_str()), ("prefer", "wait=10, handling=lenient")];
            queries.get_with(path, &lenient).await.problem(400, "token-ahead", "token");
        }
        // A busy machine may take longer, but not as long as the client would wait: four times ten seconds.
        println!("{token} was refused four times in {:?}", asked.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(25), "{:?}", asked.elapsed());
    }
    // The end of the log is no longer published, so a token beyond the known end waits, and an address gets few places.
    // All wait for so long that even on a busy machine the last one arrives while the first one waits.
    projector.stop().await;
    let token = commands.post("/v1/products/cd/reprice", json!({ "price_cents": 7 })).await.token();
    let asked = (0..110).map(|_| {
        let (queries, token) = (queries.clone(), token.clone());
        let headers =
            [("consistency-token", token), ("prefer", "wait=6".into()), ("x-forwarded-for", "192.0.2.7".into())];
        tokio::spawn(async move {
            let headers = headers.each_ref().map(|(name, value): &(&str, String)| (*name, value.as_str()));
            queries.get_with("/v1/products/cd", &headers).await
        })
    });
    let mut kinds = BTreeMap::new();
    for answer in futures_util::future::join_all(asked).await {
        *kinds.entry(answer.unwrap().json()["type"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(kinds, BTreeMap::from([("/problems/not-yet".to_owned(), 100), ("/problems/overloaded".to_owned(), 10)]));
    let _projector = shop.projector().await;
    assert_eq!(shown(&queries, "cd", &token).await.json()["data"]["price_cents"], 7);
}

#[tokio::test]
async fn who_may_keep_an_answer_is_said_with_every_answer() {
    let shop = Shop::with_views(2).await;
    let (command_api, _projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let (commands, queries) = (command_api.client(), query_api.client());
    let lines = json!([{ "product": "cd", "quantity": 1, "amount_cents": 5 }]);
    let placed = commands.post("/v1/orders/o/place", json!({ "customer": "ann", "lines": lines })).await;
    let token = format!("{},{}", placed.token(), register(&commands, "cd").await);
    let [shared, own, personal] =
        ["public, max-age=0, s-maxage=1, stale-while-revalidate=1", "private, no-cache", "private, no-store"];
    assert_eq!(shown(&queries, "cd", &token).await.header("cache-control"), Some(own));
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    assert_eq!(queries.get_with("/v1/orders/o/history", &fresh).await.header("cache-control"), Some(personal));
    let stated = async |path: &str, headers: &[(&str, &str)]| {
        let answer = queries.get_with(path, headers).await;
        assert_eq!(answer.header("vary"), Some("Consistency-Token, Prefer, Authorization, Cookie"), "{answer:?}");
        (answer.status.as_u16(), answer.header("cache-control").unwrap().to_owned())
    };
    let own_ways =
        ["/v1/products/cd", "/v1/revenue", "/v1/best-sellers", "/v1/low-stock", "/v1/views"].map(str::to_owned);
    let histories = ["/v1/products/cd/history", "/v1/products/cd/as-of?version=1", "/v1/orders/o/history"];
    let persons = ["/v1/orders/o", "/v1/customers/ann", "/v1/customers/ann/orders"].iter().chain(&histories);
    let by_name = VIEWS.iter().map(|view| (format!("/v1/views/{}", view.name), view.is_personal));
    let paths = own_ways.into_iter().map(|path| (path, false));
    for (path, is_personal) in paths.chain(persons.map(|path| ((*path).to_owned(), true))).chain(by_name) {
        let wanted = |of_all| (200, if is_personal { personal } else { of_all }.to_owned());
        assert_eq!(stated(&path, &[]).await, wanted(shared), "{path}");
        assert_eq!(stated(&path, &[("prefer", "wait=1")]).await, wanted(own), "{path}");
        for header in [("authorization", "Bearer x"), ("cookie", "a=b")] {
            assert_eq!(stated(&path, &[header]).await, (200, personal.to_owned()), "{path}");
        }
    }
    assert_eq!(stated("/v1/products/none", &[]).await, (404, shared.to_owned()));
    assert_eq!(stated("/v1/orders/none", &[]).await, (404, personal.to_owned()));
    assert_eq!(stated("/v1/products/cd", &[("if-none-match", "\"1\"")]).await, (304, shared.to_owned()));
    assert_eq!(stated("/v1/orders/o", &[("if-none-match", "*")]).await, (304, personal.to_owned()));
    assert_eq!(stated("/v1/products/cd?x=1", &[]).await, (400, "no-store".to_owned()));
    assert_eq!(stated("/openapi.json", &[("cookie", "a=b")]).await, (200, personal.to_owned()));
    let ahead = format!("{}999", token);
    let headers = [("consistency-token", ahead.as_str()), ("prefer", "wait=0.01")];
    assert_eq!(stated("/v1/products/cd", &headers).await, (503, "no-store".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_keeps_answers_for_a_moment_and_never_hides_a_clients_own_command() {
    let stack = Stack::up_with(&[]).await;
    let edge = stack.client();
    let price = |answer: &Answer| answer.json()["data"]["price_cents"].clone();
    let mut token = register(&edge, "cd").await;
    edge.is_stored(&token).await;
    assert_eq!(edge.get("/v1/products/none").await.status, 404);

    let kept = eventually("an answer is cached", async || {
        Some(edge.get("/v1/products/cd").await).filter(|answer| answer.header("x-cache") == Some("HIT"))
    });
    assert_eq!(price(&kept.await), json!(1177));
    for tags in ["\"1\"", "W/\"1\"", "\"x\", \"1\""] {
        let not_modified = edge.get_with("/v1/products/cd", &[("if-none-match", tags)]).await;
        assert_eq!((not_modified.status.as_u16(), not_modified.header("etag")), (304, Some("\"1\"")), "{tags}");
    }
    for round in 1..=20 {
        edge.get("/v1/products/cd").await.json();
        let reprice = json!({ "price_cents": round });
        token = edge.post("/v1/products/cd/reprice", reprice).await.accepted(&["product.repriced.v1"]).token();
        let own = shown(&edge, "cd", &token).await;
        assert_eq!((price(&own), own.header("x-cache")), (json!(round), Some("BYPASS")));
    }
    let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10"), ("if-none-match", "\"21\"")];
    assert_eq!(edge.get_with("/v1/products/cd", &headers).await.status, 304);
    let asked = Instant::now();
    eventually("the change is visible without a token", async || {
        (price(&edge.get("/v1/products/cd").await) == json!(20)).then_some(())
    })
    .await;
    println!("seen without a token after {:?}", asked.elapsed());

    // A row that did not exist is visible at once to its creator, and soon to everybody.
    let token = register(&edge, "none").await;
    assert_eq!(shown(&edge, "none", &token).await.status, 200);
    eventually("the product is visible without a token", async || {
        (edge.get("/v1/products/none").await.status == 200).then_some(())
    })
    .await;
    // A command's condition is evaluated by the command tier.
    let only_new = [("if-none-match", "*")];
    assert_eq!(edge.post_with("/v1/products/cd/register", &only_new, record()).await.status, 412);
}

/// Copies the shop's database in its current state, as a backup or a replica that does not advance, and returns the
/// copy's URL. No session may stay connected to the original.
pub(crate) async fn copy_of_postgres(shop: &Shop) -> String {
    let postgres = Shop { postgres_url: server("TEST_POSTGRES_URL"), ..shop.clone() };
    let copy = format!("{}_copy", shop.topic);
    eventually("all sessions have ended", async || {
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", shop.topic);
        (postgres.sql(&sessions).await == Some(0)).then_some(())
    })
    .await;
    postgres.sql(&format!("CREATE DATABASE {copy} TEMPLATE {}", shop.topic)).await;
    shop.postgres_url.replace(&shop.topic, &copy)
}

/// Returns another database of the same Redis server, which has no writers.
fn another_redis(shop: &Shop) -> String {
    format!("{}/9", shop.redis_url.trim_end_matches('/'))
}

#[tokio::test]
async fn a_replica_that_is_behind_hides_nothing_from_a_token_and_nothing_from_redis() {
    let shop = Shop::with_views(2).await;
    let (command_api, projector, query_api) =
        (shop.command_api().await, shop.projector().await, shop.query_api().await);
    let old = register(&command_api.client(), "cd").await;
    assert_eq!(shown(&query_api.client(), "cd", &old).await.status, 200);
    command_api.stop().await;
    projector.stop().await;
    query_api.stop().await;
    let replica = ("POSTGRES_REPLICA_URLS", copy_of_postgres(&shop).await);
    let (command_api, _projector) = (shop.command_api().await, shop.projector().await);
    // The first service never finds anything in Redis, the second one does.
    let apart = shop.query_api_with([replica.clone(), ("REDIS_URL", another_redis(&shop))]).await;
    let query_api = shop.query_api_with([replica]).await;
    let (commands, queries) = (command_api.client(), apart.client());
    eventually("the replica is queried", async || {
        assert_eq!(queries.get("/v1/products/cd").await.status, 200);
        (reads(&apart, "replica").await > 0).then_some(())
    })
    .await;

    let mut redis = shop.redis().await;
    let price = |answer: &Answer| answer.json()["data"]["price_cents"].clone();
    for round in 1..=20 {
        let reprice = json!({ "price_cents": round });
        let token = commands.post("/v1/products/cd/reprice", reprice).await.token();
        assert_eq!(price(&shown(&queries, "cd", &token).await), round);
        let headers = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
        let page = queries.get_with("/v1/views/product", &headers).await;
        assert_eq!(page.json()["rows"][0]["data"]["price_cents"], round);
        // Rows older than the positions in Redis are not written back to it.
        let rows = format!("{{{}:*:product:cd", shop.prefix);
        let rows: Vec<String> = redis::cmd("KEYS").arg(rows).query_async(&mut redis).await.unwrap();
        redis::cmd("DEL").arg(rows).query_async::<i64>(&mut redis).await.unwrap();
        query_api.client().get("/v1/products/cd").await.json();
        assert_eq!(price(&shown(&query_api.client(), "cd", &token).await), round);
    }
    // A query without a token may get old data, and the answer's token says how old.
    let answer = eventually("the replica answers", async || {
        Some(queries.get("/v1/products/cd").await).filter(|answer| price(answer) == 1177)
    });
    assert_eq!(answer.await.token(), old);
    let probed = async |name: &str| {
        let metrics = query_api.admin_client().get("/metrics").await.text;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("{replica=\"0\"} "));
        line.and_then(|value| value.parse::<f64>().ok())
    };
    eventually("the replica's lag is shown", async || {
        (probed("stampede_replica_behind_seconds").await? > 0.0).then_some(())
    })
    .await;
    assert_eq!(probed("stampede_replica_usable").await, Some(1.0));

    let postgres = Shop { postgres_url: server("TEST_POSTGRES_URL"), ..shop.clone() };
    postgres.sql(&format!("DROP DATABASE {}_copy WITH (FORCE)", shop.topic)).await;
    eventually("the primary answers in its place", async || {
        let answer = queries.get("/v1/products/cd").await;
        assert_eq!(answer.status, 200);
        (price(&answer) == 20).then_some(())
    })
    .await;
    eventually("the replica is told to be unusable", async || {
        (probed("stampede_replica_usable").await? == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_of_another_log_is_never_asked() {
    let (shop, other) = (Shop::with_views(2).await, Shop::with_views(2).await);
    let (command_api, projector) = (other.command_api().await, other.projector().await);
    let of_other = register(&command_api.client(), "cd").await;
    let query_api = other.query_api().await;
    query_api.client().is_stored(&of_other).await;
    drop((command_api, projector, query_api));

    let (command_api, _projector) = (shop.command_api().await, shop.projector().await);
    let token = register(&command_api.client(), "lp").await;
    let query_api = shop.query_api_with([("POSTGRES_REPLICA_URLS", other.postgres_url.clone())]).await;
    let queries = query_api.client();
    queries.is_stored(&token).await;
    eventually("the replica was looked at", async || {
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", other.topic);
        let waiting = format!("{sessions} AND application_name = 'query-api' AND state = 'idle'");
        (other.sql(&waiting).await > Some(0)).then_some(())
    })
    .await;
    for _ in 0..20 {
        queries.get("/v1/products/cd").await.problem(404, "not-found", "cd");
        let page = queries.get("/v1/views/product").await.json();
        assert_eq!(page["rows"][0]["key"], "lp");
    }
    assert_eq!(reads(&query_api, "replica").await, 0);
}
