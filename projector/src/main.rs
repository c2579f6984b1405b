//! `projector` folds the log; `projector migrate` applies the migrations; `projector audit` compares the views with the
//! log; `projector rebuild` rebuilds a view; `projector snapshots` prepares this build's snapshots before its release;
//! `projector settings` shows and changes the settings that all services share; `projector reactor` sets the reactors'
//! starting positions if their checkpoints were lost; `projector healthcheck` asks a running service.

use std::process::ExitCode;

use chassis::exit::{self, Misuse};
use chassis::healthcheck;
use chassis::program::Program;
use chassis::shutdown::Shutdown;
use projector::{App, Config, audit, begin, migrate, rebuild, settings, snapshots};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROGRAM: Program = Program {
    name: "projector",
    usage: "\
  projector                        folds the log, and reacts to it
  projector migrate                applies the migrations
  projector audit [OPTIONS]        compares the views with the log
  projector rebuild VIEW...        rebuilds views from the log
  projector snapshots              prepares this build's snapshots before its release
  projector settings ...           shows and changes the settings that all services share
  projector reactor ...            sets the reactors' starting positions if their checkpoints were lost
  projector healthcheck [PATH]     asks a running service
",
};

#[tokio::main]
async fn main() -> ExitCode {
    exit::report(run().await)
}

async fn run() -> anyhow::Result<()> {
    let Some((env, mut args)) = PROGRAM.begin(Config::from_env)? else { return Ok(()) };
    match args.next().as_deref() {
        None => App::build(Config::from_env(&env)?)?.run(Shutdown::on_signals()?).await,
        Some("migrate") => {
            exit::no_arguments(args)?;
            migrate(&env.secret("POSTGRES_URL")?).await
        }
        Some("audit") => audit::run(&Config::from_env(&env)?, args.collect()).await,
        Some("rebuild") => rebuild::run(&Config::from_env(&env)?, args.collect()).await,
        Some("snapshots") => {
            exit::no_arguments(args)?;
            snapshots::prepare::run(&env.secret("POSTGRES_URL")?).await
        }
        Some("settings") => settings::run(&env.secret("POSTGRES_URL")?, args).await,
        Some("reactor") => begin::run(&Config::from_env(&env)?, args).await,
        Some("healthcheck") => healthcheck::run(&env, args),
        Some(other) => {
            let known = "migrate, audit, rebuild, snapshots, settings, reactor or healthcheck";
            Err(Misuse::new(format!("unknown subcommand {other:?}; expected {known}")).into())
        }
    }
}
