//! Looks at the instances and the machine while the bench runs.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use stack::control;
use stack::layout::Layout;
use stack::process;
use stack::services::Service;
use stack::status::{Process, State};

use super::capacity::{idle, processors};
use crate::bench::environment::sum_of;

const LOOK: Duration = Duration::from_millis(500);
/// Share of the mean of the others at which an instance carries its share.
const ITS_SHARE: f64 = 0.7;

/// One look at the instances that are ready, by name.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Look {
    pub(super) at: f64,
    pub(super) instances: BTreeMap<String, Seen>,
    /// Share of the machine's processor time that nothing has used since the look before.
    pub(super) idle: f64,
}

/// What an instance has done since it started, as far as it could be read. The answers are counted where there are
/// several instances.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Seen {
    pub(super) answered: Option<f64>,
    pub(super) cpu_seconds: Option<f64>,
}

/// Time that a new instance took from readiness until it carried its share.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Joined {
    pub(super) name: String,
    pub(super) at: f64,
    pub(super) seconds: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Watch {
    pub(super) looks: Vec<Look>,
}

impl Watch {
    pub(super) fn run(layout: &Layout, begun: Instant, ended: impl Fn() -> bool) -> Self {
        let (mut looks, mut before) = (Vec::new(), (Instant::now(), idle()));
        while !ended() {
            thread::sleep(LOOK);
            let processes = control::status(layout).map(|status| status.processes).unwrap_or_default();
            let at = begun.elapsed().as_secs_f64();
            let mut look = Look { at, ..Look::default() };
            let ready = processes.iter().filter(|process| process.state == State::Ready);
            let ready: Vec<_> = ready.filter_map(|one| Some((Service::of_instance(&one.name)?.0, one))).collect();
            for (service, process) in &ready {
                // Only where there are shares to compare, because an answer costs a confined instance a noticeable
                // time.
                let has_others = ready.iter().filter(|(other, _)| other == service).count() > 1;
                let metric = match service {
                    Service::CommandApi => Some("stampede_commands_total"),
                    Service::QueryApi => Some("stampede_queries_total"),
                    // It answers nobody.
                    Service::Projector => None,
                };
                let text = metric.filter(|_| has_others).and_then(|_| metrics(process));
                let answered = metric.zip(text).map(|(metric, text)| sum_of(&text, metric, ""));
                let cpu_seconds = process.pid.and_then(process::cpu_seconds);
                look.instances.insert(process.name.clone(), Seen { answered, cpu_seconds });
            }
            let now = (Instant::now(), idle());
            look.idle = (now.1 - before.1) / (now.0 - before.0).as_secs_f64() / processors();
            before = now;
            looks.push(look);
        }
        Self { looks }
    }

    /// Returns the number of ready instances of a service at each look.
    pub(super) fn instances(&self, service: Service) -> Vec<(f64, f64)> {
        self.looks.iter().map(|look| (look.at, look.number(service))).collect()
    }

    /// Returns the most ready instances of a service between two times.
    pub(super) fn most(&self, service: Service, from: f64, to: f64) -> f64 {
        let looks = self.looks.iter().filter(|look| (from..to).contains(&look.at));
        looks.map(|look| look.number(service)).fold(0.0, f64::max)
    }

    /// Returns the number of ready instances of a service at a time.
    pub(super) fn at(&self, service: Service, at: f64) -> f64 {
        let before = self.looks.partition_point(|look| look.at <= at).saturating_sub(1);
        self.looks.get(before).map_or(0.0, |look| look.number(service))
    }

    /// Returns the cores that the instances of a service used together before each look.
    pub(super) fn cores(&self, service: Service) -> Vec<(f64, f64)> {
        let pairs = self.looks.iter().zip(self.looks.iter().skip(1));
        let used = pairs.map(|(before, now)| {
            let used = now.instances.iter().filter(|(name, _)| is_of(name, service)).filter_map(|(name, seen)| {
                let before = before.instances.get(name)?.cpu_seconds?;
                Some((seen.cpu_seconds? - before).max(0.0))
            });
            (now.at, used.sum::<f64>() / (now.at - before.at))
        });
        used.collect()
    }

