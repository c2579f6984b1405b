//! The product aggregate on `cqrs-es` and `postgres-es`, behind the same server and routes.
//!
//! It has less to do than the product: no views, no list of the orders that hold units, no deduplication of repeated
//! commands.
//!
//! `ADDRESS`, `DATABASE_URL`, `STORAGE`: `events`, `snapshots` (default) or `aggregates`, as the framework names them.

mod product;

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cqrs_es::AggregateError;
use peers::body::{Register, Reserve};
use peers::setting;
use postgres_es::{PostgresCqrs, postgres_aggregate_cqrs, postgres_cqrs, postgres_snapshot_cqrs};
use sqlx::Executor as _;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::sync::Semaphore;

use product::{Command, Product};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Maximum number of connections; more gain nothing on a machine with few cores.
const CONNECTIONS: u32 = 32;
/// Maximum number of commands in flight. A command that has loaded its aggregate must not wait for a connection behind
/// others that have not: it would be certain to lose the race.
const TURNS: usize = 8;
/// Number of events between two snapshots.
const SNAPSHOT_EVERY: usize = 100;

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    cqrs: Arc<PostgresCqrs<Product>>,
    turns: Arc<Semaphore>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let address = setting::required("ADDRESS")?;
    let url = setting::required("DATABASE_URL")?;
    let pool =
        PgPoolOptions::new().max_connections(CONNECTIONS).connect(&url).await.context("cannot connect to Postgres")?;
    pool.execute(include_str!("tables.sql")).await.context("cannot create the tables")?;
    let of_queries = pool.clone();
    let cqrs = match setting::or("STORAGE", String::from("snapshots"))?.as_str() {
        "events" => postgres_cqrs(pool, vec![], ()),
        "snapshots" => postgres_snapshot_cqrs(pool, vec![], SNAPSHOT_EVERY, ()),
        "aggregates" => postgres_aggregate_cqrs(pool, vec![], ()),
        other => bail!("unknown storage {other:?}"),
    };
    let routes = Router::new()
        .route("/v1/products/{id}", get(read))
        .route("/v1/products/{id}/register", post(register))
        .route("/v1/products/{id}/reserve", post(reserve))
        .route("/readyz", get(async || "ready"))
        .with_state(Shop {
            pool: of_queries,
            cqrs: Arc::new(cqrs),
            turns: Arc::new(Semaphore::new(setting::or("TURNS", TURNS)?)),
        });
    let listener = tokio::net::TcpListener::bind(&address).await.with_context(|| format!("cannot bind {address}"))?;
    Ok(axum::serve(listener, routes).await?)
}

/// Reads one row by its key, like a view of the framework; here the last event, which every product has.
async fn read(State(shop): State<Shop>, Path(id): Path<String>) -> Response {
    let select = "SELECT payload::text FROM events WHERE aggregate_type = 'product' AND aggregate_id = $1 \
                  ORDER BY sequence DESC LIMIT 1";
    match sqlx::query_scalar::<_, String>(select).bind(id).fetch_optional(&shop.pool).await {
        Ok(Some(row)) => ([(header::CONTENT_TYPE, "application/json")], row).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

async fn register(State(shop): State<Shop>, Path(id): Path<String>, Json(body): Json<Register>) -> Response {
    let Register { name, price_cents, stock } = body;
    execute(&shop, &id, Command::Register { name, price_cents, stock }).await
}

async fn reserve(State(shop): State<Shop>, Path(id): Path<String>, Json(body): Json<Reserve>) -> Response {
    let Reserve { order, quantity } = body;
    execute(&shop, &id, Command::Reserve { order, quantity }).await
}

/// Executes the command once: whether to retry after a lost race is the client's choice.
async fn execute(shop: &Shop, id: &str, command: Command) -> Response {
    let _turn = shop.turns.acquire().await.expect("the semaphore is never closed");
    match shop.cqrs.execute(id, command).await {
        Ok(()) => {
            let answer = serde_json::json!({ "id": id });
            ([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
        }
        Err(AggregateError::UserError(rejection)) => {
            (StatusCode::UNPROCESSABLE_ENTITY, rejection.to_string()).into_response()
        }
        Err(AggregateError::AggregateConflict) => StatusCode::CONFLICT.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}
