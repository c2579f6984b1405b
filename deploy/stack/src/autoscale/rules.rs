//! The rules. `deploy/kubernetes/components/autoscale/scale.yaml` states the same for a cluster; a test compares them.

use std::time::Duration;

use crate::services::Service;

/// Something that decides on the number of a service's instances.
pub(super) struct Rule {
    pub(super) service: Service,
    /// Name of the trigger in a cluster.
    pub(super) name: &'static str,
    pub(super) measure: Measure,
    pub(super) threshold: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Measure {
    /// A gauge, added up; the threshold is that of each instance.
    Sum(&'static str),
    /// A counter's increase per second, added up; the threshold is that of each instance.
    Rate(&'static str),
    /// Like `Rate`, for an instance that has a whole core.
    Work(&'static str),
    /// The largest value of the series of query-api with this label; the threshold is that of all instances together.
    Worst(&'static str, &'static str),
    /// Processor time per second; the threshold is the share of an instance's cores.
    Busy,
}

/// Delays with which a tier follows its rules.
pub(super) struct Pace {
    /// Time for which a rule has to ask for more before the tier grows.
    pub(super) grows_after: Duration,
    /// Largest number of instances that are added at once.
    pub(super) grows_by: fn(u16) -> u16,
    pub(super) pause_after_growth: Duration,
    /// Time for which no rule may have needed the last instance before it ends.
    pub(super) shrinks_after: Duration,
    pub(super) pause_after_shrinking: Duration,
}

pub(super) const RULES: [Rule; 8] = {
    use Measure::{Busy, Rate, Sum, Work, Worst};
    use Service::{CommandApi, Projector, QueryApi};
    let waiting = Sum("stampede_mailbox_depth");
    let behind = Worst("stampede_view_behind_seconds", "server=\"postgres\"");
    [
        Rule { service: CommandApi, name: "mailbox", measure: waiting, threshold: 64.0 },
        Rule {
            service: CommandApi,
            name: "refused",
            measure: Rate("stampede_commands_refused_total"),
            threshold: 10.0,
        },
        Rule { service: CommandApi, name: "busy", measure: Busy, threshold: 0.6 },
        Rule { service: QueryApi, name: "queries", measure: Work("stampede_queries_total"), threshold: 15_000.0 },
        Rule { service: QueryApi, name: "waiters", measure: Sum("stampede_token_waiters"), threshold: 500.0 },
        Rule { service: QueryApi, name: "busy", measure: Busy, threshold: 0.6 },
        Rule { service: Projector, name: "lag", measure: behind, threshold: 2.0 },
        Rule { service: Projector, name: "busy", measure: Busy, threshold: 0.6 },
    ]
};

/// Returns whether a rule of a service reads the metrics of an instance of the service `of`.
pub(super) fn reads(service: Service, of: Service) -> bool {
    let is_of_queries = |rule: &Rule| matches!(rule.measure, Measure::Worst(..)) && of == Service::QueryApi;
    of == service || RULES.iter().any(|rule| rule.service == service && is_of_queries(rule))
}

pub(super) fn pace(service: Service) -> Pace {
    let secs = Duration::from_secs;
    match service {
        // An instance waits for its partitions after it starts, and hands them over when it leaves.
        Service::CommandApi => Pace {
            grows_after: secs(10),
            grows_by: |_| 2,
            pause_after_growth: secs(60),
            shrinks_after: secs(600),
            pause_after_shrinking: secs(120),
        },
        Service::QueryApi => Pace {
            grows_after: secs(0),
            grows_by: |instances| instances,
            pause_after_growth: secs(15),
            shrinks_after: secs(300),
            pause_after_shrinking: secs(60),
        },
        // More instances help only while they are the bottleneck, so each has to catch up before the next one.
        Service::Projector => Pace {
            grows_after: secs(15),
            grows_by: |_| 1,
            pause_after_growth: secs(60),
            shrinks_after: secs(600),
            pause_after_shrinking: secs(120),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layout::root;

    #[test]
    fn a_cluster_has_the_same_rules() {
        let file = root().join("deploy/kubernetes/components/autoscale/scale.yaml");
        let text = fs::read_to_string(file).unwrap();
        for service in Service::ALL {
            let named = format!("  name: {}\n", service.name());
            let document = text.split("\n---\n").find(|document| document.contains(&named)).unwrap();
            let value = |line: &str, name: &str| -> Option<f64> {
                line.trim().strip_prefix(name)?.trim().trim_matches('"').parse().ok()
            };
            let triggers = document.split("    - type: ").skip(1).map(|trigger| {
                let name = trigger.lines().find_map(|line| line.trim().strip_prefix("name: ")).unwrap();
                let threshold = trigger.lines().find_map(|line| value(line, "threshold:"));
                // The processor's is a percentage of the request, which is half a core.
                let busy = trigger.lines().find_map(|line| value(line, "value:")).map(|percent| percent / 200.0);
                (name.to_owned(), threshold.or(busy).unwrap())
            });
            let ours = RULES.iter().filter(|rule| rule.service == service);
            let ours = ours.map(|rule| (rule.name.to_owned(), rule.threshold));
            assert_eq!(triggers.collect::<Vec<_>>(), ours.collect::<Vec<_>>(), "{}", service.name());
            let pace = pace(service);
            let seconds = |time: Duration| time.as_secs();
            for part in [
                format!("scaleUp:\n          stabilizationWindowSeconds: {}\n", seconds(pace.grows_after)),
                format!("scaleDown:\n          stabilizationWindowSeconds: {}\n", seconds(pace.shrinks_after)),
                format!("periodSeconds: {} }}", seconds(pace.pause_after_growth)),
                format!("value: 1, periodSeconds: {} }}", seconds(pace.pause_after_shrinking)),
            ] {
                assert!(document.contains(&part), "{}: {part}", service.name());
            }
        }
    }
}
