//! The stack's own PostgreSQL cluster.

mod account;
mod security;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::accounts::Account;
use crate::certificates::{Certificates, authority};
use crate::layout::{Layout, remove_dir, write_private};
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision::Tools;
use crate::size::{Purpose, Size};

pub const NAME: &str = "postgres";
const INIT: &str = "postgres-init";
const DATABASE: &str = "postgres-database";
/// Stamps of the tasks that create the data.
const INITIALIZED: &str = "postgres.initialized";
const HAS_DATABASE: &str = "postgres.has-database";
/// Name of the superuser and of the database.
pub(crate) const OWNER: &str = "stampede";
/// SIGINT requests a fast shutdown: sessions are terminated and the data is flushed.
const STOP: Stop = Stop { signal: Signal::INT, grace: Duration::from_secs(20) };

pub fn url(layout: &Layout) -> Result<String> {
    let password = layout.secret("postgres-password")?;
    Ok(format!("postgresql://{OWNER}:{password}@127.0.0.1:{}/{OWNER}", layout.ports.postgres()))
}

pub(crate) use security::{change_password, secure_url};

/// Returns the launch that creates a database unless it exists. The accounts of a secured stack find it like the first.
pub(crate) fn creation(layout: &Layout, psql: &Path, size: &Size) -> Result<Launch> {
    let (database, port) = (size.database(), layout.ports.postgres().to_string());
    let args = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port, "-U", OWNER, "-d", OWNER];
    let mut create = Launch::new(psql, args).env("PGPASSWORD", layout.secret("postgres-password")?);
    let mut statement = format!(r#"CREATE DATABASE "{database}""#);
    if size.secure {
        statement += &format!(r#" OWNER "{}""#, Account::Owner.name());
        let authority = authority(&layout.certificates());
        create = create.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", authority.to_string_lossy());
    }
    create.stdin = Some(format!(
        "SELECT '{statement}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{database}') \\gexec\n"
    ));
    Ok(create)
}

/// Returns the launch that prints the server's settings, and the sizes of the tables but nothing of their rows.
pub(crate) fn sizes(layout: &Layout, tools: &Tools, size: &Size) -> Result<Launch> {
    let (database, port) = (size.database(), layout.ports.postgres().to_string());
    let args = ["-X", "-q", "-h", "127.0.0.1", "-p", &port, "-U", OWNER, "-d", &database];
    let mut launch = Launch::new(tools.postgres.join("psql"), args);
    launch = launch.env("PGPASSWORD", layout.secret("postgres-password")?);
    if size.secure {
        let authority = authority(&layout.certificates());
        launch = launch.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", authority.to_string_lossy());
    }
    launch.stdin = Some(include_str!("postgres/sizes.sql").to_owned());
    Ok(launch)
}

/// Returns the URL of another database of the same server.
pub(crate) fn url_of(layout: &Layout, database: &str) -> Result<String> {
    let (url, own) = (url(layout)?, format!("/{OWNER}"));
    let at = url.rfind(&own).context("the URL names the database")?;
    Ok(format!("{}/{database}{}", &url[..at], &url[at + own.len()..]))
}

/// Returns whether the server has data of an earlier start.
pub(crate) fn has_data(layout: &Layout) -> bool {
    layout.data().join(NAME).exists()
}

/// Lets the next start create the data anew.
pub(crate) fn discard(layout: &Layout) -> Result<()> {
    for stamp in [INITIALIZED, HAS_DATABASE] {
        let path = layout.data().join(stamp);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Returns the parts of the server. `certificates` is that of a secured stack.
pub(crate) fn parts(
    layout: &Layout,
    tools: &Tools,
    purpose: Purpose,
    certificates: Option<&Certificates>,
) -> Result<Vec<Part>> {
    let account = account::choose(&layout.data())?;
    let data = layout.data().join(NAME);
    let dir = data.to_str().context("the state directory's path must be UTF-8")?;
    let run = |program: &str, args: &[&str]| {
        let mut launch = account.launch(&tools.postgres.join(program), args);
        launch.dir = Some(layout.data());
        launch
    };

    let password_file = layout.config().join("postgres-password");
    let password_arg = format!("--pwfile={}", password_file.display());
    let owner_arg = format!("--username={OWNER}");
    let init_args = ["-D", dir, &owner_arg, "--auth=scram-sha-256", &password_arg, "--encoding=UTF8", "--locale=C"];
    let init = Part::task(INIT, run("initdb", &[&init_args[..], &["--no-sync"]].concat()))
        .stamped(layout.data().join(INITIALIZED), "");
    if !init.is_done() {
        prepare(layout, &data, &password_file, &account)?;
    }

    let mut create = run("postgres", &["--single", "-D", dir, "postgres"]);
    create.stdin = Some(match certificates {
        Some(_) => security::logins(layout)?,
        None => format!("CREATE DATABASE {OWNER}\n"),
    });
    let database = Part::task(DATABASE, create).stamped(layout.data().join(HAS_DATABASE), "").needing([INIT]);

    let mut settings = settings(layout.ports.postgres(), purpose);
    if let Some(certificates) = certificates {
        settings.extend(security::settings(layout, certificates, account.ids())?);
    }
    let args: Vec<_> = ["-D", dir].into_iter().chain(settings.iter().flat_map(|set| ["-c", set])).collect();
    let server = server(layout, tools, run("postgres", &args));
    Ok(vec![init, database, server])
}

fn server(layout: &Layout, tools: &Tools, launch: Launch) -> Part {
    let port = layout.ports.postgres();
    let ready = Probe::Postgres { pg_isready: tools.postgres.join("pg_isready"), port };
    Part {
        name: NAME.to_owned(),
        launch,
        role: Role::Server { ready, stop: STOP, on_death: OnDeath::Leave, tier: Tier::Postgres },
        needs: vec![DATABASE.to_owned()],
        ports: BTreeMap::from([("postgres", port)]),
    }
}

/// Creates an empty data folder and the password file, owned by the account that runs Postgres. Removes the data of an
/// unfinished attempt.
fn prepare(layout: &Layout, data: &Path, password_file: &Path, account: &account::Unprivileged) -> Result<()> {
    let attempt = || -> Result<()> {
        remove_dir(data)?;
        fs::create_dir(data)?;
        fs::set_permissions(data, Permissions::from_mode(0o700))?;
        write_private(password_file, &layout.secret("postgres-password")?)?;
        if let Some((uid, gid)) = account.ids() {
            chown(data, Some(uid), Some(gid))?;
            chown(password_file, Some(uid), Some(gid))?;
        }
        Ok(())
    };
    attempt().with_context(|| format!("cannot prepare {}", data.display()))
}

fn settings(port: u16, purpose: Purpose) -> Vec<String> {
    let mut settings = vec![
        format!("port={port}"),
        String::from("listen_addresses=127.0.0.1"),
        // No Unix socket, which other programs might find and use.
        String::from("unix_socket_directories="),
        String::from("shared_buffers=128MB"),
        String::from("max_connections=200"),
        String::from("max_wal_size=1GB"),
        String::from("log_min_messages=warning"),
    ];
    match purpose {
        Purpose::Use => {}
        // The data survives SIGKILL but no power failure, which is enough: it is discarded after the run.
        Purpose::Tests => {
            // Each test has its own database, and by default autovacuum visits every database once a minute.
            let settings_of_tests = ["fsync=off", "full_page_writes=off", "autovacuum_naptime=10min"];
            settings.extend(settings_of_tests.map(String::from));
        }
    }
    settings
}
