//! The status of a stack and its processes, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Status of a whole stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: Phase,
    /// URL of the edge; empty if the stack has none.
    pub url: String,
    /// The processes, in the order of the plan.
    pub processes: Vec<Process>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Down,
    Starting,
    Ready,
    Stopping,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub pid: Option<u32>,
    /// Ports by purpose, e.g. `http`, `admin`.
    pub ports: BTreeMap<String, u16>,
    pub state: State,
    /// Number of automatic restarts after an unexpected exit.
    pub restarts: u32,
    /// Exit status of the previous life, e.g. `exit 1`.
    pub last_exit: Option<String>,
    /// Seconds spent in the current state.
    pub since_secs: u64,
    pub resident_bytes: Option<u64>,
    pub program: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not started yet: waits for parts that it depends on.
    Waiting,
    /// Running, but not ready yet.
    Starting,
    Ready,
    /// Running, but suspended by SIGSTOP.
    Paused,
    /// Exited unexpectedly; restarts when its backoff ends.
    Restarting,
    /// Exited unexpectedly; stays down until it is started by hand.
    Dead,
    Stopping,
    /// Stopped on request.
    Stopped,
}

impl Status {
    pub fn down() -> Self {
        Self { state: Phase::Down, url: String::new(), processes: Vec::new() }
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a status is serializable as JSON")
    }

    pub fn table(&self) -> String {
        let head = ["NAME", "STATE", "PID", "PORTS", "MEMORY", "SINCE", "RESTARTS", "LAST EXIT"].map(String::from);
        let rows: Vec<_> = std::iter::once(head).chain(self.processes.iter().map(row)).collect();
        let widths: Vec<_> =
            (0..8).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for row in rows {
            let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(text, "{}", cells.join("  ").trim_end()).expect("writing to a String cannot fail");
        }
        text
    }
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Dead => "dead",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

fn row(process: &Process) -> [String; 8] {
    let ports: Vec<_> = process.ports.iter().map(|(what, port)| format!("{what} {port}")).collect();
    [
        process.name.clone(),
        process.state.name().to_owned(),
        process.pid.map_or_else(|| String::from("-"), |pid| pid.to_string()),
        ports.join(", "),
        process.resident_bytes.map_or_else(|| String::from("-"), |bytes| format!("{} MiB", bytes >> 20)),
        duration(process.since_secs),
        process.restarts.to_string(),
        process.last_exit.clone().unwrap_or_else(|| String::from("-")),
    ]
}

fn duration(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min", secs / 60),
        _ => format!("{} h {} min", secs / 3600, secs / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let process = Process {
            name: String::from("query-api-1"),
            pid: Some(42),
            ports: BTreeMap::from([(String::from("http"), 18197), (String::from("admin"), 18229)]),
            state: State::Ready,
            restarts: 1,
            last_exit: Some(String::from("signal 9 (SIGKILL)")),
            since_secs: 75,
            resident_bytes: Some(10 << 20),
            program: PathBuf::from("target/quick/query-api"),
        };
        Status { state: Phase::Ready, url: String::from("http://127.0.0.1:8080"), processes: vec![process] }
    }

    #[test]
    fn the_json_names_pid_ports_and_state() {
        let json: serde_json::Value = serde_json::from_str(&status().json()).unwrap();
        assert_eq!(json["state"], "ready");
        let process = &json["processes"][0];
        assert_eq!(process["pid"], 42);
        assert_eq!(process["ports"]["http"], 18197);
        assert_eq!(process["state"], "ready");
        assert_eq!(process["last_exit"], "signal 9 (SIGKILL)");
    }

    #[test]
    fn the_table_lines_up() {
        let table = status().table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0].find("STATE"), lines[1].find("ready"));
        assert!(lines[1].ends_with("1 min  1         signal 9 (SIGKILL)"), "{table}");
    }
}
