//! How much a listener works on at once; more is refused before its body is read.
//!
//! Refusing costs little and waiting costs latency: what is let in keeps its own however many come. A request takes its
//! place once its body is there, so that senders who are slow, or never finish, keep nobody out.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _, to_bytes};
use axum::response::Response;
use schemas::commands::{MAX_BATCH_BYTES, MAX_BODY_BYTES};
use schemas::problem::{Problem, ProblemKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::HttpState;
use super::answers::Prepared;

/// Single commands: what two cores with everything on them answer in 150 ms, and a machine of its own in 40 ms.
const MAX_COMMANDS: usize = 2048;
/// What large ones cost are their bytes, which are bounded below: this many are small ones, of clients that send the next one as
/// soon as the last is answered.
const MAX_BATCHES: usize = 128;
/// Bodies that are being read or worked on, in bytes together.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// A body that says to be no larger takes no share of those: as many as there may be connections are few bytes.
const FREE_BYTES: usize = 4 * 1024;
/// From a request's head to the end of its body.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// Of one listener.
pub(super) struct Admission {
    commands: Lane,
    batches: Lane,
    bytes: Arc<Semaphore>,
    body_within: Duration,
    /// What a command is told for which there is no place.
    refusal: Prepared,
}

/// One kind of request.
struct Lane {
    places: Arc<Semaphore>,
    name: &'static str,
    max_body: usize,
    too_large: &'static str,
}

impl Default for Admission {
    fn default() -> Self {
        let lane = |places, name, max_body, too_large| Lane {
            places: Arc::new(Semaphore::new(places)),
            name,
            max_body,
            too_large,
        };
        let commands = lane(MAX_COMMANDS, "commands", MAX_BODY_BYTES, "a command has at most 64 KiB");
        Self {
            refusal: Prepared::new(&commands.refusal()),
            commands,
            batches: lane(MAX_BATCHES, "batches", MAX_BATCH_BYTES, "a batch has at most 8 MiB"),
            bytes: Arc::new(Semaphore::new(MAX_BYTES)),
            body_within: BODY_WITHIN,
        }
    }
}

/// A request that was let in; another one may when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _place: OwnedSemaphorePermit,
    _share: Option<OwnedSemaphorePermit>,
}

impl HttpState {
    /// Reads a command's body and lets it in.
    pub(super) async fn admit_command(&self, body: Body) -> Result<(Bytes, Permit), Problem> {
        self.admit(&self.admission.commands, body).await
    }

    /// Reads a batch and lets it in.
    pub(super) async fn admit_batch(&self, body: Body) -> Result<(Bytes, Permit), Problem> {
        self.admit(&self.admission.batches, body).await
    }

    async fn admit(&self, lane: &Lane, body: Body) -> Result<(Bytes, Permit), Problem> {
        if lane.is_full() {
            return Err(self.refuse(lane));
        }
        let too_large = || Problem::new(ProblemKind::TooLarge, lane.too_large);
        // Chunks do not tell how many come.
        let announced = body.size_hint().exact().map_or(Ok(lane.max_body), usize::try_from);
        let announced = announced.ok().filter(|bytes| *bytes <= lane.max_body).ok_or_else(too_large)?;
        let share = self.share(lane, announced)?;
        let read = tokio::time::timeout(self.admission.body_within, to_bytes(body, lane.max_body));
        let detail = || format!("the body did not arrive within {:?}", self.admission.body_within);
        let body = read.await.map_err(|_| Problem::new(ProblemKind::InvalidRequest, detail()))?;
        let body = body.map_err(|error| match error.source() {
            Some(limit) if limit.is::<http_body_util::LengthLimitError>() => too_large(),
            _ => Problem::new(ProblemKind::InvalidRequest, "the body did not arrive whole"),
        })?;
        let place = lane.places.clone().try_acquire_owned().map_err(|_| self.refuse(lane))?;
        Ok((body, Permit { _place: place, _share: share }))
    }

    /// Takes as many bytes as the body says to have.
    fn share(&self, lane: &Lane, announced: usize) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        if announced <= FREE_BYTES {
            return Ok(None);
        }
        let bytes = u32::try_from(announced).expect("a body has at most some MiB");
        let share = self.admission.bytes.clone().try_acquire_many_owned(bytes);
        share.map(Some).map_err(|_| self.refuse(lane))
    }

    fn refuse(&self, lane: &Lane) -> Problem {
        self.metrics.refused(lane.name);
        lane.refusal()
    }

    /// Whether a command would be refused.
    pub(super) fn has_no_place(&self) -> bool {
        self.admission.commands.is_full()
    }

    /// Refuses a command as [`Self::admit_command`] does.
    pub(super) fn refused(&self) -> Response {
        self.metrics.refused(self.admission.commands.name);
        self.admission.refusal.answer()
    }
}

