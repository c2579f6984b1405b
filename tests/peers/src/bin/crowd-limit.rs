//! Upper bound for a flash sale's server: it decides claims in memory under the product's own rules, answers at once,
//! and serves pages of the current state. It writes nothing and guarantees nothing beyond the life of its process.
//!
//! `ADDRESS`, `UNITS`, `LIMIT_PER_CUSTOMER`. It has one thread, like the crowd.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use peers::body::Claim;
use peers::setting;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static("consistency-token");

struct Sale {
    units: u64,
    limit_per_customer: usize,
    claims: Mutex<Claims>,
}

#[derive(Default)]
struct Claims {
    count: u64,
    /// Order and version of each claim, by customer.
    of: HashMap<String, Vec<(String, u64)>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let address = setting::required("ADDRESS")?;
    let units = setting::or("UNITS", 10_000)?;
    let limit_per_customer = setting::or("LIMIT_PER_CUSTOMER", 2)?;
    let sale = Arc::new(Sale { units, limit_per_customer, claims: Mutex::default() });
    let listener = TcpListener::bind(&address).await.with_context(|| format!("cannot bind {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sale = sale.clone();
        let service = service_fn(move |request| {
            let sale = sale.clone();
            async move { Ok::<_, Infallible>(sale.answer(request).await) }
        });
        // An error affects only the connection's own client, which sees it.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl Sale {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            return self.page(&head.headers);
        }
        let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else {
            return response(StatusCode::BAD_REQUEST, "");
        };
        let Ok(claim) = serde_json::from_slice::<Claim>(&body) else {
            return response(StatusCode::BAD_REQUEST, "");
        };
        let mut answer = self.claim(head.uri.path().split('/').nth(3).unwrap_or_default(), &claim);
        if let Some(key) = head.headers.get(IDEMPOTENCY_KEY) {
            answer.headers_mut().insert(IDEMPOTENCY_KEY, key.clone());
        }
        answer
    }

    /// Handles a request; `id` is that of the sale.
    fn claim(&self, id: &str, claim: &Claim<'_>) -> Response<Full<Bytes>> {
        let version = match self.decide(claim) {
            Ok(version) => version,
            Err(rejection) => {
                let text = format!(
                    r#"{{"type":"/problems/rejected","title":"The command was rejected by the rules","status":422,"detail":"the command was rejected: {rejection}","rejection":"{rejection}","state":"open"}}"#
                );
                return response(StatusCode::UNPROCESSABLE_ENTITY, text);
            }
        };
        let (order, token) = (claim.order, token(version));
        let text = format!(
            r#"{{"id":"{id}","version":{version},"events":["sale.claimed.v1"],"token":"{token}","order":"{id}~{order}"}}"#
        );
        with_position(response(StatusCode::OK, text), version)
    }

    /// Returns the version of an accepted claim. A repeat returns the same version.
    fn decide(&self, claim: &Claim<'_>) -> Result<u64, &'static str> {
        let mut claims = self.claims.lock().expect("no holder of the lock panics");
        let own = claims.of.get(claim.customer).map_or(&[][..], Vec::as_slice);
        if let Some((_, version)) = own.iter().find(|(order, _)| order == claim.order) {
            return Ok(*version);
        }
        if own.len() == self.limit_per_customer {
            return Err("over_limit");
        }
        if claims.count == self.units {
            return Err("sold_out");
        }
        claims.count += 1;
        let version = claims.count;
        claims.of.entry(claim.customer.to_owned()).or_default().push((claim.order.to_owned(), version));
        Ok(version)
    }

    /// Returns a page with the number of claims, or 304 to a reader that has it already.
    fn page(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let (units, claimed) = (self.units, self.claims.lock().expect("no holder of the lock panics").count);
        let known = headers.get(IF_NONE_MATCH).is_some_and(|tag| *tag == etag(claimed));
        if known {
            return with_position(response(StatusCode::NOT_MODIFIED, ""), claimed);
        }
        let left = units - claimed;
        let text = format!(
            r#"{{"version":{claimed},"data":{{"status":"open","units":{units},"claimed":{claimed},"left":{left}}}}}"#
        );
        with_position(response(StatusCode::OK, text), claimed)
    }
}

fn response(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn with_position(mut response: Response<Full<Bytes>>, version: u64) -> Response<Full<Bytes>> {
    response.headers_mut().insert(ETAG, etag(version));
    response.headers_mut().insert(CONSISTENCY_TOKEN, value(token(version)));
    response
}

fn etag(version: u64) -> HeaderValue {
    value(format_args!("\"{version}\""))
}

fn token(version: u64) -> String {
    format!("gg61.0-{version}")
}

fn value(text: impl Display) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).expect("digits, letters and punctuation")
}
