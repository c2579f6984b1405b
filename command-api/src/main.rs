//! Entry point of `command-api`. Without a subcommand it serves; `create-topic` creates the log's topics; `except`
//! signs an exception, which lets readers skip an undecodable value of the log; `exception-key` generates the key pair
//! for that; `grow` copies a log to one with more partitions; `archive` copies it to a folder, and `restore` back;
//! `healthcheck` asks a running service.

use std::process::ExitCode;

use chassis::exit::{self, Misuse};
use chassis::healthcheck;
use chassis::kafka::KafkaSettings;
use chassis::program::Program;
use chassis::shutdown::Shutdown;
use command_api::{App, Config, archive, config, create_topic, except, grow, make_key};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROGRAM: Program = Program {
    name: "command-api",
    usage: "
  command-api                      serves
  command-api create-topic         creates the log's topics; existing ones are left unchanged
  command-api grow TOPIC           copies the log TOPIC to EVENTS_TOPIC, which has more partitions, and closes it
  command-api archive FOLDER [--once | --every SECONDS]
                                   copies the log to FOLDER, and what it gets every 60 seconds
  command-api archive --verify FOLDER
                                   reads an archive, and reports what is damaged
  command-api restore FOLDER       writes an archived log to empty topics, each record at its offset
  command-api exception-key FILE   generates a key pair that signs exceptions: FILE and FILE.pub
  command-api except PARTITION OFFSET --because TEXT [--no-build-reads-it]
                                   signs an exception for an unreadable value of the log
  command-api healthcheck [PATH]   asks a running one for /livez
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
        Some("create-topic") => {
            exit::no_arguments(args)?;
            create_topic(&KafkaSettings::from_env(&env)?, &config::topic(&env)?).await
        }
        Some("except") => except(&env, args).await,
        Some("grow") => grow::run(&env, args).await,
        Some("archive") => archive::run(&env, args).await,
        Some("restore") => archive::run_restore(&env, args).await,
        Some("exception-key") => {
            let file = args.next();
            exit::no_arguments(args)?;
            make_key(file)
        }
        Some("healthcheck") => healthcheck::run(&env, args),
        Some(other) => {
            let known = "create-topic, grow, archive, restore, except, exception-key or healthcheck";
            Err(Misuse::new(format!("unknown subcommand {other:?}; expected {known}")).into())
        }
    }
}
