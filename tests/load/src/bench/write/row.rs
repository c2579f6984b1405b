//! The rows of the write bench.

use clap::ValueEnum;

use crate::bench::environment::Instances;

/// Number of products over which load is spread.
const PRODUCTS: u32 = 2_000;
/// Stock that exceeds the need of any run.
const PLENTY: u32 = 1_000_000_000;

/// The rows, in the order of their measurement. Rows with projectors come first, so that a projector's backlog consists
/// only of its own row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Row {
    /// command-api, 2,000 products, projectors running
    SpreadProjected,
    /// command-api, one product, projectors running
    HotProjected,
    /// command-api, 64 clients with batches of 40 commands in flight, projectors running
    PipelinedProjected,
    /// Bare server that awaits one Kafka produce per request, with as many partitions as command-api
    Limit,
    /// Bare server on one partition
    LimitHot,
    /// command-api, 2,000 products, one instance that owns all partitions
    Spread,
    /// command-api, one product
    Hot,
    /// command-api, one product that is sold out: rejections
    SoldOut,
    /// command-api, 64 clients with batches of 40 commands in flight, without projectors
    Pipelined,
    /// command-api, batches of 500 lines
    Batch,
    /// Kafka records of the size of a commit, produced without waiting
    Produce,
    /// Bare server at 1,000 requests per second, open loop
    LimitSteady,
    /// command-api at 1,000 commands per second, open loop
    SpreadSteady,
    /// command-api, 2,000 products, one of two instances, which forwards half of the commands
    SpreadTwo,
    /// command-api behind the edge, one instance
    EdgeOne,
    /// command-api behind the edge, two instances: the edge routes commands to their owners
    EdgeTwo,
    /// The cqrs-es crate, 2,000 products
    CqrsSpread,
    /// The cqrs-es crate, one product
    CqrsHot,
    /// Postgres transactions, 2,000 products
    PgSpread,
    /// Postgres transactions, one product
    PgHot,
}

/// The load generator of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// wrk, in a closed loop.
    Wrk(Server),
    /// Fixed rate, independent of the answers.
    OpenLoop(Server),
    /// Batches, one at a time per connection.
    Batch {
        connections: u32,
        lines: u32,
    },
    Produce,
    Pgbench,
}

/// The server under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Limit,
    CommandApi,
    /// Instances of command-api behind the edge.
    Edge,
    CqrsEs,
}

impl Row {
    pub(super) const ALL: [Self; 20] = [
        Self::SpreadProjected,
        Self::HotProjected,
        Self::PipelinedProjected,
        Self::Limit,
        Self::LimitHot,
        Self::Spread,
        Self::Hot,
        Self::SoldOut,
        Self::Pipelined,
        Self::Batch,
        Self::Produce,
        Self::LimitSteady,
        Self::SpreadSteady,
        Self::SpreadTwo,
        Self::EdgeOne,
        Self::EdgeTwo,
        Self::CqrsSpread,
        Self::CqrsHot,
        Self::PgSpread,
        Self::PgHot,
    ];

    /// Returns the row's name on the command line, which is also the prefix of its product ids.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(super) fn instances(self) -> Instances {
        match self {
            Self::SpreadProjected | Self::HotProjected | Self::PipelinedProjected => {
                Instances { command_apis: 1, projectors: 1, ..Instances::NONE }
            }
            Self::SpreadTwo | Self::EdgeTwo => Instances { command_apis: 2, ..Instances::NONE },
            _ => Instances { command_apis: 1, ..Instances::NONE },
        }
    }

    pub(super) fn client(self) -> Client {
        match self {
            Self::Limit | Self::LimitHot => Client::Wrk(Server::Limit),
            Self::SpreadProjected | Self::HotProjected | Self::Spread | Self::Hot | Self::SoldOut | Self::SpreadTwo => {
                Client::Wrk(Server::CommandApi)
            }
            Self::EdgeOne | Self::EdgeTwo => Client::Wrk(Server::Edge),
            Self::CqrsSpread | Self::CqrsHot => Client::Wrk(Server::CqrsEs),
            Self::LimitSteady => Client::OpenLoop(Server::Limit),
            Self::SpreadSteady => Client::OpenLoop(Server::CommandApi),
            Self::Pipelined | Self::PipelinedProjected => Client::Batch { connections: 64, lines: 40 },
            Self::Batch => Client::Batch { connections: 8, lines: 500 },
            Self::Produce => Client::Produce,
            Self::PgSpread | Self::PgHot => Client::Pgbench,
        }
    }

    pub(super) fn products(self) -> u32 {
        match self {
            Self::HotProjected | Self::LimitHot | Self::Hot | Self::SoldOut | Self::CqrsHot | Self::PgHot => 1,
            _ => PRODUCTS,
        }
    }

    /// Returns the initial stock of each product.
    pub(super) fn stock(self) -> u32 {
        if self.wants_rejections() { 0 } else { PLENTY }
    }

    pub(super) fn wants_rejections(self) -> bool {
        self == Self::SoldOut
    }
}
