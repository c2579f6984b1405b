//! What is measured.

use clap::ValueEnum;

use crate::bench::scene::Cast;

/// Products that load is spread over.
const PRODUCTS: u32 = 2_000;
/// More than any run reserves.
const PLENTY: u32 = 1_000_000_000;

/// In the order in which they have their turns: first those that need projectors, whose backlog should be that of
/// their own row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Row {
    /// Ours over 2,000 products, projectors running
    SpreadProjected,
    /// Ours on one product, projectors running
    HotProjected,
    /// Ours from 64 clients with 40 commands under way each, sent together, projectors running
    PipelinedProjected,
    /// A bare server that awaits one produce per request, over as many partitions as ours
    Limit,
    /// The same on one partition
    LimitHot,
    /// Ours over 2,000 products, one instance that owns all partitions
    Spread,
    /// Ours on one product
    Hot,
    /// Ours on one product that is sold out: rejections
    SoldOut,
    /// The same without projectors
    Pipelined,
    /// Ours by batches of 500 lines
    Batch,
    /// Records of the size of a commit, produced without waiting
    Produce,
    /// The limit at 1,000 a second, open loop
    LimitSteady,
    /// Ours at 1,000 a second, open loop
    SpreadSteady,
    /// Ours over 2,000 products, asked of one of two instances: it forwards half of the commands
    SpreadTwo,
    /// Ours behind the edge, one instance
    EdgeOne,
    /// Ours behind the edge, two instances: it leads commands to their owners
    EdgeTwo,
    /// The cqrs-es crate over 2,000 products
    CqrsSpread,
    /// The cqrs-es crate on one product
    CqrsHot,
    /// Postgres over 2,000 products
    PgSpread,
    /// Postgres on one product
    PgHot,
}

/// How load is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// wrk, as fast as it goes.
    Wrk(Server),
    /// A fixed rate.
    OpenLoop(Server),
    /// Batches, one at a time on each connection.
    Batch {
        connections: u32,
        lines: u32,
    },
    Produce,
    Pgbench,
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Limit,
    CommandApi,
    /// Command services behind the edge.
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

    /// As on the command line; it begins the ids of the row's products, too.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(super) fn cast(self) -> Cast {
        match self {
            Self::SpreadProjected | Self::HotProjected | Self::PipelinedProjected => {
                Cast { command_apis: 1, projectors: 1, ..Cast::NONE }
            }
            Self::SpreadTwo | Self::EdgeTwo => Cast { command_apis: 2, ..Cast::NONE },
            _ => Cast { command_apis: 1, ..Cast::NONE },
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

    /// Of each product.
    pub(super) fn stock(self) -> u32 {
        if self.wants_rejections() { 0 } else { PLENTY }
    }

    pub(super) fn wants_rejections(self) -> bool {
        self == Self::SoldOut
    }
}
