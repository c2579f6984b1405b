//! Graceful shutdown: a process receives one request, drains within a grace period, and reports the tasks that it cut
//! off.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// A request to shut down, which cannot be withdrawn. Clones are cheap and share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
}

impl Shutdown {
    /// Returns a shutdown that only [`trigger`](Self::trigger) requests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a shutdown that SIGTERM and SIGINT request. A second signal exits the process at once with code 1, for
    /// operators who will not wait for the drain. The listening task runs as long as the runtime.
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
            tracing::info!(signal.name = name, "shutdown requested");
            signalled.trigger();
            let name = either(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal.name = name, "second signal: exiting without draining");
            std::process::exit(1);
        });
        Ok(shutdown)
    }

    /// Requests the shutdown. Further calls have no effect.
    pub fn trigger(&self) {
        self.requested.cancel();
    }

    /// Waits until the shutdown is requested; returns at once if it already was.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Waits this long, or until the shutdown is requested.
    pub async fn sleep(&self, length: Duration) {
        tokio::select! {
            () = tokio::time::sleep(length) => {}
            () = self.requested() => {}
        }
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

/// The named tasks of a service, so that each is joined. Dropping this aborts them.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

/// Failure of a drain: tasks that were aborted at the end of the grace period, and tasks that panicked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tasks still running after the grace period: {left:?}; panicked: {panicked:?}")]
pub struct Undrained {
    pub left: Vec<&'static str>,
    pub panicked: Vec<&'static str>,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task on the current runtime under a name with which [`drain`](Self::drain) can report it.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits for the next task to end and returns its name, with its panic if it had one; returns `None` if no task is
    /// left. A service whose tasks should all run until shutdown waits on this to notice one that does not. Cancel
    /// safe.
    pub async fn ended(&mut self) -> Option<(&'static str, Result<(), JoinError>)> {
        let (id, result) = match self.running.join_next_with_id().await? {
            Ok((id, ())) => (id, Ok(())),
            Err(error) => (error.id(), Err(error)),
        };
        Some((self.names.remove(&id).unwrap_or("unnamed"), result))
    }

    /// Joins all tasks. Those that have not ended within `grace` are aborted and joined too. An abort takes effect at
    /// the task's next await, so a task that never awaits still blocks here.
    ///
    /// # Errors
    /// [`Undrained`] if a task was aborted or had panicked.
    pub async fn drain(mut self, grace: Duration) -> Result<(), Undrained> {
        let mut panicked = Vec::new();
        let all_ended = tokio::time::timeout(grace, async {
            while let Some((name, result)) = self.ended().await {
                if result.is_err() {
                    panicked.push(name);
                }
            }
        });
        // The names that are left show whether the time ran out.
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
    async fn a_drain_names_the_tasks_that_were_aborted_or_panicked() {
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
    async fn a_signal_requests_the_shutdown() {
        let shutdown = Shutdown::on_signals().unwrap();
        let own_pid = std::process::id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &own_pid]).status().unwrap().success());
        tokio::time::timeout(SOON, shutdown.requested()).await.unwrap();
    }
}
