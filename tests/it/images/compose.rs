//! A project of podman-compose.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::PORT;
use super::podman::{Podman, output, root};

/// Time that each service has to drain: its own limit is 10 s.
const DRAINED_WITHIN: Duration = Duration::from_secs(14);
const PODMAN_COMPOSE: &str = "podman-compose==1.6.0";

/// A project of `deploy/compose.yaml`. Its containers and volumes are removed when it is dropped.
pub(super) struct Compose<'a> {
    podman: &'a Podman,
    program: PathBuf,
    pub(super) secrets: PathBuf,
}

impl<'a> Compose<'a> {
    pub(super) async fn new(podman: &'a Podman) -> Self {
        let programs = podman.folder("venv").join("bin");
        if !programs.join("podman-compose").exists() {
            output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(podman.folder("venv"))).await;
            output(Command::new(programs.join("pip")).args(["install", "--quiet", PODMAN_COMPOSE])).await;
        }
        let secrets = podman.folder("secrets");
        output(Command::new(root().join("deploy/compose/secrets.sh")).arg(&secrets)).await;
        let compose = Self { podman, program: programs.join("podman-compose"), secrets };
        // A killed run may have left some.
        let _ = compose.command(&["down", "--volumes", "--timeout", "1"]).output().await;
        compose
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("--podman-args={}", self.podman.options().join(" ")));
        command.arg("--file").arg(root().join("deploy/compose.yaml")).args(["--project-name", "stampede"]).args(args);
        self.podman.configure(&mut command);
        command.envs([("STAMPEDE", "localhost/stampede"), ("VERSION", "test"), ("PORT", &PORT.to_string())]);
        command.env("SECRETS", &self.secrets);
        for server in ["kafka", "postgres", "valkey"] {
            let variable = format!("{}_IMAGE", server.to_uppercase());
            command.env(variable, format!("localhost/stampede-servers/{server}:test"));
        }
        command
    }

    pub(super) async fn up(&self, services: &[&str]) {
        let args = ["up", "--detach", "--no-build", "--no-deps"];
        output(&mut self.command(&[&args[..], services].concat())).await;
    }

    pub(super) fn container(&self, service: &str) -> String {
        format!("stampede_{service}_1")
    }

    pub(super) async fn podman(&self, args: &[&str]) -> String {
        self.podman.run(args).await
    }

    /// Waits until the container is healthy, and returns the time since its start.
    pub(super) async fn is_healthy(&self, service: &str) -> Duration {
        let container = self.container(service);
        let started = self.podman(&["inspect", "--format", "{{.State.StartedAt.UnixMilli}}", &container]).await;
        let until = Instant::now() + Duration::from_secs(120);
        while !self.podman.command(&["healthcheck", "run", &container]).output().await.unwrap().status.success() {
            let log = self.podman.command(&["logs", "--tail", "20", &container]).output().await.unwrap();
            assert!(Instant::now() < until, "{service} does not become healthy: {log:?}");
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.saturating_sub(Duration::from_millis(started.parse().unwrap()))
    }

    /// Stops the container and returns the time that it took.
    pub(super) async fn drains(&self, service: &str) -> Duration {
        let (container, begun) = (self.container(service), Instant::now());
        let grace = DRAINED_WITHIN.as_secs().to_string();
        self.podman(&["stop", "--time", &grace, &container]).await;
        let took = begun.elapsed();
        let format = "{{.State.ExitCode}} {{.HostConfig.ReadonlyRootfs}}";
        assert_eq!(self.podman(&["inspect", "--format", format, &container]).await, "0 true", "{service}");
        assert!(took < DRAINED_WITHIN, "{service} took {took:?}");
        took
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        let mut down = self.command(&["down", "--volumes", "--timeout", "1"]).into_std();
        // A failure would leave containers, which the next run removes.
        let _ = down.output();
    }
}
