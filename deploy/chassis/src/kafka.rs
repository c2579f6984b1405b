//! The settings of every Kafka client. Names and defaults as in librdkafka's CONFIGURATION.md.
//!
//! librdkafka's messages reach the logs under the target `librdkafka`, when the client is polled. Its level is taken from
//! the log filter when a configuration is made, so turn the logs on first.

pub mod group;
pub mod topic;
mod values;

use rdkafka::ClientConfig;

use crate::env::{Env, EnvError};

/// Records that a producer holds at most, of all partitions. A full queue is an error to the sender at once, so that
/// overload is refused and not stored up; this is about half a second of one process's full speed.
const PRODUCER_QUEUE_RECORDS: &str = "50000";

/// Bytes that a producer holds at most, in KiB. A service has up to four producers and 150 MiB.
const PRODUCER_QUEUE_KIB: &str = "16384";

/// Bytes that a reader has fetched ahead at most, in KiB, over all partitions: well above what one fetch brings, and
/// with that fetch on top still a small part of a service's 150 MiB. It counts per partition where partition queues are
/// split off.
const READER_QUEUE_KIB: &str = "16384";

/// Bytes of one answer to a fetch: small enough for [`READER_QUEUE_KIB`] to hold several, which keeps the network busy
/// while the last one is folded.
const FETCH_BYTES: &str = "4194304";

/// Bytes of one partition in such an answer (the default, 1 MiB): a partition with a long tail leaves room for others.
const PARTITION_FETCH_BYTES: &str = "1048576";

/// Where Kafka is; makes the configurations of all clients.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `host:port`, separated by commas: where clients first ask for the cluster's brokers.
    pub brokers: String,
}

