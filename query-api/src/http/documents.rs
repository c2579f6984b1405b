//! Descriptions of the HTTP interface and of the log, and a page that shows both: `/docs`, and `/docs?api=log`.
//!
//! The page loads nothing from other hosts: its viewer is part of the build, and its policy forbids the rest.

use axum::Router;
use chassis::document;
use schemas::contracts::{ASYNCAPI, OPENAPI, json_schema, schema_path};

const PAGE: &str = include_str!("documents/docs.html");
const SCRIPT: &str = include_str!("documents/docs.js");
/// Content security policy of the page: it loads from and sends to its own origin only. The viewer adds inline styles.
const POLICY: &str = "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let viewer = scalar_api_reference::get_asset("scalar.js").expect("the crate carries its viewer");
    let mut router = Router::new()
        .route("/openapi.json", document::serve("application/json", OPENAPI))
        .route("/asyncapi.json", document::serve("application/json", ASYNCAPI))
        .route("/docs", document::serve_page(POLICY, PAGE))
        .route("/docs/page.js", document::serve("text/javascript; charset=utf-8", SCRIPT))
        .route("/docs/viewer.js", document::serve("text/javascript; charset=utf-8", viewer));
    for (name, schema) in json_schema::events() {
        router = router.route(&schema_path(name), document::serve("application/schema+json", schema.to_string()));
    }
    router
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Duration;

    use chassis::border::Border;
    use chassis::http::Limits;
    use chassis::shutdown::Shutdown;
    use schemas::events::NAMES;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn each_document_is_served() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let limits = Limits::new(Duration::from_secs(5));
        let server = tokio::spawn(chassis::http::serve(listener, routes(), Border::plain(), limits, shutdown.clone()));
        let asked = tokio::task::spawn_blocking(move || {
            let paths = ["/openapi.json", "/asyncapi.json", "/docs", "/docs/page.js", "/docs/viewer.js"];
            let paths = paths.map(str::to_owned);
            for path in paths.into_iter().chain(NAMES.map(schema_path)) {
                let mut stream = TcpStream::connect(address).unwrap();
                write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(head.starts_with("HTTP/1.1 200") && head.contains("etag: "), "{path}: {head}");
                assert!(!body.is_empty(), "{path}");
                assert_eq!(head.contains("content-security-policy: "), path == "/docs", "{path}: {head}");
            }
        });
        asked.await.unwrap();
        shutdown.trigger();
        server.await.unwrap();
    }

    #[test]
    fn the_page_shows_both_descriptions_and_names_no_other_server() {
        for text in [PAGE, SCRIPT] {
            assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("\"//"));
        }
        assert!(SCRIPT.contains("url: '/openapi.json'") && SCRIPT.contains("url: '/asyncapi.json'"));
    }
}
