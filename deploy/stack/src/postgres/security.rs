//! Postgres of a secured stack: TLS alone, and a login for each account, with the rights of its group role.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result};

use super::{NAME, OWNER};
use crate::accounts::Account;
use crate::certificates::Certificates;
use crate::layout::{Layout, write_private};

/// Rules of who may connect, and how.
const HOSTS: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n";

/// Returns the URL for an account, without its password.
pub(crate) fn secure_url(layout: &Layout, account: Account) -> String {
    let (name, port) = (account.name(), layout.ports.postgres());
    format!("postgresql://{name}@127.0.0.1:{port}/{OWNER}?sslmode=verify-full&channel_binding=require")
}

/// Returns the statements, one a line, that create the database and its logins. The group roles are those of the
/// migrations, which find them.
pub(super) fn logins(layout: &Layout) -> Result<String> {
    let mut text = String::new();
    for account in Account::ALL {
        let (name, password) = (account.name(), account.password(layout)?);
        let group = match account {
            Account::Owner => None,
            Account::CommandApi => Some("stampede_command_api"),
            Account::QueryApi => Some("stampede_query_api"),
            Account::Projector => Some("stampede_projector"),
        };
        if let Some(group) = group {
            text += &format!("CREATE ROLE {group} NOLOGIN\n");
        }
        let member = group.map_or_else(String::new, |group| format!(" IN ROLE {group}"));
        text += &format!("CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'{member}\n");
    }
    let owner = Account::Owner.name();
    Ok(format!("{text}CREATE DATABASE {OWNER} OWNER \"{owner}\"\n"))
}

/// Returns the server's settings, after writing the files that they name for the account that runs it.
pub(super) fn settings(layout: &Layout, certificates: &Certificates, ids: Option<(u32, u32)>) -> Result<[String; 5]> {
    let pair = certificates.of(NAME)?;
    let write = |name: &str, text: &str| -> Result<String> {
        let path = layout.data().join(name);
        write_private(&path, text)?;
        if let Some((uid, gid)) = ids {
            chown(&path, Some(uid), Some(gid)).with_context(|| format!("cannot change {}", path.display()))?;
        }
        Ok(path.to_string_lossy().into_owned())
    };
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    Ok([
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", write("postgres.pem", &read(&pair.certificate)?)?),
        format!("ssl_key_file={}", write("postgres.key", &read(&pair.key)?)?),
        "ssl_min_protocol_version=TLSv1.2".to_owned(),
        format!("hba_file={}", write("postgres.hosts", HOSTS)?),
    ])
}
