//! Kafka topics of a log, and the settings that the durability guarantees depend on.

/// Settings of every log topic regardless of its size, applied when it is created and checked at startup.
pub const SETTINGS: [(&str, &str); 4] = [
    // The log is the system of record, so nothing may ever be deleted from it.
    ("cleanup.policy", "delete"),
    ("retention.ms", "-1"),
    ("retention.bytes", "-1"),
    // A lagging replica must not become leader, or acknowledged records would be lost.
    ("unclean.leader.election.enable", "false"),
];
pub const MIN_ISR: &str = "min.insync.replicas";

/// Returns the empty topic whose consumer groups distribute the log's partitions among instances.
pub fn coordination_topic(log: &str) -> String {
    format!("{log}.owners")
}

/// Returns the topic on whose records the brokers stamp their time, so that owners can check their own clocks.
pub fn clock(log: &str) -> String {
    format!("{log}.clock")
}

/// Number of partitions of the clock topic, which Kafka spreads over as many brokers.
pub const CLOCK_PARTITIONS: i32 = 3;
/// Settings with which the clock topic is created. Records older than an hour may be deleted.
pub const CLOCK_SETTINGS: [(&str, &str); 3] =
    [("message.timestamp.type", "LogAppendTime"), ("retention.ms", "3600000"), ("segment.ms", "3600000")];

/// Returns the faults of the topic of [`coordination_topic`], given a log of `log` partitions; empty if there are none.
pub fn coordination_topic_differences(found: u32, log: u32) -> Vec<String> {
    let differs = found != log;
    let difference = || format!("it has {found} partitions, but the log has {log}: recreate it with {log}");
    differs.then(difference).into_iter().collect()
}

/// Returns the single-partition topic that holds the log's signed exceptions, see [`crate::exceptions`].
pub fn exceptions(log: &str) -> String {
    format!("{log}.exceptions")
}

/// Log topic as a deployment configures it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTopic {
    pub name: String,
    /// Number of partitions, fixed forever because it determines an aggregate's partition. `None` accepts any number.
    pub partitions: Option<u32>,
    /// Minimum number of replicas, including the leader.
    pub replication: u32,
    /// Minimum number of replicas that hold an acknowledged record.
    pub min_isr: u32,
}

impl LogTopic {
    /// Returns the settings that no topic can have together, each with what to do.
    pub fn contradictions(&self) -> impl Iterator<Item = (&'static [&'static str], &'static str)> {
        let refused: [(bool, &[&str], &str); 4] = [
            (self.partitions == Some(0), &["EVENTS_PARTITIONS"], "EVENTS_PARTITIONS must be greater than 0"),
            (self.replication == 0, &["EVENTS_REPLICATION"], "EVENTS_REPLICATION must be greater than 0"),
            (self.min_isr == 0, &["EVENTS_MIN_ISR"], "EVENTS_MIN_ISR must be greater than 0"),
            (
                self.min_isr > self.replication,
                &["EVENTS_MIN_ISR", "EVENTS_REPLICATION"],
                "EVENTS_MIN_ISR exceeds EVENTS_REPLICATION, and no more copies can be in sync than exist: raise \
                 EVENTS_REPLICATION",
            ),
        ];
        refused.into_iter().filter(|(is_refused, ..)| *is_refused).map(|(_, settings, advice)| (settings, advice))
    }

    /// Returns the faults of the existing topic, each with the expected value; empty if there are none. `replication`
    /// is that of the partition with the fewest replicas.
    pub fn differences(
        &self,
        partitions: u32,
        replication: u32,
        setting: impl Fn(&str) -> Option<String>,
    ) -> Vec<String> {
        let mut differences = Vec::new();
        if let Some(wanted) = self.partitions.filter(|wanted| *wanted != partitions) {
            differences.push(format!("it has {partitions} partitions, not {wanted}"));
        }
        if replication < self.replication {
            differences.push(format!("its replication factor is {replication}, not {} or more", self.replication));
        }
        let found = setting(MIN_ISR).unwrap_or_default();
        // With three replicas and one in sync, losing a broker loses acknowledged records.
        let least = self.min_isr.max(replication.div_ceil(2));
        if found.parse::<u32>().is_ok_and(|found| found < least) || found.is_empty() {
            differences.push(format!("{MIN_ISR} is {found:?}, not {least} or more"));
        }
        for (name, wanted) in SETTINGS {
            let found = setting(name).unwrap_or_default();
            if found != wanted {
                differences.push(format!("{name} is {found:?}, not {wanted:?}"));
            }
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> LogTopic {
        LogTopic { name: "events".to_owned(), partitions: Some(12), replication: 3, min_isr: 2 }
    }

    fn setting(changed: (&'static str, &'static str)) -> impl Fn(&str) -> Option<String> {
        move |name| {
            if name == changed.0 {
                return Some(changed.1.to_owned());
            }
            let known = SETTINGS.iter().chain(&[(MIN_ISR, "2")]).find(|(known, _)| *known == name);
            known.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn a_topic_with_the_expected_settings_is_accepted() {
        assert_eq!(log().differences(12, 3, setting(("", ""))), [""; 0]);
        assert_eq!(log().differences(12, 4, setting((MIN_ISR, "3"))), [""; 0], "stricter settings are accepted");
        let any = LogTopic { partitions: None, replication: 1, min_isr: 1, ..log() };
        assert_eq!(any.differences(5, 1, setting((MIN_ISR, "1"))), [""; 0]);
    }

    #[test]
    fn every_difference_is_named() {
        let named = |partitions, replication, changed| log().differences(partitions, replication, setting(changed));
        assert_eq!(named(13, 3, ("", "")), ["it has 13 partitions, not 12"]);
        assert_eq!(named(12, 2, ("", "")), ["its replication factor is 2, not 3 or more"]);
        assert_eq!(named(12, 3, (MIN_ISR, "1")), ["min.insync.replicas is \"1\", not 2 or more"]);
        assert_eq!(named(12, 3, ("cleanup.policy", "compact")), ["cleanup.policy is \"compact\", not \"delete\""]);
        assert_eq!(named(12, 3, ("retention.ms", "604800000")), ["retention.ms is \"604800000\", not \"-1\""]);
        assert_eq!(
            named(12, 3, ("unclean.leader.election.enable", "true")),
            ["unclean.leader.election.enable is \"true\", not \"false\""]
        );
        assert_eq!(log().differences(1, 1, |_| None).len(), 7);
    }

    #[test]
    fn three_replicas_with_one_in_sync_are_refused_regardless_of_the_configuration() {
        let lax = LogTopic { replication: 1, min_isr: 1, ..log() };
        assert_eq!(lax.differences(12, 3, setting((MIN_ISR, "1"))).len(), 1);
    }
}
