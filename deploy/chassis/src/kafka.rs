//! Settings of all Kafka clients. Names and defaults are those of librdkafka's CONFIGURATION.md.
//!
//! librdkafka's messages reach the logs under the target `librdkafka` when the client is polled. Its level is taken
//! from the log filter when a configuration is made, so initialize the logs first.

pub mod group;
pub mod topic;
mod security;
mod values;

use rdkafka::ClientConfig;

use crate::env::{Env, EnvError};
use security::Security;

/// Maximum number of records in a producer's queue, over all partitions. A full queue is an immediate error to the
/// sender, so that overload is refused and not queued up; this is about half a second of one process's full speed.
const PRODUCER_QUEUE_RECORDS: &str = "50000";

/// Maximum size of a producer's queue, in KiB. A service has up to four producers and 150 MiB.
const PRODUCER_QUEUE_KIB: &str = "16384";

/// Maximum size of a reader's prefetch queue, in KiB, over all partitions: well above the size of one fetch, and
/// together with that fetch still a small part of a service's 150 MiB. The limit applies per partition where partition
/// queues are split off.
const READER_QUEUE_KIB: &str = "16384";

/// Maximum bytes of one fetch response: small enough for [`READER_QUEUE_KIB`] to hold several, which keeps the network
/// busy while the last one is folded.
const FETCH_BYTES: &str = "4194304";

/// Maximum bytes of one partition in a fetch response (the default, 1 MiB), so that a partition with a long tail leaves
/// room for others.
const PARTITION_FETCH_BYTES: &str = "1048576";

/// Address of the Kafka cluster; builds the configurations of all clients.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `KAFKA_BROKERS`, default `127.0.0.1:9092`: bootstrap brokers as `host:port`, separated by commas.
    /// Agrees with all services of the log.
    pub brokers: String,
    security: Security,
}

