//! Reports of the instances about themselves, in the table `instances`, and the kinds of problems that they name.
//!
//! Invariant: nothing in a report is personal data or a secret. Reports name partitions, views, conditions and numbers.

use std::collections::BTreeMap;

use domain::TimeMs;
use serde::{Deserialize, Serialize};

use crate::time;

/// Statement that keeps an instance's report: its parameters are the instance, the service and the report.
pub const KEEP: &str = include_str!("status/keep.sql");
/// Statement that removes the report of an instance that ends.
pub const REMOVE: &str = "DELETE FROM instances WHERE instance = $1";

/// Maximum length of a problem's detail, in characters.
const MAX_DETAIL_CHARS: usize = 500;
/// Maximum number of problems in a report.
const MAX_PROBLEMS: usize = 100;

/// The part of the system that a problem affects, as clients notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Some or all commands are refused.
    Commands,
    /// Queries are slower than usual, or some are refused.
    Queries,
    /// Answers to queries without a token are older than usual.
    Freshness,
    /// Clients notice nothing.
    Operation,
}

/// A kind of problem. Those that have an alert bear its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    pub area: Area,
}

pub const NOT_READY: &str = "NotReady";
pub const TIER_DOWN: &str = "TierDown";
pub const INSTANCE_DOWN: &str = "InstanceDown";
pub const INSTANCES_UNKNOWN: &str = "InstancesUnknown";
pub const NOBODY_FOLDS: &str = "NobodyFolds";
pub const PARTITION_WITHOUT_OWNER: &str = "PartitionWithoutOwner";
pub const PARTITION_HALTED: &str = "PartitionHalted";
pub const AGGREGATE_QUARANTINED: &str = "AggregateQuarantined";
pub const TOPIC_DIFFERS: &str = "TopicDiffers";
pub const VIEW_BEHIND: &str = "ViewBehind";
pub const CACHE_BEHIND: &str = "CacheBehind";
pub const LOG_END_UNKNOWN: &str = "LogEndUnknown";
pub const RECORDS_PARKED: &str = "RecordsParked";
pub const REACTIONS_PARKED: &str = "ReactionsParked";
pub const POSTGRES_UNAVAILABLE: &str = "PostgresUnavailable";
pub const REDIS_UNAVAILABLE: &str = "RedisUnavailable";

/// All kinds that this build knows. `deploy/RUNBOOKS.md` has a section for each.
pub const KINDS: [Kind; 16] = [
    Kind { name: NOT_READY, area: Area::Operation },
    Kind { name: TIER_DOWN, area: Area::Commands },
    Kind { name: INSTANCE_DOWN, area: Area::Operation },
    Kind { name: INSTANCES_UNKNOWN, area: Area::Operation },
    Kind { name: NOBODY_FOLDS, area: Area::Freshness },
    Kind { name: PARTITION_WITHOUT_OWNER, area: Area::Commands },
    Kind { name: PARTITION_HALTED, area: Area::Commands },
    Kind { name: AGGREGATE_QUARANTINED, area: Area::Commands },
    Kind { name: TOPIC_DIFFERS, area: Area::Operation },
    Kind { name: VIEW_BEHIND, area: Area::Freshness },
    Kind { name: CACHE_BEHIND, area: Area::Freshness },
    Kind { name: LOG_END_UNKNOWN, area: Area::Freshness },
    Kind { name: RECORDS_PARKED, area: Area::Freshness },
    Kind { name: REACTIONS_PARKED, area: Area::Operation },
    Kind { name: POSTGRES_UNAVAILABLE, area: Area::Queries },
    Kind { name: REDIS_UNAVAILABLE, area: Area::Queries },
];

/// A problem that an instance sees at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Name of the [`Kind`].
    pub what: &'static str,
    /// The partition, the view or the condition.
    pub place: String,
    /// Description for operators.
    pub detail: String,
}

/// A problem, and since when it has been seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub what: String,
    #[serde(rename = "where")]
    pub place: String,
    #[serde(with = "time::rfc3339")]
    pub since: TimeMs,
    pub detail: String,
}

/// The report of an instance about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    /// The commit of the build, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[serde(with = "time::rfc3339")]
    pub started: TimeMs,
    pub ready: bool,
    /// The partitions that a command-api owns, such as `0-5,7`; absent for other services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owns: Option<String>,
    pub problems: Vec<Problem>,
}

/// The facts that an instance reports of itself from its start on.
#[derive(Debug)]
pub struct Observer {
    pub version: &'static str,
    pub commit: Option<&'static str>,
    pub started: TimeMs,
    pub seen: Seen,
}

/// Times since when findings have been seen without a pause.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<(&'static str, String), TimeMs>);

