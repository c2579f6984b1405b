//! Entry point of `query-api`, the service that answers queries from the views; `healthcheck` asks a running one.

use std::process::ExitCode;

use chassis::env::Env;
use chassis::exit::{self, Misuse};
use chassis::healthcheck;
use chassis::shutdown::Shutdown;
use chassis::telemetry;
use query_api::{App, Config};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    exit::report(run().await)
}

async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::init_logs(&env)?;
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        None => App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await,
        Some("healthcheck") => healthcheck::run(&env, args),
        Some(other) => {
            let known = "healthcheck, and settings come from the environment";
            Err(Misuse::new(format!("unknown subcommand {other:?}; expected {known}")).into())
        }
    }
}
