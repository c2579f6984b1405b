//! Programs of this machine that only the benches need, installed on first use.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use stack::layout::Layout;
use stack::provision::find::{candidates, program};
use stack::provision::{Need, ensure_one};

const WRK: Need = Need { name: "wrk", find: || program("wrk"), packages: &["wrk"] };
const PYTHON: Need = Need { name: "Python 3 with its venv module", find: python, packages: &["python3-venv"] };
const MARIADB: Need = Need { name: "MariaDB", find: || program("mariadbd"), packages: &["mariadb-server"] };
const RABBITMQ: Need = Need { name: "RabbitMQ", find: rabbitmq, packages: &["rabbitmq-server"] };

/// Programs of the reference architecture in `cargo stack bench seckill`.
#[derive(Debug, Clone)]
pub(super) struct SeckillTools {
    pub(super) python: PathBuf,
    pub(super) mariadbd: PathBuf,
    pub(super) rabbitmq_server: PathBuf,
}

/// Returns wrk, a load generator.
pub(super) fn wrk(layout: &Layout) -> Result<PathBuf> {
    ensure_one(&WRK, &log(layout)?)
}

/// Returns the programs that the textbook architecture needs in addition to the stack's.
pub(super) fn seckill(layout: &Layout) -> Result<SeckillTools> {
    let log = log(layout)?;
    Ok(SeckillTools {
        python: ensure_one(&PYTHON, &log)?,
        mariadbd: ensure_one(&MARIADB, &log)?,
        rabbitmq_server: ensure_one(&RABBITMQ, &log)?,
    })
}

/// Returns the package manager's log, after creating the state directory.
fn log(layout: &Layout) -> Result<PathBuf> {
    layout.create()?;
    Ok(layout.log("apt"))
}

fn python() -> Option<PathBuf> {
    let has_venv = |python: &PathBuf| {
        let asked = Command::new(python).args(["-c", "import ensurepip, venv"]).stdin(Stdio::null()).output();
        asked.is_ok_and(|output| output.status.success())
    };
    candidates("python3").into_iter().find(has_venv)
}

/// Returns RabbitMQ's plain server script. The wrapper on PATH insists on its own account and folders.
fn rabbitmq() -> Option<PathBuf> {
    Some(Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server")).filter(|path| path.is_file()).map(Path::to_owned)
}
