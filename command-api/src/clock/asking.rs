//! Measures the time of Kafka's brokers on a dedicated thread: each broker timestamps an empty record.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use chassis::kafka::KafkaSettings;
use rdkafka::ClientContext;
use rdkafka::Timestamp;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use schemas::topic::{CLOCK_PARTITIONS, LogTopic, clock};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Shared;
use crate::kafka::topic;

/// Interval between measurements. An ordinary clock drifts far less than a second in this time; a jump is detected
/// without one.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Maximum round trip of a measurement; a slower one is too imprecise.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(100);

/// Timestamps of one round, each with the times at which its record was sent and its report received.
#[derive(Default)]
struct Stamps(Mutex<Vec<(Instant, Instant, i64)>>);

impl ClientContext for Stamps {}

impl ProducerContext for Stamps {
    type DeliveryOpaque = Box<Instant>;

    /// Keeps the timestamp of a delivery report. It is the broker's only if the topic uses log append time.
    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Instant>) {
        match result.as_ref().map(|message| message.timestamp()) {
            Ok(Timestamp::LogAppendTime(stamp)) if sent.elapsed() <= TOLD_WITHIN => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).push((*sent, Instant::now(), stamp));
            }
            Ok(_) => {}
            Err((error, _)) => tracing::debug!(error = %error, "a broker did not report its time"),
        }
    }
}

/// Starts the thread, which runs until `shared` is dropped; nothing joins it, because dropping its client blocks. Must
/// be called within a runtime.
pub(super) fn start(kafka: KafkaSettings, log: LogTopic, shared: &Arc<Shared>) -> std::io::Result<()> {
    let (runtime, shared) = (Handle::current(), Arc::downgrade(shared));
    let run = move || {
        if let Err(error) = runtime.block_on(topic::create_clock(&kafka, &log)) {
            tracing::warn!(error = format!("{error:#}"), "could not create the topic for the brokers' clocks");
        }
        run(&kafka, &clock(&log.name), &shared);
    };
    std::thread::Builder::new().name("clock".into()).spawn(run).map(|_| ())
}

fn run(kafka: &KafkaSettings, topic: &str, wanted: &Weak<Shared>) {
    let mut config = kafka.admin("clock");
    // The leader's acknowledgement is enough for a record that is never read.
    config.set("acks", "1").set("linger.ms", "0");
    config.set("message.timeout.ms", TOLD_WITHIN.as_millis().to_string());
    let producer: BaseProducer<Stamps> = match config.create_with_context(Stamps::default()) {
        Ok(producer) => producer,
        Err(error) => {
            return tracing::error!(error = %error, "could not create a Kafka producer; the clock is unchecked");
        }
    };
    while wanted.strong_count() > 0 {
        let asked = Instant::now();
        for partition in 0..CLOCK_PARTITIONS {
            let record = BaseRecord::<(), [u8], _>::with_opaque_to(topic, Box::new(Instant::now()));
            if let Err((error, _)) = producer.send(record.partition(partition).payload(&[])) {
                tracing::debug!(error = %error, "could not ask a broker for its time");
            }
        }
        while producer.in_flight_count() > 0 {
            producer.poll(POLL);
        }
        let Some(shared) = wanted.upgrade() else { return };
        shared.told(std::mem::take(&mut *producer.context().0.lock().unwrap_or_else(PoisonError::into_inner)));
        drop(shared);
        while asked.elapsed() < ASK_EVERY && wanted.strong_count() > 0 {
            std::thread::sleep(POLL);
        }
    }
}
