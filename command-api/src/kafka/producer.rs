//! Appends records and routes their delivery reports to the partition that sent them.
//!
//! Invariant: a record's report finds its partition by the message itself and its place in the chain by the
//! opaque number, so that nothing is allocated for it.

use anyhow::Context as _;
use chassis::kafka::KafkaSettings;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

use crate::partition::{NoOffset, QueueFull, Ticket};

/// Bits of the opaque number that hold the sequence number; the generation has the rest.
const SEQ_BITS: u32 = 48;
const _: () = assert!(usize::BITS == 64, "the opaque number of a record needs 64 bits");

/// What became of one record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeliveryReport {
    pub(crate) ticket: Ticket,
    pub(crate) offset: Result<i64, NoOffset>,
}

/// The receiving end of one partition's reports. Bounded by what the partition has in flight.
pub(crate) type DeliveryReports = mpsc::UnboundedReceiver<DeliveryReport>;

/// Idempotent producers, over which the partitions are spread: a partition's records always go through the same
/// one, because order holds only within a producer.
pub(crate) struct Producers {
    producers: Vec<ThreadedProducer<Router>>,
    topic: String,
    /// Why one of them takes no more records, once it does not.
    failure: watch::Sender<Option<String>>,
}

struct Router {
    /// By partition.
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
                tracing::debug!(kafka.partition = message.partition(), error = %error, "a record got no offset");
                (message, Err(NoOffset))
            }
        };
        let sender = usize::try_from(message.partition()).ok().and_then(|partition| self.reports.get(partition));
        if let Some(sender) = sender {
            // A partition that is gone has nobody left to tell.
            let _ = sender.send(DeliveryReport { ticket: unpack(opaque), offset });
        }
    }
}

impl Producers {
    /// Connects lazily. Returns each partition's reports, by partition.
    pub(crate) fn new(
        settings: &KafkaSettings,
        topic: &str,
        partitions: u32,
        count: usize,
    ) -> anyhow::Result<(Self, Vec<DeliveryReports>)> {
        let (senders, reports): (Vec<_>, Vec<_>) = (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let producers = (0..count)
            .map(|_| {
                let router = Router { reports: senders.clone() };
                settings.producer("command-api").create_with_context(router).context("create a Kafka producer")
            })
            .collect::<anyhow::Result<_>>()?;
        Ok((Self { producers, topic: topic.to_owned(), failure: watch::Sender::new(None) }, reports))
    }

    /// Returns why a producer takes no more records, once one does not: a broker lost records that it had acknowledged, for
    /// example. Only another producer can go on.
    pub(crate) async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let told = failure.wait_for(Option::is_some).await.map(|reason| reason.clone().unwrap_or_default());
        told.expect("its sender is borrowed")
    }

    /// Hands a record over; never blocks.
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
                tracing::error!(kafka.partition = partition, error = %error, "the producer refuses records");
            }
            if let Some((_, reason)) = producer.client().fatal_error() {
                self.failure.send_replace(Some(reason));
            }
            QueueFull
        })
    }

    /// Waits for what is in flight. Blocks: call it from a plain thread.
    pub(crate) fn flush(&self, within: Duration) {
        for producer in &self.producers {
            if let Err(error) = producer.flush(within) {
                tracing::warn!(error = %error, "records were still in flight at the end");
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
    fn a_ticket_survives_its_way_through_the_client() {
        for ticket in [
            Ticket { generation: 0, seq: 0 },
            Ticket { generation: u16::MAX, seq: (1 << SEQ_BITS) - 1 },
            Ticket { generation: 7, seq: 1_000_000_007 },
        ] {
            assert_eq!(unpack(pack(ticket)), ticket);
        }
    }
}
