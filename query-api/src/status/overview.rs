//! The overview of one moment, for operators and for clients.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use schemas::status::{
    Area, INSTANCE_DOWN, Kind, PARTITION_WITHOUT_OWNER, POSTGRES_UNAVAILABLE, Problem, REACTIONS_PARKED,
    RECORDS_PARKED, REDIS_UNAVAILABLE, Seen, TIER_DOWN,
};
use schemas::time::{TimeMs, to_rfc3339};
use serde::Serialize;
use serde_json::json;

use super::{GONE_AFTER, Look};
use crate::postgres::instances::{Instance, ParkedCount};

/// Time that a problem must last before it counts: a handover of partitions, or a read of Redis that failed once, is
/// none.
const COUNTS_AFTER: Duration = Duration::from_secs(3);
/// Place of partitions without an owner if there is no other.
pub(super) const ALL_PARTITIONS: &str = "all partitions";
/// The views under which the reactors park.
const REACTORS: [&str; 2] = ["reactor", "deadlines"];

/// The state of the whole system, serialized.
#[derive(Debug, Clone)]
pub(crate) struct Overview {
    /// Answer for clients.
    pub(crate) public: Bytes,
    /// Answer for operators.
    pub(crate) detailed: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Degraded,
    Down,
}

/// The findings of earlier looks.
#[derive(Debug, Default)]
pub(super) struct History {
    seen: Seen,
    /// The state, and since when the system is in it.
    state: Option<(State, TimeMs)>,
}

/// A problem, and the instances that report it; none if it shows from all reports together.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    problem: Problem,
    instances: Vec<String>,
    r#do: String,
}

impl History {
    pub(super) fn overview(&mut self, look: Look, now: TimeMs) -> Overview {
        let Look { own, others, parked, findings, views } = look;
        let instances: Vec<Instance> = std::iter::once(own).chain(others).collect();
        let mut problems = merged(&instances);
        let found = self.seen.look(findings, now);
        let found = found.into_iter().chain(parked.iter().map(of_parked));
        problems.extend(found.map(|problem| shown(problem, Vec::new())));
        problems.extend(instances.iter().filter(|it| it.age >= GONE_AFTER).map(|it| shown(of_gone(it, now), vec![])));
        problems.retain(|shown| shown.problem.since.0 + ms(COUNTS_AFTER) <= now.0);
        problems.sort_by(|one, other| {
            (one.problem.since, &one.problem.what, &one.problem.place).cmp(&(
                other.problem.since,
                &other.problem.what,
                &other.problem.place,
            ))
        });
        let (state, since) = self.state_at(&problems, now);
        let public = json!({ "status": state, "since": to_rfc3339(since), "problems": for_clients(&problems) });
        let detailed = json!({
            "status": state,
            "since": to_rfc3339(since),
            "at": to_rfc3339(now),
            "problems": problems,
            "views": views,
            "instances": instances.iter().map(described).collect::<Vec<_>>(),
        });
        Overview { public: public.to_string().into(), detailed: detailed.to_string().into() }
    }

    /// Returns the state, and since when it is that.
    fn state_at(&mut self, problems: &[Shown], now: TimeMs) -> (State, TimeMs) {
        let state = state_of(problems);
        let before = self.state;
        let since = match before {
            Some((known, since)) if known == state => since,
            // The first problem began before it counted.
            Some((State::Ok, _)) | None => problems.first().map_or(now, |first| first.problem.since),
            Some(_) => now,
        };
        self.state = Some((state, since));
        (state, since)
    }
}

fn state_of(problems: &[Shown]) -> State {
    let has = |what| problems.iter().any(|shown| shown.problem.what == what);
    let is_all = |shown: &Shown| shown.problem.what == PARTITION_WITHOUT_OWNER && shown.problem.place == ALL_PARTITIONS;
    let no_commands = has(TIER_DOWN) || problems.iter().any(is_all);
    let no_queries = has(POSTGRES_UNAVAILABLE) && has(REDIS_UNAVAILABLE);
    match problems {
        [] => State::Ok,
        _ if no_commands || no_queries => State::Down,
        _ => State::Degraded,
    }
}

/// Returns what the live instances report, the same problem of several instances once.
fn merged(instances: &[Instance]) -> Vec<Shown> {
    let mut all = BTreeMap::<(String, String), Shown>::new();
    for instance in instances.iter().filter(|instance| instance.age < GONE_AFTER) {
        for problem in instance.report.iter().flat_map(|report| &report.problems) {
            let key = (problem.what.clone(), problem.place.clone());
            let known = all.entry(key).or_insert_with(|| shown(problem.clone(), Vec::new()));
            known.problem.since = known.problem.since.min(problem.since);
            known.instances.push(instance.name.clone());
        }
    }
    all.into_values().collect()
}

