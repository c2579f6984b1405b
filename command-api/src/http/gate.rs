//! Early refusal of commands, before routing. Refusing must cost less than anything else; otherwise an overloaded
//! service would do nothing else.

use axum::http::{HeaderMap, Method};
use axum::response::Response;
use schemas::aggregate::type_routed;
use schemas::idempotency::IdempotencyKey;

use super::{HttpState, Listener, answers, commands, headers};

/// Refuses a single command for which there is no place. Returns `None` if its route is to answer, which may still
/// refuse it for lack of a place or for another reason.
pub(super) fn refuse(state: &HttpState, method: &Method, path: &str, headers: &HeaderMap) -> Option<Response> {
    if method != Method::POST || !state.has_no_place() || !is_command(path) {
        return None;
    }
    let key = headers::key(headers).ok()?.unwrap_or_else(IdempotencyKey::random);
    Some(answers::with_key(state.refused(), &key))
}

/// Returns whether the path names a command, by the rules of the route and of [`commands::take`]. Percent-encoded names
/// are left to them.
fn is_command(path: &str) -> bool {
    let mut parts = path.strip_prefix("/v1/").unwrap_or_default().splitn(3, '/');
    let (aggregates, _id, command) = (parts.next(), parts.next(), parts.next());
    let named = aggregates.and_then(type_routed).zip(command);
    named.is_some_and(|(aggregate, command)| commands::served(Listener::Public, aggregate, command).is_some())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use axum::Router;
    use chassis::border::{Border, Gate};
    use chassis::http::{Limits, serve};
    use chassis::shutdown::Shutdown;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::admission::tests::{all_command_places, http_state};
    use super::super::{border, public};

    const SOON: Duration = Duration::from_secs(10);
    const BODY: &str = "{\"quantity\":1}";

    async fn start(router: Router, border: Border) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, router, border, Limits::new(SOON), Shutdown::new()));
        address
    }

    /// Sends the head of a request, but not its body, and returns the answer.
    async fn ask(address: SocketAddr, line: &str, headers: &[&str]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let headers: String = headers.iter().flat_map(|header| [*header, "\r\n"]).collect();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: a\r\nx-request-id: of-the-test\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            BODY.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    /// Returns an answer's lines, sorted, without the date and with a placeholder for a generated key.
    fn lines(answer: &str) -> Vec<String> {
        let made = |line: &str| line.starts_with("idempotency-key: ") && line.len() == "idempotency-key: ".len() + 36;
        let lines = answer.split("\r\n").filter(|line| !line.starts_with("date: "));
        let lines = lines.map(|line| if made(line) { "idempotency-key: made" } else { line }.to_owned());
        let mut lines: Vec<_> = lines.collect();
        lines.sort_unstable();
        lines
    }

    #[tokio::test]
    async fn without_a_place_a_command_gets_its_routes_answer_before_routing() {
        let state = Arc::new(http_state());
        let _places = all_command_places(&state).await;
        let origins = || "https://shop.example".parse().unwrap();
        let gated = border(origins(), state.clone());
        let routes = start(public(state.clone()), Border { gate: Gate::default(), ..gated.clone() }).await;
        let gate = start(Router::new(), gated.clone()).await;
        let both = start(public(state.clone()), gated).await;
        let json = "content-type: application/json";
        let refused: [&[&str]; 6] = [
            &[json],
            &[json, "idempotency-key: order-17"],
            &[json, "idempotency-key: \"order-17\""],
            &[json, "idempotency-key: k", "idempotency-key: \"k\""],
            &[json, "origin: https://shop.example"],
            // Other errors in the request are not checked.
            &["content-type: application/xml", "if-match: 7", "content-encoding: gzip"],
        ];
        for headers in refused {
            for path in ["/v1/products/cd/reserve", "/v1/sales/drop/claim?now", "/v1/orders/a%2Db/place"] {
                let line = format!("POST {path}");
                let (expected, answer) = (ask(routes, &line, headers).await, ask(gate, &line, headers).await);
                assert!(
                    expected.starts_with("HTTP/1.1 503 ") && expected.contains("/problems/overloaded"),
                    "{expected}"
                );
                assert_eq!(lines(&answer), lines(&expected), "{line} {headers:?}");
            }
        }
        for (line, headers) in [
            ("POST /v1/products/cd/reserve", &[json, "idempotency-key: "][..]),
            ("POST /v1/products/cd/reserve", &[json, "idempotency-key: a", "idempotency-key: b"]),
            ("POST /v1/products/cd/reserve", &["origin: https://evil.example"]),
            (
                "OPTIONS /v1/products/cd/reserve",
                &["origin: https://shop.example", "access-control-request-method: POST"],
            ),
            ("GET /v1/products/cd/reserve", &[]),
            ("PUT /v1/products/cd/reserve", &[json]),
            ("POST /v1/products/cd/paint", &[json]),
            ("POST /v1/products/cd/commit", &[json]),
            ("POST /v1/products/cd/reserve/", &[json]),
            ("POST /v1/products//reserve", &[json]),
            ("POST /v1/product%73/cd/reserve", &[json]),
            ("POST /v1/products/%FF/reserve", &[json]),
            ("POST /v1/baskets/b/fill", &[json]),
            ("POST /v1/commands", &[json]),
            ("GET /problems/overloaded", &[]),
        ] {
            let (expected, answer) = (ask(routes, line, headers).await, ask(both, line, headers).await);
            assert_eq!(lines(&answer), lines(&expected), "{line} {headers:?}");
        }
    }
}
