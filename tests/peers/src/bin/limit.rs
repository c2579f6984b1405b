//! Upper bound for a server that acknowledges nothing before Kafka has it: it reads the body, writes it as one record
//! with the product's own settings, and answers when the record is acknowledged. It decides nothing, stores nothing and
//! guarantees nothing else.
//!
//! `ADDRESS`, `KAFKA_BROKERS`, `PARTITIONS`.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use peers::body::Reserve;
use peers::{setting, topic};
use rdkafka::producer::{FutureProducer, FutureRecord};

/// Allocator, equal to that of the services that it is compared with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "limit";

#[derive(Clone)]
struct App {
    producer: FutureProducer,
    partitions: i32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let address = setting::required("ADDRESS")?;
    let kafka = topic::kafka()?;
    let app = App { partitions: topic::create(&kafka, TOPIC).await?, producer: kafka.producer(TOPIC).create()? };
    // The first record of an idempotent producer takes long.
    app.append("", b"{}").await.context("Kafka did not accept the first record")?;
    let routes = Router::new()
        .route("/v1/products/{id}/reserve", post(reserve))
        .route("/readyz", get(async || "ready"))
        .with_state(app);
    let listener = tokio::net::TcpListener::bind(&address).await.with_context(|| format!("cannot bind {address}"))?;
    Ok(axum::serve(listener, routes).await?)
}

async fn reserve(State(app): State<App>, Path(id): Path<String>, body: Bytes) -> Response {
    let Ok(Reserve { order, quantity }) = serde_json::from_slice(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    match app.append(&id, &body).await {
        Ok(offset) => {
            let answer = serde_json::json!({ "id": id, "order": order, "quantity": quantity, "offset": offset });
            ([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
        }
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

impl App {
    /// Appends a record and returns its offset once it is acknowledged.
    async fn append(&self, id: &str, value: &[u8]) -> Result<i64> {
        let record = FutureRecord::<(), [u8]>::to(TOPIC).partition(self.partition(id)).payload(value);
        let delivery = self.producer.send_result(record).map_err(|(error, _)| error)?;
        let delivered = delivery.await?.map_err(|(error, _)| error)?;
        Ok(delivered.offset)
    }

    fn partition(&self, id: &str) -> i32 {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let count = u64::try_from(self.partitions).unwrap_or(1).max(1);
        i32::try_from(hasher.finish() % count).expect("less than the count, which is an i32")
    }
}
