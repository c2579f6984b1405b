//! The views in Redis: written after the commit, only over what is older, and followed by the applied positions.
//!
//! Invariant: whatever goes wrong here (no answer, a late one, a position that somebody else moved) puts this
//! cache out of step, and then nothing more is written until [`Cache::resume`] finds it to be right, or declares all of Redis stale.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chassis::env::Secret;
use chassis::redis::RedisSetupError;
use redis::aio::ConnectionManager;
use redis::{Pipeline, RedisError};
use schemas::cache::{
    ADVANCE, BEGIN, Keys, PUT_NEWER, ROW_TTL_SECS, WITHDRAW, WRITE_WITHIN_MS, generation, incarnation, position_field,
    value,
};
use schemas::feeds::{FeedId, PerView, StoredView};
use schemas::views::row_body;
use serde::Serialize;

use crate::fold::{Changes, Standing};
use crate::postgres::{Move, ReadRow, Sums};
use crate::projector::Share;

/// Rows in one call of the script: it blocks Redis while it runs.
const MAX_ROWS_A_CALL: usize = 500;
/// While nothing is written; every write checks as well.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

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

/// How a cache got back in step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resumed {
    AsItStood,
    /// All that was there is stale.
    Anew,
    /// It did not: Redis does not show the share's checkpoints, or other generations.
    NotYet,
}

/// What this projector knows of Redis while nobody else writes its share there.
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
    withdraw: String,
    advance: String,
    begin: String,
}

impl Cache {
    pub(crate) fn connect(url: &Secret, prefix: &str) -> Result<Self, RedisSetupError> {
        Ok(Self { connection: chassis::redis::connect(url)?, keys: Keys::new(prefix), step: None })
    }

    /// Returns what else may write there, beside the rows and their positions.
    pub(crate) fn connection(&self) -> (ConnectionManager, Keys) {
        (self.connection.clone(), self.keys.clone())
    }

    pub(crate) fn is_in_step(&self) -> bool {
        self.step.is_some()
    }

    /// Another projector may have written since.
    pub(crate) fn lose_step(&mut self) {
        self.step = None;
    }

    /// Goes on with what stands in Redis, if it shows exactly where `standings` say that this projector's share is. If
    /// not, and `or_begin` is given, all of Redis is declared stale: it is to show the checkpoints of all projectors.
    /// Call it only while the checkpoints in Postgres are this projector's own.
    pub(crate) async fn resume(
        &mut self,
        share: &Share,
        standings: &[Standing],
        or_begin: Option<&[Standing]>,
    ) -> Result<Resumed, CacheError> {
        let scripts = self.load_scripts().await?;
        let (live, applied, clock) = self.read().await?;
        let generations = generations(standings);
        let is_live =
            |live: &String| StoredView::all().into_iter().all(|view| generation(live, view) == Some(generations[view]));
        let wanted: HashMap<String, i64> =
            share.places().filter_map(|(feed, partition)| position(standings, feed, partition)).collect();
        let is_shown = |(feed, partition): (FeedId, u32)| {
            let field = position_field(feed.name(), partition);
            applied.get(&field) == wanted.get(&field)
        };
        let (incarnation, resumed) = match (live.filter(is_live).filter(|_| share.places().all(is_shown)), or_begin) {
            (Some(live), _) => (live, Resumed::AsItStood),
            (None, Some(all)) => (self.begin(&scripts, all).await?, Resumed::Anew),
            (None, None) => return Ok(Resumed::NotYet),
        };
        self.step = Some(Step { incarnation, applied: wanted, clock, scripts });
        Ok(resumed)
    }

    /// Checks, while nothing is written, that Redis still shows what this projector wrote. It may have been emptied, or another
    /// projector may have begun an incarnation with positions that it had read before this one moved them.
    pub(crate) async fn verify(&mut self) -> Result<(), CacheError> {
        let Some(mut step) = self.step.take_if(|step| step.clock.1.elapsed() >= VERIFY_EVERY) else { return Ok(()) };
        let Ok((live, applied, time)) = self.read().await else {
            // No answer proves nothing: the next check or write will tell.
            self.step = Some(step);
            return Ok(());
        };
        let is_shown = step.applied.iter().all(|(field, offset)| applied.get(field) == Some(offset));
        if live.as_ref() != Some(&step.incarnation) || !is_shown {
            return Err(CacheError::Mixed);
        }
        step.clock = time;
        self.step = Some(step);
        Ok(())
    }

