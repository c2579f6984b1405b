//! The views in Redis: written after the commit, only over what is older, and followed by the applied positions.
//!
//! Invariant: whatever goes wrong here (no answer, a late one, a position that somebody else moved) puts this
//! cache out of step, and then nothing more is written until [`Cache::begin`] declares all of Redis stale.

use std::collections::HashMap;
use std::time::Instant;

use chassis::env::Secret;
use chassis::redis::RedisSetupError;
use redis::aio::ConnectionManager;
use redis::{Pipeline, RedisError};
use schemas::cache::{ADVANCE, BEGIN, Keys, PUT_NEWER, ROW_TTL_SECS, WRITE_WITHIN_MS, position_field, value};
use schemas::views::{CUSTOMER, FEEDS, ORDER, PRODUCT, REVENUE, row_body};
use serde::Serialize;

use crate::fold::{Changes, Standing};
use crate::postgres::{Move, Sums};

/// Rows in one call of the script: it blocks Redis while it runs.
const MAX_ROWS_A_CALL: usize = 500;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("Redis did not do what was asked")]
    Call(#[from] RedisError),
    #[error("a write reached Redis too late")]
    Late,
    #[error("the applied positions are not what this projector wrote")]
    Mixed,
}

pub(crate) struct Cache {
    connection: ConnectionManager,
    keys: Keys,
    /// `None` while out of step.
    step: Option<Step>,
}

/// What this projector knows of Redis while nobody else writes there.
struct Step {
    incarnation: String,
    /// By field, as this projector wrote them.
    applied: HashMap<String, i64>,
    /// Redis's clock, in ms, when ours showed the instant.
    clock: (u64, Instant),
    scripts: Scripts,
}

struct Scripts {
    put_newer: String,
    advance: String,
    begin: String,
}

impl Cache {
    pub(crate) fn connect(url: &Secret, prefix: &str) -> Result<Self, RedisSetupError> {
        Ok(Self { connection: chassis::redis::connect(url)?, keys: Keys::new(prefix), step: None })
    }

    pub(crate) fn is_in_step(&self) -> bool {
        self.step.is_some()
    }

    /// Another projector may have written since.
    pub(crate) fn lose_step(&mut self) {
        self.step = None;
    }

    /// Goes on with what stands in Redis if it shows exactly these checkpoints; else declares all of it stale.
    /// Whether it did is the answer. Call it only while the checkpoints in Postgres are this projector's own.
    pub(crate) async fn resume(&mut self, standings: &[Standing]) -> Result<bool, CacheError> {
        let wanted: HashMap<String, i64> = positions(standings).collect();
        let scripts = self.load_scripts().await?;
        let (live, applied, time): (Option<String>, HashMap<String, i64>, (u64, u64)) = redis::pipe()
            .get(self.keys.live())
            .hgetall(self.keys.applied())
            .cmd("TIME")
            .query_async(&mut self.connection)
            .await?;
        let clock = (time.0 * 1000 + time.1 / 1000, Instant::now());
        let stands = live.filter(|_| applied == wanted);
        let begun = stands.is_none();
        let incarnation = match stands {
            Some(live) => live,
            None => self.begin(&scripts, &wanted).await?,
        };
        self.step = Some(Step { incarnation, applied: wanted, clock, scripts });
        Ok(begun)
    }

    /// Shows a committed batch: its rows, then its positions, in one round trip.
    pub(crate) async fn show(&mut self, changes: &Changes, sums: &Sums, moves: &[Move]) -> Result<(), CacheError> {
        let Some(mut step) = self.step.take() else { return Ok(()) };
        let now = step.clock.0 + u64::try_from(step.clock.1.elapsed().as_millis()).unwrap_or(u64::MAX);
        let rows = self.rows(&step.incarnation, changes, sums);
        let mut pipe = redis::pipe();
        for rows in rows.chunks(MAX_ROWS_A_CALL) {
            put_newer(&mut pipe, &step.scripts.put_newer, now + WRITE_WITHIN_MS, rows);
        }
        self.advance(&mut pipe, &mut step, moves);
        let answers: Vec<i64> = pipe.query_async(&mut self.connection).await?;
        let (advanced, put) = answers.split_last().ok_or(CacheError::Mixed)?;
        if put.contains(&-1) {
            return Err(CacheError::Late);
        }
        if *advanced != 1 {
            return Err(CacheError::Mixed);
        }
        if let Some(time) = put.last() {
            step.clock = (time.cast_unsigned(), Instant::now());
        }
        self.step = Some(step);
        Ok(())
    }

