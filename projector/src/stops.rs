//! Partitions of which a reader of the log reads no further, because something in them cannot be read. It goes on with the
//! others, and with these once an exception passes what stopped it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chassis::telemetry::with_causes;
use schemas::exceptions::Stray;
use schemas::topic;

use crate::config::Config;
use crate::log_reader::Batch;
use crate::metrics::Metrics;

/// What stops a reader in one partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blame {
    pub(crate) partition: u32,
    /// What comes here and behind is left alone.
    pub(crate) from: i64,
    /// What an exception can pass.
    pub(crate) stray: Option<Stray>,
}

#[derive(Debug)]
pub(crate) struct Stops {
    /// Who reads, as the metric calls it.
    reader: &'static str,
    metrics: Arc<Metrics>,
    all: BTreeMap<u32, (Blame, String)>,
}

impl Stops {
    pub(crate) fn new(reader: &'static str, metrics: Arc<Metrics>) -> Self {
        Self { reader, metrics, all: BTreeMap::new() }
    }

    /// Stops a partition. Returns false where no partition is to blame, or stopping it has not helped.
    pub(crate) fn stop(&mut self, blame: Option<Blame>, error: &impl std::error::Error) -> bool {
        let Some(blame) = blame else { return false };
        let Blame { partition, from, stray } = blame;
        if self.all.get(&partition).is_some_and(|(known, _)| known.from <= from) {
            return false;
        }
        let (reason, reader) = (with_causes(error), self.reader);
        let what_to_do = if stray.is_some() { "see `command-api except`" } else { "a person must look at the log" };
        tracing::error!(
            kafka.partition = partition,
            error = reason,
            reader,
            what_to_do,
            "halted: the partition's log cannot be read on; the others are"
        );
        self.metrics.halted(reader, partition, true);
        self.all.insert(partition, (blame, reason));
        true
    }

    /// Forgets those that are not of the share, or that an exception passes.
    pub(crate) fn look(&mut self, share: &BTreeSet<u32>, config: &Config) {
        self.all.retain(|partition, (blame, _)| {
            let is_passed = blame.stray.is_some_and(|stray| config.exceptions.pass(&stray));
            if is_passed {
                tracing::warn!(kafka.partition = partition, "an exception passes what could not be read; going on");
            }
            let stays = share.contains(partition) && !is_passed;
            if !stays {
                self.metrics.halted(self.reader, *partition, false);
            }
            stays
        });
    }

    /// Tells whether something of a partition that begins here is to be read.
    pub(crate) fn reads(&self, (partition, from): (u32, i64)) -> bool {
        self.all.get(&partition).is_none_or(|(blame, _)| from < blame.from)
    }

    /// Takes out of a batch what is not to be read.
    pub(crate) fn filter(&self, batch: &mut Batch, partitions: u32) {
        if !self.all.is_empty() {
            let until = |partition| self.all.get(&partition).map_or(i64::MAX, |(blame, _)| blame.from);
            batch.split_off(&(0..partitions).map(until).collect::<Vec<_>>());
        }
    }

    /// Why nothing of a share is read; `None`: something is.
    pub(crate) fn of_all(&self, share: &BTreeSet<u32>) -> Option<String> {
        let (_, reason) = self.all.values().next()?;
        share.iter().all(|partition| self.all.contains_key(partition)).then(|| format!("halted: {reason}"))
    }

    /// Waits until an exception passes one of them.
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

    /// One of three partitions cannot be read from its second record on.
    fn batch() -> Batch {
        let stray: &[u8] = b"stop";
        Batch::of([(0, 7, FENCE), (1, 4, FENCE), (1, 5, stray), (1, 6, FENCE), (2, 9, FENCE), (0, 8, FENCE)])
    }

    #[test]
    fn a_stray_stops_its_partition_where_it_stands_until_an_exception_passes_it() {
        let key = SigningKey::from_seed(&[1; 32]);
        let told = ["POSTGRES_URL", "REDIS_URL"].map(|name| (name, "url".to_owned()));
        let told = told.into_iter().chain([("LOG_EXCEPTION_KEYS", key.public())]);
        let config = Config::from_env(&told.collect::<Env>()).unwrap();
        let share = BTreeSet::from([0, 1, 2]);
        let metrics = Arc::new(Metrics::new(&Telemetry::new("projector").unwrap()));
        let mut stops = Stops::new("views", metrics);
        let Err(error) = Records::of(&batch(), &config.exceptions) else { panic!("it can be read") };
        let stray = error.blame().unwrap().stray.unwrap();
        assert!(stops.stop(error.blame(), &error), "it is stopped");
        assert!(!stops.stop(error.blame(), &error), "to stop it once more would not help");
        assert!([0, 1, 2].into_iter().all(|partition| stops.reads((partition, 4))) && !stops.reads((1, 5)));
        assert_eq!(stops.of_all(&share), None);
        assert!(stops.of_all(&BTreeSet::from([1])).unwrap().contains("offset 5 of partition 1"));

        let mut left = batch();
        stops.filter(&mut left, 3);
        let left: Vec<_> = left.iter().map(|(partition, offset, _)| (partition, offset)).collect();
        assert_eq!(left, [(0, 7), (1, 4), (2, 9), (0, 8)]);

        stops.look(&share, &config);
        assert!(!stops.reads((1, 5)), "nobody has excepted it");
        config.exceptions.learn(&[key.sign(stray.exception("a stranger wrote it", 0))]);
        stops.look(&share, &config);
        assert!(stops.reads((1, 5)));
        assert_eq!(Records::of(&batch(), &config.exceptions).unwrap().len(), 6);
    }
}
