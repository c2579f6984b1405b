//! The parts of the textbook system in `tests/peers/seckill`: nginx, Gunicorn, Redis, RabbitMQ, MariaDB and a consumer.
//! They replace this system's parts and use their ports.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::json;
use stack::layout::{Layout, root, write_private};
use stack::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use stack::probe::Probe;
use stack::provision::Tools;
use stack::redis;

use crate::bench::programs::SeckillTools;

pub(super) const NGINX: &str = "nginx";
pub(super) const GUNICORN: &str = "gunicorn";
pub(super) const CONSUMER: &str = "consumer";
pub(super) const RABBITMQ: &str = "rabbitmq";
const MARIADB: &str = "mariadb";
const MARIADB_INIT: &str = "mariadb-init";
const EPMD: &str = "epmd";
const VENV: &str = "venv";
const STOP: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(20) };
/// Name of the user and of the database.
const NAME: &str = "seckill";

pub(super) fn parts(layout: &Layout, tools: &Tools, own: &SeckillTools, confirms: bool) -> Result<Vec<Part>> {
    let python = venv(layout, own)?;
    let env = of_python(layout, confirms)?;
    let with_env = |mut launch: Launch| {
        launch.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        launch.dir = Some(folder());
        launch
    };
    let bind = format!("--bind=127.0.0.1:{}", layout.ports.command_http(1));
    let gunicorn = Launch::new(bin(layout, "gunicorn"), ["--config=gunicorn.conf.py", &bind, "app:app"]);
    let consumer = Launch::new(bin(layout, "python"), ["consumer.py"]);
    let (web, amqp) = (layout.ports.command_http(1), layout.ports.kafka(1));
    let stores = [VENV, redis::NAME, RABBITMQ, MARIADB];
    Ok(vec![
        python,
        append_only(redis::part(layout, tools), layout)?,
        epmd(layout),
        rabbitmq(layout, own)?,
        mariadb_init(layout),
        mariadb(layout, own)?,
        service(GUNICORN, with_env(gunicorn), Probe::Http { port: web, path: "/readyz" }, &stores),
        service(CONSUMER, with_env(consumer), Probe::Log { line: "consuming", port: amqp }, &stores),
        nginx(layout, tools)?,
    ])
}

/// Returns the launch of the MariaDB client with one statement. The password is passed in the environment, because
/// other users can read a process's arguments.
pub(super) fn sql(layout: &Layout, statement: &str) -> Result<Launch> {
    let port = format!("--port={}", layout.ports.postgres());
    let args = ["--no-defaults", "--host=127.0.0.1", &port, "--user=seckill", "--batch", "--skip-column-names"];
    let args = args.into_iter().chain(["--execute", statement, NAME]);
    Ok(Launch::new("mariadb", args).env("MYSQL_PWD", layout.secret("seckill-password")?))
}

fn folder() -> PathBuf {
    root().join("tests/peers/seckill")
}

fn bin(layout: &Layout, program: &str) -> PathBuf {
    layout.state.join("seckill-venv/bin").join(program)
}

/// Returns the task that creates the virtual environment, once per content of `requirements.txt`.
fn venv(layout: &Layout, own: &SeckillTools) -> Result<Part> {
    const SCRIPT: &str = r#""$1" -m venv --clear "$2" && "$2/bin/pip" install --quiet --requirement "$3""#;
    let (dir, file) = (layout.state.join("seckill-venv"), folder().join("requirements.txt"));
    let requirements = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let paths = [&own.python, &dir, &file].map(|path| path.display().to_string());
    let mut launch = Launch::new("sh", ["-c", SCRIPT, "sh"].map(String::from).into_iter().chain(paths));
    // The environment may name pip's package index.
    launch.env_of_caller = true;
    Ok(Part::task(VENV, launch).stamped(dir.join("requirements.txt"), requirements))
}

fn of_python(layout: &Layout, confirms: bool) -> Result<[(&'static str, String); 5]> {
    let database = json!({
        "host": "127.0.0.1",
        "port": layout.ports.postgres(),
        "user": NAME,
        "password": layout.secret("seckill-password")?,
        "database": NAME,
    });
    Ok([
        ("REDIS_URL", redis::url(layout, false)),
        ("AMQP_URL", format!("amqp://guest:guest@127.0.0.1:{}/", layout.ports.kafka(1))),
        ("DATABASE", database.to_string()),
        ("CONFIRMS", String::from(if confirms { "on" } else { "off" })),
        // Keeps bytecode out of the source folder.
        ("PYTHONDONTWRITEBYTECODE", String::from("1")),
    ])
}

fn append_only(mut part: Part, layout: &Layout) -> Result<Part> {
    let (dir, port) = (data(layout, redis::NAME)?, layout.ports.redis().to_string());
    let args = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "yes"];
    let args = args.into_iter().chain(["--appendfsync", "everysec"]);
    part.launch = Launch { dir: Some(dir), ..Launch::new(part.launch.program, args) };
    Ok(part)
}

