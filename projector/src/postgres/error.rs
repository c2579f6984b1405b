//! Failures of Postgres.

use chassis::postgres::PostgresError;
use schemas::feeds::StoredView;
use tokio_postgres::error::SqlState;

use crate::fold::FoldError;
use crate::share::Place;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Connect(#[from] PostgresError),
    #[error("could not prepare the statements")]
    Prepare(#[source] tokio_postgres::Error),
    #[error("Postgres does not answer")]
    Silent,
    #[error("could not load the checkpoints")]
    Load(#[source] tokio_postgres::Error),
    #[error("could not read rows")]
    Read(#[source] tokio_postgres::Error),
    #[error("another process moved the checkpoints")]
    Moved,
    #[error("Postgres refused rows of {}", view.name())]
    Refused { view: StoredView, source: tokio_postgres::Error },
    /// Rows from Redis were folded on, and Postgres has other rows in these places.
    #[error("rows from Redis that were folded on differ from those in Postgres")]
    Disproved(Vec<Place>),
    #[error("parked records cannot be folded")]
    Fold(#[source] FoldError),
    #[error("could not commit a batch")]
    Commit(#[source] tokio_postgres::Error),
    #[error("could not maintain the partitions of the table repeats")]
    Maintain(#[source] tokio_postgres::Error),
    #[error("another version of the fold made the rows of {0}: run `projector rebuild {0}`")]
    OtherFold(String),
    #[error("a row is not in this build's format")]
    Row(#[source] serde_json::Error),
}

impl StoreError {
    /// Returns whether the server canceled the statement because of its timeout.
    pub(crate) fn is_time_out(&self) -> bool {
        matches!(self, Self::Commit(error) | Self::Read(error) if error.code() == Some(&SqlState::QUERY_CANCELED))
    }
}
