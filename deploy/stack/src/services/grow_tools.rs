//! Programs that copy the log of a stack to one with more partitions.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Common, STOP, Service, binaries, local};
use crate::accounts::Account;
use crate::layout::{Layout, MAX_INSTANCES};
use crate::part::{Launch, OnDeath, Part, Role, Tier};
use crate::postgres;
use crate::probe::Probe;
use crate::provision::Tools;
use crate::services::Profile;
use crate::size::Size;

/// Logs of the programs. The partitions of a new topic have no leaders for a moment.
const LOG: &str = "warn,command_api::kafka::reader=error";

pub(crate) struct GrowTools {
    pub(crate) create_database: Launch,
    pub(crate) migrate: Launch,
    /// A projector that folds the new log and reacts to nothing.
    pub(crate) fold: Launch,
    /// One that does so with the former log.
    fold_former: Launch,
    pub(crate) grow: Launch,
    pub(crate) take_over: Launch,
    grown: Common,
}

impl GrowTools {
    pub(crate) fn new(layout: &Layout, tools: &Tools, [now, grown]: [&Size; 2], profile: Profile) -> Result<Self> {
        let create_database = postgres::creation(layout, &tools.postgres.join("psql"), grown)?;
        let (binaries, now, grown) = (binaries(profile)?, Common::of(layout, now)?, Common::of(layout, grown)?);
        let tool = |common: &Common, program: &str, args: &[&str]| {
            let launch = Launch::new(binaries.join(program), args.iter().copied());
            common.add_to(launch, Account::Owner).env("LOG", LOG).env("LOG_FORMAT", "text")
        };
        let fold = |common: &Common, port| tool(common, "projector", &[]).env("ADMIN_ADDR", local(port));
        let [port, former_port] = ports(layout);
        Ok(Self {
            create_database,
            migrate: tool(&grown, "projector", &["migrate"]),
            fold: fold(&grown, port),
            fold_former: fold(&now, former_port),
            grow: tool(&grown, "command-api", &["grow", &now.topic]),
            take_over: tool(&grown, "projector", &["continue"])
                .env("FORMER_POSTGRES_URL", now.postgres(Account::Owner)),
            grown,
        })
    }

    /// Returns the settings of a service that are of the new log.
    pub(crate) fn settings(&self, service: Service) -> Vec<(String, String)> {
        self.grown.of_log(service.into()).map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Returns the parts that finish the copy of a closed log without its services.
    pub(crate) fn parts(self, layout: &Layout) -> Vec<Part> {
        const DATABASE: &str = "grow-database";
        const TABLES: &str = "grow-migrate";
        const COPY: &str = "grow";
        let folding = |name: &str, launch, port| Part {
            name: name.to_owned(),
            launch,
            role: Role::Server {
                ready: Probe::Http { port, path: "/livez" },
                stop: STOP,
                on_death: OnDeath::Restart,
                tier: Tier::Service,
            },
            needs: vec![TABLES.to_owned()],
            ports: BTreeMap::from([("admin", port)]),
        };
        let [port, former_port] = ports(layout);
        vec![
            Part::task(DATABASE, self.create_database),
            Part::task(TABLES, self.migrate).needing([DATABASE]),
            folding("grow-projector", self.fold, port),
            folding("grow-former-projector", self.fold_former, former_port),
            Part::task(COPY, self.grow).needing([TABLES]),
            Part::task("grow-continue", self.take_over).needing([COPY]),
        ]
    }
}

/// Returns the admin ports of the projectors of the new log and of the former one, which are no instances of the stack.
fn ports(layout: &Layout) -> [u16; 2] {
    [MAX_INSTANCES, MAX_INSTANCES - 1].map(|instance| layout.ports.projector_admin(instance))
}
