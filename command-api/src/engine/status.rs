//! Publication of an engine's role and gauges at the end of each turn.

use std::sync::atomic::Ordering;

use schemas::aggregate::AggregateId;
use tokio::time::Instant;

use super::Engine;
use super::backoff::Backoff;
use crate::loader::JournalProgress;
use crate::mailbox::Status;
use crate::partition::Role;

impl Engine {
    /// Updates the gauges and logs a new quarantine.
    pub(super) fn show(&self) {
        self.gauges.in_flight.store(self.machine.pending() as u64, Ordering::Relaxed);
        self.gauges.residents.store(self.machine.residents() as u64, Ordering::Relaxed);
        self.gauges.resident_bytes.store(self.machine.resident_bytes() as u64, Ordering::Relaxed);
        self.gauges.largest_state.store(self.machine.largest_state() as u64, Ordering::Relaxed);
        self.gauges.keys.store(self.machine.remembered_keys() as u64, Ordering::Relaxed);
        self.gauges.names.store(self.machine.names() as u64, Ordering::Relaxed);
        self.gauges.knows_names.store(self.machine.knows_names().into(), Ordering::Relaxed);
        self.gauges.tail_records.store(self.machine.tail_records(), Ordering::Relaxed);
        self.gauges.epoch.store(self.machine.epoch(), Ordering::Relaxed);
        let quarantined = self.machine.quarantined();
        let known = self.gauges.quarantined.swap(quarantined.len() as u64, Ordering::Relaxed);
        if quarantined.len() as u64 > known {
            self.io.metrics.quarantined(self.io.partition);
            let names: Vec<_> = quarantined.keys().map(AggregateId::as_str).collect();
            tracing::error!(kafka.partition = self.io.partition, aggregates = ?names, "the rules panicked; aggregates are in quarantine");
        }
    }

    /// Publishes the status. After a change of role it counts the change and prepares for the new role.
    pub(super) fn publish(&mut self, backoff: &mut Backoff) {
        let role = self.machine.role();
        let was = self.status.borrow().role();
        let new = self.waits().map_or(Status::Role(role), |what| Status::Waits(role, what));
        self.status.send_if_modified(|status| {
            let changed = *status != new;
            *status = new;
            changed
        });
        if was == Some(role) {
            return;
        }
        tracing::info!(kafka.partition = self.io.partition, role = ?role, "partition role changed");
        self.io.metrics.owned(self.io.partition, role == Role::Owner);
        match role {
            Role::Idle => {
                if matches!(was, Some(Role::Leaving | Role::Owner | Role::Unsettled)) {
                    let cause = match (self.was_asked, self.let_go_by_clock) {
                        (true, _) => "asked",
                        (false, true) => "clock",
                        (false, false) => "deposed",
                    };
                    self.io.metrics.stepped_down(self.io.partition, cause);
                }
                (self.was_asked, self.let_go_by_clock) = (false, false);
                backoff.begin();
                self.handover.released();
            }
            Role::Owner => {
                self.served_since = Instant::now();
                self.io.metrics.claimed(self.io.partition);
            }
            Role::Preparing | Role::Prepared | Role::Unsettled | Role::Leaving => {}
        }
    }

    /// Returns the reason, for `/readyz`, that the partition waits although nothing is wrong with its log.
    fn waits(&self) -> Option<String> {
        let partition = self.io.partition;
        if !self.takes_records() {
            let mib = self.machine.unfolded_bytes() >> 20;
            return Some(format!(
                "partition {partition} waits for Postgres: {mib} MiB of events wait for the states of their aggregates"
            ));
        }
        if self.machine.role() != Role::Idle || !self.is_assigned() {
            return None;
        }
        let JournalProgress::Late { records } = *self.inbox.as_ref()?.known.borrow() else { return None };
        Some(format!(
            "partition {partition} waits for Postgres: there is no checkpoint, and {records} records are too many to be read without one"
        ))
    }
}
