//! Entry point of `command-api`. Without a subcommand it serves; `create-topic` creates the log's topics; `except`
//! signs an exception, which lets readers skip an undecodable value of the log; `exception-key` generates the key pair
//! for that.

use std::process::ExitCode;

use chassis::env::Env;
use chassis::exit::{self, Misuse};
use chassis::kafka::KafkaSettings;
use chassis::shutdown::Shutdown;
use chassis::telemetry;
use command_api::{App, Config, config, create_topic, except, make_key};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    exit::report(run().await)
}

async fn run() -> anyhow::Result<()> {
    let env = Env::process();
    telemetry::init_logs(&env)?;
    match std::env::args().nth(1).as_deref() {
        None => App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await,
        Some("create-topic") => create_topic(&KafkaSettings::from_env(&env)?, &config::topic(&env)?).await,
        Some("except") => except(&env, std::env::args().skip(2)).await,
        Some("exception-key") => make_key(std::env::args().nth(2)),
        Some(other) => {
            let known = "create-topic, except or exception-key";
            Err(Misuse::new(format!("unknown subcommand {other:?}; expected {known}")).into())
        }
    }
}
