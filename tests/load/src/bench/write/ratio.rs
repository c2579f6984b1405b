//! Ratios between rows, and their targets.

use super::measure::Measurement;
use super::row::Row;
use crate::bench::table::Target;

/// A target for `of` divided by `to`, or for `of` alone.
pub(super) struct Ratio {
    pub(super) name: &'static str,
    of: Row,
    to: Option<Row>,
    quantity: Quantity,
    pub(super) target: Target,
}

#[derive(Debug, Clone, Copy)]
enum Quantity {
    Rate,
    P50,
    P99,
    /// Ratio of the processor time of a forwarded command to that of a local one in `to`; local commands in `of` are
    /// assumed to cost as much as in `to`.
    ForwardedCpu,
    /// Rate of one row, divided by the number of the machine's cores, which the clients share.
    RatePerCore,
    /// 99th percentile of one row's latency, in milliseconds.
    P99Ms,
}

use Quantity::{ForwardedCpu, P50, P99, P99Ms, Rate, RatePerCore};
use Target::{AtLeast, AtMost};

pub(super) const RATIOS: [Ratio; 22] = [
    ratio("spread / limit", Row::Spread, Row::Limit, Rate, AtLeast(1.3)),
    ratio("hot / limit", Row::Hot, Row::Limit, Rate, AtLeast(1.5)),
    ratio("hot / limit on one partition", Row::Hot, Row::LimitHot, Rate, AtLeast(1.0)),
    ratio("spread / limit, projectors running", Row::SpreadProjected, Row::Limit, Rate, AtLeast(0.8)),
    ratio("hot / limit, projectors running", Row::HotProjected, Row::Limit, Rate, AtLeast(1.0)),
    ratio("hot / limit on one partition, projectors running", Row::HotProjected, Row::LimitHot, Rate, AtLeast(0.5)),
    ratio("spread / limit, p99", Row::Spread, Row::Limit, P99, AtMost(2.0)),
    ratio("hot / limit, p99", Row::Hot, Row::Limit, P99, AtMost(2.0)),
    ratio("hot / limit on one partition, p99", Row::Hot, Row::LimitHot, P99, AtMost(2.0)),
    ratio("sold out / hot", Row::SoldOut, Row::Hot, Rate, AtLeast(1.0)),
    ratio("batch / raw produce", Row::Batch, Row::Produce, Rate, AtLeast(0.5)),
    alone("pipelined, a second and core", Row::Pipelined, RatePerCore, AtLeast(20_000.0)),
    alone("pipelined, p99 ms", Row::Pipelined, P99Ms, AtMost(12.0)),
    alone("pipelined, projectors running, a second and core", Row::PipelinedProjected, RatePerCore, AtLeast(10_000.0)),
    alone("pipelined, projectors running, p99 ms", Row::PipelinedProjected, P99Ms, AtMost(12.0)),
    ratio("edge with one instance / direct", Row::EdgeOne, Row::Spread, Rate, AtLeast(0.75)),
    ratio("edge with two instances / direct", Row::EdgeTwo, Row::Spread, Rate, AtLeast(0.75)),
    ratio("spread / cqrs-es", Row::Spread, Row::CqrsSpread, Rate, AtLeast(20.0)),
    ratio("hot / cqrs-es", Row::Hot, Row::CqrsHot, Rate, AtLeast(150.0)),
    ratio("spread / limit, 1,000 a second, p50", Row::SpreadSteady, Row::LimitSteady, P50, AtMost(1.5)),
    ratio("spread / limit, 1,000 a second, p99", Row::SpreadSteady, Row::LimitSteady, P99, AtMost(2.0)),
    ratio("forwarded / local, processor time", Row::SpreadTwo, Row::Spread, ForwardedCpu, AtMost(1.3)),
];

const fn ratio(name: &'static str, of: Row, to: Row, quantity: Quantity, target: Target) -> Ratio {
    Ratio { name, of, to: Some(to), quantity, target }
}

const fn alone(name: &'static str, of: Row, quantity: Quantity, target: Target) -> Ratio {
    Ratio { name, of, to: None, quantity, target }
}

impl Ratio {
    /// Returns the ratio for each round in which both rows were measured.
    pub(super) fn values(&self, measured: impl Fn(Row) -> Vec<Option<Measurement>>) -> Vec<f64> {
        let pairs = measured(self.of).into_iter().zip(measured(self.to.unwrap_or(self.of)));
        pairs.filter_map(|(of, to)| self.quantity.ratio(&of?, &to?)).filter(|ratio| ratio.is_finite()).collect()
    }
}

impl Quantity {
    fn ratio(self, of: &Measurement, to: &Measurement) -> Option<f64> {
        match self {
            Self::Rate => Some(of.rate / to.rate),
            Self::P50 => Some(of.p50_us? as f64 / to.p50_us? as f64),
            Self::P99 => Some(of.p99_us? as f64 / to.p99_us? as f64),
            Self::ForwardedCpu => {
                let (share, local) = (of.forwarded?, to.cpu_seconds_per_1000?);
                Some((of.cpu_seconds_per_1000? - (1.0 - share) * local) / (share * local))
            }
            Self::RatePerCore => Some(of.rate / std::thread::available_parallelism().ok()?.get() as f64),
            Self::P99Ms => Some(of.p99_us? as f64 / 1_000.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(cpu: f64, forwarded: f64) -> Measurement {
        Measurement {
            rate: 1_000.0,
            failed: 0,
            p50_us: Some(1),
            p99_us: None,
            cpu_seconds_per_1000: Some(cpu),
            forwarded: Some(forwarded),
        }
    }

    #[test]
    fn the_cost_of_forwarding_excludes_local_commands() {
        let (one, two) = (measurement(2.0, 0.0), measurement(3.0, 0.5));
        assert_eq!(ForwardedCpu.ratio(&two, &one), Some(2.0));
        assert_eq!(Rate.ratio(&two, &one), Some(1.0));
        assert_eq!(P99.ratio(&two, &one), None);
    }
}
