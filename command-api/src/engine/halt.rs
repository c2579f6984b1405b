//! Halt of an engine whose partition's log cannot be read any further.

use chassis::shutdown::Shutdown;
use chassis::telemetry::with_causes;
use schemas::answers::Answer;

use super::{Engine, EngineError, MAX_TURN};
use crate::mailbox::Status;
use crate::partition::{Effects as _, HaltError};

impl Engine {
    /// Halts the partition and refuses its commands until an exception covers the unreadable value; reading then
    /// resumes from there. Returns false if the engine is to end instead.
    pub(super) async fn halt(&mut self, error: &EngineError, shutdown: &Shutdown) -> bool {
        let stray = match error {
            EngineError::Log(HaltError::Record(unreadable)) => Some(unreadable.stray),
            EngineError::Log(_) | EngineError::Read(_) => None,
        };
        let (partition, reason) = (self.io.partition, with_causes(error));
        let what_to_do = if stray.is_some() { "see `command-api except`" } else { "operator intervention required" };
        tracing::error!(
            kafka.partition = partition,
            error = reason,
            what_to_do,
            "halted: the partition's log cannot be read any further; other partitions are served"
        );
        self.status.send_replace(Status::Halted(reason));
        self.io.metrics.owned(partition, false);
        self.io.metrics.halted(partition, true);
        // Frees the reading thread for other reads.
        self.io.reading = None;
        let mut passed = std::pin::pin!(self.io.exceptions.clone().pass(stray));
        let mut jobs = Vec::new();
        loop {
            tokio::select! {
                () = &mut passed => break,
                count = self.lanes.take(&mut jobs, MAX_TURN) => {
                    if count == 0 {
                        return false;
                    }
                    jobs.drain(..).for_each(|job| job.request.reply.send(Answer::NoOwner));
                }
                // Dropping a request signals that this instance does not own the partition.
                Some(request) = self.requests.recv() => drop(request),
                () = shutdown.requested() => return false,
            }
        }
        tracing::warn!(kafka.partition = partition, "an exception covers the unreadable value; resuming");
        self.io.metrics.halted(partition, false);
        if let Some(stray) = stray {
            self.io.read(stray.offset, self.io.reads_to);
        }
        true
    }
}
