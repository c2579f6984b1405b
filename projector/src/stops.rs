//! Partitions in which a reader of the log has halted because a record there cannot be read. The reader continues with
//! the other partitions, and with a halted one once an exception for the record is signed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chassis::telemetry::with_causes;
use schemas::topic;

use crate::config::Config;
use crate::log_reader::{Batch, Blame};
use crate::metrics::Metrics;
use crate::report::Watched;

/// The halted partitions of one reader, with the reasons.
#[derive(Debug)]
pub(crate) struct Stops {
    /// The metric's `reader` label.
    reader: &'static str,
    metrics: Arc<Metrics>,
    watched: Arc<Watched>,
    all: BTreeMap<u32, (Blame, String)>,
}

impl Stops {
    pub(crate) fn new(reader: &'static str, metrics: Arc<Metrics>, watched: Arc<Watched>) -> Self {
        Self { reader, metrics, watched, all: BTreeMap::new() }
    }

    /// Halts a partition. Returns false if no partition is to blame, or if it was already halted there and failed
    /// again.
    pub(crate) fn stop(&mut self, blame: Option<Blame>, error: &impl std::error::Error) -> bool {
        let Some(blame) = blame else { return false };
        let Blame { partition, from, stray } = blame;
        if self.all.get(&partition).is_some_and(|(known, _)| known.from <= from) {
            return false;
        }
        let (reason, reader) = (with_causes(error), self.reader);
        let what_to_do = if stray.is_some() { "see `command-api except`" } else { "operator intervention required" };
        tracing::error!(
            kafka.partition = partition,
            error = reason,
            reader,
            what_to_do,
            "halted: the partition's log cannot be read any further; other partitions are read"
        );
        self.metrics.halted(reader, partition, true);
        self.watched.halted(reader, partition, Some(reason.clone()));
        self.all.insert(partition, (blame, reason));
        true
    }

    /// Drops partitions that are no longer in the share, or whose unreadable record now has an exception.
    pub(crate) fn look(&mut self, share: &BTreeSet<u32>, config: &Config) {
        self.all.retain(|partition, (blame, _)| {
            let is_passed = blame.stray.is_some_and(|stray| config.exceptions.pass(&stray));
            if is_passed {
                tracing::warn!(kafka.partition = partition, "an exception skips the unreadable record; resuming");
            }
            let stays = share.contains(partition) && !is_passed;
            if !stays {
                self.metrics.halted(self.reader, *partition, false);
                self.watched.halted(self.reader, *partition, None);
            }
            stays
        });
    }

    /// Returns whether a partition that is read from this offset has anything to read.
    pub(crate) fn reads(&self, partition: u32, from: i64) -> bool {
        self.all.get(&partition).is_none_or(|(blame, _)| from < blame.from)
    }

    /// Removes from a batch the records at and after the offsets at which partitions are halted.
    pub(crate) fn filter(&self, batch: &mut Batch, partitions: u32) {
        if !self.all.is_empty() {
            let until = |partition| self.all.get(&partition).map_or(i64::MAX, |(blame, _)| blame.from);
            batch.split_off(&(0..partitions).map(until).collect::<Vec<_>>());
        }
    }

    /// Returns a reason if all partitions of a share are halted.
    pub(crate) fn of_all(&self, share: &BTreeSet<u32>) -> Option<String> {
        let (_, reason) = self.all.values().next()?;
        share.iter().all(|partition| self.all.contains_key(partition)).then(|| format!("halted: {reason}"))
    }

    /// Waits until an exception is signed for one of the unreadable records.
    pub(crate) fn passed(&self, config: &Config) -> impl Future<Output = ()> + Send + use<> {
        let strays: Vec<_> = self.all.values().filter_map(|(blame, _)| blame.stray).collect();
        let (kafka, exceptions) = (config.kafka.clone(), config.exceptions.clone());
        let topic = topic::exceptions(&config.topic.name);
        async move {
            if strays.is_empty() {
                return std::future::pending().await;
            }
            let is_passed = |values: &[Vec<u8>]| {
                exceptions.learn(values);
                strays.iter().any(|stray| exceptions.pass(stray))
            };
            kafka.await_values(&topic, is_passed).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use chassis::env::Env;
    use chassis::telemetry::Telemetry;
    use schemas::exceptions::SigningKey;

    use super::*;
    use crate::fold::Records;

    const FENCE: &[u8] = br#"st1{"fence":{"epoch":[0,"00000000000000aa"],"seq":1}}"#;

    /// Returns a batch of three partitions, one of which cannot be read from its second record on.
    fn batch() -> Batch {
        let stray: &[u8] = b"stop";
        Batch::of([(0, 7, FENCE), (1, 4, FENCE), (1, 5, stray), (1, 6, FENCE), (2, 9, FENCE), (0, 8, FENCE)])
    }

    #[test]
    fn a_stray_halts_its_partition_until_an_exception_is_signed() {
        let key = SigningKey::from_seed(&[1; 32]);
        let told = [("POSTGRES_URL", "postgres://none".to_owned()), ("REDIS_URL", "redis://none".to_owned())];
        let told = told.into_iter().chain([("LOG_EXCEPTION_KEYS", key.public())]);
        let config = Config::from_env(&told.collect::<Env>()).unwrap();
        let share = BTreeSet::from([0, 1, 2]);
        let metrics = Arc::new(Metrics::new(&Telemetry::new("projector").unwrap()));
        let mut stops = Stops::new("views", metrics, Arc::default());
        let Err(error) = Records::of(&batch(), &config.exceptions) else { panic!("the stray was decoded") };
        let stray = error.blame().unwrap().stray.unwrap();
        assert!(stops.stop(error.blame(), &error), "the partition was not halted");
        assert!(!stops.stop(error.blame(), &error), "the partition was halted twice");
        assert!([0, 1, 2].into_iter().all(|partition| stops.reads(partition, 4)) && !stops.reads(1, 5));
        assert_eq!(stops.of_all(&share), None);
        assert!(stops.of_all(&BTreeSet::from([1])).unwrap().contains("offset 5 of partition 1"));

        let mut left = batch();
        stops.filter(&mut left, 3);
        let left: Vec<_> = left.iter().map(|record| (record.partition, record.offset)).collect();
        assert_eq!(left, [(0, 7), (1, 4), (2, 9), (0, 8)]);

        stops.look(&share, &config);
        assert!(!stops.reads(1, 5), "resumed without an exception");
        config.exceptions.learn(&[key.sign(stray.exception("a stranger wrote it", 0))]);
        stops.look(&share, &config);
        assert!(stops.reads(1, 5));
        assert_eq!(Records::of(&batch(), &config.exceptions).unwrap().len(), 6);
    }
}
