//! Failures of a session of folding.

use crate::fold::FoldError;
use crate::log_reader::{Blame, LogError};
use crate::postgres::StoreError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProjectorError {
    #[error("Postgres failed")]
    Store(#[from] StoreError),
    #[error("folding the log failed")]
    Fold(#[from] FoldError),
    #[error(transparent)]
    Log(LogError),
    #[error("starting the log reader failed")]
    Reader(#[source] anyhow::Error),
}

impl ProjectorError {
    pub(super) fn blame(&self) -> Option<Blame> {
        match self {
            Self::Fold(error) => error.blame(),
            Self::Log(error) => error.blame(),
            Self::Store(_) | Self::Reader(_) => None,
        }
    }
}
