//! The report of this instance about itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chassis::clock::now_ms;
use chassis::instance::{Reporter, Statements};
use chassis::readiness::Readiness;
use chassis::shutdown::{Shutdown, Tasks};
use chassis::{admin::AdminServer, build};
use schemas::status::{self, Finding, Observer, PARTITION_HALTED, TOPIC_DIFFERS};
use schemas::time::TimeMs;

use crate::config::Config;

/// The state of this instance that its reports are made of.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// The reasons for which readers have halted, by reader and partition.
    halted: Mutex<BTreeMap<(&'static str, u32), String>>,
    topic_differs: AtomicBool,
}

impl Watched {
    /// Records that a reader has halted in a partition, or continues there.
    pub(crate) fn halted(&self, reader: &'static str, partition: u32, reason: Option<String>) {
        let mut halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => _ = halted.insert((reader, partition), reason),
            None => _ = halted.remove(&(reader, partition)),
        }
    }

    pub(crate) fn topic_differs(&self, differs: bool) {
        self.topic_differs.store(differs, Ordering::Relaxed);
    }

    pub(crate) fn report(
        self: &Arc<Self>,
        config: &Config,
        admin: &AdminServer,
        readiness: Readiness,
        tasks: &mut Tasks,
        shutdown: &Shutdown,
    ) -> anyhow::Result<()> {
        let statements = Statements { keep: status::KEEP, remove: status::REMOVE };
        let reporter = Reporter::new(&config.postgres, statements, "projector", admin.local_addr())?;
        let mut observer = Observer::new(build::VERSION, build::COMMIT, TimeMs(now_ms()));
        let watched = self.clone();
        let look = move || observer.report(readiness.state(), None, watched.look(), TimeMs(now_ms())).to_json();
        tasks.spawn("report", reporter.run(look, shutdown.clone()));
        Ok(())
    }

    fn look(&self) -> Vec<Finding> {
        let halted = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        let halted = halted.iter().map(|((reader, partition), reason)| {
            Finding::new(PARTITION_HALTED, format!("partition {partition}, {reader}"), reason.clone())
        });
        let topic = self.topic_differs.load(Ordering::Relaxed);
        let topic = topic.then(|| Finding::new(TOPIC_DIFFERS, "topic", "a line of the log names setting and value"));
        halted.chain(topic).collect()
    }
}