impl KafkaSettings {
    /// `KAFKA_BROKERS`, default `127.0.0.1:9092`.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self { brokers: env.or("KAFKA_BROKERS", "127.0.0.1:9092".to_owned())? })
    }

    /// An idempotent producer without transactions. Records of one producer and partition keep their order, and are
    /// written once each, as long as none times out.
    ///
    /// Its first record takes up to 1.1 s: send one before serving. A time-out on one partition makes the producer
    /// start anew on all of its partitions. Dropping it blocks: drop it on a plain thread.
    pub fn producer(&self, client_id: &str) -> ClientConfig {
        let mut config = self.common(client_id);
        config
            // A retry inside the client neither doubles nor reorders: offsets of one producer stay contiguous through
            // leader changes. It also sets max.in.flight=5 and endless retries.
            .set("enable.idempotence", "true")
            // Acknowledged means: in every in-sync replica. Idempotence asks for it; said once more because the promise
            // hangs on it.
            .set("acks", "all")
            // Longer than any fail-over (4 to 7 s). 10 s turned 2,000 good records into doubts. A caller's own deadline
            // is a separate thing.
            .set("message.timeout.ms", "30000")
            // How long the leader waits for its followers. Shorter than socket.timeout.ms, so that the answer to a slow
            // replication is an error from the leader, not a lost connection.
            .set("request.timeout.ms", "2000")
            // Wait this long for company: 1 ms is less than an append takes, and makes batches under load. The default
            // of 5 ms would more than double the latency.
            .set("linger.ms", "1")
            .set("queue.buffering.max.messages", PRODUCER_QUEUE_RECORDS)
            .set("queue.buffering.max.kbytes", PRODUCER_QUEUE_KIB);
        config
    }

    /// A consumer that is told its partitions and offsets by `assign`, and never joins a group or commits.
    ///
    /// While brokers are away, polling it gives `AllBrokersDown` and `BrokerTransportFailure` again and again: no record
    /// was lost, and it goes on by itself.
    pub fn reader(&self, client_id: &str) -> ClientConfig {
        let mut config = self.common(client_id);
        config
            // rdkafka asks for a group even where none is joined; no offset is ever kept under it.
            .set("group.id", client_id)
            // The default, read_committed, would hold a reader back at a stranger's open transaction. We write none.
            .set("isolation.level", "read_uncommitted")
            // Positions are kept beside what was folded, in the same transaction: a second place could only disagree.
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // An offset that the log does not have means another log: an error to its reader, never a silent jump.
            .set("auto.offset.reset", "error")
            // The log is the truth: look at each record's checksum (the default does not).
            .set("check.crcs", "true")
            // A fetch without news returns after this long. A longer one keeps a new assignment on the same connection
            // waiting, for a broker answers a connection's requests in turn. New records end the wait at once.
            .set("fetch.wait.max.ms", "10")
            .set("queued.max.messages.kbytes", READER_QUEUE_KIB)
            // With a queue this small the default pause of 1 s after it was full would leave the reader idle.
            .set("fetch.queue.backoff.ms", "5")
            // After an error, such as a leader that moved: soon again (the default is 500 ms).
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.max.bytes", FETCH_BYTES)
            .set("max.partition.fetch.bytes", PARTITION_FETCH_BYTES);
        config
    }

    /// A member of a group that shares out the partitions of a topic without records. It has to be polled, and leaves
    /// the group when it is dropped, which blocks: drop it on a plain thread.
    pub fn member(&self, client_id: &str, group_id: &str) -> ClientConfig {
        let mut config = self.common(client_id);
        config
            .set("group.id", group_id)
            // Members keep what they have while the rest moves.
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("heartbeat.interval.ms", "300")
            // A dead member is noticed after this long, the shortest that brokers allow by default.
            .set("session.timeout.ms", "6000")
            // One that does not poll is as good as dead.
            .set("max.poll.interval.ms", "6000")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "latest")
            // There is nothing to fetch: ask seldom, but well within socket.timeout.ms, or the connection is given up.
            .set("fetch.wait.max.ms", "1500");
        config
    }

    /// A client for topics and their settings. An operation's own time limit is given with the operation.
    pub fn admin(&self, client_id: &str) -> ClientConfig {
        self.common(client_id)
    }

    fn common(&self, client_id: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            // Shown in the brokers' logs and quotas.
            .set("client.id", client_id)
            // A topic that is made by accident would have the wrong number of partitions for ever. (The default is on
            // for producers.)
            .set("allow.auto.create.topics", "false")
            // A broker that stopped without closing its connections is given up after this long; the default is 60 s.
            .set("socket.timeout.ms", "3000")
            // The same for one that cannot be reached at all; the default is 30 s.
            .set("socket.connection.setup.timeout.ms", "3000")
            // Notice dead peers on connections that carry nothing, too.
            .set("socket.keepalive.enable", "true")
            // Small requests leave at once. The default since librdkafka 2.x, said because latency hangs on it.
            .set("socket.nagle.disable", "true")
            // Fail-over is over in seconds: try a lost broker every half second at the latest (the default is 10 s).
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            // The same for a request that met a leader change. With these no record timed out, even with two of three
            // brokers gone for a while.
            .set("retry.backoff.ms", "20")
            .set("retry.backoff.max.ms", "200");
        config
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::AdminClient;
    use rdkafka::client::DefaultClientContext;
    use rdkafka::consumer::BaseConsumer;
    use rdkafka::producer::{BaseProducer, DefaultProducerContext};

    use super::*;

    #[test]
    fn brokers_come_from_the_environment() {
        assert_eq!(KafkaSettings::from_env(&Env::default()).unwrap().brokers, "127.0.0.1:9092");
        let env = Env::from([("KAFKA_BROKERS", "one:1,two:2")]);
        assert_eq!(KafkaSettings::from_env(&env).unwrap().brokers, "one:1,two:2");
    }

    /// librdkafka refuses unknown names, values out of range and combinations that contradict idempotence. Nothing
    /// listens on port 1: making a client does not wait for a broker.
    #[test]
    fn librdkafka_accepts_every_setting() {
        let kafka = KafkaSettings { brokers: "127.0.0.1:1".to_owned() };
        kafka.producer("test").create::<BaseProducer<DefaultProducerContext>>().unwrap();
        kafka.reader("test").create::<BaseConsumer>().unwrap();
        kafka.admin("test").create::<AdminClient<DefaultClientContext>>().unwrap();
    }
}
