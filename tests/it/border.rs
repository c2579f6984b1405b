//! Every answer of both tiers has the documented form, including the answers to invalid requests.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::fixture::{Answer, Client, DEADLINE, SERVICE_TOKEN, Service, Shop, batch_line, read_log};

const JSON: (&str, &str) = ("content-type", "application/json");
const READ: &str = "GET, HEAD, OPTIONS";
const WRITTEN: &str = "OPTIONS, POST";

/// Method, path and headers of a request, the status of the failure, and the `Allow` header that a 405 carries.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], u16, Option<&'static str>);

/// Requests that both tiers answer alike, although each serves only some of these paths.
const OF_BOTH: [Case; 18] = [
    ("GET", "/", &[], 404, None),
    ("GET", "/v1", &[], 404, None),
    ("GET", "/v1/", &[], 404, None),
    ("POST", "/problems", &[JSON], 404, None),
    ("GET", "/v1/baskets/b", &[], 404, None),
    ("DELETE", "/v1/products/cd", &[], 405, Some(READ)),
    ("PUT", "/v1/products/cd", &[JSON], 405, Some(READ)),
    ("POST", "/v1/revenue", &[JSON], 405, Some(READ)),
    ("PATCH", "/v1/views/product", &[JSON], 405, Some(READ)),
    ("DELETE", "/v1/products/cd/history", &[], 405, Some(READ)),
    ("POST", "/v1/products/cd/history", &[JSON], 405, Some(READ)),
    ("POST", "/v1/customers/c/orders", &[JSON], 405, Some(READ)),
    ("PUT", "/openapi.json", &[JSON], 405, Some(READ)),
    ("PUT", "/v1/products/cd/reserve", &[JSON], 405, Some(WRITTEN)),
    ("GET", "/v1/products/cd/reserve", &[], 405, Some(WRITTEN)),
    ("GET", "/v1/commands", &[], 405, Some(WRITTEN)),
    ("TRACE", "/v1/views", &[], 405, Some(READ)),
    ("DELETE", "/v1/products/cd/paint", &[], 404, None),
];

/// Requests whose path cannot be decoded. Either tier refuses them.
const MALFORMED: [Case; 4] = [
    ("GET", "/v1/products/%FF", &[], 400, None),
    ("GET", "/v1/views/%C3/x", &[], 400, None),
    ("GET", "/v1/products/a%0Ab", &[], 400, None),
    ("POST", "/v1/products/%FF/reserve", &[JSON], 400, None),
];

const OF_COMMANDS: [Case; 10] = [
    ("POST", "/v1/products/cd/discontinue", &[("origin", "http://evil.example")], 403, None),
    (
        "POST",
        "/v1/products/cd/discontinue",
        &[("sec-fetch-site", "cross-site"), ("content-type", "text/plain")],
        403,
        None,
    ),
    ("POST", "/v1/products/cd/discontinue", &[("content-encoding", "gzip")], 415, None),
    ("POST", "/v1/products/cd/discontinue", &[("idempotency-key", "")], 400, None),
    ("POST", "/v1/products/cd/discontinue", &[("idempotency-key", "a"), ("idempotency-key", "b")], 400, None),
    ("POST", "/v1/commands", &[JSON], 415, None),
    ("POST", "/v1/commands", &[("content-type", "application/x-ndjson"), ("content-encoding", "gzip")], 415, None),
    ("POST", "/v1/products/cd/paint", &[JSON], 404, None),
    // The path is checked before the headers.
    ("POST", "/v1/products/cd/paint", &[("idempotency-key", "")], 404, None),
    ("POST", "/v1/orders/o/as-of", &[("if-none-match", "")], 405, Some(READ)),
];

async fn send(client: &Client, case: &Case) -> Answer {
    let (method, path, headers, ..) = case;
    let headers = [*headers, &[("x-request-id", "of-the-test")]].concat();
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    client.try_send(method, path, &headers, None).await.unwrap()
}