impl Kind {
    /// Returns the kind of this name; `None` if only another build knows it.
    pub fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.name == name)
    }

    /// Returns the place in the documents that says what to do.
    pub fn runbook(name: &str) -> String {
        let section = Self::named(name).map_or_else(String::new, |kind| format!("#{}", kind.name.to_lowercase()));
        format!("deploy/RUNBOOKS.md{section}")
    }
}

impl Finding {
    pub fn new(what: &'static str, place: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what, place: place.into(), detail: detail.into() }
    }
}

impl Observer {
    pub fn new(version: &'static str, commit: Option<&'static str>, started: TimeMs) -> Self {
        Self { version, commit, started, seen: Seen::default() }
    }

    /// Returns the report of this moment. `waiting` has the conditions that are not met, with the reasons.
    pub fn report(
        &mut self,
        waiting: Vec<(&'static str, String)>,
        owns: Option<String>,
        findings: Vec<Finding>,
        now: TimeMs,
    ) -> Report {
        let ready = waiting.is_empty();
        let waiting = waiting.into_iter().map(|(condition, reason)| Finding::new(NOT_READY, condition, reason));
        Report {
            version: self.version.to_owned(),
            commit: self.commit.map(str::to_owned),
            started: self.started,
            ready,
            owns,
            problems: self.seen.look(waiting.chain(findings).collect(), now),
        }
    }
}

impl Report {
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report serializes to JSON")
    }
}

impl Seen {
    /// Returns the findings of this moment as problems, and forgets those that are over.
    pub fn look(&mut self, findings: Vec<Finding>, now: TimeMs) -> Vec<Problem> {
        let before = std::mem::take(&mut self.0);
        findings
            .into_iter()
            .take(MAX_PROBLEMS)
            .map(|Finding { what, place, detail }| {
                let key = (what, place.clone());
                let since = before.get(&key).copied().unwrap_or(now);
                self.0.insert(key, since);
                let detail = detail.chars().take(MAX_DETAIL_CHARS).collect();
                Problem { what: what.to_owned(), place, since, detail }
            })
            .collect()
    }
}

/// Formats ascending partitions as ranges: `0-5,7`.
pub fn ranges(partitions: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for partition in partitions {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == partition => *last = partition,
            _ => ranges.push((partition, partition)),
        }
    }
    let text = |(first, last): (u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// Returns the partitions below `count` that ranges name. Other text names none.
pub fn in_ranges(ranges: &str, count: u32) -> impl Iterator<Item = u32> {
    let range = move |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { return 0..0 };
        first..last.saturating_add(1).min(count)
    };
    ranges.split(',').flat_map(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_begins_when_it_is_first_seen_and_again_after_a_pause() {
        let mut seen = Seen::default();
        let halted = |detail: &str| Finding::new(PARTITION_HALTED, "partition 3", detail);
        let since = |seen: &mut Seen, findings, now| {
            seen.look(findings, TimeMs(now)).iter().map(|problem| problem.since.0).collect::<Vec<_>>()
        };
        assert_eq!(since(&mut seen, vec![halted("a")], 1000), [1000]);
        let other = Finding::new(NOT_READY, "kafka", "no broker");
        assert_eq!(since(&mut seen, vec![other, halted("b")], 2000), [2000, 1000]);
        assert_eq!(since(&mut seen, vec![], 3000), [0; 0]);
        assert_eq!(since(&mut seen, vec![halted("a")], 4000), [4000]);
    }

    #[test]
    fn a_report_is_bounded_whatever_is_found() {
        let findings = (0..5000).map(|partition| Finding::new(NOT_READY, format!("{partition}"), "x".repeat(9999)));
        let problems = Seen::default().look(findings.collect(), TimeMs(0));
        assert!(serde_json::to_string(&problems).unwrap().len() < 65_536);
    }

    #[test]
    fn partitions_are_written_as_ranges_and_read_back() {
        for (partitions, text) in [(&[][..], ""), (&[7], "7"), (&[0, 1, 2, 5, 7, 8], "0-2,5,7-8")] {
            assert_eq!(ranges(partitions.iter().copied()), text);
            assert_eq!(in_ranges(text, 12).collect::<Vec<_>>(), partitions);
        }
        assert_eq!(in_ranges("0-4294967295,x,3-", 2).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_report_of_an_older_or_newer_build_can_be_read() {
        let text = r#"{"version":"0.1.0","started":"2026-05-01T10:00:00Z","ready":true,"problems":[],"more":1}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!((report.owns, report.commit), (None, None));
    }

    #[test]
    fn each_kind_has_a_section_in_the_runbooks() {
        let book = include_str!("../../deploy/RUNBOOKS.md");
        for Kind { name, .. } in KINDS {
            assert!(book.contains(&format!("\n### {name}\n")), "{name}");
            assert!(Kind::runbook(name).ends_with(&name.to_lowercase()));
        }
    }
}
