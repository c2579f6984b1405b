//! Readiness of a service: the named conditions that it waits for.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;

/// The named conditions of one instance; it is ready when all of them are.
///
/// Create every condition before the admin server starts: an instance without any counts as ready. Each condition's
/// owner decides whether a later outage resets it: a service that can still do its work without Redis should stay
/// ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    /// Conditions by name: `None` if ready, else the reason for waiting.
    conditions: watch::Sender<Conditions>,
}

type Conditions = BTreeMap<&'static str, Option<String>>;

/// Handle of one condition. Dropping it leaves the condition in its last state.
#[derive(Debug, Clone)]
pub struct Condition {
    name: &'static str,
    conditions: watch::Sender<Conditions>,
}

/// A wait that exceeded its deadline, with the conditions that were not ready then.
#[derive(Debug, thiserror::Error)]
#[error("after {within:?} still waiting for {waiting:?}")]
pub struct NotInTime {
    pub within: Duration,
    pub waiting: Vec<(&'static str, String)>,
}

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that is not ready yet. An existing name returns another handle of the same condition and leaves
    /// its state unchanged.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.conditions.send_if_modified(|conditions| {
            let known = conditions.contains_key(name);
            conditions.entry(name).or_insert_with(|| Some("not checked yet".to_owned()));
            !known
        });
        Condition { name, conditions: self.conditions.clone() }
    }

    /// Returns the conditions that are not ready, each with its reason, by name; empty if the instance is ready.
    pub fn state(&self) -> Vec<(&'static str, String)> {
        waiting(&self.conditions.borrow())
    }

    pub fn is_ready(&self) -> bool {
        self.conditions.borrow().values().all(Option::is_none)
    }

    /// Waits until every condition is ready.
    pub async fn wait_ready(&self, within: Duration) -> Result<(), NotInTime> {
        self.wait_until(within, <[_]>::is_empty).await
    }

    /// Waits until the result of [`state`](Self::state) satisfies `reached`. Changes in quick succession may be
    /// observed as one.
    pub async fn wait_until(
        &self,
        within: Duration,
        reached: impl Fn(&[(&'static str, String)]) -> bool,
    ) -> Result<(), NotInTime> {
        let mut changes = self.conditions.subscribe();
        // `self` holds the sender, so the only possible error is the timeout.
        match tokio::time::timeout(within, changes.wait_for(|conditions| reached(&waiting(conditions)))).await {
            Ok(_) => Ok(()),
            Err(_) => Err(NotInTime { within, waiting: self.state() }),
        }
    }
}

impl Condition {
    pub fn ready(&self) {
        self.set(None);
    }

    /// Marks the condition as not ready. The admin server shows the reason publicly, so it must not contain secrets.
    pub fn waiting(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, state: Option<String>) {
        let turned = self.conditions.send_if_modified(|conditions| {
            let before = conditions.insert(self.name, state.clone());
            before != Some(state.clone())
        });
        match state {
            Some(reason) if turned => {
                tracing::info!(condition.name = self.name, condition.reason = reason, "condition not ready");
            }
            None if turned => tracing::info!(condition.name = self.name, "condition ready"),
            Some(_) | None => {}
        }
    }
}

fn waiting(conditions: &Conditions) -> Vec<(&'static str, String)> {
    conditions.iter().filter_map(|(name, reason)| Some((*name, reason.clone()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn an_instance_is_ready_when_every_condition_is() {
        let readiness = Readiness::new();
        let [kafka, postgres] = [readiness.condition("kafka"), readiness.condition("postgres")];
        assert_eq!(readiness.state()[0], ("kafka", "not checked yet".to_owned()));
        kafka.ready();
        postgres.waiting("connection refused");
        assert_eq!(readiness.state(), [("postgres", "connection refused".to_owned())]);
        assert!(!readiness.is_ready());
        postgres.ready();
        assert!(readiness.is_ready());
    }

    #[test]
    fn the_same_name_is_the_same_condition() {
        let readiness = Readiness::new();
        readiness.condition("kafka").ready();
        let again = readiness.condition("kafka");
        assert!(readiness.is_ready());
        again.waiting("gone");
        assert!(!readiness.is_ready());
    }

    #[tokio::test]
    async fn waiting_for_readiness_ends_when_the_last_condition_is_ready() {
        let readiness = Readiness::new();
        let kafka = readiness.condition("kafka");
        let waits = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait_ready(SOON).await }
        });
        kafka.ready();
        waits.await.unwrap().unwrap();
        kafka.waiting("all brokers down");
        readiness.wait_until(SOON, |waiting| waiting.len() == 1).await.unwrap();
    }

    #[tokio::test]
    async fn a_wait_that_times_out_names_the_conditions() {
        let readiness = Readiness::new();
        readiness.condition("kafka").waiting("all brokers down");
        let error = readiness.wait_ready(Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(error.to_string(), "after 10ms still waiting for [(\"kafka\", \"all brokers down\")]");
    }
}
