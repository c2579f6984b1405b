//! The edge: the single address in front of both tiers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use uuid::Uuid;

use crate::fixture::{Client, DEADLINE, eventually};
use crate::stack::Stack;

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_gives_every_command_a_key_and_hides_what_is_internal() {
    // Loopback is usually exempt from limits. Here all of it is limited except one address.
    let limits = ["commands=2", "batches=1", "lists=1", "histories=1"].map(|limit| ["--limit", limit]).concat();
    let others = [
        "--unlimited",
        "127.0.0.1/32",
        "--cors-origin",
        "https://shop.example",
        "--access-log",
        "20",
        "--traced",
        "100",
    ];
    let stack = Stack::up_with(&[&limits[..], &others].concat()).await;
    let client = stack.client();
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let answer = client.post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    let key: Uuid = answer.header("idempotency-key").unwrap().parse().unwrap();
    assert_eq!(key.get_version_num(), 7);
    let token = answer.token();
    client.is_stored(&token).await;
    client.post("/v1/products/cd/commit", json!({ "order": "o" })).await.problem(404, "not-found", "");
    for path in ["/metrics", "/readyz", "/link", "/internal/link"] {
        assert_eq!(client.get(path).await.status, 404, "{path}");
    }
    the_api_descriptions_are_served(&client).await;
    the_root_page_describes_the_system(&stack).await;
    what_the_edge_refuses_is_a_problem_that_names_the_request(&stack).await;
    a_clients_own_request_id_is_kept(&stack).await;
    a_refused_method_is_answered_with_the_allowed_ones(&client).await;
    a_page_of_an_allowed_site_may_read_the_edges_own_answers(&stack).await;
    a_range_request_gets_the_whole_answer(&client).await;
    a_stranger_is_limited_by_the_class_of_its_requests(&stack).await;
    requests_with_credentials_bypass_the_cache(&client).await;
    the_access_log_has_every_error_and_no_secret(&stack).await;

    // The edge cannot answer a query with a token from its cache.
    let query = async || client.get_with("/v1/products/cd", &[("consistency-token", token.as_str())]).await;
    stack.tell(&["stop", "query-api-1"]).await;
    for _ in 0..10 {
        assert_eq!(query().await.status, 200, "the edge used a dead instance");
    }
    stack.tell(&["stop", "query-api-2"]).await;
    let refused = query().await;
    assert!([502, 503, 504].contains(&refused.status.as_u16()), "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    stack.tell(&["start", "query-api-1"]).await;
    eventually("the edge uses the instance again", async || (query().await.status == 200).then_some(())).await;
}

/// The page shows the commands of the README and loads no other resources.
async fn the_root_page_describes_the_system(stack: &Stack) {
    let page = stack.client().get("/").await;
    assert_eq!((page.status.as_u16(), page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let command = format!("curl -i http://{}/v1/products/cd-1/register ", stack.addr());
    assert!(page.text.contains(&command), "{}", page.text);
    assert!(!page.text.contains("src=") && !page.text.contains("<script"), "{}", page.text);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
    for link in page.text.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert_eq!(stack.client().get(link).await.status, 200, "{link}");
    }
}

async fn a_refused_method_is_answered_with_the_allowed_ones(client: &Client) {
    for (path, status, allow) in [
        ("/", 405, Some("GET, HEAD")),
        ("/v1/products/cd", 405, Some("GET, HEAD, OPTIONS")),
        ("/v1/customers/c/orders?limit=1", 405, Some("GET, HEAD, OPTIONS")),
        ("/v1/products/cd/restock", 405, Some("OPTIONS, POST")),
        ("/v1/commands", 405, Some("OPTIONS, POST")),
        ("/nowhere", 404, None),
    ] {
        let answer = client.try_send(Method::TRACE, path, &[], None).await.unwrap();
        let slug = if status == 405 { "method-not-allowed" } else { "not-found" };
        assert_eq!(answer.problem(status, slug, "").header("allow"), allow, "{path}");
    }
}

async fn a_page_of_an_allowed_site_may_read_the_edges_own_answers(stack: &Stack) {
    let stranger = Client::from([127, 0, 0, 3], &format!("http://{}", stack.addr()));
    let limited = async |origin: &str| {
        eventually("a request is limited", async || {
            let answer = stranger.get_with("/v1/views/product", &[("origin", origin)]).await;
            (answer.status == 429).then_some(answer)
        })
        .await
    };
    let nowhere = async |origin: &str| stack.client().get_with("/v1", &[("origin", origin)]).await;
    let (shop, elsewhere) = ("https://shop.example", "https://shop.example.org");
    for answer in [nowhere(shop).await, limited(shop).await] {
        assert_eq!(answer.header("access-control-allow-origin"), Some(shop), "{answer:?}");
        assert!(answer.header("access-control-expose-headers").unwrap().contains("Retry-After"), "{answer:?}");
        assert_eq!(answer.header("vary"), Some("Origin"), "{answer:?}");
    }
    for answer in [nowhere(elsewhere).await, limited(elsewhere).await] {
        assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
        assert_eq!(answer.header("vary"), Some("Origin"), "{answer:?}");
    }
}

/// This also holds for cached answers.
async fn a_range_request_gets_the_whole_answer(client: &Client) {
    let part = ("range", "bytes=0-1");
    for path in ["/v1/products/cd", "/openapi.json", "/"] {
        let whole = client.get(path).await;
        for _ in 0..2 {
            let answer = client.get_with(path, &[part]).await;
            assert_eq!((answer.status.as_u16(), answer.header("accept-ranges")), (200, None), "{path}");
            assert_eq!(answer.text, whole.text, "{path}");
        }
    }
}

async fn what_the_edge_refuses_is_a_problem_that_names_the_request(stack: &Stack) {
    let long = "a".repeat(20_000);
    let many: String = (0..110).map(|n| format!("prefer: wait=0\r\nx-{n}: 1\r\n")).collect();
    let large: String = (0..9).map(|n| format!("x-{n}: {}\r\n", "a".repeat(9_000))).collect();
    let (announced, none) = ("content-length: 5000000\r\n", "content-length: 0\r\n");
    let cases = [
        ("GET /v1 HTTP/1.1", "", 404, "not-found"),
        ("POST /problems HTTP/1.1", none, 404, "not-found"),
        ("GET /docs/ HTTP/1.1", "", 404, "not-found"),
        ("GET /edge/problem/502 HTTP/1.1", "", 404, "not-found"),
        ("GET /metrics HTTP/1.0", "", 404, "not-found"),
        ("POST /v1/products/../commands HTTP/1.1", none, 400, "invalid-request"),
        ("GET /v1/products/%2E%2e HTTP/1.1", "", 400, "invalid-request"),
        ("GET /v1//products HTTP/1.1", "", 400, "invalid-request"),
        ("POST /v1/%63ommands HTTP/1.1", none, 400, "invalid-request"),
        ("GET /v1/products/a%2fb HTTP/1.1", "", 400, "invalid-request"),
        ("GET /v1/products/a%00 HTTP/1.1", "", 400, "invalid-request"),
        ("GET /v1/products/cd HTTP/1.1", "x\u{1}: 1\r\n", 400, "invalid-request"),
        // These two have a `Prefer` header, so the edge passes them on and the service cannot parse them.
        ("GET /v1/products/cd HTTP/1.1", "prefer: wait=0\r\nx: \u{1}\r\n", 400, "invalid-request"),
        ("GET /v1/products/cd HTTP/1.1", &many, 431, "invalid-request"),
        ("GET /v1/products/cd HTTP/1.1", &large, 431, "invalid-request"),
        (&format!("GET /v1/products/{long} HTTP/1.1"), "", 414, "invalid-request"),
        (&format!("GET /v1{}/../x HTTP/1.1", "/a".repeat(7_000)), "", 400, "invalid-request"),
        // An empty condition is invalid; ignoring it would execute the command unconditionally.
        ("POST /v1/products/cd/discontinue HTTP/1.1", "content-length: 0\r\nif-match:\r\n", 400, "invalid-request"),
        (
            "POST /v1/products/cd/discontinue HTTP/1.1",
            "content-length: 0\r\nif-none-match:\r\n",
            400,
            "invalid-request",
        ),
        (
            "POST /v1/products/cd/discontinue HTTP/1.1",
            "content-length: 0\r\nidempotency-key:\r\n",
            400,
            "invalid-request",
        ),
        ("GET /v1/products/cd HTTP/1.1", "if-match:\r\n", 400, "invalid-request"),
        ("POST /v1/products/cd/restock HTTP/1.1", announced, 413, "too-large"),
        ("POST /v1/products/cd/restock HTTP/1.1", "transfer-encoding: x\r\n", 501, "invalid-request"),
        ("POST / HTTP/1.1", none, 405, "method-not-allowed"),
        ("TRACE /v1/products/cd HTTP/1.1", "", 405, "method-not-allowed"),
        ("CONNECT /v1/products/cd HTTP/1.1", "", 405, "method-not-allowed"),
        ("GET / HTTP/1.1", "if-match: \"1\"\r\n", 412, "precondition-failed"),
        ("GET / HTTP/3.0", "", 505, "invalid-request"),
        ("GARBAGE", "", 400, "invalid-request"),
    ];
    for (line, headers, status, slug) in cases {
        let head = format!("{line}\r\nhost: a\r\nconnection: close\r\nx-request-id: r-1\r\n{headers}\r\n");
        let answer = ask(stack.addr(), &head).await;
        let shown = &head[..head.len().min(200)];
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head for {shown}: {answer:?}"));
        let head = head.to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert_eq!(head.split(' ').nth(1), Some(&*status.to_string()), "{shown}: {answer}");
        assert_eq!(header("content-type"), Some("application/problem+json"), "{shown}: {answer}");
        assert_eq!(header("x-content-type-options"), Some("nosniff"), "{shown}: {answer}");
        // A body without a length arrives in one chunk.
        let json = &body[body.find('{').unwrap_or_default()..=body.rfind('}').unwrap_or_default()];
        let problem: Value = serde_json::from_str(json).unwrap_or_else(|_| panic!("{shown}: {answer}"));
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{shown}");
        assert_eq!(
            (&problem["status"], problem["request_id"].as_str()),
            (&json!(status), header("x-request-id")),
            "{shown}: {answer}"
        );
        if status == 413 {
            let key: Uuid = header("idempotency-key").unwrap().parse().unwrap();
            assert_eq!(key.get_version_num(), 7);
        }
    }
}

async fn a_clients_own_request_id_is_kept(stack: &Stack) {
    let kept = ask(stack.addr(), "GET /v1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-request-id: r-1\r\n\r\n").await;
    assert!(kept.contains("X-Request-Id: r-1\r\n"), "{kept}");
}

/// Sends a head unchanged and returns the answer up to the end of its problem, because the edge may wait for the rest
/// of a request that it refused.
async fn ask(addr: SocketAddr, head: &str) -> String {
    let mut stream = TcpSocket::new_v4().unwrap().connect(addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let is_whole = |answer: &[u8]| answer.ends_with(b"}\n") || answer.ends_with(b"\r\n0\r\n\r\n");
        while !is_whole(&answer) && stream.read_buf(&mut answer).await.unwrap() > 0 {}
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("no answer to {head}"));
    String::from_utf8_lossy(&answer).into_owned()
}

async fn a_stranger_is_limited_by_the_class_of_its_requests(stack: &Stack) {
    let stranger = Client::from([127, 0, 0, 2], &format!("http://{}", stack.addr()));
    for path in ["/v1/products/cd/history", "/v1/views/product", "/v1/products/cd/reserve", "/v1/commands"] {
        let ask = async |client: &Client| match path {
            "/v1/commands" => client.post_raw(path, &[("content-type", "application/x-ndjson")], "").await,
            "/v1/products/cd/reserve" => client.post(path, json!({})).await,
            _ => client.get(path).await,
        };
        let mut answers = Vec::new();
        for _ in 0..20 {
            answers.push(ask(&stranger).await);
            assert_ne!(ask(&stack.client()).await.status, 429, "{path}");
        }
        assert_ne!(answers[0].status, 429, "{path}");
        let refused = answers.into_iter().find(|answer| answer.status == 429);
        let refused = refused.unwrap_or_else(|| panic!("{path} is limited")).problem(429, "rate-limited", "");
        assert_eq!(refused.header("retry-after"), Some("1"), "{refused:?}");
        // Each class has its own limit.
        assert_eq!(stranger.get("/v1/products/cd").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_watch_is_a_moment_old_and_costs_the_read_tier_no_more_than_a_query_in_80_ms() {
    let stack = Stack::up_with(&[]).await;
    let client = stack.client();
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    let token = client.post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]).token();
    client.is_stored(&token).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = (0..WATCHERS).map(|_| tokio::spawn(watch(client.clone(), is_over.clone()))).collect();

    what_many_watch_costs_little(&stack).await;
    what_many_watch_is_a_moment_old(&client).await;
    is_over.store(true, Ordering::Relaxed);
    for watcher in watchers {
        watcher.await.unwrap();
    }
    commands_are_routed_to_their_owners(&stack).await;
    stack.kill("command-api-1").await;
    commands_are_routed_to_their_owners(&stack).await;
}

/// Returns the sum of a metric over several services.
async fn sum(admins: &[Client], name: &str) -> u64 {
    let mut sum = 0;
    for admin in admins {
        let metrics = admin.get("/metrics").await.text;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        sum += value.map_or(0, |value| value.parse::<u64>().unwrap());
    }
    sum
}

/// Asserts that the edge routes commands directly to their owners once it knows them, also after they have changed.
async fn commands_are_routed_to_their_owners(stack: &Stack) {
    const COMMANDS: u64 = 200;
    let client = stack.client();
    let send = async || {
        for n in 0..COMMANDS {
            let (path, product) =
                (format!("/v1/products/led-{}/register", n % 50), json!({ "name": "A", "price_cents": 1, "stock": 1 }));
            let answer = client.post(&path, product).await;
            assert_eq!(answer.header("stampede-owner"), None, "the edge exposed an internal header");
            if answer.status == 503 {
                return None;
            }
        }
        Some(())
    };
    let admins = [stack.admin_client("command-api-1").await, stack.admin_client("command-api-2").await];
    let forwarded = async || sum(&admins, "stampede_commands_forwarded_total").await;
    let led = eventually("the edge knows the owners", async || {
        let before = forwarded().await;
        send().await?;
        let passed_on = forwarded().await.checked_sub(before)?;
        (passed_on <= COMMANDS / 20).then_some(passed_on)
    });
    println!("{} of {COMMANDS} commands were forwarded", led.await);
}

const WATCHED: &str = "/v1/products/cd";
const WATCHERS: u64 = 8;

async fn watch(client: Client, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        assert_eq!(client.get(WATCHED).await.status, 200);
    }
}

/// Besides one query in 80 ms, each watcher may cause one: after a pause of the machine for a second, nothing is
/// cached.
async fn what_many_watch_costs_little(stack: &Stack) {
    let admins = [stack.admin_client("query-api-1").await, stack.admin_client("query-api-2").await];
    let of_rows = "stampede_queries_total{route=\"/v1/products/{id}\",status=\"200\"}";
    let answered = async || sum(&admins, of_rows).await;
    let (begun, before) = (Instant::now(), answered().await);
    let cost = eventually("cached answers are refreshed often", async || {
        let cost = answered().await - before;
        (cost > 2 * WATCHERS).then_some(cost)
    })
    .await;
    let elapsed = begun.elapsed();
    println!("{cost} queries in {elapsed:?}");
    assert!(u128::from(cost.saturating_sub(WATCHERS)) <= elapsed.as_millis() / 80, "{cost} queries in {elapsed:?}");
}

/// Measures the age from the moment the read tier shows the change. A busy machine may be late occasionally, but not
/// half of the time.
async fn what_many_watch_is_a_moment_old(client: &Client) {
    let mut ages = Vec::new();
    for available in 2..=21 {
        let restock = json!({ "quantity": 1 });
        client.post("/v1/products/cd/restock", restock).await.accepted(&["product.restocked.v1"]);
        // Postgres may answer a query with a token before Redis shows the change.
        for headers in [&[("prefer", "wait=0")][..], &[]] {
            let shown = Instant::now();
            eventually("the change is shown", async || {
                let answer = client.get_with(WATCHED, headers).await;
                (answer.json()["data"]["available"] == available).then_some(())
            })
            .await;
            if headers.is_empty() {
                ages.push(shown.elapsed());
            }
        }
    }
    ages.sort_unstable();
    println!("visible to everybody after {ages:?}");
    assert!(ages[ages.len() / 2] < Duration::from_millis(400), "{ages:?}");
}

async fn the_access_log_has_every_error_and_no_secret(stack: &Stack) {
    let client = stack.client();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("authorization", "Bearer hidden-token"),
        ("idempotency-key", "hidden-key"),
        ("traceparent", trace),
        ("user-agent", &*"x\"".repeat(500)),
        ("x-request-id", "logged"),
    ];
    // A rush of answers, and of errors of which none is common.
    for number in 0..300 {
        client.get_with("/v1/products/cd", &[("x-request-id", &*format!("rush-{number}"))]).await;
        client.get_with("/v1/products/a%2fb", &[("x-request-id", &*format!("wrong-{number}"))]).await;
    }
    let lines_of = |name: &str| -> Vec<Value> {
        let text = stack.text_of_log("access");
        // The last line may be incomplete.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let lines =
            lines.map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}")));
        lines.filter(|line| line["request_id"].as_str().unwrap().starts_with(name)).collect()
    };
    eventually("every error has its line", async || (lines_of("wrong-").len() == 300).then_some(())).await;
    let lines = lines_of("rush-");
    let counted: u64 = lines.iter().map(|line| line["stands_for"].as_u64().unwrap()).sum();
    assert!((1..250).contains(&lines.len()) && counted < 400, "{} lines for {counted} requests", lines.len());
    // Until a second begins in which not all lines are taken.
    let line = eventually("the request has a line", async || {
        client.post_with("/v1/products/cd/restock?of=hidden", &headers, json!({ "quantity": 1 })).await;
        lines_of("logged").pop()
    })
    .await;
    for (field, expected) in [
        ("traceparent", json!(trace)),
        ("method", json!("POST")),
        ("path", json!("/v1/products/cd/restock")),
        ("status", json!(200)),
        ("client", json!("127.0.0.0")),
        ("agent", json!("x\"".repeat(60))),
    ] {
        assert_eq!(line[field], expected, "{field}: {line}");
    }
    // A command without a trace gets one, which its event keeps.
    let line = eventually("the request has a line", async || {
        let named = [("x-request-id", "untraced")];
        client.post_with("/v1/products/cd/restock", &named, json!({ "quantity": 1 })).await;
        lines_of("untraced").pop()
    })
    .await;
    let trace = line["traceparent"].as_str().unwrap().to_owned();
    assert!(trace.len() == 55 && trace.starts_with("00-") && trace.ends_with("-01"), "{line}");
    let answer = client.post("/v1/products/cd/restock", json!({ "quantity": 1 })).await;
    let token = answer.token();
    let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
    let history = client.get_with("/v1/products/cd/history", &fresh).await.json();
    let traces: Vec<_> = history.as_array().unwrap().iter().map(|event| event["traceparent"].as_str()).collect();
    assert!(traces.contains(&Some(&trace)) && traces.iter().all(Option::is_some), "{traces:?}");
    let text = stack.text_of_log("access");
    assert!(!text.contains("hidden"), "{text}");
    assert!(line["seconds"].is_number() && line["stands_for"].is_u64(), "{line}");
    assert!(line["upstream"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
}

async fn requests_with_credentials_bypass_the_cache(client: &Client) {
    let path = "/v1/products/cd";
    eventually("answers without credentials are cached", async || {
        (client.get(path).await.header("x-cache") == Some("HIT")).then_some(())
    })
    .await;
    for header in [("authorization", "Bearer a"), ("cookie", "a=1")] {
        assert_eq!(client.get_with(path, &[header]).await.header("x-cache"), Some("BYPASS"), "{header:?}");
    }
    let elsewhere = client.get_with(path, &[("origin", "http://elsewhere.example")]).await;
    assert_ne!(elsewhere.header("x-cache"), Some("HIT"), "a cached answer may carry another page's origin");
}

/// Checks that the edge serves the API descriptions, and that the page loads resources only from the system itself.
async fn the_api_descriptions_are_served(client: &Client) {
    for (path, media_type, member) in [
        ("/openapi.json", "application/json", "openapi"),
        ("/asyncapi.json", "application/json", "asyncapi"),
        ("/schemas/order.placed.v1.json", "application/schema+json", "$schema"),
    ] {
        let answer = client.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some(media_type)), "{path}");
        assert!(answer.json()[member].is_string(), "{path}");
    }
    client.get("/schemas/order.placed.v9.json").await.problem(404, "not-found", "");
    for path in ["/docs", "/docs?api=log"] {
        let page = client.get(path).await;
        assert_eq!((page.status.as_u16(), page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let policies: Vec<_> = page.headers.get_all("content-security-policy").iter().collect();
        let [policy] = &*policies else { panic!("the page has more than one policy: {page:?}") };
        let policy = policy.to_str().unwrap();
        let mut sources = policy.split(';').flat_map(|directive| directive.split_whitespace().skip(1));
        assert!(policy.starts_with("default-src 'self'; script-src 'self'; "), "{policy}");
        assert!(policy.ends_with("frame-ancestors 'none'"), "{policy}");
        let known = ["'self'", "'none'", "'unsafe-inline'", "data:", "blob:"];
        assert!(sources.all(|source| known.contains(&source)), "{policy}");
    }
    let viewer = client.get("/docs/viewer.js").await;
    assert_eq!(viewer.header("content-type"), Some("text/javascript; charset=utf-8"));
}
