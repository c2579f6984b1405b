//! `command-api` serves; `command-api create-topic` makes the log's topic and ends.

use anyhow::bail;
use chassis::env::Env;
use chassis::kafka::KafkaSettings;
use chassis::shutdown::Shutdown;
use chassis::telemetry;
use command_api::{App, Config, config, create_topic};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::init_logs(&env)?;
    match std::env::args().nth(1).as_deref() {
        None => App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await,
        Some("create-topic") => create_topic(&KafkaSettings::from_env(&env)?, &config::topic(&env)?).await,
        Some(other) => bail!("there is no subcommand {other:?}; there is create-topic"),
    }
}
