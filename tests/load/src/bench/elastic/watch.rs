//! Looks at the instances while the bench runs.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use stack::control;
use stack::layout::Layout;
use stack::services::Service;
use stack::status::State;

use crate::bench::environment::sum_of;

const LOOK: Duration = Duration::from_millis(500);
/// Share of the mean of the others at which an instance carries its share.
const ITS_SHARE: f64 = 0.7;

/// One look: the requests that each ready instance has answered since it started, by its name.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Look {
    pub(super) at: f64,
    pub(super) answered: BTreeMap<String, Option<f64>>,
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
        let agent = ureq::Agent::config_builder().timeout_global(Some(LOOK)).build().new_agent();
        let mut looks = Vec::new();
        while !ended() {
            let at = begun.elapsed().as_secs_f64();
            let processes = control::status(layout).map(|status| status.processes).unwrap_or_default();
            let ready = processes.into_iter().filter(|process| process.state == State::Ready);
            let answered = ready.filter_map(|process| {
                let (service, _) = Service::of_instance(&process.name)?;
                let url = format!("http://127.0.0.1:{}/metrics", process.ports.get("admin")?);
                let text = agent.get(url).call().ok().and_then(|answer| answer.into_body().read_to_string().ok());
                let metric = match service {
                    Service::CommandApi => "stampede_commands_total",
                    Service::QueryApi => "stampede_queries_total",
                    Service::Projector => "stampede_records_read_total",
                };
                Some((process.name, text.map(|text| sum_of(&text, metric, ""))))
            });
            looks.push(Look { at, answered: answered.collect() });
            thread::sleep(LOOK);
        }
        Self { looks }
    }

    /// Returns the number of ready instances of a service at each look.
    pub(super) fn instances(&self, service: Service) -> Vec<(f64, f64)> {
        let of = |look: &Look| look.answered.keys().filter(|name| is_of(name, service)).count();
        self.looks.iter().map(|look| (look.at, of(look) as f64)).collect()
    }

    /// Returns how long each instance that came later took until it carried its share.
    pub(super) fn joined(&self) -> Vec<Joined> {
        let mut joined: Vec<Joined> = Vec::new();
        for pair in self.looks.windows(2) {
            let [before, now] = pair else { continue };
            for name in now.answered.keys().filter(|name| !before.answered.contains_key(*name)) {
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

fn is_of(name: &str, service: Service) -> bool {
    Service::of_instance(name).is_some_and(|of| of.0 == service)
}

fn carries_its_share(name: &str, before: &Look, now: &Look) -> bool {
    let Some((service, _)) = Service::of_instance(name) else { return false };
    let rate = |name: &String| Some((*now.answered.get(name)?)? - (*before.answered.get(name)?)?);
    let others: Vec<f64> =
        now.answered.keys().filter(|other| *other != name && is_of(other, service)).filter_map(rate).collect();
    let mean = others.iter().sum::<f64>() / others.len().max(1) as f64;
    rate(&name.to_owned()).is_some_and(|own| own > 0.0 && own >= ITS_SHARE * mean)
}