    fn rows(&self, incarnation: &str, changes: &Changes, sums: &Sums) -> Vec<(String, u64, Vec<u8>)> {
        let row = |view: &str, key: &str, version: u64, data: &str| {
            (self.keys.row(incarnation, view, key), version, value(version, row_body(key, version, data).as_bytes()))
        };
        let products =
            changes.products.iter().map(|(key, (version, data))| row(PRODUCT.name, key, *version, &json(data)));
        let orders = changes.orders.iter().map(|(key, (version, data))| row(ORDER.name, key, *version, &json(data)));
        let customers = sums.customers.iter().map(|(key, version, data)| row(CUSTOMER.name, key, *version, data));
        let revenue = sums.revenue.iter().map(|(key, version, data)| row(REVENUE.name, key, *version, data));
        products.chain(orders).chain(customers).chain(revenue).collect()
    }

    fn advance(&self, pipe: &mut Pipeline, step: &mut Step, moves: &[Move]) {
        let call = pipe.cmd("EVALSHA").arg(&step.scripts.advance).arg(2).arg(self.keys.live()).arg(self.keys.applied());
        call.arg(self.keys.applied()).arg(&step.incarnation);
        for Move { view, partition, to, .. } in moves {
            let field = position_field(FEEDS[*view], *partition);
            let offset = to.next_offset - 1;
            let expected = step.applied.insert(field.clone(), offset);
            call.arg(field).arg(expected.map_or(String::new(), |offset| offset.to_string())).arg(offset);
        }
    }

    async fn begin(&mut self, scripts: &Scripts, positions: &HashMap<String, i64>) -> Result<String, CacheError> {
        let incarnation = format!("{:016x}", rand::random::<u64>());
        let mut call = redis::cmd("EVALSHA");
        call.arg(&scripts.begin).arg(2).arg(self.keys.live()).arg(self.keys.applied());
        call.arg(self.keys.applied()).arg(&incarnation);
        for (field, offset) in positions {
            call.arg(field).arg(offset);
        }
        call.query_async::<i64>(&mut self.connection).await?;
        Ok(incarnation)
    }

    async fn load_scripts(&mut self) -> Result<Scripts, CacheError> {
        let mut pipe = redis::pipe();
        for script in [PUT_NEWER, ADVANCE, BEGIN] {
            pipe.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        let (put_newer, advance, begin) = pipe.query_async(&mut self.connection).await?;
        Ok(Scripts { put_newer, advance, begin })
    }
}

fn put_newer(pipe: &mut Pipeline, script: &str, deadline: u64, rows: &[(String, u64, Vec<u8>)]) {
    let call = pipe.cmd("EVALSHA").arg(script).arg(rows.len());
    for (key, ..) in rows {
        call.arg(key);
    }
    call.arg(deadline).arg(ROW_TTL_SECS);
    for (_, version, value) in rows {
        call.arg(*version).arg(value);
    }
}

/// What each view shows, by field; one that never read anything shows nothing.
fn positions(standings: &[Standing]) -> impl Iterator<Item = (String, i64)> {
    (0..).zip(standings).flat_map(|(partition, standing)| {
        FEEDS
            .iter()
            .zip(&standing.readers)
            .filter(|(_, reader)| reader.next_offset > 0)
            .map(move |(view, reader)| (position_field(view, partition), reader.next_offset - 1))
    })
}

fn json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("rows hold nothing that JSON cannot")
}
