//! Entry point of `query-api`, the service that answers queries from the views; `healthcheck` asks a running one.

use std::process::ExitCode;

use chassis::exit::{self, Misuse};
use chassis::healthcheck;
use chassis::program::Program;
use chassis::shutdown::Shutdown;
use query_api::{App, Config};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROGRAM: Program = Program {
    name: "query-api",
    usage: "
  query-api                     serves
  query-api healthcheck [PATH]  asks a running one for /livez
",
};

#[tokio::main]
async fn main() -> ExitCode {
    exit::report(run().await)
}

async fn run() -> anyhow::Result<()> {
    let Some((env, mut args)) = PROGRAM.begin(Config::from_env)? else { return Ok(()) };
    match args.next().as_deref() {
        None => App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await,
        Some("healthcheck") => healthcheck::run(&env, args),
        Some(other) => Err(Misuse::new(format!("unknown subcommand {other:?}; expected healthcheck")).into()),
    }
}
