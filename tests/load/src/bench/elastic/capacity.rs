//! Measures what one instance of each tier serves, from which the rates of the run follow.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use stack::control;
use stack::layout::Layout;
use stack::process;
use stack::services::Service;

use super::load::{Kind, Load};
use super::watch::{behind, metrics};
use crate::bench::environment::sum_of;
use crate::bench::processor_time;

/// Connections that each send as fast as they are answered. More of them add to the wait alone once an instance is
/// busy.
const CONNECTIONS: [u32; 4] = [8, 16, 32, 64];
const LENGTH: Duration = Duration::from_millis(2500);
/// Latency within which an instance has to serve nearly all requests, half of the longest wait that is allowed.
const WITHIN: Duration = Duration::from_millis(250);
/// Share of its quota from which on an instance counts as the bottleneck.
pub(super) const BUSY: f64 = 0.85;
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(120);

/// What one instance of each tier serves.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Capacity {
    /// Cores that an instance may use.
    pub(super) quota: f64,
    pub(super) reads: Peak,
    pub(super) writes: Peak,
    /// Records that the projector read during the writes, and the share of its quota that it used for them.
    pub(super) records_per_second: f64,
    pub(super) projector_busy: f64,
}

/// The most requests per second of which nearly all were answered in time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Peak {
    pub(super) connections: u32,
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Share of its quota that the instance used.
    pub(super) busy: f64,
    /// Share of the machine's processor time that nothing used.
    pub(super) idle: f64,
}

impl Capacity {
    pub(super) fn measure(layout: &Layout, load: &Load, quota: f64) -> Result<Self> {
        let reads = peak(layout, load, Kind::Read, quota)?;
        let records = || sum(layout, Service::Projector, "stampede_records_read_total");
        let (begun, before, used) = (Instant::now(), records()?, cpu_seconds(layout, Service::Projector)?);
        let writes = peak(layout, load, Kind::Write, quota)?;
        let (seconds, used) = (begun.elapsed().as_secs_f64(), cpu_seconds(layout, Service::Projector)? - used);
        let records_per_second = (records()? - before) / seconds;
        Ok(Self { quota, reads, writes, records_per_second, projector_busy: used / seconds / quota })
    }

    /// Returns the requests per second that one instance of each tier that they pass through serves.
    pub(super) fn served(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Read => self.reads.per_second,
            // Each is one record, which the projector has to fold as well.
            Kind::Write if self.projector_busy > BUSY => self.writes.per_second.min(self.records_per_second),
            Kind::Write => self.writes.per_second,
        }
    }
}

/// Waits until the views show all that was written.
pub(super) fn await_views(layout: &Layout) -> Result<()> {
    let begun = Instant::now();
    while behind(&text(layout, Service::QueryApi)?) > 0.5 {
        ensure!(begun.elapsed() < CAUGHT_UP_WITHIN, "the views are still behind");
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn peak(layout: &Layout, load: &Load, kind: Kind, quota: f64) -> Result<Peak> {
    // Warms up.
    load.closed(kind, CONNECTIONS[0], LENGTH / 2);
    let mut best = Peak::default();
    for connections in CONNECTIONS {
        let service = kind.service();
        let (begun, used, idle) = (Instant::now(), cpu_seconds(layout, service)?, idle());
        let mut latencies = load.closed(kind, connections, LENGTH);
        let seconds = begun.elapsed().as_secs_f64();
        latencies.sort();
        // A share of the last index is a valid index.
        let at = |share: f64| latencies.get((latencies.len().saturating_sub(1) as f64 * share) as usize);
        let at = |share| at(share).copied().unwrap_or_default();
        let peak = Peak {
            connections,
            per_second: latencies.len() as f64 / seconds,
            p50_ms: at(0.5).as_secs_f64() * 1000.0,
            p99_ms: at(0.99).as_secs_f64() * 1000.0,
            busy: (cpu_seconds(layout, service)? - used) / seconds / quota,
            idle: (self::idle() - idle) / seconds / processors(),
        };
        if best.per_second == 0.0 || (at(0.99) <= WITHIN && peak.per_second > best.per_second) {
            best = peak;
        }
    }
    ensure!(best.per_second > 0.0, "no request was answered");
    Ok(best)
}

/// Returns the idle seconds of all processors together, since the machine started.
pub(super) fn idle() -> f64 {
    processor_time::idle().unwrap_or_default()
}

pub(super) fn processors() -> f64 {
    thread::available_parallelism().map_or(1.0, |number| number.get() as f64)
}

/// Returns the processor time of the only instance of a service.
fn cpu_seconds(layout: &Layout, service: Service) -> Result<f64> {
    let name = service.instance_name(1);
    let processes = control::status(layout)?.processes;
    let pid = processes.into_iter().find(|process| process.name == name).and_then(|process| process.pid);
    pid.and_then(process::cpu_seconds).with_context(|| format!("{name} does not run"))
}

fn sum(layout: &Layout, service: Service, metric: &str) -> Result<f64> {
    Ok(sum_of(&text(layout, service)?, metric, ""))
}

fn text(layout: &Layout, service: Service) -> Result<String> {
    let name = service.instance_name(1);
    let processes = control::status(layout)?.processes;
    let process = processes.iter().find(|process| process.name == name);
    process.and_then(metrics).with_context(|| format!("{name} does not answer"))
}
