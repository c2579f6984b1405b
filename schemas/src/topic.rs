//! The topic of the log, and what it must be like for the promises to hold.

/// Of every log, whatever its size: for creating it, and for checking it at the start.
pub const SETTINGS: [(&str, &str); 4] = [
    // The log is the store: nothing of it may ever go.
    ("cleanup.policy", "delete"),
    ("retention.ms", "-1"),
    ("retention.bytes", "-1"),
    // A replica that lags must not lead: acknowledged records would be gone.
    ("unclean.leader.election.enable", "false"),
];
pub const MIN_ISR: &str = "min.insync.replicas";

/// The empty topic on which instances meet to share out the log's partitions.
pub fn coordination_topic(log: &str) -> String {
    format!("{log}.owners")
}

/// The topic on whose records the brokers stamp their time, for owners to compare their clocks with.
pub fn clock(log: &str) -> String {
    format!("{log}.clock")
}

/// Of the clocks' topic: Kafka spreads them over as many brokers.
pub const CLOCK_PARTITIONS: i32 = 3;
/// For creating it. What was stamped an hour ago may go.
pub const CLOCK_SETTINGS: [(&str, &str); 3] =
    [("message.timestamp.type", "LogAppendTime"), ("retention.ms", "3600000"), ("segment.ms", "3600000")];

/// What is wrong with the topic of [`coordination_topic`], beside a log of so many partitions; empty where it is right.
pub fn coordination_topic_differences(found: u32, log: u32) -> Vec<String> {
    let differs = found != log;
    let difference = || format!("it has {found} partitions, and the log has {log}: make it anew with as many");
    differs.then(difference).into_iter().collect()
}

/// The topic of one partition that keeps the log's exceptions: see [`crate::exceptions`].
pub fn exceptions(log: &str) -> String {
    format!("{log}.exceptions")
}

/// What a deployment says of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTopic {
    pub name: String,
    /// Fixed for ever, because an aggregate's partition hangs on it. `None`: whatever the topic has.
    pub partitions: Option<u32>,
    /// The least number of copies, the leader's included.
    pub replication: u32,
    /// The least number of copies that an acknowledged record is in.
    pub min_isr: u32,
}

impl LogTopic {
    /// What is wrong with the topic as it is, each in words that tell what it should be; empty where it is right.
    /// `replication` is that of the partition with the fewest copies.
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
            differences.push(format!("it has {replication} copies, not {} or more", self.replication));
        }
        let found = setting(MIN_ISR).unwrap_or_default();
        // With three copies and one in sync, the death of a broker loses what was acknowledged.
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
    fn a_log_that_is_as_it_should_be_is_taken() {
        assert_eq!(log().differences(12, 3, setting(("", ""))), [""; 0]);
        assert_eq!(log().differences(12, 4, setting((MIN_ISR, "3"))), [""; 0], "more safety is none the worse");
        let any = LogTopic { partitions: None, replication: 1, min_isr: 1, ..log() };
        assert_eq!(any.differences(5, 1, setting((MIN_ISR, "1"))), [""; 0]);
    }

    #[test]
    fn every_difference_is_named() {
        let named = |partitions, replication, changed| log().differences(partitions, replication, setting(changed));
        assert_eq!(named(13, 3, ("", "")), ["it has 13 partitions, not 12"]);
        assert_eq!(named(12, 2, ("", "")), ["it has 2 copies, not 3 or more"]);
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
    fn three_copies_of_which_one_is_in_sync_are_refused_whatever_was_asked_for() {
        let lax = LogTopic { replication: 1, min_isr: 1, ..log() };
        assert_eq!(lax.differences(12, 3, setting((MIN_ISR, "1"))).len(), 1);
    }
}
