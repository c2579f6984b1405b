//! What a stack consists of: tasks that run to their end and processes that stay.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::probe::Probe;

/// One member of a stack, as planned.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) launch: Launch,
    pub(crate) role: Role,
    /// Parts that must be ready before this one starts.
    pub(crate) needs: Vec<String>,
    pub(crate) ports: BTreeMap<&'static str, u16>,
}

/// How a process is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    /// In addition to the few variables that every process gets.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) account: Account,
    /// What a task reads.
    pub(crate) stdin: Option<String>,
    pub(crate) output: Output,
    /// A build, Maven: they need the caller's whole environment.
    pub(crate) env_of_caller: bool,
}

/// As whom a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Account {
    #[default]
    Caller,
    User {
        uid: u32,
        gid: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Output {
    #[default]
    Log,
    /// Standard error goes to the terminal: a build takes long, and whoever waits for it wants to see it.
    Terminal,
    /// Both streams go to the terminal.
    Caller,
}

#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// Runs to its end; 0 is success. `stamp`: a file and its content, written then, by which the next start knows
    /// that the task need not run again.
    Task {
        stamp: Option<(PathBuf, String)>,
    },
    Server {
        ready: Probe,
        stop: Stop,
        on_death: OnDeath,
        tier: Tier,
    },
}

/// How a process is asked to stop, and how long it has before it is killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    pub(crate) signal: rustix::process::Signal,
    pub(crate) grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDeath {
    /// Started again, with back-off.
    Restart,
    /// Left alone until somebody starts it: a dead store is a fault that the services must live with, and its end
    /// is for the tester to choose.
    Leave,
}

/// Order of stopping: what comes first here stops first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    Task,
    Edge,
    Service,
    Redis,
    Postgres,
    Kafka,
}

impl Part {
    pub(crate) fn task(name: impl Into<String>, launch: Launch) -> Self {
        let role = Role::Task { stamp: None };
        Self { name: name.into(), launch, role, needs: Vec::new(), ports: BTreeMap::new() }
    }

    pub(crate) fn stamped(mut self, path: PathBuf, content: impl Into<String>) -> Self {
        self.role = Role::Task { stamp: Some((path, content.into())) };
        self
    }

    pub(crate) fn needing(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.needs.extend(names.into_iter().map(Into::into));
        self
    }

    pub(crate) fn tier(&self) -> Tier {
        match self.role {
            Role::Task { .. } => Tier::Task,
            Role::Server { tier, .. } => tier,
        }
    }

    pub(crate) fn is_task(&self) -> bool {
        matches!(self.role, Role::Task { .. })
    }

    /// A task whose stamp is there already.
    pub(crate) fn is_done(&self) -> bool {
        match &self.role {
            Role::Task { stamp: Some((path, content)) } => std::fs::read_to_string(path).is_ok_and(|is| is == *content),
            Role::Task { stamp: None } | Role::Server { .. } => false,
        }
    }
}

impl Launch {
    pub(crate) fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { program: program.into(), args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }
}