fn shown(problem: Problem, instances: Vec<String>) -> Shown {
    let r#do = Kind::runbook(&problem.what);
    Shown { problem, instances, r#do }
}

fn of_parked(ParkedCount { view, records, since }: &ParkedCount) -> Problem {
    let what = if REACTORS.contains(&view.as_str()) { REACTIONS_PARKED } else { RECORDS_PARKED };
    Problem { what: what.to_owned(), place: view.clone(), since: *since, detail: format!("records: {records}") }
}

fn of_gone(instance: &Instance, now: TimeMs) -> Problem {
    let since = TimeMs(now.0.saturating_sub(ms(instance.age)));
    let detail = "it has ended without saying so, or cannot reach Postgres".to_owned();
    Problem { what: INSTANCE_DOWN.to_owned(), place: instance.name.clone(), since, detail }
}

fn described(instance: &Instance) -> serde_json::Value {
    let Instance { name, service, report, age } = instance;
    json!({ "instance": name, "service": service, "report_age_secs": age.as_secs(), "report": report })
}

/// Returns what the problems mean for clients: the areas that they affect, since when, and what to do.
fn for_clients(problems: &[Shown]) -> Vec<serde_json::Value> {
    let mut areas = BTreeMap::<Area, TimeMs>::new();
    for Shown { problem, .. } in problems {
        let area = Kind::named(&problem.what).map_or(Area::Operation, |kind| kind.area);
        let since = areas.entry(area).or_insert(problem.since);
        *since = problem.since.min(*since);
    }
    let told = |(area, since)| {
        let (what, r#do) = match area {
            Area::Commands => ("commands", "send a refused command again under the same Idempotency-Key"),
            Area::Queries => ("queries", "send a refused query again after Retry-After"),
            Area::Freshness => ("freshness", "send the Consistency-Token of what the answer must show"),
            Area::Operation => ("operation", "nothing: clients are not affected"),
        };
        json!({ "what": what, "since": to_rfc3339(since), "do": r#do })
    };
    areas.into_iter().map(told).collect()
}

fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use schemas::status::{Finding, NOT_READY, Report};
    use serde_json::Value;

    use super::*;

    fn instance(name: &str, age_secs: u64, problems: &[(&str, &str, u64)]) -> Instance {
        let problem = |(what, place, since): &(&str, &str, u64)| Problem {
            what: (*what).to_owned(),
            place: (*place).to_owned(),
            since: TimeMs(*since),
            detail: "of host db-7, for ann".to_owned(),
        };
        let report = Report {
            version: "0.1.0".to_owned(),
            commit: None,
            started: TimeMs(0),
            ready: true,
            owns: None,
            problems: problems.iter().map(problem).collect(),
        };
        let age = Duration::from_secs(age_secs);
        Instance { name: name.to_owned(), service: "projector".to_owned(), report: Some(report), age }
    }

    fn look(others: Vec<Instance>, findings: Vec<Finding>) -> Look {
        Look { own: instance("own", 0, &[]), others, parked: Vec::new(), findings, views: Vec::new() }
    }

    /// Returns the answers for operators and for clients.
    fn answers(history: &mut History, look: Look, now: u64) -> [Value; 2] {
        let Overview { public, detailed } = history.overview(look, TimeMs(now));
        [detailed, public].map(|json| serde_json::from_slice(&json).unwrap())
    }

    fn names(answer: &Value) -> Vec<&str> {
        answer["problems"].as_array().unwrap().iter().map(|problem| problem["what"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_problem_counts_once_it_lasts_and_the_state_begins_with_it() {
        let mut history = History::default();
        let redis = || vec![Finding::new(REDIS_UNAVAILABLE, "redis", "")];
        let [operators, _] = answers(&mut history, look(vec![], vec![]), 0);
        assert_eq!((&operators["status"], names(&operators).len()), (&json!("ok"), 0));
        let [operators, _] = answers(&mut history, look(vec![], redis()), 1_000_000);
        assert_eq!(operators["status"], "ok", "it may be over in a moment");
        let [operators, clients] = answers(&mut history, look(vec![], redis()), 1_005_000);
        assert_eq!((&operators["status"], &operators["since"]), (&json!("degraded"), &json!("1970-01-01T00:16:40Z")));
        assert_eq!((names(&operators), names(&clients)), (vec![REDIS_UNAVAILABLE], vec!["queries"]));
        assert_eq!(operators["problems"][0]["do"], "deploy/RUNBOOKS.md#redisunavailable");
        let both = || [redis(), vec![Finding::new(POSTGRES_UNAVAILABLE, "postgres", "")]].concat();
        answers(&mut history, look(vec![], both()), 1_010_000);
        let [operators, _] = answers(&mut history, look(vec![], both()), 1_020_000);
        assert_eq!(operators["status"], "down");
        let [operators, _] = answers(&mut history, look(vec![], vec![]), 1_030_000);
        assert_eq!((&operators["status"], &operators["since"]), (&json!("ok"), &json!("1970-01-01T00:17:10Z")));
    }

    #[test]
    fn the_same_problem_of_several_instances_is_one_that_began_with_the_first() {
        let halted = |name, since| instance(name, 1, &[("PartitionHalted", "partition 3", since)]);
        let gone = instance("gone", 20, &[(NOT_READY, "kafka", 0)]);
        let others = vec![halted("a", 9000), halted("b", 5000), gone];
        let [operators, _] = answers(&mut History::default(), look(others, vec![]), 100_000);
        assert_eq!(names(&operators), ["PartitionHalted", INSTANCE_DOWN]);
        assert_eq!(operators["problems"][0]["instances"], json!(["a", "b"]));
        assert_eq!(operators["problems"][0]["since"], "1970-01-01T00:00:05Z");
        assert_eq!(operators["problems"][1]["since"], "1970-01-01T00:01:20Z");
    }

    #[test]
    fn clients_learn_no_hosts_partitions_or_reasons() {
        let others = vec![instance("projector@db-7:1", 1, &[("PartitionHalted", "partition 3", 5000)])];
        let parked = ParkedCount { view: "customer".to_owned(), records: 7, since: TimeMs(1) };
        let look = Look { parked: vec![parked], ..look(others, vec![]) };
        let [operators, clients] = answers(&mut History::default(), look, 100_000);
        assert!(operators.to_string().contains("db-7") && operators.to_string().contains("partition 3"));
        assert_eq!(names(&clients), ["commands", "freshness"]);
        for secret in ["db-7", "ann", "partition", "customer", "instance", "0.1.0"] {
            assert!(!clients.to_string().contains(secret), "{secret}: {clients}");
        }
    }
}
