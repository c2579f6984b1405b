//! Entry point of `query-api`, the service that answers queries from the views.

use std::process::ExitCode;

use chassis::env::Env;
use chassis::exit::{self, Misuse};
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
    if let Some(argument) = std::env::args().nth(1) {
        let help = "there are no subcommands, and settings come from the environment";
        return Err(Misuse::new(format!("unexpected argument {argument:?}: {help}")).into());
    }
    App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await
}
