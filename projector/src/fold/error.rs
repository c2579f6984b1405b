//! Failures of folding.

use schemas::chain::ChainError;
use schemas::exceptions::Unreadable;
use schemas::feeds::FeedId;
use schemas::record::OtherPartitions;

use crate::log_reader::Blame;

/// The log cannot be read, or is not the one that the views were folded from: an operator must intervene.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoldError {
    #[error(transparent)]
    Record(#[from] Unreadable),
    #[error("the claim at offset {offset} of partition {partition} is of another topic")]
    Partitions { partition: u32, offset: i64, source: OtherPartitions },
    #[error("partition {partition} does not continue from the records read before")]
    Chain { partition: u32, source: ChainError },
    #[error("offset {offset} of partition {partition} holds another record than the one folded from there")]
    OtherHistory { partition: u32, offset: i64 },
    #[error("partition {partition} begins with another claim than the one in Postgres")]
    OtherLog { partition: u32 },
    #[error("the fold of {} panicked at {aggregate}: {reason}", feed.name())]
    Panicked { feed: FeedId, aggregate: String, reason: String },
}

impl FoldError {
    /// Returns the partition that is to blame, and from which offset on. `None` if the log is not the cause.
    pub(crate) fn blame(&self) -> Option<Blame> {
        let (partition, from, stray) = match self {
            Self::Record(Unreadable { stray, .. }) => (stray.partition, stray.offset, Some(*stray)),
            Self::Chain { partition, source: ChainError::Gap { found, .. } } => (*partition, *found, None),
            Self::Partitions { partition, offset, .. } => (*partition, *offset, None),
            Self::Chain { partition, source: ChainError::NoFirstClaim }
            | Self::OtherHistory { partition, .. }
            | Self::OtherLog { partition } => (*partition, 0, None),
            Self::Panicked { .. } => return None,
        };
        Some(Blame { partition, from, stray })
    }
}
