//! Throughput of records of a commit's size from one idempotent producer that does not wait for acknowledgements.
//!
//! `KAFKA_BROKERS`, `PARTITIONS`, `SECONDS`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use peers::seen::Seen;
use peers::{setting, topic};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use schemas::events::WireEvent;
use schemas::events::product::ProductReservedV1;
use schemas::record::{Commit, Epoch, Record};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "produce";
const FLUSH: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Counted {
    written: AtomicU64,
    failed: AtomicU64,
}

/// Counts delivery reports.
struct Reports(Arc<Counted>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.written } else { &self.0.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let (kafka, duration) = (topic::kafka()?, setting::duration()?);
    let partitions = topic::create(&kafka, TOPIC).await?;
    let counted = Arc::new(Counted::default());
    let mut settings = kafka.producer(TOPIC);
    // A buffer large enough that the sender never runs dry.
    settings.set("queue.buffering.max.messages", "500000").set("queue.buffering.max.kbytes", "262144");
    let producer: ThreadedProducer<Reports> = settings.create_with_context(Reports(counted.clone()))?;
    let record = commit();

    send(&producer, &record, 0)?;
    producer.flush(FLUSH)?;
    let (warmed, began) = (counted.written.load(Ordering::Relaxed), Instant::now());
    for partition in (0..partitions).cycle() {
        send(&producer, &record, partition)?;
        if began.elapsed() > duration {
            break;
        }
    }
    producer.flush(FLUSH)?;
    let elapsed = began.elapsed();
    let mut seen = Seen::new()?;
    seen.failed = counted.failed.load(Ordering::Relaxed);
    seen.requests = counted.written.load(Ordering::Relaxed) - warmed + seen.failed;
    eprintln!("{} bytes a record", record.len());
    seen.print(elapsed);
    Ok(())
}

/// Retries while the queue is full.
fn send(producer: &ThreadedProducer<Reports>, payload: &[u8], partition: i32) -> Result<()> {
    loop {
        match producer.send(BaseRecord::<(), [u8]>::to(TOPIC).partition(partition).payload(payload)) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => bail!(error),
        }
    }
}

/// Returns a record like the product's record of a reservation.
fn commit() -> Vec<u8> {
    let commit = Record::Commit(Commit {
        epoch: Epoch { claim: 1_000, nonce: 0x00c0_ffee_00c0_ffee },
        seq: 100_000,
        command_id: Cow::Owned(uuid::Uuid::now_v7().to_string()),
        at_ms: 1_700_000_000_000,
        aggregate: Cow::Borrowed("product/batch-1000"),
        version: 1_000,
        events: vec![WireEvent::ProductReservedV1(ProductReservedV1 {
            order: Cow::Borrowed("batch-1-000000001"),
            quantity: 1,
        })],
        fingerprint: 0x00c0_ffee_00c0_ffee,
        cause: None,
        trace: None,
        origin: None,
    });
    let mut bytes = Vec::new();
    commit.encode(&mut bytes);
    bytes
}
