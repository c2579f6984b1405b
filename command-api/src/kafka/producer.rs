//! Appends records and routes their delivery reports to the partition that sent them.
//!
//! Invariant: a report finds its partition through the message itself and its place in the chain through the opaque
//! number, without an allocation.

use anyhow::Context as _;
use chassis::kafka::KafkaSettings;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

use crate::partition::{NoOffset, QueueFull, Ticket};

/// Number of bits of the opaque number that hold the sequence number; the generation has the rest.
const SEQ_BITS: u32 = 48;
const _: () = assert!(usize::BITS == 64, "the opaque number of a record needs 64 bits");

/// Outcome of appending one record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeliveryReport {
    pub(crate) ticket: Ticket,
    pub(crate) offset: Result<i64, NoOffset>,
}

/// The receiving end of one partition's reports. Bounded by the partition's records in flight.
pub(crate) type DeliveryReports = mpsc::UnboundedReceiver<DeliveryReport>;

/// Idempotent producers, which share the partitions. A partition's records always go through the same one, because
/// order holds only within a producer.
pub(crate) struct Producers {
    producers: Vec<ThreadedProducer<Router>>,
    topic: String,
    /// Set to the reason once a producer accepts no more records.
    failure: watch::Sender<Option<String>>,
}

struct Router {
    /// Senders, indexed by partition.
    reports: Vec<mpsc::UnboundedSender<DeliveryReport>>,
}

impl ClientContext for Router {}

impl ProducerContext for Router {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (message, offset) = match result {
            Ok(message) if message.offset() >= 0 => (message, Ok(message.offset())),
            Ok(message) => (message, Err(NoOffset)),
            Err((error, message)) => {
                tracing::debug!(kafka.partition = message.partition(), error = %error, "no offset for a record");
                (message, Err(NoOffset))
            }
        };
        let sender = usize::try_from(message.partition()).ok().and_then(|partition| self.reports.get(partition));
        if let Some(sender) = sender {
            // The partition's engine may have ended.
            let _ = sender.send(DeliveryReport { ticket: unpack(opaque), offset });
        }
    }
}

impl Producers {
    /// Creates the producers, which connect lazily. Also returns the partitions' reports, indexed by partition.
    pub(crate) fn new(
        settings: &KafkaSettings,
        topic: &str,
        partitions: u32,
        count: usize,
    ) -> anyhow::Result<(Self, Vec<DeliveryReports>)> {
        // Bounded by the engines, each of which takes no commands while `MAX_PENDING` of them wait for reports. A bounded
        // channel could block the producer's thread, and with it the reports of other partitions.
        let (senders, reports): (Vec<_>, Vec<_>) = (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let producers = (0..count)
            .map(|_| {
                let router = Router { reports: senders.clone() };
                settings.producer("command-api").create_with_context(router).context("create a Kafka producer")
            })
            .collect::<anyhow::Result<_>>()?;
        Ok((Self { producers, topic: topic.to_owned(), failure: watch::Sender::new(None) }, reports))
    }

    /// Waits until a producer accepts no more records and returns the reason: for example, a broker lost records that
    /// it had acknowledged. Only a new producer can continue.
    pub(crate) async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let told = failure.wait_for(Option::is_some).await.map(|reason| reason.clone().unwrap_or_default());
        told.expect("the sender is borrowed from `self`")
    }

    /// Hands a record to a producer; never blocks.
    pub(crate) fn append(&self, partition: u32, key: &str, value: &[u8], ticket: Ticket) -> Result<(), QueueFull> {
        let producer = &self.producers[partition as usize % self.producers.len()];
        let mut record = BaseRecord::<str, [u8], usize>::with_opaque_to(&self.topic, pack(ticket))
            .partition(partition.cast_signed())
            .payload(value);
        if !key.is_empty() {
            record = record.key(key);
        }
        producer.send(record).map_err(|(error, _)| {
            if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                tracing::error!(kafka.partition = partition, error = %error, "the producer rejected a record");
            }
            if let Some((_, reason)) = producer.client().fatal_error() {
                self.failure.send_replace(Some(reason));
            }
            QueueFull
        })
    }

    /// Waits for the records in flight. Blocks: call it from a plain thread.
    pub(crate) fn flush(&self, within: Duration) {
        for producer in &self.producers {
            if let Err(error) = producer.flush(within) {
                tracing::warn!(error = %error, "records still in flight at shutdown");
            }
        }
    }
}

fn pack(ticket: Ticket) -> usize {
    let seq = usize::try_from(ticket.seq).expect("usize has 64 bits");
    usize::from(ticket.generation) << SEQ_BITS | seq
}

fn unpack(opaque: usize) -> Ticket {
    let generation = u16::try_from(opaque >> SEQ_BITS).expect("16 bits are left");
    Ticket { generation, seq: (opaque & ((1 << SEQ_BITS) - 1)) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_survives_packing() {
        for ticket in [
            Ticket { generation: 0, seq: 0 },
            Ticket { generation: u16::MAX, seq: (1 << SEQ_BITS) - 1 },
            Ticket { generation: 7, seq: 1_000_000_007 },
        ] {
            assert_eq!(unpack(pack(ticket)), ticket);
        }
    }
}
