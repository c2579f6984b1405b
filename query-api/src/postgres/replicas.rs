//! Read replicas of the primary, which take load off it and may lag.
//!
//! Invariant: a replica receives queries only while its last probe found the same log there. Each answer carries its
//! own positions, so lag is safe.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use chassis::postgres::{PostgresError, PostgresSettings};
use tokio_postgres::Row;

use super::server::{Limits, Param, Server, StoreError};
use crate::positions::Log;

#[derive(Default)]
pub(super) struct Replicas {
    all: Vec<Replica>,
    /// Counter for round robin.
    turn: AtomicUsize,
}

struct Replica {
    server: Server,
    /// True after a successful probe, until the next failure.
    is_usable: AtomicBool,
}

impl Replicas {
    /// Creates the pools; `limits` apply to each replica. The replicas do not need to be reachable yet.
    pub(super) fn connect(all: &[PostgresSettings], limits: Limits) -> Result<Self, PostgresError> {
        let connect = |postgres| {
            let server = Server::connect(postgres, limits)?;
            Ok::<_, PostgresError>(Replica { server, is_usable: AtomicBool::new(false) })
        };
        Ok(Self { all: all.iter().map(connect).collect::<Result<_, _>>()?, turn: AtomicUsize::default() })
    }

    pub(super) fn is_any_usable(&self) -> bool {
        self.all.iter().any(Replica::is_usable)
    }

    /// Queries the next usable replica. Returns `None` if there is none or it fails; a replica that failed receives no
    /// queries until a probe succeeds.
    pub(super) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Option<Vec<Row>> {
        let usable: Vec<&Replica> = self.all.iter().filter(|replica| replica.is_usable()).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(usable.len())?;
        match usable[turn].server.query(sql, params).await {
            Ok(rows) => Some(rows),
            Err(StoreError::Busy(_)) => None,
            Err(error) => {
                usable[turn].is_usable.store(false, Ordering::Relaxed);
                tracing::warn!(error = %error, postgres.replica = turn, "replica query failed; not using the replica until a probe succeeds");
                None
            }
        }
    }

    /// Probes every replica, bypassing the query limits. Returns the checkpoints of each that is usable.
    pub(super) async fn look(&self, log: Log) -> Vec<Option<Vec<Row>>> {
        futures_util::future::join_all(self.all.iter().map(async |replica| {
            let found = async {
                let is_same = replica.server.log().await? == Some(log);
                Ok::<_, StoreError>(if is_same { Some(replica.server.checkpoints().await?) } else { None })
            };
            let checkpoints = found.await.unwrap_or_else(|error| {
                tracing::debug!(error = %error, "replica probe failed");
                None
            });
            replica.is_usable.store(checkpoints.is_some(), Ordering::Relaxed);
            checkpoints
        }))
        .await
    }
}

impl Replica {
    fn is_usable(&self) -> bool {
        self.is_usable.load(Ordering::Relaxed)
    }
}