#[track_caller]
fn check(answer: &Answer, case: &Case) {
    let (method, path, _, status, allow) = case;
    let said = format!("{method} {path}: {answer:?}");
    assert_eq!(answer.status, *status, "{said}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{said}");
    assert_eq!(answer.header("allow"), *allow, "{said}");
    assert_eq!(answer.header("x-request-id"), Some("of-the-test"), "{said}");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{said}");
    let problem = answer.json();
    assert_eq!((&problem["status"], &problem["request_id"]), (&json!(status), &json!("of-the-test")), "{said}");
    assert!(problem["type"].as_str().unwrap().starts_with("/problems/"), "{said}");
    assert!(!problem["title"].as_str().unwrap().is_empty(), "{said}");
}

async fn check_all<'a>(client: &Client, cases: impl IntoIterator<Item = &'a Case>) {
    for case in cases {
        check(&send(client, case).await, case);
    }
}

async fn commands(shop: &Shop) -> Service {
    let more = [("PARTITIONS", "0".to_owned()), ("CORS_ORIGINS", "https://shop.example".to_owned())];
    let service = Service::command_api(&shop.write_env(more)).await;
    service.wait_ready().await;
    service
}

#[tokio::test]
async fn whatever_is_sent_to_either_tier_is_answered_in_the_documented_form() {
    let shop = Shop::with_views(1).await;
    let commands = commands(&shop).await;
    let queries = shop.start_query_api().await;
    for client in [commands.client(), queries.client()] {
        check_all(&client, OF_BOTH.iter().chain(&MALFORMED)).await;
        let options = client.try_send(Method::OPTIONS, "/v1/products/cd/reserve", &[], None).await.unwrap();
        assert_eq!((options.status.as_u16(), options.header("allow")), (204, Some(WRITTEN)));
        let made = client.get("/v1").await;
        assert_eq!(Some(made.json()["request_id"].as_str().unwrap()), made.header("x-request-id"));
    }
    check_all(&commands.client(), &OF_COMMANDS).await;
    for addr in [commands.http_addr(), commands.internal_addr(), queries.http_addr()] {
        a_head_that_cannot_be_read_is_refused_by_a_problem(&addr).await;
    }
    the_internal_listener_serves_commands_that_the_api_description_omits(&commands).await;
}

async fn a_head_that_cannot_be_read_is_refused_by_a_problem(addr: &str) {
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    for (line, headers, status) in [
        ("GARBAGE", "", 400),
        ("GET /v1/views HTTP/9.9", "", 400),
        ("GET /v1/views HTTP/1.1", "x : 1\r\n", 400),
        ("POST /v1/commands HTTP/1.1", "content-length: 1\r\ncontent-length: 2\r\n", 400),
        ("GET /v1/views HTTP/1.1", &many, 431),
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(format!("{line}\r\nhost: a\r\n{headers}\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
        assert!(head.contains("content-type: application/problem+json\r\n"), "{line}: {answer}");
        let problem: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&problem["type"], &problem["status"]), (&json!("/problems/invalid-request"), &json!(status)));
        let id = problem["request_id"].as_str().unwrap();
        assert!(head.contains(&format!("x-request-id: {id}")), "{line}: {answer}");
    }
}

async fn the_internal_listener_serves_commands_that_the_api_description_omits(commands: &Service) {
    let bearer = format!("Bearer {SERVICE_TOKEN}");
    let (internal, public) = (commands.internal_client(), commands.client());
    for (path, allow) in [
        ("/v1/products/cd/commit", WRITTEN),
        ("/v1/orders/o/confirm-line", WRITTEN),
        ("/v1/products/cd/reserve", WRITTEN),
        ("/internal/link/3", "GET, OPTIONS"),
    ] {
        let asked = internal.try_send(Method::DELETE, path, &[("authorization", bearer.as_str())], None).await.unwrap();
        assert_eq!(asked.problem(405, "method-not-allowed", "").header("allow"), Some(allow), "{path}");
        if path != "/v1/products/cd/reserve" {
            public.try_send(Method::DELETE, path, &[], None).await.unwrap().problem(404, "not-found", "");
        }
    }
    let unknown = [("authorization", bearer.as_str())];
    let unknown = internal.try_send(Method::DELETE, "/v1/products/cd/paint", &unknown, None).await.unwrap();
    unknown.problem(404, "not-found", "");
}

