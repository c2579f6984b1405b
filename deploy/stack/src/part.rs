//! The parts of a stack: tasks that run to completion, and servers that keep running.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::probe::Probe;

/// One task or server of a stack, as planned.
#[derive(Debug, Clone)]
pub struct Part {
    pub name: String,
    pub launch: Launch,
    pub role: Role,
    /// Parts that must be ready before this one starts.
    pub needs: Vec<String>,
    pub ports: BTreeMap<&'static str, u16>,
}

/// The command line, environment and account of a process.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Environment variables in addition to the few that every process inherits.
    pub env: Vec<(String, String)>,
    pub dir: Option<PathBuf>,
    pub account: Account,
    /// File by which the process joins its control group.
    pub group: Option<PathBuf>,
    /// Text written to standard input, which is empty otherwise.
    pub stdin: Option<String>,
    pub output: Output,
    /// Pass on the caller's whole environment, as builds and Maven require.
    pub env_of_caller: bool,
}

/// The account under which a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Account {
    #[default]
    Caller,
    User {
        uid: u32,
        gid: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    #[default]
    Log,
    /// Both streams go to the terminal.
    Caller,
}

#[derive(Debug, Clone)]
pub enum Role {
    /// Runs to completion; exit status 0 is success. `stamp` is a file and its content, written on success; the next
    /// start skips the task if the file is present with this content. `about` describes a task that may take long, and
    /// is shown when it starts.
    Task {
        stamp: Option<(PathBuf, String)>,
        about: Option<&'static str>,
    },
    Server {
        ready: Probe,
        stop: Stop,
        on_death: OnDeath,
        tier: Tier,
    },
}

/// The signal that asks a process to stop, and the time before it is killed.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    pub signal: rustix::process::Signal,
    pub grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeath {
    /// The process is restarted with backoff.
    Restart,
    /// The process stays down until it is started by hand. A dead store is a fault that the services must tolerate, and
    /// the tester decides how long it lasts.
    Leave,
}

/// Tiers in the order in which they are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    Task,
    /// Stops first, so that a stop raises no alert.
    Observer,
    Edge,
    Service,
    Redis,
    Postgres,
    Kafka,
}

impl Part {
    pub fn task(name: impl Into<String>, launch: Launch) -> Self {
        let role = Role::Task { stamp: None, about: None };
        Self { name: name.into(), launch, role, needs: Vec::new(), ports: BTreeMap::new() }
    }

    pub fn stamped(mut self, path: PathBuf, content: impl Into<String>) -> Self {
        self.role = Role::Task { stamp: Some((path, content.into())), about: self.about() };
        self
    }

    /// Adds the description of a task.
    pub fn described(mut self, text: &'static str) -> Self {
        if let Role::Task { about, .. } = &mut self.role {
            *about = Some(text);
        }
        self
    }

    pub(crate) fn about(&self) -> Option<&'static str> {
        match self.role {
            Role::Task { about, .. } => about,
            Role::Server { .. } => None,
        }
    }

    pub fn needing(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.needs.extend(names.into_iter().map(Into::into));
        self
    }

    pub fn tier(&self) -> Tier {
        match self.role {
            Role::Task { .. } => Tier::Task,
            Role::Server { tier, .. } => tier,
        }
    }

    pub fn is_task(&self) -> bool {
        matches!(self.role, Role::Task { .. })
    }

    /// Returns whether this is a task whose stamp is present.
    pub fn is_done(&self) -> bool {
        match &self.role {
            Role::Task { stamp: Some((path, content)), .. } => {
                std::fs::read_to_string(path).is_ok_and(|is| is == *content)
            }
            Role::Task { stamp: None, .. } | Role::Server { .. } => false,
        }
    }
}

impl Launch {
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { program: program.into(), args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }
}
