//! How a process ends: it is asked once, drains within a grace, and says what it had to cut off.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// The request to end, which once made stays made. Cloning is cheap and shares it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
}

impl Shutdown {
    /// One that ends only by [`trigger`](Self::trigger).
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM and SIGINT trigger. A second signal ends the process at once with exit code 1, for whoever
    /// will not wait for the drain. The listening task lives as long as the runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        let signalled = shutdown.clone();
        tokio::spawn(async move {
            let name = either(&mut terminate, &mut interrupt).await;
            tracing::info!(signal.name = name, "shutdown was asked for");
            signalled.trigger();
            let name = either(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal.name = name, "a second signal: ending without draining");
            std::process::exit(1);
        });
        Ok(shutdown)
    }

    /// Asks for the end. Again changes nothing.
    pub fn trigger(&self) {
        self.requested.cancel();
    }

    /// Returns once the end was asked for, at once where it already was.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    pub fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// The named tasks of a service, so that each is joined. Dropping it aborts them.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// What did not end well: tasks that were cut off when the grace was over, and tasks that panicked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("left running after the grace: {left:?}; panicked: {panicked:?}")]
pub struct Undrained {
    pub left: Vec<&'static str>,
    pub panicked: Vec<&'static str>,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a task on the current runtime under a name by which [`drain`](Self::drain) can tell of it.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// The next task that ends, with its panic if it had one; `None` when none is left. A service whose tasks all
    /// should live until shutdown waits on this to notice that one does not. Cancel safe.
    pub async fn ended(&mut self) -> Option<(&'static str, Result<(), JoinError>)> {
        let (id, result) = match self.running.join_next_with_id().await? {
            Ok((id, ())) => (id, Ok(())),
            Err(error) => (error.id(), Err(error)),
        };
        Some((self.names.remove(&id).unwrap_or("unnamed"), result))
    }

    /// Joins all tasks. Those that have not ended within `grace` are aborted, and joined too: an abort takes effect
    /// at a task's next await, so that a task which never awaits still blocks here.
    ///
    /// # Errors
    /// [`Undrained`] where a task was aborted or had panicked.
    pub async fn drain(mut self, grace: Duration) -> Result<(), Undrained> {
        let mut panicked = Vec::new();
        let all_ended = tokio::time::timeout(grace, async {
            while let Some((name, result)) = self.ended().await {
                if result.is_err() {
                    panicked.push(name);
                }
            }
        });
        // Whether the time ran out shows in the names that are left.
        let _in_time = all_ended.await;
        let mut left: Vec<_> = self.names.into_values().collect();
        left.sort_unstable();
        self.running.shutdown().await;
        if left.is_empty() && panicked.is_empty() { Ok(()) } else { Err(Undrained { left, panicked }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_trigger_reaches_every_clone() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new();
        let heard = shutdown.clone();
        tasks.spawn("listener", async move { heard.requested().await });
        assert!(!shutdown.is_requested());
        shutdown.trigger();
        tasks.drain(SOON).await.unwrap();
        assert!(shutdown.is_requested());
    }

    #[tokio::test]
    async fn a_drain_names_what_was_left_and_what_panicked() {
        let mut tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        tasks.spawn("broken", async { panic!("on purpose") });
        tasks.spawn("good", async {});
        let undrained = tasks.drain(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(undrained, Undrained { left: vec!["deaf"], panicked: vec!["broken"] });
    }

    #[tokio::test]
    async fn a_task_that_ends_early_is_noticed_by_name() {
        let mut tasks = Tasks::new();
        tasks.spawn("short", async {});
        let (name, result) = tasks.ended().await.unwrap();
        assert_eq!(name, "short");
        assert!(result.is_ok());
        assert!(tasks.ended().await.is_none());
    }

    #[tokio::test]
    async fn a_signal_asks_for_the_end() {
        let shutdown = Shutdown::on_signals().unwrap();
        let own_pid = std::process::id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &own_pid]).status().unwrap().success());
        tokio::time::timeout(SOON, shutdown.requested()).await.unwrap();
    }
}
