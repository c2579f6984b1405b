//! `cargo stack up`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::control::{self, Lock};
use crate::layout::Layout;
use crate::part::Part;
use crate::plan::{self, PAYMENT_WINDOW_SECS, Size, Wanted};
use crate::services::Profile;
use crate::status::{Phase, Status};
use crate::supervisor::{Ended, Supervisor, Words};
use crate::{logs, process, provision};

pub(crate) struct Options {
    /// A session of its own: no terminal's end concerns it.
    pub(crate) background: bool,
    pub(crate) fresh: bool,
    pub(crate) wanted: Wanted,
    pub(crate) profile: Profile,
}

/// Stays until it is asked to end.
pub(crate) fn in_foreground(layout: Layout, options: &Options) -> Result<ExitCode> {
    if options.background {
        rustix::process::setsid().context("cannot leave the terminal")?;
    }
    let (_lock, parts) = prepare(&layout, options)?;
    let url = if options.wanted.servers_only { String::new() } else { url(&layout) };
    let supervisor = Supervisor::new(layout, parts, url, Words::All)?;
    let ended = supervisor.run(|status| {
        // Whoever started it may not read any more.
        let _ = io::stdout().write_all(welcome(status).as_bytes());
    })?;
    Ok(match ended {
        Ended::Asked => ExitCode::SUCCESS,
        // As a shell reports a program that Ctrl-C ended; it was asked to end, and did in order.
        Ended::Signalled => ExitCode::from(130),
    })
}

/// Returns once everything is ready, or has failed.
pub(crate) fn in_background(layout: &Layout) -> Result<ExitCode> {
    layout.create()?;
    if control::is_locked(layout)? {
        bail!("{}", already(layout));
    }
    let path = layout.log(logs::OWN);
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let args = std::env::args_os().skip(1).filter(|arg| arg != "--detach" && arg != "-d");
    let mut child = Command::new(own)
        .args(args)
        .arg("--background")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;

    let mut position = 0;
    loop {
        let ended = child.try_wait()?;
        let state = control::status(layout).map_or(Phase::Starting, |status| status.state);
        // After the question: what it said before it became ready is shown.
        let new = logs::read_from(&path, &mut position).unwrap_or_default();
        io::stdout().write_all(&new)?;
        if ended.is_some() {
            return Ok(ExitCode::FAILURE);
        }
        if state == Phase::Ready {
            println!("It runs in the background: `cargo stack status`, `cargo stack down`.");
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Everything up to the first process: a lock, a machine that has what is needed, a plan.
pub(crate) fn prepare(layout: &Layout, options: &Options) -> Result<(Lock, Vec<Part>)> {
    layout.create()?;
    let Some(lock) = control::lock(layout)? else {
        bail!("{}", already(layout));
    };
    let left = process::end_leftovers(layout);
    if !left.is_empty() {
        println!("Ended what a killed run had left: {}.", left.join(", "));
    }
    if options.fresh {
        layout.clear_data()?;
    }
    logs::rotate(layout);
    let tools = provision::ensure(&layout.log("apt"))?;
    let size = Size::decide(layout, &options.wanted)?;
    let path = payment_window_path(layout);
    fs::write(&path, size.payment_window_secs.to_string())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok((lock, plan::system(layout, &tools, &size, options.profile)?))
}

/// Of the stack that runs.
pub(crate) fn payment_window(layout: &Layout) -> Duration {
    let told = fs::read_to_string(payment_window_path(layout)).ok().and_then(|text| text.trim().parse().ok());
    Duration::from_secs(told.unwrap_or(u64::from(PAYMENT_WINDOW_SECS)))
}

fn payment_window_path(layout: &Layout) -> PathBuf {
    layout.state.join("payment-window")
}

pub(crate) fn url(layout: &Layout) -> String {
    format!("http://127.0.0.1:{}", layout.ports.edge())
}

fn already(layout: &Layout) -> String {
    format!("a stack runs already in {}; see `cargo stack status`", layout.state.display())
}

/// What runs where, and three lines to try.
fn welcome(status: &Status) -> String {
    let (url, table) = (&status.url, status.table());
    if url.is_empty() {
        return format!("\n{table}\n");
    }
    format!(
        "\n{table}\nReady at {url}. Try:\n\n\
         curl -i {url}/v1/products/cd-1/register -H 'Content-Type: application/json' \
         -d '{{\"name\":\"Kind of Blue\",\"price_cents\":1177,\"stock\":100}}'\n\
         curl -i {url}/v1/products/cd-1/reserve -H 'Content-Type: application/json' \
         -d '{{\"order\":\"order-1\",\"quantity\":2}}'\n\
         curl -i {url}/v1/products/cd-1 -H \"Consistency-Token: <the token of the answer before>\"\n\n"
    )
}