#[tokio::test]
async fn commands_are_taken_as_clients_of_http_send_them() {
    let shop = Shop::new(1).await;
    let service = commands(&shop).await;
    let client = service.client();
    let register = json!({ "name": "Blue", "price_cents": 1, "stock": 0 });
    client.post("/v1/products/cd/register", register).await.accepted(&["product.registered.v1"]);
    let restock = async |headers: &[(&str, &str)]| {
        let headers = [headers, &[("Content-Type", "Application/JSON; charset=utf-8")]].concat();
        client.post_raw("/v1/products/cd/restock", &headers, "{\"quantity\":1}").await
    };
    for (version, condition) in [(1, vec!["\"9\", \"1\""]), (2, vec!["*"]), (3, vec!["\"1\"", "W/\"3\""])] {
        let lines: Vec<_> = condition.iter().map(|line| ("if-match", *line)).collect();
        let answer = restock(&lines).await.accepted(&["product.restocked.v1"]);
        assert_eq!(answer.json()["version"], version + 1, "{condition:?}");
    }
    restock(&[("if-match", "\"1\", \"2\"")]).await.problem(412, "precondition-failed", "");
    let nothing = client.post_with("/v1/products/lp/restock", &[("if-match", "*")], json!({ "quantity": 1 })).await;
    nothing.problem(412, "precondition-failed", "");
    for odd in ["wait=99", "wait=abc", "wait=-1", "respond-async, Wait=5", "wait=\"5\"; foo=bar"] {
        restock(&[("prefer", odd)]).await.accepted(&["product.restocked.v1"]);
    }
    restock(&[("idempotency-key", "k"), ("idempotency-key", "\"k\"")]).await.accepted(&["product.restocked.v1"]);
    let allowed = restock(&[("origin", "https://shop.example")]).await.accepted(&["product.restocked.v1"]);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://shop.example"));
    let empty = client.post_raw("/v1/products/cd/discontinue", &[], "").await;
    empty.accepted(&["product.discontinued.v1"]);
}

#[tokio::test]
async fn a_batch_that_is_sent_again_under_its_key_takes_effect_once() {
    let shop = Shop::new(1).await;
    let service = commands(&shop).await;
    let client = service.client();
    let register = json!({ "name": "Blue", "price_cents": 1, "stock": 0 });
    client.post("/v1/products/cd/register", register).await.accepted(&["product.registered.v1"]);
    let line = |quantity: u32| batch_line("products", "cd", "restock", json!({ "quantity": quantity }));
    let batch = Uuid::now_v7().to_string();
    let send = async |lines: &[Value]| {
        let text: String = lines.iter().map(|line| format!("{line}\r\n\n")).collect();
        let headers = [("content-type", "Application/X-NDJSON"), ("idempotency-key", &*batch)];
        let answer = client.post_raw("/v1/commands", &headers, format!("\u{feff}{text}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("idempotency-key")), (200, Some(&*batch)), "{answer:?}");
        answer.text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let mut own = line(7);
    own["key"] = "own".into();
    let first = send(&[line(1), own.clone(), line(2)]).await;
    let keys: Vec<_> = first.iter().map(|answer| answer["idempotency_key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(keys, [format!("{batch}-1"), "own".to_owned(), format!("{batch}-3")]);
    let again = send(&[line(1), own.clone(), line(2)]).await;
    assert!(again.iter().all(|answer| answer["replayed"] == true), "{again:?}");
    let other = send(&[line(1), own, line(3)]).await;
    assert_eq!((&other[2]["status"], &other[2]["type"]), (&json!(422), &json!("/problems/idempotency-key-reused")));
    assert!(other[2]["request_id"].is_string(), "{other:?}");
    assert_eq!(read_log(&shop).await.len(), 1 + 3);
}
