//! The programs of `tests/peers`: built outside the workspace and started as parts of the bench's stack.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use stack::layout::{Layout, root};
use stack::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use stack::probe::Probe;
use stack::provision::Tools;
use stack::services::{self, Profile};
use stack::{kafka, postgres, redis};

pub(super) const LIMIT: &str = "limit";
pub(super) const LIMIT_READ: &str = "limit-read";
pub(super) const NGINX: &str = "nginx";
pub(super) const CROWD_LIMIT: &str = "crowd-limit";
pub(super) const SHOP: &str = "cqrs-es-shop";
pub(super) const OWN_DATABASE: &str = "peers";
const BUILD: &str = "peers-build";
const DATABASE: &str = "peers-database";
/// Short grace period, because the peers have nothing to save.
const STOP: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(2) };

/// Adds the peers of the write bench to the parts of the whole system.
pub(super) fn of_write(layout: &Layout, tools: &Tools, parts: &mut Vec<Part>) -> Result<()> {
    let limit = server(layout, LIMIT, &[BUILD, &kafka::name(1)])?;
    let shop = server(layout, SHOP, &[BUILD, DATABASE])?;
    parts.extend([build()?, database(layout, tools)?, limit, shop]);
    Ok(())
}

pub(super) fn of_read(layout: &Layout, tools: &Tools, parts: &mut Vec<Part>) -> Result<()> {
    let is_cluster = parts.iter().any(|part| part.name == redis::CLUSTER);
    let mut limit = server(layout, LIMIT_READ, &[BUILD, postgres::NAME, redis::needed(is_cluster)])?;
    let system = [("REDIS_URL", redis::url(layout, is_cluster)), ("DATABASE_URL", postgres::url(layout)?)];
    limit.launch.env.retain(|(name, _)| name != "DATABASE_URL");
    limit.launch.env.extend(system.map(|(name, value)| (name.to_owned(), value)));
    let shop = server(layout, SHOP, &[BUILD, DATABASE])?;
    parts.extend([build()?, database(layout, tools)?, limit, shop, nginx(layout, tools)?]);
    Ok(())
}

/// Adds the bare server for a sale's crowd.
pub(super) fn of_rush(layout: &Layout, parts: &mut Vec<Part>, units: u64, limit_per_customer: u64) -> Result<()> {
    let mut limit = server(layout, CROWD_LIMIT, &[BUILD])?;
    limit.launch =
        limit.launch.env("UNITS", units.to_string()).env("LIMIT_PER_CUSTOMER", limit_per_customer.to_string());
    parts.extend([build()?, limit]);
    Ok(())
}

/// Adds only the build of the client programs.
pub(super) fn of_projection(_: &Layout, _: &Tools, parts: &mut Vec<Part>) -> Result<()> {
    parts.push(build()?);
    Ok(())
}

/// Returns an nginx with a cache in front of the bare server for reads.
fn nginx(layout: &Layout, tools: &Tools) -> Result<Part> {
    let folder = layout.config().join(NGINX);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = folder.join("nginx.conf");
    let text = include_str!("peers/nginx.conf.template")
        .replace("{{folder}}", &folder.display().to_string())
        .replace("{{port}}", &port(layout, NGINX).to_string())
        .replace("{{server}}", &address(layout, LIMIT_READ));
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    let args = ["-p", &folder.to_string_lossy(), "-e", "stderr", "-c", &file.to_string_lossy()].map(str::to_owned);
    Ok(Part { launch: Launch::new(&tools.nginx, args), ..server(layout, NGINX, &[LIMIT_READ])? })
}

/// Returns the launch of a client or server program, with Kafka's address.
pub(super) fn program(layout: &Layout, name: &str) -> Result<Launch> {
    let launch = Launch::new(target()?.join("release").join(name), [""; 0]);
    Ok(launch.env("KAFKA_BROKERS", kafka::bootstrap(layout.ports, 1)))
}

pub(super) fn address(layout: &Layout, name: &str) -> String {
    socket_address(layout, name).to_string()
}

pub(super) fn socket_address(layout: &Layout, name: &str) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port(layout, name)).into()
}

/// Returns the launch of a Postgres client program on a database. The password is not passed as an argument, where
/// other users could read it.
pub(super) fn of_postgres(layout: &Layout, tools: &Tools, program: &str, database: &str) -> Result<Launch> {
    let password = layout.secret("postgres-password")?;
    let url = postgres_url(layout, database)?.replace(&format!(":{password}@"), "@");
    Ok(Launch::new(tools.postgres.join(program), [url]).env("PGPASSWORD", password))
}

fn postgres_url(layout: &Layout, database: &str) -> Result<String> {
    let url = postgres::url(layout)?;
    let (server, _) = url.rsplit_once('/').context("the Postgres URL has no database")?;
    Ok(format!("{server}/{database}"))
}

/// Returns a target folder separate from the services', whose build artifacts must not be replaced.
fn target() -> Result<PathBuf> {
    let binaries = services::binaries(Profile::Release)?;
    Ok(binaries.parent().context("the target folder has no parent")?.join("peers"))
}

/// Returns the port of a server, between those of the stack's servers and of its services.
fn port(layout: &Layout, name: &str) -> u16 {
    let names = [LIMIT, SHOP, LIMIT_READ, NGINX, CROWD_LIMIT];
    let place = (10..).zip(names).find_map(|(place, known)| (known == name).then_some(place));
    layout.ports.redis() + place.expect("every server is listed above")
}

fn build() -> Result<Part> {
    let (manifest, target) = (root().join("tests/peers/Cargo.toml"), target()?);
    let mut launch = services::build(Profile::Release).launch;
    launch.args = vec![
        String::from("build"),
        String::from("--release"),
        String::from("--locked"),
        format!("--manifest-path={}", manifest.display()),
        format!("--target-dir={}", target.display()),
    ];
    Ok(Part::task(BUILD, launch).described("compiling the peers; the first time takes minutes"))
}

fn database(layout: &Layout, tools: &Tools) -> Result<Part> {
    // Connects to an existing database, because the script creates its own.
    let mut launch = of_postgres(layout, tools, "psql", "postgres")?;
    launch.args.extend(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"].map(String::from));
    launch.stdin = Some(String::from(include_str!("peers/database.sql")));
    Ok(Part::task(DATABASE, launch).needing([postgres::NAME]))
}

fn server(layout: &Layout, name: &str, needs: &[&str]) -> Result<Part> {
    let launch = program(layout, name)?.env("ADDRESS", address(layout, name));
    let port = port(layout, name);
    let role = Role::Server {
        ready: Probe::Http { port, path: "/readyz" },
        stop: STOP,
        on_death: OnDeath::Leave,
        tier: Tier::Service,
    };
    Ok(Part {
        name: name.to_owned(),
        launch: launch.env("DATABASE_URL", postgres_url(layout, OWN_DATABASE)?),
        role,
        needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        ports: BTreeMap::from([("http", port)]),
    })
}
