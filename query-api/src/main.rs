//! Entry point of `query-api`, the service that answers queries from the views.

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
        bail!("unexpected argument {argument:?}: there are no subcommands, and settings come from the environment");
    }
    App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await
}
