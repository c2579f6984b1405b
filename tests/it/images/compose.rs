//! A project of podman-compose.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::process::Command;

use super::PORT;
use super::podman::{Podman, output, root};
use crate::fixture::Client;

/// Time that each service has to drain: its own limit is 10 s.
const DRAINED_WITHIN: Duration = Duration::from_secs(14);
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Time between two questions whether a container is ready.
const PAUSE: Duration = Duration::from_millis(100);
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
        let _ = compose.command(&["down", "--remove-orphans", "--volumes", "--timeout", "1"]).output().await;
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

    pub(super) async fn up(&self, options: &[&str], services: &[&str]) {
        let args = ["up", "--detach", "--no-build", "--no-deps"];
        output(&mut self.command(&[&args[..], options, services].concat())).await;
    }

    /// Removes the containers and keeps the data. podman-compose takes instances that were added for orphans.
    pub(super) async fn down(&self) {
        output(&mut self.command(&["down", "--remove-orphans"])).await;
    }

    /// Runs a program in the first container of a service.
    pub(super) async fn exec(&self, service: &str, program: &[&str]) {
        output(&mut self.command(&[&["exec", "-T", service], program].concat())).await;
    }

    /// Runs a program in a container of the tools.
    pub(super) async fn run_tools(&self, program: &[&str]) {
        let args = ["--profile", "tools", "run", "--rm", "-T", "--no-deps", "tools"];
        output(&mut self.command(&[&args[..], program].concat())).await;
    }

    /// Waits until a job has ended, which must have succeeded.
    pub(super) async fn succeeds(&self, job: &str) {
        assert_eq!(self.podman.run(&["wait", &container(job, 1)]).await, "0", "{job}");
    }

    /// Returns what the first container of a service printed.
    pub(super) async fn log(&self, service: &str) -> String {
        let log = self.podman.command(&["logs", &container(service, 1)]).output().await.unwrap();
        String::from_utf8_lossy(&[log.stdout, log.stderr].concat()).into_owned()
    }

    /// Waits until a service is ready, and returns the time since the start of its container. It is asked by HTTP: one
    /// check of podman takes half a second of a core.
    pub(super) async fn is_ready(&self, service: &str, number: u32) -> Duration {
        let addresses = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let addresses = self.podman.run(&["inspect", "--format", addresses, &container(service, number)]).await;
        let address = addresses.split(' ').next().unwrap();
        let (port, path) = match service {
            "edge" => (8080, "/edge/ready"),
            "projector" => (8283, "/readyz"),
            "query-api" => (8282, "/readyz"),
            _ => (8281, "/readyz"),
        };
        let client = Client::new(&format!("http://{address}:{port}"));
        let until = Instant::now() + READY_WITHIN;
        loop {
            match client.try_get(path).await {
                Ok(answer) if answer.status == 200 => break,
                answer => assert!(Instant::now() < until, "{service}: {answer:?}: {}", self.log(service).await),
            }
            tokio::time::sleep(PAUSE).await;
        }
        let took = self.age(service, number).await;
        self.is_healthy(service, number).await;
        took
    }

    /// Returns the time since the start of a container.
    async fn age(&self, service: &str, number: u32) -> Duration {
        let started = ["inspect", "--format", "{{.State.StartedAt.UnixMilli}}", &container(service, number)];
        let started = Duration::from_millis(self.podman.run(&started).await.parse().unwrap());
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().saturating_sub(started)
    }

    /// Waits until the check of the compose file succeeds.
    pub(super) async fn is_healthy(&self, service: &str, number: u32) {
        let (container, until) = (container(service, number), Instant::now() + READY_WITHIN);
        while !self.podman.command(&["healthcheck", "run", &container]).output().await.unwrap().status.success() {
            assert!(Instant::now() < until, "{service} does not become healthy: {}", self.log(service).await);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Stops the container and returns the time that it took.
    pub(super) async fn drains(&self, service: &str) -> Duration {
        let (container, begun) = (container(service, 1), Instant::now());
        let grace = DRAINED_WITHIN.as_secs().to_string();
        self.podman.run(&["stop", "--time", &grace, &container]).await;
        let took = begun.elapsed();
        let format = "{{.State.ExitCode}} {{.HostConfig.ReadonlyRootfs}}";
        assert_eq!(self.podman.run(&["inspect", "--format", format, &container]).await, "0 true", "{service}");
        assert!(took < DRAINED_WITHIN, "{service} took {took:?}");
        took
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        let mut down = self.command(&["down", "--remove-orphans", "--volumes", "--timeout", "1"]).into_std();
        // A failure would leave containers, which the next run removes.
        let _ = down.output();
    }
}

fn container(service: &str, number: u32) -> String {
    format!("stampede_{service}_{number}")
}
