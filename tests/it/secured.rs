//! A stack with TLS on every wire of HTTP, as `cargo stack up --secure` starts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use tokio::task::JoinHandle;

use crate::fixture::{Client, by_http2, eventually};
use crate::stack::Stack;
use crate::wires::Wires;

/// A port whose certificate is examined.
struct Port {
    port: u16,
    tls: chassis::tls::ClientTls,
}

impl Port {
    /// Returns the certificate that is presented.
    async fn certificate(&self) -> Vec<u8> {
        let chassis::tls::Connection::Right(stream) =
            chassis::tls::connect("127.0.0.1", self.port, Some(&self.tls)).await.unwrap()
        else {
            panic!("a connection by TLS was asked for");
        };
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secured_stack_serves_sells_and_replaces_its_secrets_without_a_failed_request() {
    let options = ["--secure", "--query-apis", "1", "--projectors", "1", "--payment-window", "3"];
    let stack = Stack::up_with(&options).await;
    let edge = Client::trusting(&stack.authority(), &format!("https://{}", stack.addr()));
    let (path, staff) = ("/v1/products/cd/register", stack.staff());
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 100_000 });
    let answer = edge.post_with(path, &[("authorization", &staff)], registered).await;
    let answer = answer.accepted(&["product.registered.v1"]);
    let answer = edge.get_with("/v1/products/cd", &[("consistency-token", &answer.token())]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=31536000"));

    nobody_gets_in_without_tls_or_with_another_authority(&stack).await;
    // The first reader without a token: its request is the one that is shared.
    let row = by_http2(&stack.authority(), stack.addr(), "/v1/products/cd").await;
    assert_eq!(edge.get("/v1/products/cd").await.text, row);
    instances_forward_commands_by_tls(&stack).await;
    let sale = ["sale", "--buyers", "100", "--units", "20", "--watchers", "5", "--connections", "8"];
    let sold = stack.told(&sale).await;
    assert!(sold.contains("All checks passed."), "{sold}");
    certificates_are_renewed_without_a_failed_request(&stack).await;
    the_accounts_reach_a_grown_log(&stack, &edge).await;
    passwords_and_the_authority_are_replaced_without_a_failed_request(&stack).await;
    let audit = stack.told(&["audit"]).await;
    assert!(audit.contains("differences  0"), "{audit}");
}

async fn the_accounts_reach_a_grown_log(stack: &Stack, edge: &Client) {
    println!("{}", stack.told(&["grow", "--partitions", "24"]).await);
    let (path, staff) = ("/v1/products/cd/restock", stack.staff());
    let answer = edge.post_with(path, &[("authorization", &staff)], json!({ "quantity": 1 })).await;
    let token = answer.accepted(&["product.restocked.v1"]).token();
    // The projectors of the grown log have just replaced those that prepared it.
    eventually("the views show the command", async || {
        let answer = edge.get_with("/v1/products/cd", &[("consistency-token", &token)]).await;
        (answer.status == 200).then_some(())
    })
    .await;
    let reads = stack.admin_client("query-api-1").await.get("/metrics").await.text;
    let is_by_redis = |line: &str| line.starts_with("stampede_reads_total") && line.contains(r#"origin="redis""#);
    assert!(reads.lines().any(is_by_redis), "{reads}");
}

async fn nobody_gets_in_without_tls_or_with_another_authority(stack: &Stack) {
    let plain = Client::new(&format!("http://{}", stack.addr()));
    plain.get("/v1/products/cd").await.problem(400, "invalid-request", "");
    for (process, listener) in [("command-api-1", "http"), ("command-api-1", "internal"), ("query-api-1", "http")] {
        let port = stack.port(process, listener).await;
        let url = |scheme| format!("{scheme}://127.0.0.1:{port}");
        let path = "/openapi.json";
        let status = Client::trusting(&stack.authority(), &url("https")).get(path).await.status;
        assert_eq!(status, if listener == "internal" { 401 } else { 200 }, "{process} {listener}");
        assert!(Client::new(&url("http")).try_get(path).await.is_err(), "{process} {listener}");
        // The tests' usual client trusts nobody.
        assert!(Client::new(&url("https")).try_get(path).await.is_err(), "{process} {listener}");
    }
}

async fn instances_forward_commands_by_tls(stack: &Stack) {
    for instance in ["command-api-1", "command-api-2"] {
        let url = format!("https://127.0.0.1:{}", stack.port(instance, "http").await);
        let client = Client::trusting(&stack.authority(), &url);
        for n in 0..20 {
            let registered = json!({ "name": "A", "price_cents": 1, "stock": n });
            let path = format!("/v1/products/{instance}-{n}/register");
            let answer = client.post_with(&path, &[("authorization", &stack.staff())], registered).await;
            answer.accepted(&["product.registered.v1"]);
        }
        let metrics = stack.admin_client(instance).await.get("/metrics").await.text;
        assert!(metrics.contains("stampede_commands_forwarded_total"), "{instance} forwarded nothing: {metrics}");
    }
}

async fn certificates_are_renewed_without_a_failed_request(stack: &Stack) {
    let tls = chassis::tls::client(Some(&stack.authority())).unwrap();
    let mut ports = vec![Port { port: stack.addr().port(), tls: tls.clone() }];
    for (process, listener) in [("command-api-1", "http"), ("command-api-2", "internal"), ("query-api-1", "http")] {
        ports.push(Port { port: stack.port(process, listener).await, tls: tls.clone() });
    }
    let mut before = Vec::new();
    for port in &ports {
        before.push(port.certificate().await);
    }
    let load = Load::start(stack);
    stack.tell(&["renew"]).await;
    for (port, before) in ports.iter().zip(before) {
        eventually("the new certificate is presented", async || (port.certificate().await != before).then_some(()))
            .await;
    }
    load.end().await;
}

async fn passwords_and_the_authority_are_replaced_without_a_failed_request(stack: &Stack) {
    let before = stack.state().join("before");
    std::fs::create_dir_all(before.join("certificates")).unwrap();
    let files = ["owner", "command-api", "query-api", "projector"].map(|account| format!("password-{account}"));
    for file in files.iter().map(String::as_str).chain(["certificates/authority.pem"]) {
        std::fs::copy(stack.state().join(file), before.join(file)).unwrap();
    }
    let load = Load::start(stack);
    stack.tell(&["renew", "--passwords", "--authority"]).await;
    let edge = format!("https://{}", stack.addr());
    eventually("the edge's certificate is of the new authority", async || {
        let earlier = Client::trusting(&before.join("certificates/authority.pem"), &edge);
        earlier.try_get("/v1/views").await.err().map(drop)
    })
    .await;
    load.end().await;
    // The servers' own certificates are still of the authority before.
    Wires::at(before).are_refused().await;
}

/// A client that restocks a product and then looks at it, each time on a connection of its own: an edge that reads its
/// certificate closes those that are idle, and a request may be on its way on one of them.
struct Load {
    over: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    running: JoinHandle<()>,
}

impl Load {
    fn start(stack: &Stack) -> Self {
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (url, authority, staff) = (format!("https://{}", stack.addr()), stack.authority(), stack.staff());
        let running = tokio::spawn({
            let (over, count) = (over.clone(), count.clone());
            async move {
                while !over.load(Ordering::Relaxed) {
                    let client = Client::trusting(&authority, &url);
                    let (once, staff) = (("connection", "close"), ("authorization", staff.as_str()));
                    let restock = json!({ "quantity": 1 });
                    let token = client.post_with("/v1/products/cd/restock", &[once, staff], restock).await;
                    let token = token.accepted(&["product.restocked.v1"]).token();
                    // The views stand still while one projector takes over from another.
                    let headers = [once, ("consistency-token", token.as_str()), ("prefer", "wait=10")];
                    let answer = client.get_with("/v1/products/cd", &headers).await;
                    assert_eq!(answer.status, 200, "{answer:?}");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { over, count, running }
    }

    /// Asserts that requests go on and that none has failed.
    async fn end(self) {
        let before = self.count.load(Ordering::Relaxed);
        eventually("requests go on", async || {
            let is_over = self.running.is_finished() || self.count.load(Ordering::Relaxed) > before + 20;
            is_over.then_some(())
        })
        .await;
        self.over.store(true, Ordering::Relaxed);
        self.running.await.expect("no request failed");
    }
}