    /// Returns the live incarnation, the applied positions by field, and Redis's clock.
    async fn read(&mut self) -> Result<(Option<String>, HashMap<String, i64>, (u64, Instant)), CacheError> {
        let mut pipe = redis::pipe();
        pipe.get(self.keys.live()).hgetall(self.keys.applied()).cmd("TIME");
        let (live, applied, (secs, micros)): (_, _, (u64, u64)) = pipe.query_async(&mut self.connection).await?;
        Ok((live, applied, (secs * 1000 + micros / 1000, Instant::now())))
    }

    /// Shows a committed batch: its rows, then its positions, in one round trip. Rows that could not be read are withdrawn.
    ///
    /// `read_at`: from before anything of it was read in Postgres.
    pub(crate) async fn show(
        &mut self,
        changes: &Changes,
        sums: &Sums,
        moves: &[Move],
        read_at: Instant,
    ) -> Result<(), CacheError> {
        let Some(mut step) = self.step.take() else { return Ok(()) };
        let deadline = at(step.clock, Instant::now()) + WRITE_WITHIN_MS;
        let times = (deadline, at(step.clock, read_at));
        let rows = self.rows(&step.incarnation, changes, sums);
        let mut pipe = redis::pipe();
        for rows in rows.chunks(MAX_ROWS_A_CALL) {
            put_newer(&mut pipe, &step.scripts.put_newer, times, rows);
        }
        for keys in self.unread(&step.incarnation, sums).chunks(MAX_ROWS_A_CALL) {
            pipe.cmd("EVALSHA").arg(&step.scripts.withdraw).arg(keys.len()).arg(keys).arg(ROW_TTL_SECS);
        }
        self.advance(&mut pipe, deadline, &mut step, moves);
        let answers: Vec<i64> = pipe.query_async(&mut self.connection).await?;
        let (advanced, put) = answers.split_last().ok_or(CacheError::Mixed)?;
        match advanced {
            1 => {}
            -1 => return Err(CacheError::Late),
            _ => return Err(CacheError::Mixed),
        }
        if let Some(time) = put.last() {
            step.clock = (time.cast_unsigned(), Instant::now());
        }
        self.step = Some(step);
        Ok(())
    }

    fn rows(&self, incarnation: &str, changes: &Changes, sums: &Sums) -> Vec<(String, u64, Vec<u8>)> {
        let row = |view: StoredView, key: &str, version: u64, data: &str| {
            (self.keys.row(incarnation, view, key), version, value(version, row_body(key, version, data).as_bytes()))
        };
        let own = StoredView::all().into_iter().zip(&changes.rows);
        let own = own.flat_map(|(view, rows)| rows.iter().map(move |(key, row)| (view, key, row)));
        let own = own.map(|(view, key, (version, data))| row(view, key, *version, &json(data)));
        let sums = StoredView::all().into_iter().zip(&sums.rows);
        let sums = sums.flat_map(|(view, rows)| rows.iter().map(move |row| (view, row)));
        own.chain(sums.map(|(view, (key, version, data))| row(view, key, *version, data))).collect()
    }

    fn unread(&self, incarnation: &str, sums: &Sums) -> Vec<String> {
        let keys = |view: StoredView| sums.unread[view].iter().map(move |key| self.keys.row(incarnation, view, key));
        StoredView::all().into_iter().flat_map(keys).collect()
    }

    fn advance(&self, pipe: &mut Pipeline, deadline: u64, step: &mut Step, moves: &[Move]) {
        let call = pipe.cmd("EVALSHA").arg(&step.scripts.advance).arg(2).arg(self.keys.live()).arg(self.keys.applied());
        call.arg(self.keys.applied()).arg(deadline).arg(&step.incarnation);
        for Move { name, partition, to, .. } in moves {
            let field = position_field(name, *partition);
            let offset = to.next_offset - 1;
            let expected = step.applied.insert(field.clone(), offset);
            call.arg(field).arg(expected.map_or(String::new(), |offset| offset.to_string())).arg(offset);
        }
    }

