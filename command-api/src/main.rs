//! Entry point of `command-api`. Without a subcommand it serves; `create-topic` creates the log's topics; `except`
//! signs an exception, which lets readers skip an undecodable value of the log; `exception-key` generates the key pair
//! for that; `healthcheck` asks a running service.

use std::process::ExitCode;

use chassis::env::Env;
use chassis::exit::{self, Misuse};
use chassis::healthcheck;
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
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        None => App::build(Config::from_env(&env)?).await?.run(Shutdown::on_signals()?).await,
        Some("create-topic") => {
            exit::no_arguments(args)?;
            create_topic(&KafkaSettings::from_env(&env)?, &config::topic(&env)?).await
        }
        Some("except") => except(&env, args).await,
        Some("exception-key") => {
            let file = args.next();
            exit::no_arguments(args)?;
            make_key(file)
        }
        Some("healthcheck") => healthcheck::run(&env, args),
        Some(other) => {
            let known = "create-topic, except, exception-key or healthcheck";
            Err(Misuse::new(format!("unknown subcommand {other:?}; expected {known}")).into())
        }
    }
}
