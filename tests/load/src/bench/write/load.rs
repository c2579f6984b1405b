//! Runs the clients of the rows and parses their results.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, process};

use anyhow::{Context, Result};
use stack::part::Launch;

use super::row::{Client, Row, Server};
use crate::bench::comparison::Turn;
use crate::bench::environment::Environment;
use crate::bench::{peers, tool};

/// Number of wrk's connections, over two threads.
const CONNECTIONS: &str = "256";
/// Number of pgbench's connections, each of which has its own server process.
const PG_CONNECTIONS: &str = "32";
/// Time that a client may take beyond its configured duration.
const GRACE: Duration = Duration::from_secs(60);

/// The clients of a stack's servers.
pub(super) struct Clients<'a> {
    pub(super) environment: &'a Environment<'a>,
    pub(super) wrk: &'a Path,
}

impl Clients<'_> {
    /// Runs the client of a row. `run` is the prefix of its order ids.
    pub(super) fn load(&self, row: Row, run: &str, seconds: u64) -> Result<Turn> {
        let launch = match row.client() {
            Client::Wrk(server) => self.wrk(server, seconds),
            Client::OpenLoop(server) => {
                peers::program(self.environment.layout, "open-loop")?.env("ADDRESS", self.address(server))
            }
            Client::Batch { connections, lines } => peers::program(self.environment.layout, "batch")?
                .env("ADDRESS", self.address(Server::CommandApi))
                .env("CONNECTIONS", connections.to_string())
                .env("LINES", lines.to_string()),
            Client::Produce => peers::program(self.environment.layout, "produce")?,
            Client::Pgbench => return self.pgbench(row, seconds),
        };
        let launch = launch
            .env("PRODUCTS", row.products().to_string())
            .env("PREFIX", format!("{}-", row.name()))
            .env("RUN", run)
            .env("SECONDS", seconds.to_string());
        tool::load(self.environment, &launch, limit(seconds))
    }

    pub(super) fn address(&self, server: Server) -> String {
        let layout = self.environment.layout;
        match server {
            Server::Limit => peers::address(layout, peers::LIMIT),
            Server::CqrsEs => peers::address(layout, peers::SHOP),
            Server::CommandApi => format!("127.0.0.1:{}", layout.ports.command_http(1)),
            Server::Edge => format!("127.0.0.1:{}", layout.ports.edge()),
        }
    }

    fn wrk(&self, server: Server, seconds: u64) -> Launch {
        let script = tool::script("write/reserve.lua");
        let (duration, url) = (format!("{seconds}s"), format!("http://{}", self.address(server)));
        let args = ["-t", "2", "-c", CONNECTIONS, "-d", &duration, "--timeout", "10s", "-s", &script, &url];
        Launch::new(self.wrk, args).env("RESULTS", tool::script("results.lua"))
    }

    /// Runs pgbench. Latencies are taken from its log of a tenth of the transactions.
    fn pgbench(&self, row: Row, seconds: u64) -> Result<Turn> {
        let times = Times { prefix: format!("stampede-pgbench-{}", process::id()) };
        let mut launch =
            peers::of_postgres(self.environment.layout, self.environment.tools, "pgbench", peers::OWN_DATABASE)?;
        let script = tool::script("write/reserve.pgbench");
        let options = [
            format!("--file={script}"),
            format!("--time={seconds}"),
            format!("--define=products={}", row.products()),
            format!("--client={PG_CONNECTIONS}"),
            String::from("--jobs=2"),
            String::from("--protocol=prepared"),
            String::from("--no-vacuum"),
            String::from("--log"),
            String::from("--sampling-rate=0.1"),
            format!("--log-prefix={}", env::temp_dir().join(&times.prefix).display()),
        ];
        launch.args = options.into_iter().chain(launch.args).collect();
        let text = tool::run(self.environment, "load", &launch, limit(seconds))?;
        let number = |label: &str| {
            text.lines().find_map(|line| line.strip_prefix(label)?.split_whitespace().next()?.parse::<f64>().ok())
        };
        let done =
            number("number of transactions actually processed:").with_context(|| format!("no result: {text}"))?;
        let failed = number("number of failed transactions:").unwrap_or_default();
        let rate = number("tps =").with_context(|| format!("no rate: {text}"))?;
        let sorted = times.sorted();
        let at = |share: f64| sorted.get((sorted.len() as f64 * share) as usize).copied();
        Ok(Turn {
            requests: (done + failed) as u64,
            failed: failed as u64,
            seconds: done / rate,
            p50_us: at(0.5),
            p99_us: at(0.99),
        })
    }
}

fn limit(seconds: u64) -> Duration {
    Duration::from_secs(seconds) + GRACE
}

/// The log files of pgbench, one per thread, which are removed on drop.
struct Times {
    prefix: String,
}

impl Times {
    /// Returns the latencies, the third column, in microseconds and ascending order.
    fn sorted(&self) -> Vec<u64> {
        let texts = self.files().into_iter().filter_map(|path| fs::read_to_string(path).ok());
        let of =
            |text: &str| -> Vec<u64> { text.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok()).collect() };
        let mut times: Vec<_> = texts.flat_map(|text| of(&text)).collect();
        times.sort_unstable();
        times
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(env::temp_dir()).into_iter().flatten().flatten();
        let ours = files.filter(|file| file.file_name().to_string_lossy().starts_with(&self.prefix));
        ours.map(|file| file.path()).collect()
    }
}

impl Drop for Times {
    fn drop(&mut self) {
        for path in self.files() {
            // A file that remains is harmless, because the system cleans its folder.
            let _ = fs::remove_file(path);
        }
    }
}