    async fn begin(&mut self, scripts: &Scripts, standings: &[Standing]) -> Result<String, CacheError> {
        let incarnation = incarnation(rand::random(), generations(standings));
        let mut call = redis::cmd("EVALSHA");
        call.arg(&scripts.begin).arg(2).arg(self.keys.live()).arg(self.keys.applied());
        call.arg(self.keys.applied()).arg(&incarnation);
        let partitions = (0..).zip(standings).map(|(partition, _)| partition);
        for place in partitions.flat_map(|partition| FeedId::all().map(|feed| (feed, partition))) {
            if let Some((field, offset)) = position(standings, place.0, place.1) {
                call.arg(field).arg(offset);
            }
        }
        call.query_async::<i64>(&mut self.connection).await?;
        Ok(incarnation)
    }

    async fn load_scripts(&mut self) -> Result<Scripts, CacheError> {
        let mut pipe = redis::pipe();
        for script in [PUT_NEWER, WITHDRAW, ADVANCE, BEGIN] {
            pipe.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        let (put_newer, withdraw, advance, begin) = pipe.query_async(&mut self.connection).await?;
        Ok(Scripts { put_newer, withdraw, advance, begin })
    }
}

/// Redis's time in ms, when ours shows the instant. `clock`: another such pair.
fn at((time_ms, instant): (u64, Instant), when: Instant) -> u64 {
    let ms = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    match when.checked_duration_since(instant) {
        Some(since) => time_ms.saturating_add(ms(since)),
        // Rounded down, too: the rows were read then or later.
        None => time_ms.saturating_sub(ms(instant - when) + 1),
    }
}

fn put_newer(pipe: &mut Pipeline, script: &str, (deadline, read_at): (u64, u64), rows: &[(String, u64, Vec<u8>)]) {
    let call = pipe.cmd("EVALSHA").arg(script).arg(rows.len());
    for (key, ..) in rows {
        call.arg(key);
    }
    call.arg(deadline).arg(ROW_TTL_SECS).arg(read_at);
    for (_, version, value) in rows {
        call.arg(*version).arg(value);
    }
}

/// Puts rows of a view into an incarnation, where they are newer than what it has. `deadline`: in ms of Redis's clock; 0:
/// none.
pub(crate) async fn put_rows(
    connection: &mut ConnectionManager,
    (keys, incarnation, view): (&Keys, &str, StoredView),
    deadline: u64,
    rows: &[ReadRow],
) -> Result<(), CacheError> {
    let script = redis::Script::new(PUT_NEWER);
    for rows in rows.chunks(MAX_ROWS_A_CALL) {
        let mut call = script.prepare_invoke();
        for (key, ..) in rows {
            call.key(keys.row(incarnation, view, key));
        }
        // Nobody knows any more when they were read: what was withdrawn stays so.
        call.arg(deadline).arg(ROW_TTL_SECS).arg(0);
        for (key, version, data) in rows {
            call.arg(*version).arg(value(*version, row_body(key, *version, data).as_bytes()));
        }
        if call.invoke_async::<i64>(connection).await? == -1 {
            return Err(CacheError::Late);
        }
    }
    Ok(())
}

/// The same, into the one that lives, with rows that were just read.
pub(crate) async fn put_live(url: &Secret, prefix: &str, view: StoredView, rows: &[ReadRow]) -> anyhow::Result<()> {
    let (mut connection, keys) = (chassis::redis::connect(url)?, Keys::new(prefix));
    let (live, time): (Option<String>, (u64, u64)) =
        redis::pipe().get(keys.live()).cmd("TIME").query_async(&mut connection).await?;
    let Some(live) = live else { return Ok(()) };
    let deadline = time.0 * 1000 + time.1 / 1000 + WRITE_WITHIN_MS;
    Ok(put_rows(&mut connection, (&keys, &live, view), deadline, rows).await?)
}

/// Returns each view's generation; every partition has the same.
fn generations(standings: &[Standing]) -> PerView<u32> {
    let known = standings.first().map(|standing| standing.generations);
    StoredView::all().map(|view| known.map_or(1, |known| known[FeedId::View(view)].cast_unsigned()))
}

/// Returns the last offset that a feed shows of a partition, with its field. `None`: it never read anything.
fn position(standings: &[Standing], feed: FeedId, partition: u32) -> Option<(String, i64)> {
    let next = standings[partition as usize].readers[feed].next_offset;
    (next > 0).then(|| (position_field(feed.name(), partition), next - 1))
}

fn json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("rows hold nothing that JSON cannot")
}
