//! `query-api` serves the views.

use anyhow::bail;
use chassis::env::Env;
use chassis::shutdown::Shutdown;
use chassis::telemetry;
use query_api::{App, Config};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::init_logs(&env)?;
    if let Some(argument) = std::env::args().nth(1) {
        bail!("there is no subcommand {argument:?}; settings come from the environment");
    }
    App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await
}
