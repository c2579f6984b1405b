//! `cargo stack up`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::certificates::authority;
use crate::control::{self, Lock};
use crate::edge::staff_header;
use crate::layout::Layout;
use crate::part::Part;
use crate::plan;
use crate::services::{self, Profile};
use crate::size::{PAYMENT_WINDOW_SECS, Size, Wanted};
use crate::status::{Phase, Status};
use crate::supervisor::{Ended, Supervisor, Words};
use crate::{cores, grow, logs, observe, process, provision};

/// The exit status that a shell reports after Ctrl-C, although the shutdown was orderly.
const SIGNALLED: u8 = 130;

pub struct Options {
    /// Detach from the terminal into a new session, so that closing the terminal does not end the stack.
    pub background: bool,
    pub fresh: bool,
    pub wanted: Wanted,
    pub profile: Profile,
}

/// Runs the stack until it is asked to stop.
pub(crate) fn in_foreground(layout: Layout, options: &Options) -> Result<ExitCode> {
    if options.background {
        rustix::process::setsid().context("cannot detach from the terminal")?;
    }
    let failed = match run(&layout, options) {
        Err(error) => error,
        ended => return ended,
    };
    let Some(partitions) = grow::unfinished(&layout) else { return Err(failed) };
    println!("The log was closed to grow to {partitions} partitions, but the growth was not finished. Finishing it.");
    let again = Options { fresh: false, wanted: options.wanted.clone(), ..*options };
    match grow::finish(&layout, &Size::decide(&layout, &again.wanted)?, partitions, again.profile)? {
        true => run(&layout, &again),
        false => Ok(ExitCode::from(SIGNALLED)),
    }
}

fn run(layout: &Layout, options: &Options) -> Result<ExitCode> {
    let (_lock, parts, size) = prepare(layout, options)?;
    let (edge, started) = (address(layout)?, layout);
    let observers =
        if size.observe && !options.wanted.servers_only { observe::addresses(layout) } else { String::new() };
    let url = if options.wanted.servers_only { String::new() } else { edge.url.clone() };
    let supervisor = Supervisor::new(layout.clone(), parts, url, Words::All)?;
    let supervisor = supervisor.elastic(size, services::binaries(options.profile)?);
    let ended = supervisor.run(|status| {
        // Standard output may be closed by now.
        let _ = io::stdout().write_all((welcome(status, started, &edge) + &observers).as_bytes());
    })?;
    Ok(match ended {
        Ended::Asked => ExitCode::SUCCESS,
        Ended::Signalled => ExitCode::from(SIGNALLED),
    })
}

/// Starts the stack in the background. Returns once everything is ready, or the start has failed.
pub(crate) fn in_background(layout: &Layout) -> Result<ExitCode> {
    layout.create()?;
    if control::is_locked(layout)? {
        bail!("{}", already(layout));
    }
    let path = layout.log(logs::OWN);
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let own = std::env::current_exe().context("cannot locate this program's executable")?;
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
        // Read after the status, so that everything printed before the stack became ready is shown.
        let new = logs::read_from(&path, &mut position).unwrap_or_default();
        io::stdout().write_all(&new)?;
        if ended.is_some() {
            return Ok(ExitCode::FAILURE);
        }
        if state == Phase::Ready {
            println!("The stack runs in the background; see `cargo stack status`, stop it with `cargo stack down`.");
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Does everything that precedes the first process: takes the lock, installs packages and plans the parts.
pub fn prepare(layout: &Layout, options: &Options) -> Result<(Lock, Vec<Part>, Size)> {
    layout.create()?;
    let Some(lock) = control::lock(layout)? else {
        bail!("{}", already(layout));
    };
    let left = process::end_leftovers(layout);
    if !left.is_empty() {
        println!("Stopped processes left behind by a killed run: {}.", left.join(", "));
    }
    if options.fresh {
        layout.clear_data()?;
    }
    logs::rotate(layout);
    let tools = provision::ensure(&layout.log("apt"))?;
    cores::clear(layout);
    let size = Size::decide(layout, &options.wanted)?;
    let path = payment_window_path(layout);
    fs::write(&path, size.payment_window_secs.to_string())
        .with_context(|| format!("cannot write {}", path.display()))?;
    let parts = plan::system(layout, &tools, &size, options.profile)?;
    cores::store(layout, size.millicores)?;
    Ok((lock, parts, size))
}

/// Returns the payment window that the running stack was started with.
pub fn payment_window(layout: &Layout) -> Duration {
    let told = fs::read_to_string(payment_window_path(layout)).ok().and_then(|text| text.trim().parse().ok());
    Duration::from_secs(told.unwrap_or(u64::from(PAYMENT_WINDOW_SECS)))
}

fn payment_window_path(layout: &Layout) -> PathBuf {
    layout.state.join("payment-window")
}

/// Address at which clients reach a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub url: String,
    /// The certificate of the authority that signed the edge's, if the stack is secured.
    pub authority: Option<PathBuf>,
}

impl Address {
    /// Returns the beginning of a command line for it.
    fn curl(&self) -> String {
        let trust = self.authority.as_ref().map(|file| format!(" --cacert {}", file.display()));
        format!("curl -i{} {}", trust.unwrap_or_default(), self.url)
    }
}

/// Returns the address of the stack that was last started in a state directory.
pub fn address(layout: &Layout) -> Result<Address> {
    let is_secure = Size::decide(layout, &Wanted::one_of_each())?.secure;
    let authority = is_secure.then(|| authority(&layout.certificates()));
    Ok(Address { url: url(layout, is_secure), authority })
}

pub(crate) fn url(layout: &Layout, is_secure: bool) -> String {
    let scheme = if is_secure { "https" } else { "http" };
    format!("{scheme}://127.0.0.1:{}", layout.ports.edge())
}

fn already(layout: &Layout) -> String {
    format!("a stack is already running in {}; see `cargo stack status`", layout.state.display())
}

/// Returns the process table and three commands to try. Staff, who register products, have a token in a secured stack.
fn welcome(status: &Status, layout: &Layout, edge: &Address) -> String {
    let (url, table) = (&status.url, status.table());
    if url.is_empty() {
        return format!("\n{table}\n");
    }
    let curl = edge.curl();
    let staff = edge.authority.as_ref().map(|_| staff_header(&layout.staff_token_in_shell())).unwrap_or_default();
    format!(
        "\n{table}\nReady at {url}. Try:\n\n\
         {curl}/v1/products/cd-1/register -H 'Content-Type: application/json'{staff} \
         -d '{{\"name\":\"Kind of Blue\",\"price_cents\":1177,\"stock\":100}}'\n\
         {curl}/v1/products/cd-1/reserve -H 'Content-Type: application/json' \
         -d '{{\"order\":\"order-1\",\"quantity\":2}}'\n\
         {curl}/v1/products/cd-1 -H \"Consistency-Token: <token of the previous answer>\"\n\n"
    )
}
