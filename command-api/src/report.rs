//! The report of this instance about itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use chassis::clock::now_ms;
use chassis::instance::{Reporter, Statements};
use chassis::readiness::Readiness;
use chassis::shutdown::{Shutdown, Tasks};
use chassis::{admin::AdminServer, build};
use schemas::status::{self, AGGREGATE_QUARANTINED, Finding, Observer, PARTITION_HALTED, TOPIC_DIFFERS};
use schemas::time::TimeMs;

use crate::config::Config;
use crate::mailbox::{Mailbox, Status};
use crate::partition::Role;

/// The state of this instance that its reports are made of.
#[derive(Default)]
pub(crate) struct Watched {
    /// Set once the engines have started. Weak, because an engine ends with its mailbox.
    mailboxes: OnceLock<Weak<[Mailbox]>>,
    topic_differs: AtomicBool,
}

impl Watched {
    pub(crate) fn engines_started(&self, mailboxes: &Arc<[Mailbox]>) {
        // There is only one start.
        let _ = self.mailboxes.set(Arc::downgrade(mailboxes));
    }

    pub(crate) fn topic_differs(&self, differs: bool) {
        self.topic_differs.store(differs, Ordering::Relaxed);
    }

    /// Starts to report, if there is a Postgres to report to.
    pub(crate) fn report(
        self: &Arc<Self>,
        config: &Config,
        admin: &AdminServer,
        readiness: Readiness,
        tasks: &mut Tasks,
        shutdown: &Shutdown,
    ) -> anyhow::Result<()> {
        let Some(postgres) = &config.postgres else { return Ok(()) };
        let statements = Statements { keep: status::KEEP, remove: status::REMOVE };
        let reporter = Reporter::new(postgres, statements, "command-api", admin.local_addr())?;
        let mut observer = Observer::new(build::VERSION, build::COMMIT, TimeMs(now_ms()));
        let watched = self.clone();
        let look = move || {
            let (owns, findings) = watched.look();
            observer.report(readiness.state(), Some(owns), findings, TimeMs(now_ms())).to_json()
        };
        tasks.spawn("report", reporter.run(look, shutdown.clone()));
        Ok(())
    }

    /// Returns the partitions that this instance owns, and what is wrong.
    fn look(&self) -> (String, Vec<Finding>) {
        let mailboxes = self.mailboxes.get().and_then(Weak::upgrade);
        let mailboxes = || (0_u32..).zip(mailboxes.iter().flat_map(|mailboxes| mailboxes.iter()));
        let owned = mailboxes().filter(|(_, mailbox)| mailbox.status.borrow().role() == Some(Role::Owner));
        let owned = status::ranges(owned.map(|(partition, _)| partition));
        let halted = mailboxes().filter_map(|(partition, mailbox)| match &*mailbox.status.borrow() {
            Status::Halted(reason) => Some(of_partition(PARTITION_HALTED, partition, reason.clone())),
            Status::Role(_) | Status::Waits(..) => None,
        });
        let quarantined = mailboxes().filter_map(|(partition, mailbox)| {
            let count = mailbox.gauges.quarantined.load(Ordering::Relaxed);
            (count > 0).then(|| of_partition(AGGREGATE_QUARANTINED, partition, format!("aggregates: {count}")))
        });
        let topic = self.topic_differs.load(Ordering::Relaxed);
        let topic = topic.then(|| Finding::new(TOPIC_DIFFERS, "topic", "a line of the log names setting and value"));
        (owned, halted.chain(quarantined).chain(topic).collect())
    }
}

fn of_partition(what: &'static str, partition: u32, detail: String) -> Finding {
    Finding::new(what, format!("partition {partition}"), detail)
}
