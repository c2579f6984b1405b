//! `cargo stack recover`: fills Postgres from the log alone, with nothing but the servers running.

use anyhow::{Context, Result, bail, ensure};

use crate::layout::Layout;
use crate::services::Profile;
use crate::size::{Size, Wanted};
use crate::supervisor::{Ended, Supervisor, Words};
use crate::{control, kafka, logs, plan, postgres, process, provision, up};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Recover {
    /// Delete what Postgres has first, because it is not to be trusted
    #[arg(long)]
    drop: bool,
    /// Start the programs without building them first
    #[arg(long, hide = true)]
    as_built: bool,
}

impl Recover {
    pub(crate) fn run(&self, layout: &Layout, profile: Profile) -> Result<()> {
        if !layout.data().join(kafka::name(1)).exists() {
            bail!("{} has no log to recover from", layout.data().display());
        }
        if control::is_locked(layout)? {
            control::down(layout)?;
            println!("the stack has stopped");
        }
        let _lock = control::lock(layout)?.context("another stack has been started meanwhile")?;
        process::end_leftovers(layout);
        logs::rotate(layout);
        if self.drop || !postgres::has_data(layout) {
            postgres::discard(layout)?;
        }
        let tools = provision::ensure(&layout.log("apt"))?;
        let mut wanted = Wanted::one_of_each();
        wanted.as_built = self.as_built;
        let mut size = Size::decide(layout, &wanted)?;
        size.payment_window_secs = up::payment_window(layout).as_secs().try_into().context("the payment window")?;
        let parts = plan::recovery(layout, &tools, &size, profile)?;
        let mut is_complete = false;
        let supervisor = Supervisor::new(layout.clone(), parts, String::new(), Words::All)?.until_ready();
        let ended = supervisor.run(|_| is_complete = true)?;
        ensure!(is_complete && ended == Ended::Asked, "the recovery was interrupted; run it again, without --drop");
        println!("Postgres has everything that follows from the log; start the services with `cargo stack up`.");
        Ok(())
    }
}
