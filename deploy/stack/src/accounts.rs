//! Accounts of a secured stack at Kafka, Postgres and Redis, each with the least rights that it needs and a password of
//! its own, in a file of the state directory.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::certificates::{Certificates, authority};
use crate::layout::Layout;
use crate::part::Launch;
use crate::redis;
use crate::services::Service;
use crate::size::Size;

/// An account. Its name is the same at all servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Makes topics and tables, and rebuilds them; no service uses it.
    Owner,
    CommandApi,
    QueryApi,
    Projector,
}

impl Account {
    pub const ALL: [Self; 4] = [Self::Owner, Self::CommandApi, Self::QueryApi, Self::Projector];

    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::CommandApi => Service::CommandApi.name(),
            Self::QueryApi => Service::QueryApi.name(),
            Self::Projector => Service::Projector.name(),
        }
    }

    /// Returns its password, which is created on first use.
    pub(crate) fn password(self, layout: &Layout) -> Result<String> {
        password(layout, self.name())
    }

    /// Returns the launch with what its process needs to reach the servers of a secured stack.
    pub(crate) fn add_to(self, launch: Launch, layout: &Layout, size: &Size) -> Launch {
        let file = password_file(layout, self.name()).to_string_lossy().into_owned();
        let mut launch = launch
            .env("TLS_CA_FILE", authority(&layout.certificates()).to_string_lossy())
            .env("POSTGRES_PASSWORD_FILE", &file);
        if self.uses_kafka() {
            launch = launch
                .env("KAFKA_SECURITY", "sasl_ssl")
                .env("KAFKA_USERNAME", self.name())
                .env("KAFKA_PASSWORD_FILE", &file);
        }
        if self.uses_redis() {
            launch = launch
                .env("REDIS_URL", redis::secure_url(layout, size.redis_cluster, self))
                .env("REDIS_PASSWORD_FILE", &file);
        }
        launch
    }

    /// Returns whether the account exists at Kafka.
    pub(crate) fn uses_kafka(self) -> bool {
        self != Self::QueryApi
    }

    /// Returns whether the account exists at Redis.
    pub(crate) fn uses_redis(self) -> bool {
        self != Self::CommandApi
    }
}

/// The accounts and certificates with which the servers of a secured stack are set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secured<'a> {
    pub(crate) certificates: &'a Certificates,
    /// Sizes with the logs that the accounts may use; two while one log is copied to the other.
    pub(crate) logs: &'a [&'a Size],
}

impl From<Service> for Account {
    fn from(service: Service) -> Self {
        match service {
            Service::CommandApi => Self::CommandApi,
            Service::QueryApi => Self::QueryApi,
            Service::Projector => Self::Projector,
        }
    }
}

/// Creates the files with the passwords of all accounts.
pub(crate) fn create_passwords(layout: &Layout) -> Result<()> {
    Account::ALL.into_iter().try_for_each(|account| account.password(layout).map(drop))
}

/// Returns the password of an account that only servers use, which is created on first use.
pub(crate) fn password(layout: &Layout, name: &str) -> Result<String> {
    layout.secret(&file_name(name))
}

/// Returns the password that is to replace that of an account. It is kept until it is in use, so that the change can be
/// repeated after a failure.
pub(crate) fn next_password(layout: &Layout, account: Account) -> Result<String> {
    layout.secret(&next_file_name(account))
}

/// Makes the next password of an account the current one.
pub(crate) fn use_next_password(layout: &Layout, account: Account) -> Result<()> {
    let (next, file) = (layout.state.join(next_file_name(account)), password_file(layout, account.name()));
    fs::rename(next, &file).with_context(|| format!("cannot replace {}", file.display()))
}

pub(crate) fn password_file(layout: &Layout, name: &str) -> PathBuf {
    layout.state.join(file_name(name))
}

fn next_file_name(account: Account) -> String {
    format!("{}.next", file_name(account.name()))
}

fn file_name(account: &str) -> String {
    format!("password-{account}")
}