impl KafkaSettings {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let brokers = env.or("KAFKA_BROKERS", "127.0.0.1:9092".to_owned())?;
        Ok(Self { brokers, security: Security::from_env(env)? })
    }

    /// Returns the settings of a cluster that has neither TLS nor accounts.
    pub fn plaintext(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), security: Security::Plaintext }
    }

    /// Configures an idempotent producer without transactions. Records of one producer and partition keep their order
    /// and are written exactly once, unless one times out.
    ///
    /// The first record takes up to 1.1 s: send one before serving. A timeout on one partition makes the producer start
    /// anew on all of its partitions. Dropping it blocks: drop it on a plain thread.
    pub fn producer(&self, client_id: &str) -> ClientConfig {
        let mut config = self.common(client_id);
        config
            // A retry inside the client neither duplicates nor reorders: offsets of one producer stay contiguous
            // through leader changes. It also sets max.in.flight=5 and endless retries.
            .set("enable.idempotence", "true")
            // Acknowledged means: in every in-sync replica. Idempotence implies it; set explicitly because the
            // durability promise depends on it.
            .set("acks", "all")
            // Longer than any failover (4 to 7 s). With 10 s, the outcome of 2,000 good records became unknown. A
            // caller's own deadline is independent of this.
            .set("message.timeout.ms", "30000")
            // Time that the leader waits for its followers. Shorter than socket.timeout.ms, so that slow replication
            // ends with an error from the leader, not with a lost connection.
            .set("request.timeout.ms", "2000")
            // Batching delay: 1 ms is less than an append takes, and forms batches under load. The default of 5 ms
            // would more than double the latency.
            .set("linger.ms", "1")
            .set("queue.buffering.max.messages", PRODUCER_QUEUE_RECORDS)
            .set("queue.buffering.max.kbytes", PRODUCER_QUEUE_KIB);
        config
    }

    /// Configures a consumer with manual assignment, which never joins a group or commits.
    ///
    /// While brokers are unavailable, polling returns `AllBrokersDown` and `BrokerTransportFailure` repeatedly: no
    /// record is lost, and the consumer recovers by itself.
    pub fn reader(&self, client_id: &str) -> ClientConfig {
        let mut config = self.common(client_id);
        config
            // rdkafka requires a group id even though no group is joined; no offset is ever stored under it.
            .set("group.id", client_id)
            // The default, read_committed, would stall a reader at an open transaction of another program. We write
            // none.
            .set("isolation.level", "read_uncommitted")
            // Positions are stored with the folded rows, in the same transaction: a second place could only disagree.
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // An offset outside the log means that this is another log: report an error, never reset silently.
            .set("auto.offset.reset", "error")
            // The log is the source of truth: verify each record's checksum (the default does not).
            .set("check.crcs", "true")
            // An empty fetch returns after this time. A longer one delays a new assignment on the same connection,
            // because a broker answers a connection's requests in order. New records end the wait at once.
            .set("fetch.wait.max.ms", "10")
            .set("queued.max.messages.kbytes", READER_QUEUE_KIB)
            // With a queue this small, the default pause of 1 s after it was full would leave the reader idle.
            .set("fetch.queue.backoff.ms", "5")
            // Retry soon after an error, such as a leader change (the default is 500 ms).
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.max.bytes", FETCH_BYTES)
            .set("max.partition.fetch.bytes", PARTITION_FETCH_BYTES);
        config
    }

    /// Configures a member of a group that distributes the partitions of an empty topic. It must be polled, and leaves
    /// the group when it is dropped, which blocks: drop it on a plain thread.
    pub fn member(&self, client_id: &str, group_id: &str) -> ClientConfig {
        let mut config = self.common(client_id);
        config
            .set("group.id", group_id)
            // Members keep their partitions while others move.
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("heartbeat.interval.ms", "300")
            // A dead member is detected after this time, the shortest that brokers allow by default.
            .set("session.timeout.ms", "6000")
            // A member that does not poll counts as dead.
            .set("max.poll.interval.ms", "6000")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "latest")
            // There is nothing to fetch: poll rarely, but well within socket.timeout.ms, or the connection is dropped.
            .set("fetch.wait.max.ms", "1500");
        config
    }

    /// Configures an admin client for topics and their settings. Each operation takes its own time limit.
    pub fn admin(&self, client_id: &str) -> ClientConfig {
        self.common(client_id)
    }

    fn common(&self, client_id: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            // Appears in the brokers' logs and quotas.
            .set("client.id", client_id)
            // A topic that is created by accident would have the wrong number of partitions for ever. (The default is
            // on for producers.)
            .set("allow.auto.create.topics", "false")
            // A broker that stopped without closing its connections is given up after this time; the default is 60 s.
            .set("socket.timeout.ms", "3000")
            // A broker that cannot be reached is given up after this time; the default is 30 s.
            .set("socket.connection.setup.timeout.ms", "3000")
            // Detect dead peers on idle connections, too.
            .set("socket.keepalive.enable", "true")
            // Send small requests at once. The default since librdkafka 2.x; set explicitly because latency depends on
            // it.
            .set("socket.nagle.disable", "true")
            // Failover takes seconds: retry a lost broker every half second at the latest (the default is 10 s).
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            // Retry a request that met a leader change as soon. With these settings no record timed out, even with two
            // of three brokers down for a while.
            .set("retry.backoff.ms", "20")
            .set("retry.backoff.max.ms", "200");
        self.security.apply(&mut config);
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

    /// librdkafka rejects unknown names, values out of range and combinations that contradict idempotence. Nothing
    /// listens on port 1: creating a client does not wait for a broker.
    #[test]
    fn librdkafka_accepts_every_setting() {
        let kafka = KafkaSettings::plaintext("127.0.0.1:1");
        kafka.producer("test").create::<BaseProducer<DefaultProducerContext>>().unwrap();
        kafka.reader("test").create::<BaseConsumer>().unwrap();
        kafka.admin("test").create::<AdminClient<DefaultClientContext>>().unwrap();
    }
}
