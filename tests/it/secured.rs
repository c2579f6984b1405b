//! A stack with TLS on every wire of HTTP, as `cargo stack up --secure` starts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;

use crate::fixture::{Client, by_http2, eventually};
use crate::stack::Stack;

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
async fn a_secured_stack_serves_sells_and_renews_its_certificates_without_a_failed_request() {
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
    let audit = stack.told(&["audit"]).await;
    assert!(audit.contains("differences  0"), "{audit}");
}

async fn the_accounts_reach_a_grown_log(stack: &Stack, edge: &Client) {
    println!("{}", stack.told(&["grow", "--partitions", "24"]).await);
    let (path, staff) = ("/v1/products/cd/restock", stack.staff());
    let answer = edge.post_with(path, &[("authorization", &staff)], json!({ "quantity": 1 })).await;
    let token = answer.accepted(&["product.restocked.v1"]).token();
    let answer = edge.get_with("/v1/products/cd", &[("consistency-token", &token)]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
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
    let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = tokio::spawn({
        let (over, count, url, authority) =
            (over.clone(), count.clone(), format!("https://{}", stack.addr()), stack.authority());
        let staff = stack.staff();
        async move {
            while !over.load(Ordering::Relaxed) {
                // A client of its own for each round, and so a new connection.
                let client = Client::trusting(&authority, &url);
                let staff = [("authorization", staff.as_str())];
                let token = client.post_with("/v1/products/cd/restock", &staff, json!({ "quantity": 1 })).await;
                let token = token.accepted(&["product.restocked.v1"]).token();
                let answer = client.get_with("/v1/products/cd", &[("consistency-token", &token)]).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    stack.tell(&["renew"]).await;
    for (port, before) in ports.iter().zip(before) {
        eventually("the new certificate is presented", async || (port.certificate().await != before).then_some(()))
            .await;
    }
    let renewed = count.load(Ordering::Relaxed);
    eventually("requests go on", async || (count.load(Ordering::Relaxed) > renewed + 20).then_some(())).await;
    over.store(true, Ordering::Relaxed);
    load.await.expect("no request failed");
}
