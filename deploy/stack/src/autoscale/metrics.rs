//! Reads the metrics of instances, and derives the value of a rule from them.

use std::collections::BTreeMap;
use std::time::Instant;

use super::rules::{Measure, Rule};
use crate::services::Service;

/// The metrics of an instance at one time.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) pid: Option<u32>,
    /// Answer of `/metrics`, in Prometheus's text format.
    pub(super) text: String,
    pub(super) cpu_seconds: f64,
}

/// Returns the value of a rule over all instances, from what they reported before and report at present.
pub(super) fn value(rule: &Rule, before: &BTreeMap<String, Sample>, now: &BTreeMap<String, Sample>) -> f64 {
    let of = |service| now.iter().filter(move |(name, _)| Service::of_instance(name).is_some_and(|of| of.0 == service));
    let per_second = |counter: &dyn Fn(&Sample) -> f64| {
        let rates = of(rule.service).filter_map(|(name, now)| {
            // A process that has just started has no rate yet.
            let before = before.get(name).filter(|before| before.pid == now.pid)?;
            Some((counter(now) - counter(before)).max(0.0) / (now.at - before.at).as_secs_f64().max(0.001))
        });
        rates.sum()
    };
    match rule.measure {
        Measure::Sum(metric) => of(rule.service).map(|(_, now)| series(&now.text, metric, "").sum::<f64>()).sum(),
        Measure::Rate(metric) | Measure::Work(metric) => per_second(&|of| series(&of.text, metric, "").sum()),
        Measure::Worst(metric, label) => {
            of(Service::QueryApi).flat_map(|(_, now)| series(&now.text, metric, label)).fold(0.0, f64::max)
        }
        Measure::Busy => per_second(&|of| of.cpu_seconds),
    }
}

/// Returns the values of a metric's series whose labels contain `label`.
fn series<'a>(text: &'a str, metric: &'a str, label: &'a str) -> impl Iterator<Item = f64> + 'a {
    let series = text.lines().filter_map(move |line| line.strip_prefix(metric)?.rsplit_once(' '));
    let ours =
        series.filter(move |(labels, _)| (labels.is_empty() || labels.starts_with('{')) && labels.contains(label));
    ours.filter_map(|(_, value)| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(at: Instant, pid: u32, text: &str, cpu_seconds: f64) -> Sample {
        Sample { at, pid: Some(pid), text: text.to_owned(), cpu_seconds }
    }

    #[test]
    fn counters_count_since_the_last_look_and_not_across_a_restart() {
        let (begun, label) = (Instant::now(), "server=\"postgres\"");
        let later = begun + Duration::from_secs(2);
        let names = ["query-api-1", "query-api-2", "projector-1"].map(String::from);
        let text =
            |served: u32, behind: u32| format!("served{{a=\"b\"}} {served}\nserved_x 9\nbehind{{{label}}} {behind}\n");
        let before = names.clone().map(|name| (name, sample(begun, 1, &text(10, 0), 1.0)));
        let now = [(1, text(30, 3), 1.5), (2, text(20, 7), 9.0), (1, text(99, 99), 2.0)];
        let now = names.into_iter().zip(now).map(|(name, (pid, text, cpu))| (name, sample(later, pid, &text, cpu)));
        let (before, now) = (BTreeMap::from(before), now.collect());
        let of =
            |measure| value(&Rule { service: Service::QueryApi, name: "", measure, threshold: 1.0 }, &before, &now);
        assert_eq!(of(Measure::Rate("served")), 10.0);
        assert_eq!(of(Measure::Sum("served")), 50.0);
        assert_eq!(of(Measure::Worst("behind", label)), 7.0);
        assert_eq!(of(Measure::Busy), 0.25);
    }
}
