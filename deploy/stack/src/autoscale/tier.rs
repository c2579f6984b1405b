//! The number of instances of one service, as its rules want it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::RULES;
use super::metrics::{Sample, value};
use super::rules::{Measure, Pace, Rule, pace};
use crate::services::Service;

/// Time over which the values of rules are averaged, as in the queries of a cluster.
const AVERAGED: Duration = Duration::from_secs(30);
/// Deviation from a threshold that changes nothing, as in a cluster.
const TOLERANCE: f64 = 0.1;

pub(super) struct Tier {
    pub(super) service: Service,
    bounds: RangeInclusive<u16>,
    hurry: f64,
    /// Cores of an instance.
    cores: f64,
    /// Recent values of each rule, in the order of [`RULES`].
    values: Vec<VecDeque<(Instant, f64)>>,
    /// Recent numbers of instances that the rules wanted, and the rule that wanted most.
    wishes: VecDeque<(Instant, u16, &'static str)>,
    /// Time before which the tier neither grows nor shrinks again.
    grows_from: Option<Instant>,
    shrinks_from: Option<Instant>,
    last: Option<bool>,
}

impl Tier {
    pub(super) fn new(service: Service, bounds: RangeInclusive<u16>, hurry: f64, cores: f64) -> Self {
        Self {
            service,
            bounds,
            hurry,
            cores,
            values: RULES.iter().map(|_| VecDeque::new()).collect(),
            wishes: VecDeque::new(),
            grows_from: None,
            shrinks_from: None,
            last: None,
        }
    }

    /// Notes what the instances report.
    pub(super) fn note(&mut self, before: &BTreeMap<String, Sample>, now: &BTreeMap<String, Sample>, instances: u16) {
        let at = Instant::now();
        let (service, averaged) = (self.service, self.hurried(AVERAGED));
        let mut most = (1, "nothing to do");
        for (rule, values) in RULES.iter().zip(&mut self.values).filter(|(rule, _)| rule.service == service) {
            values.push_back((at, value(rule, before, now)));
            while values.front().is_some_and(|(then, _)| at - *then > averaged) {
                values.pop_front();
            }
            let mean = values.iter().map(|(_, value)| value).sum::<f64>() / values.len().max(1) as f64;
            let wanted = wanted(rule, mean, instances, self.cores);
            if wanted > most.0 {
                most = (wanted, rule.name);
            }
        }
        self.wish(at, most);
    }

    fn wish(&mut self, at: Instant, (wanted, rule): (u16, &'static str)) {
        let kept = self.hurried(pace(self.service).shrinks_after);
        self.wishes.push_back((at, wanted, rule));
        // One that is older shows that the whole time is covered.
        while self.wishes.get(1).is_some_and(|(then, ..)| at - *then > kept) {
            self.wishes.pop_front();
        }
    }

    /// Returns the number of instances to change to and the rule that decided, or `None` to leave it.
    pub(super) fn wanted(&mut self, instances: u16) -> Option<(u16, &'static str)> {
        let (at, wish, rule) = *self.wishes.back()?;
        let Pace { grows_after, grows_by, shrinks_after, .. } = pace(self.service);
        let since = |time| self.wishes.iter().filter(move |(then, ..)| at - *then <= time);
        let bounded = |number: u16| number.clamp(*self.bounds.start(), *self.bounds.end());
        let lasting = since(self.hurried(grows_after)).map(|(_, wish, _)| *wish).min().unwrap_or(wish);
        let more = bounded(lasting.min(instances.saturating_add(grows_by(instances))));
        if more > instances {
            return Some((more, rule))
                .filter(|_| self.grows_from.is_none_or(|from| from <= at))
                .inspect(|_| self.last = Some(true));
        }
        let shrinks_after = self.hurried(shrinks_after);
        let has_waited = self.wishes.front().is_some_and(|(then, ..)| at - *then >= shrinks_after);
        let needed = since(shrinks_after).map(|(_, wish, _)| *wish).max().unwrap_or(wish);
        let fewer = bounded(needed.max(instances.saturating_sub(1)));
        let may = self.shrinks_from.is_none_or(|from| from <= at);
        let shrinks = (fewer < instances && has_waited && may).then_some((fewer, "nothing to do"));
        shrinks.inspect(|_| self.last = Some(false))
    }

    /// Begins the pause after a change.
    pub(super) fn has_moved(&mut self) {
        let (now, pace) = (Instant::now(), pace(self.service));
        match self.last.take() {
            Some(true) => self.grows_from = Some(now + self.hurried(pace.pause_after_growth)),
            Some(false) => self.shrinks_from = Some(now + self.hurried(pace.pause_after_shrinking)),
            None => {}
        }
    }

    fn hurried(&self, time: Duration) -> Duration {
        time.div_f64(self.hurry)
    }
}

/// Returns the number of instances for the value of a rule.
fn wanted(rule: &Rule, value: f64, instances: u16, cores: f64) -> u16 {
    let threshold = match rule.measure {
        Measure::Work(_) | Measure::Busy => rule.threshold * cores,
        Measure::Sum(_) | Measure::Rate(_) | Measure::Worst(..) => rule.threshold,
    };
    let now = f64::from(instances);
    let needed = match rule.measure {
        Measure::Worst(..) => now * value / threshold,
        _ => value / threshold,
    };
    if (needed - now).abs() <= TOLERANCE * now {
        return instances;
    }
    // A cast saturates.
    needed.ceil() as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, service: Service) -> &'static Rule {
        RULES.iter().find(|rule| rule.name == name && rule.service == service).unwrap()
    }

    #[test]
    fn a_rule_asks_for_as_many_instances_as_keep_its_threshold() {
        let queries = rule("queries", Service::QueryApi);
        let instances = |times, now, cores| wanted(queries, times * queries.threshold, now, cores);
        assert_eq!((instances(2.4, 1, 1.0), instances(0.6, 1, 0.25), instances(0.0, 3, 1.0)), (3, 3, 0));
        assert_eq!(instances(1.08, 1, 1.0), 1, "within the tolerance");
        let lag = rule("lag", Service::Projector);
        assert_eq!((wanted(lag, 5.0, 2, 1.0), wanted(lag, 0.5, 2, 1.0)), (5, 1));
    }

    #[test]
    fn a_tier_grows_once_the_wish_lasts_and_shrinks_one_by_one_after_a_long_calm() {
        let begun = Instant::now();
        let at = |secs| begun + Duration::from_secs(secs);
        let mut tier = Tier::new(Service::CommandApi, 1..=4, 1.0, 1.0);
        tier.wish(at(0), (1, "mailbox"));
        tier.wish(at(5), (9, "mailbox"));
        assert_eq!(tier.wanted(1), None, "the wish is new");
        tier.wish(at(12), (9, "mailbox"));
        tier.wish(at(16), (9, "mailbox"));
        assert_eq!(tier.wanted(1), Some((3, "mailbox")), "two at once");
        tier.has_moved();
        tier.wish(at(20), (9, "mailbox"));
        assert_eq!(tier.wanted(3), None, "a pause after growth");
        for secs in (21..=620).step_by(10) {
            tier.wish(at(secs), (1, ""));
            assert_eq!(tier.wanted(3), None, "{secs}");
        }
        tier.wish(at(622), (1, ""));
        assert_eq!(tier.wanted(3), Some((2, "nothing to do")));
        assert_eq!(tier.wanted(1), None, "the smallest number");
    }
}
