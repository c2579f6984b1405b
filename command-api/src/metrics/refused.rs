//! Counts refusals by reason, in the same way as [`super::answered`], because a refusal must be cheap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chassis::telemetry::Telemetry;
use opentelemetry::KeyValue;

const REASONS: [&str; 3] = ["commands", "batches", STAFF];
/// Reason of commands that are for staff.
pub(crate) const STAFF: &str = "staff";

#[derive(Default)]
pub(super) struct Refused([AtomicU64; REASONS.len()]);

impl Refused {
    pub(super) fn observed(telemetry: &Telemetry) -> Arc<Self> {
        let refused = Arc::new(Self::default());
        let observed = refused.clone();
        telemetry.observed_counter(
            "stampede_commands_refused",
            &["reason"],
            "Commands and batches refused before they were read, also commands of staff for lack of the token.",
            move |counter| {
                // Reasons that have not occurred are left out.
                let counts =
                    REASONS.iter().zip(&observed.0).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)));
                for (reason, count) in counts.filter(|(_, count)| *count > 0) {
                    counter.observe(count, &[KeyValue::new("reason", *reason)]);
                }
            },
        );
        refused
    }

    pub(super) fn count(&self, reason: &str) {
        let place = REASONS.iter().position(|known| *known == reason).expect("every reason is listed");
        self.0[place].fetch_add(1, Ordering::Relaxed);
    }
}