/// Returns Erlang's port mapper as a part of its own. RabbitMQ would otherwise start one that outlives it.
fn epmd(layout: &Layout) -> Part {
    let port = layout.ports.kafka(2);
    let launch = Launch::new("epmd", ["-address", "127.0.0.1", "-port", &port.to_string()]);
    server(EPMD, launch, Probe::Log { line: "", port }, OnDeath::Leave, Tier::Kafka)
}

fn rabbitmq(layout: &Layout, own: &SeckillTools) -> Result<Part> {
    let (dir, port) = (data(layout, RABBITMQ)?, layout.ports.kafka(1));
    let dir = |name: &str| dir.join(name).display().to_string();
    let launch = Launch::new(&own.rabbitmq_server, [""; 0])
        .env("HOME", dir(""))
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", layout.ports.kafka(2).to_string())
        .env("RABBITMQ_NODENAME", "seckill@localhost")
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_DIST_PORT", layout.ports.kafka_controller(1).to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_MNESIA_BASE", dir("mnesia"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir("plugins"))
        .env("RABBITMQ_PID_FILE", dir("pid"))
        .env("RABBITMQ_LOGS", "-")
        // Makes the script exec the server, so that the server itself receives the stop signal.
        .env("RUNNING_UNDER_SYSTEMD", "1");
    let ready = Probe::Log { line: "Server startup complete", port };
    Ok(server(RABBITMQ, launch, ready, OnDeath::Leave, Tier::Kafka).needing([EPMD]))
}

/// Returns the arguments that all runs of MariaDB share. It runs as root only if the user is named explicitly.
fn mariadb_args(layout: &Layout) -> Vec<String> {
    let user = rustix::process::geteuid().is_root().then(|| String::from("--user=root"));
    let dir = format!("--datadir={}", layout.data().join(MARIADB).display());
    [String::from("--no-defaults"), dir].into_iter().chain(user).collect()
}

fn mariadb_init(layout: &Layout) -> Part {
    let mut args = mariadb_args(layout);
    args.extend(["--auth-root-authentication-method=normal", "--skip-test-db"].map(String::from));
    Part::task(MARIADB_INIT, Launch::new("mariadb-install-db", args))
}

fn mariadb(layout: &Layout, own: &SeckillTools) -> Result<Part> {
    let (port, init) = (layout.ports.postgres(), layout.config().join("seckill.sql"));
    let tables = folder().join("tables.sql");
    let tables = fs::read_to_string(&tables).with_context(|| format!("cannot read {}", tables.display()))?;
    let user = format!("{NAME}@'127.0.0.1'");
    let password = layout.secret("seckill-password")?;
    let user =
        format!("CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{password}';\nGRANT ALL ON {NAME}.* TO {user};\n");
    write_private(&init, &format!("{tables}{user}"))?;
    let mut args = mariadb_args(layout);
    args.extend([format!("--port={port}"), format!("--init-file={}", init.display())]);
    args.extend(["--bind-address=127.0.0.1", "--skip-name-resolve", "--skip-log-bin"].map(String::from));
    // Relative to the data folder, because an absolute path could exceed the limit of a socket address.
    args.extend(["--socket=socket", "--innodb-buffer-pool-size=256M"].map(String::from));
    args.push(String::from("--innodb-flush-log-at-trx-commit=1"));
    let ready = Probe::Log { line: "ready for connections", port };
    let launch = Launch::new(&own.mariadbd, args);
    Ok(server(MARIADB, launch, ready, OnDeath::Leave, Tier::Postgres).needing([MARIADB_INIT]))
}

fn nginx(layout: &Layout, tools: &Tools) -> Result<Part> {
    let (dir, template) = (data(layout, NGINX)?, folder().join("nginx.conf.template"));
    let text = fs::read_to_string(&template).with_context(|| format!("cannot read {}", template.display()))?;
    let text = text
        .replace("{{folder}}", &dir.display().to_string())
        .replace("{{port}}", &layout.ports.edge().to_string())
        .replace("{{gunicorn}}", &format!("127.0.0.1:{}", layout.ports.command_http(1)));
    let file = dir.join("nginx.conf");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    let args = ["-p", &dir.to_string_lossy(), "-e", "stderr", "-c", &file.to_string_lossy()].map(str::to_owned);
    let ready = Probe::Http { port: layout.ports.edge(), path: "/readyz" };
    let launch = Launch::new(&tools.nginx, args);
    Ok(server(NGINX, launch, ready, OnDeath::Restart, Tier::Edge).needing([GUNICORN]))
}

fn data(layout: &Layout, name: &str) -> Result<PathBuf> {
    let dir = layout.data().join(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn service(name: &str, launch: Launch, ready: Probe, needs: &[&str]) -> Part {
    server(name, launch, ready, OnDeath::Restart, Tier::Service).needing(needs.iter().copied())
}

fn server(name: &str, launch: Launch, ready: Probe, on_death: OnDeath, tier: Tier) -> Part {
    let role = Role::Server { ready, stop: STOP, on_death, tier };
    Part { name: name.to_owned(), launch, role, needs: Vec::new(), ports: BTreeMap::new() }
}
