//! Upper bound for a query server: one Redis `GET` over one connection that all requests share, or one prepared
//! statement over a pool as large as the product's, or only memory, and an answer with the same bytes and headers.
//!
//! `ADDRESS`, `REDIS_URL`, `DATABASE_URL`. `POST /prime` sets the row to answer with.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use chassis::redis::Connection;
use deadpool_postgres::Pool;
use peers::setting;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "limit-read";
/// Size of the pool, the same as the product's.
const CONNECTIONS: usize = 16;

#[derive(Clone)]
struct App {
    redis: Connection,
    memory: Arc<OnceLock<Bytes>>,
    postgres: Pool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let address = setting::required("ADDRESS")?;
    let redis = chassis::redis::connect(&setting::required("REDIS_URL")?.as_str().into())?;
    let url = setting::required("DATABASE_URL")?.as_str().into();
    let postgres = chassis::postgres::pool(&url, "", CONNECTIONS, "limit-read")?;
    let routes = Router::new()
        .route("/readyz", get(async || "ready"))
        .route("/prime", post(prime))
        .route("/v1/products/{id}", get(from_redis))
        .route("/postgres/{id}", get(from_postgres))
        .route("/memory/{id}", get(from_memory))
        .with_state(App { redis, postgres, memory: Arc::default() });
    let listener = tokio::net::TcpListener::bind(&address).await.with_context(|| format!("cannot bind {address}"))?;
    Ok(axum::serve(listener, routes).await?)
}

async fn prime(State(mut app): State<App>, row: Bytes) -> Response {
    let set: Result<(), _> = redis::cmd("SET").arg(KEY).arg(&row[..]).query_async(&mut app.redis).await;
    app.memory.get_or_init(|| row);
    if set.is_ok() { StatusCode::OK.into_response() } else { StatusCode::SERVICE_UNAVAILABLE.into_response() }
}

async fn from_redis(State(mut app): State<App>, Path(_): Path<String>) -> Response {
    let found: Result<Option<Vec<u8>>, _> = redis::cmd("GET").arg(KEY).query_async(&mut app.redis).await;
    match found {
        Ok(Some(row)) => answer(row.into()),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn from_memory(State(app): State<App>, Path(_): Path<String>) -> Response {
    app.memory.get().map_or_else(|| StatusCode::NOT_FOUND.into_response(), |row| answer(row.clone()))
}

async fn from_postgres(State(app): State<App>, Path(id): Path<String>) -> Response {
    let found = async {
        let client = app.postgres.get().await.ok()?;
        let select = "SELECT version, data::text FROM view_product WHERE key = $1";
        let statement = client.prepare_cached(select).await.ok()?;
        client.query_opt(&statement, &[&id]).await.ok()
    };
    match found.await {
        Some(Some(row)) => {
            let (version, data): (i64, &str) = (row.get(0), row.get(1));
            answer(format!("{{\"key\":\"{id}\",\"version\":{version},\"data\":{data}}}").into())
        }
        Some(None) => StatusCode::NOT_FOUND.into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Returns an answer with as many headers as the product's, of the same length.
fn answer(row: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::ETAG, HeaderValue::from_static("\"1\"")),
        (HeaderName::from_static("consistency-token"), HeaderValue::from_static("gg61.10-1234")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=0, s-maxage=1, stale-while-revalidate=1")),
        (header::VARY, HeaderValue::from_static("Consistency-Token, Prefer")),
    ];
    (headers, row).into_response()
}
