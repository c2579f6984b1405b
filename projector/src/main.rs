//! `projector` folds the log; `projector migrate` applies the migrations; `projector audit` compares the views with the
//! log; `projector rebuild` rebuilds a view; `projector snapshots` prepares this build's snapshots before its release;
//! `projector settings` shows and changes the settings that all services share; `projector recover` fills empty tables
//! from the log; `projector reactor` sets the reactors' starting positions if their checkpoints were lost; `projector
//! continue` takes them, and what else Postgres alone knows, from the tables of a log with fewer partitions; `projector
//! healthcheck` asks a running service.

use std::process::ExitCode;

use chassis::exit::{self, Misuse};
use chassis::healthcheck;
use chassis::postgres::PostgresSettings;
use chassis::program::Program;
use chassis::shutdown::Shutdown;
use projector::{App, Config, audit, begin, grown, migrate, rebuild, recover, settings, snapshots};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The database of the log that a grown one was copied from.
const FORMER_POSTGRES_URL: &str = "FORMER_POSTGRES_URL";

const PROGRAM: Program = Program {
    name: "projector",
    usage: "
  projector                            folds the log, and reacts to it
  projector migrate                    creates or upgrades the tables
  projector audit [--full | --sample N]
                                       compares the views with the log
  projector rebuild VIEW… | --changed [--prepare | --rollback | --accept] [--threads N] [--share PERCENT | --fast]
                                       folds views again, and switches to them
  projector snapshots                  prepares the snapshots of this build
  projector settings [set NAME VALUE]  prints or changes what all services share
  projector recover                    fills empty tables from the log, and lets reactors go on with what is open
  projector reactor from-beginning | from-end
                                       sets where reactors without checkpoints start
  projector continue                   takes over what the tables of FORMER_POSTGRES_URL know of a grown log
  projector healthcheck [PATH]         asks a running one for /livez
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
            migrate(&PostgresSettings::from_env(&env)?).await
        }
        Some("audit") => audit::run(&Config::from_env(&env)?, args.collect()).await,
        Some("rebuild") => rebuild::run(&Config::from_env(&env)?, args.collect()).await,
        Some("snapshots") => {
            exit::no_arguments(args)?;
            snapshots::prepare::run(&PostgresSettings::from_env(&env)?).await
        }
        Some("settings") => settings::run(&PostgresSettings::from_env(&env)?, args).await,
        Some("recover") => {
            exit::no_arguments(args)?;
            recover::run(&Config::from_env(&env)?).await
        }
        Some("reactor") => begin::run(&Config::from_env(&env)?, args).await,
        Some("continue") => {
            exit::no_arguments(args)?;
            let config = Config::from_env(&env)?;
            let former = config.postgres.at(env.secret(FORMER_POSTGRES_URL)?, FORMER_POSTGRES_URL)?;
            grown::run(&config, &former).await
        }
        Some("healthcheck") => healthcheck::run(&env, args),
        Some(other) => {
            let known = "migrate, audit, rebuild, snapshots, settings, recover, reactor, continue or healthcheck";
            Err(Misuse::new(format!("unknown subcommand {other:?}; expected {known}")).into())
        }
    }
}