    /// Returns the mean of the machine's idle share between two times.
    pub(super) fn idle(&self, from: f64, to: f64) -> f64 {
        let shares: Vec<_> =
            self.looks.iter().filter(|look| (from..to).contains(&look.at)).map(|look| look.idle).collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }

    /// Returns how long each instance that came later took until it carried its share.
    pub(super) fn joined(&self) -> Vec<Joined> {
        let mut joined: Vec<Joined> = Vec::new();
        for (before, now) in self.looks.iter().zip(self.looks.iter().skip(1)) {
            for name in now.instances.keys().filter(|name| !before.instances.contains_key(*name)) {
                joined.push(Joined { name: name.clone(), at: now.at, seconds: None });
            }
            for new in joined.iter_mut().filter(|new| new.seconds.is_none()) {
                if carries_its_share(&new.name, before, now) {
                    new.seconds = Some(now.at - new.at);
                }
            }
        }
        joined.retain(|new| !is_of(&new.name, Service::Projector));
        joined
    }
}

impl Look {
    fn number(&self, service: Service) -> f64 {
        self.instances.keys().filter(|name| is_of(name, service)).count() as f64
    }
}

/// Returns what the process tells at its listener for operators.
pub(super) fn metrics(process: &Process) -> Option<String> {
    let agent = ureq::Agent::config_builder().timeout_global(Some(4 * LOOK)).build().new_agent();
    let url = format!("http://127.0.0.1:{}/metrics", process.ports.get("admin")?);
    agent.get(url).call().ok()?.into_body().read_to_string().ok()
}

/// Returns the seconds that the slowest view in Postgres is behind, from query-api's metrics.
pub(super) fn behind(text: &str) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with("stampede_view_behind_seconds{"));
    let values = lines.filter(|line| line.contains("server=\"postgres\"")).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse().ok()).fold(0.0, f64::max)
}

fn is_of(name: &str, service: Service) -> bool {
    Service::of_instance(name).is_some_and(|of| of.0 == service)
}

fn carries_its_share(name: &str, before: &Look, now: &Look) -> bool {
    let Some((service, _)) = Service::of_instance(name) else { return false };
    let rate = |name: &String| Some(now.instances.get(name)?.answered? - before.instances.get(name)?.answered?);
    let others = now.instances.keys().filter(|other| *other != name && is_of(other, service));
    let others: Vec<f64> = others.filter_map(rate).collect();
    let mean = others.iter().sum::<f64>() / others.len().max(1) as f64;
    rate(&name.to_owned()).is_some_and(|own| own > 0.0 && own >= ITS_SHARE * mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_instance_carries_its_share_once_it_answers_nearly_as_much_as_the_others() {
        let look = |at: f64, answered: &[f64]| {
            let seen = |answered: &f64| Seen { answered: Some(*answered), cpu_seconds: Some(at / 10.0) };
            let named = answered.iter().enumerate().map(|(number, of)| (format!("query-api-{}", number + 1), seen(of)));
            Look { at, instances: named.collect(), idle: 0.5 }
        };
        let looks =
            [look(1.0, &[100.0]), look(2.0, &[200.0, 0.0]), look(3.0, &[300.0, 10.0]), look(4.0, &[360.0, 60.0])];
        let watch = Watch { looks: looks.to_vec() };
        let joined = watch.joined();
        assert_eq!(joined.len(), 1);
        assert_eq!((joined[0].at, joined[0].seconds), (2.0, Some(2.0)));
        assert_eq!((watch.most(Service::QueryApi, 0.0, 9.0), watch.at(Service::QueryApi, 1.5)), (2.0, 1.0));
        assert!((watch.cores(Service::QueryApi)[1].1 - 0.2).abs() < 1e-9);
        assert_eq!(behind("stampede_view_behind_seconds{server=\"postgres\",view=\"a\"} 1.5\nx{} 2\n"), 1.5);
    }
}