impl Lane {
    fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    fn refusal(&self) -> Problem {
        Problem::new(ProblemKind::Overloaded, format!("too many {} are under way; nothing was done", self.name))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use chassis::env::Secret;
    use chassis::telemetry::Telemetry;
    use futures_util::StreamExt as _;
    use tokio::sync::watch;

    use super::*;
    use crate::metrics::Metrics;

    pub(in super::super) fn http_state() -> HttpState {
        let metrics = Arc::new(Metrics::new(&Telemetry::new("test").unwrap()));
        HttpState::new(watch::channel(None).1, metrics, Secret::from("token"))
    }

    /// Lets no command in while it is held.
    pub(in super::super) async fn all_command_places(state: &HttpState) -> OwnedSemaphorePermit {
        let all = u32::try_from(MAX_COMMANDS).unwrap();
        state.admission.commands.places.clone().acquire_many_owned(all).await.unwrap()
    }

    /// Waits until no batch is under way.
    pub(in super::super) async fn all_places_are_free(state: &HttpState) {
        let all = u32::try_from(MAX_BATCHES).unwrap();
        drop(state.admission.batches.places.acquire_many(all).await.unwrap());
    }

    /// Bytes that never end.
    fn slow() -> Body {
        let first = futures_util::stream::once(async { Ok::<_, std::convert::Infallible>("{") });
        Body::from_stream(first.chain(futures_util::stream::pending()))
    }

    #[tokio::test]
    async fn more_commands_than_may_be_under_way_are_refused() {
        let state = http_state();
        let mut under_way = Vec::new();
        let refused = loop {
            match state.admit_command(Body::from("{}")).await {
                Ok((_, admitted)) => under_way.push(admitted),
                Err(refused) => break refused,
            }
        };
        assert_eq!(under_way.len(), MAX_COMMANDS);
        assert_eq!(refused.status, 503);
        // Not one byte of it is waited for.
        assert_eq!(state.admit_command(slow()).await.unwrap_err().status, 503);
        assert!(state.admit_batch(Body::from("{}")).await.is_ok(), "batches have room of their own");
        under_way.pop();
        assert!(state.admit_command(Body::from("{}")).await.is_ok());
    }

    #[tokio::test]
    async fn bodies_that_do_not_come_keep_nobody_out_and_are_given_up() {
        let mut state = http_state();
        state.admission.body_within = Duration::from_millis(200);
        let state = Arc::new(state);
        let slow_ones: Vec<_> = (0..MAX_COMMANDS / 2)
            .map(|_| {
                let state = state.clone();
                tokio::spawn(async move { state.admit_command(slow()).await.map(drop) })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(state.admission.commands.places.available_permits(), MAX_COMMANDS);
        assert!(state.admit_command(Body::from("{}")).await.is_ok());
        for slow in slow_ones {
            let refused = slow.await.unwrap().unwrap_err();
            assert!(matches!(refused.status, 400 | 503), "{refused:?}");
        }
        assert_eq!(state.admission.bytes.available_permits(), MAX_BYTES);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_by_what_it_announces_and_by_what_comes() {
        let state = http_state();
        let large = vec![b' '; MAX_BODY_BYTES + 1];
        assert_eq!(state.admit_command(Body::from(large.clone())).await.unwrap_err().status, 413);
        let chunk = futures_util::stream::once(async { Ok::<_, std::convert::Infallible>(large) });
        assert_eq!(state.admit_command(Body::from_stream(chunk)).await.unwrap_err().status, 413);
    }

    #[tokio::test]
    async fn bodies_share_a_number_of_bytes() {
        let state = http_state();
        let mut under_way = Vec::new();
        while let Ok((_, admitted)) = state.admit_batch(Body::from(vec![b' '; MAX_BATCH_BYTES])).await {
            under_way.push(admitted);
        }
        assert_eq!(under_way.len(), MAX_BYTES / MAX_BATCH_BYTES);
        assert!(state.admit_command(Body::from("{}")).await.is_ok(), "a small one needs no share");
        under_way.pop();
        assert!(state.admit_batch(Body::from(vec![b' '; MAX_BATCH_BYTES])).await.is_ok());
    }
}
