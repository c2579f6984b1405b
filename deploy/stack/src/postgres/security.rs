//! Postgres of a secured stack: TLS alone, and a login for each account, with the rights of its group role.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result};

use super::{NAME, OWNER};
use crate::accounts::Account;
use crate::certificates::{Certificates, authority};
use crate::layout::{Layout, write_private};
use crate::part::Launch;
use crate::provision::Tools;

/// Rules of who may connect, and how.
const HOSTS: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n";

/// Returns the URL of a database for an account, without its password.
pub(crate) fn secure_url(layout: &Layout, account: Account, database: &str) -> String {
    let (name, port) = (account.name(), layout.ports.postgres());
    format!("postgresql://{name}@127.0.0.1:{port}/{database}?sslmode=verify-full&channel_binding=require")
}

/// Returns the statements, one a line, that create the database and its logins. The group roles are those of the
/// migrations, which find them.
pub(super) fn logins(layout: &Layout) -> Result<String> {
    let mut text = String::new();
    for account in Account::ALL {
        let (name, password) = (account.name(), account.password(layout)?);
        let group = group(account);
        if let Some(group) = group {
            text += &format!("CREATE ROLE {group} NOLOGIN\n");
        }
        let member = group.map_or_else(String::new, |group| format!(" IN ROLE {group}"));
        text += &format!("CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'{member}\n");
    }
    let owner = Account::Owner.name();
    Ok(format!("{text}CREATE DATABASE {OWNER} OWNER \"{owner}\"\n"))
}

/// Returns the group role to which the migrations grant an account's rights. The owner has all rights.
fn group(account: Account) -> Option<&'static str> {
    match account {
        Account::Owner => None,
        Account::CommandApi => Some("stampede_command_api"),
        Account::QueryApi => Some("stampede_query_api"),
        Account::Projector => Some("stampede_projector"),
    }
}

/// Returns the launch that changes the password of an account in the running server.
pub(crate) fn change_password(layout: &Layout, tools: &Tools, account: Account, password: &str) -> Result<Launch> {
    let (port, authority) = (layout.ports.postgres(), authority(&layout.certificates()));
    let url = format!(
        "postgresql://{OWNER}@127.0.0.1:{port}/{OWNER}?sslmode=verify-full&sslrootcert={}",
        authority.display()
    );
    let args = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url];
    let launch = Launch::new(tools.postgres.join("psql"), args).env("PGPASSWORD", layout.secret("postgres-password")?);
    // Others can see the arguments of a process.
    let stdin = Some(format!("ALTER ROLE \"{}\" PASSWORD '{password}';\n", account.name()));
    Ok(Launch { stdin, ..launch })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::root;

    #[test]
    fn containers_and_a_cluster_have_the_same_logins() {
        let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
        let ours: Vec<_> = Account::ALL
            .into_iter()
            .filter_map(|account| Some((account.name().replace('-', "_"), group(account)?.to_owned())))
            .collect();
        let sorted = |mut logins: Vec<(String, String)>| {
            logins.sort_unstable();
            logins
        };

        let containers = read("deploy/compose/logins.sql");
        let created = containers.lines().filter_map(|line| {
            let (login, rest) = line.strip_prefix("CREATE ROLE ")?.split_once(" LOGIN PASSWORD ")?;
            let (_, groups) = rest.split_once(" IN ROLE ")?;
            Some((login.to_owned(), groups.trim_end_matches(';').to_owned()))
        });
        assert_eq!(sorted(created.collect()), sorted(ours.clone()));
        assert_eq!(containers.matches(" LOGIN").count(), ours.len());

        let cluster = read("deploy/kubernetes/components/postgres/cluster.yaml");
        let roles = cluster.split("\n      - name: ").skip(1).map(|role| {
            let groups = role.split_once("inRoles: [").unwrap().1.split_once(']').unwrap().0;
            (role.lines().next().unwrap().to_owned(), groups.to_owned())
        });
        assert_eq!(sorted(roles.collect()), sorted(ours.clone()));
        assert_eq!(cluster.matches("login: true").count(), ours.len());

        let migration = read("schemas/sql/V25__roles.sql");
        for (login, group) in ours {
            assert!(migration.contains(&format!("'{group}'")), "{group}");
            assert!(containers.contains(&format!("CREATE ROLE {group} NOLOGIN;")), "{group}");
            assert!(cluster.contains(&format!("{{ name: {group}, ensure: present, login: false }}")), "{group}");
            assert!(cluster.contains(&format!(",{login}")), "pg_hba has no rule for {login}");
        }
    }
}
