//! `cargo stack test`: runs the tests of the workspace on dedicated servers.
//!
//! There are two gates. The first one consists of every test that is not ignored; a change has to pass it before it is
//! merged. `--all` is the second: the first gate, then repeated runs of the binary `it`, half of them while all cores
//! are kept busy, then the tests that are ignored because they take long or install third-party tools.

mod gates;

use std::fs;
use std::process::{Child, ExitCode};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;

use crate::control::{self, Request};
use crate::layout::{Layout, root};
use crate::part::{Launch, Output};
use crate::postgres;
use crate::provision::Tools;
use crate::services::{self, Profile};
use crate::size::Purpose;
use crate::supervisor::{Ended, Supervisor, Words};
use gates::Stage;

use crate::{kafka, logs, plan, process, provision, redis};

/// Name of the test runner's process, which names its record and its log.
const NAME: &str = "tests";

/// Environment variable with the number of test threads; a caller's value takes precedence.
const THREADS: &str = "RUST_TEST_THREADS";
/// Number of test threads beyond one per core: usually one waits for its turn with a whole stack, and others wait for
/// servers and deadlines.
const THREADS_THAT_WAIT: usize = 2;

pub(crate) use gates::Scope;

pub(crate) fn run(layout: &Layout, base_port: Option<u16>, filter: Option<String>, scope: &Scope) -> Result<ExitCode> {
    let layout = layout.for_tests(base_port);
    layout.create()?;
    let Some(_lock) = control::lock(&layout)? else {
        bail!("a test run is already in progress; its state is in {}", layout.state.display());
    };
    process::end_leftovers(&layout);
    end_stacks(&layout)?;
    layout.clear_data()?;
    logs::rotate(&layout);
    let tools = provision::ensure(&layout.log("apt"))?;
    let mut parts = plan::servers(&layout, &tools, 1, false, Purpose::Tests, None)?;
    parts.push(services::build_for_tests());

    let supervisor = Supervisor::new(layout.clone(), parts, String::new(), Words::Start)?;
    let (ready, became_ready) = mpsc::channel();
    let servers = thread::spawn(move || supervisor.run(|_| ready.send(()).unwrap_or_default()));
    let code = match became_ready.recv() {
        Ok(()) => Some(gates::run(scope, |stage| run_tests(&layout, &tools, stage, filter.as_deref(), &servers))?),
        // The start failed or was cancelled.
        Err(_) => None,
    };
    if !servers.is_finished() {
        // Not `down`, because this process itself holds the lock. An error means that the stack is already stopping.
        let _ = control::ask(&layout, &Request::Down);
    }
    match servers.join().map_err(|_| anyhow!("the supervisor panicked"))?? {
        Ended::Signalled => Ok(ExitCode::from(130)),
        Ended::Asked => Ok(code.unwrap_or(ExitCode::FAILURE)),
    }
}

fn run_tests(
    layout: &Layout,
    tools: &Tools,
    stage: Stage,
    filter: Option<&str>,
    servers: &JoinHandle<Result<Ended>>,
) -> Result<Option<ExitCode>> {
    let mut runner = process::spawn(layout, NAME, &launch(layout, tools, stage, filter)?, Signal::TERM)?;
    let code = await_tests(&mut runner, servers);
    process::signal_group(runner.id(), Signal::KILL);
    process::forget(layout, NAME);
    end_stacks(layout)?;
    code
}

/// Stops the stacks that tests left running: a killed test does not stop its stack, which would keep its ports.
fn end_stacks(layout: &Layout) -> Result<()> {
    for state in fs::read_dir(layout.stacks_of_tests()).into_iter().flatten().flatten() {
        let left = Layout::new(Some(&state.path()), None)?;
        control::down(&left)?;
        process::end_leftovers(&left);
    }
    Ok(())
}

/// Waits for the runner to end and returns its exit code, or `None` if the servers ended first.
fn await_tests(runner: &mut Child, servers: &JoinHandle<Result<Ended>>) -> Result<Option<ExitCode>> {
    loop {
        if let Some(status) = runner.try_wait().context("cannot wait for the tests")? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)));
        }
        if servers.is_finished() {
            process::signal_group(runner.id(), Signal::TERM);
            runner.wait().context("cannot wait for the tests")?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn launch(layout: &Layout, tools: &Tools, stage: Stage, filter: Option<&str>) -> Result<Launch> {
    let args = ["test", "--no-fail-fast"].iter().chain(stage.selection()).copied();
    let args = args.chain(filter).chain(stage.options().iter().copied());
    let own = std::env::current_exe().context("cannot locate this program's executable")?;
    let mut launch = Launch::new(services::cargo(), args)
        .env("TEST_KAFKA_BROKERS", kafka::bootstrap(layout.ports, 1))
        .env("TEST_POSTGRES_URL", postgres::url(layout)?)
        .env("TEST_POSTGRES_BIN_DIR", tools.postgres.to_string_lossy())
        .env("TEST_REDIS_URL", redis::url(layout, false))
        .env("TEST_STACK_BIN", own.to_string_lossy())
        .env("TEST_STACKS_DIR", layout.stacks_of_tests().to_string_lossy())
        .env("TEST_STACKS_BASE_PORT", layout.base_port_of_stacks().to_string())
        .env("TEST_BIN_DIR", services::binaries(Profile::Dev)?.to_string_lossy());
    if std::env::var_os(THREADS).is_none() {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        launch = launch.env(THREADS, (cores + THREADS_THAT_WAIT).to_string());
    }
    launch.dir = Some(root().to_owned());
    launch.output = Output::Caller;
    launch.env_of_caller = true;
    Ok(launch)
}
