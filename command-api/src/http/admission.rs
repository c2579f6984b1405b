//! Admission control of a listener: bounds the requests in progress and refuses the rest before reading their bodies.
//!
//! Refusing is cheap and queueing costs latency, so admitted requests keep their latency however many more arrive. A
//! request takes its place only once its body has arrived, so that senders that are slow, or never finish, do not keep
//! others out.

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

/// Maximum number of single commands: two cores that run the whole stack answer as many in 150 ms, and a dedicated
/// machine in 40 ms.
const MAX_COMMANDS: usize = 2048;
/// Maximum number of batches. It limits small ones, from clients that send the next as soon as the last is answered;
/// large ones are limited by their bytes, below.
const MAX_BATCHES: usize = 128;
/// Maximum total bytes of the bodies that are being read or processed.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Announced size up to which a body does not count towards [`MAX_BYTES`]: one for every possible connection is little.
const FREE_BYTES: usize = 4 * 1024;
/// Maximum time from a request's head to the end of its body.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// Admission limits of one listener.
pub(super) struct Admission {
    commands: Lane,
    batches: Lane,
    bytes: Arc<Semaphore>,
    body_within: Duration,
    /// Prepared answer to a command for which there is no place.
    refusal: Prepared,
}

/// Limits of one kind of request.
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

/// The place of an admitted request, freed on drop.
#[derive(Debug)]
pub(super) struct Permit {
    _place: OwnedSemaphorePermit,
    _share: Option<OwnedSemaphorePermit>,
}

impl HttpState {
    /// Reads a command's body and admits it.
    pub(super) async fn admit_command(&self, body: Body) -> Result<(Bytes, Permit), Problem> {
        self.admit(&self.admission.commands, body).await
    }

    /// Reads a batch and admits it.
    pub(super) async fn admit_batch(&self, body: Body) -> Result<(Bytes, Permit), Problem> {
        self.admit(&self.admission.batches, body).await
    }

    async fn admit(&self, lane: &Lane, body: Body) -> Result<(Bytes, Permit), Problem> {
        if lane.is_full() {
            return Err(self.refuse(lane));
        }
        let too_large = || Problem::new(ProblemKind::TooLarge, lane.too_large);
        // A chunked body does not announce its size.
        let announced = body.size_hint().exact().map_or(Ok(lane.max_body), usize::try_from);
        let announced = announced.ok().filter(|bytes| *bytes <= lane.max_body).ok_or_else(too_large)?;
        let share = self.share(lane, announced)?;
        let read = tokio::time::timeout(self.admission.body_within, to_bytes(body, lane.max_body));
        let detail = || format!("the body did not arrive within {:?}", self.admission.body_within);
        let body = read.await.map_err(|_| Problem::new(ProblemKind::InvalidRequest, detail()))?;
        let body = body.map_err(|error| match error.source() {
            Some(limit) if limit.is::<http_body_util::LengthLimitError>() => too_large(),
            _ => Problem::new(ProblemKind::InvalidRequest, "the body is incomplete"),
        })?;
        let place = lane.places.clone().try_acquire_owned().map_err(|_| self.refuse(lane))?;
        Ok((body, Permit { _place: place, _share: share }))
    }

    /// Reserves the announced number of bytes.
    fn share(&self, lane: &Lane, announced: usize) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        if announced <= FREE_BYTES {
            return Ok(None);
        }
        let bytes = u32::try_from(announced).expect("a body's size fits into 32 bits");
        let share = self.admission.bytes.clone().try_acquire_many_owned(bytes);
        share.map(Some).map_err(|_| self.refuse(lane))
    }

    fn refuse(&self, lane: &Lane) -> Problem {
        self.metrics.refused(lane.name);
        lane.refusal()
    }

    /// Returns whether a command would be refused.
    pub(super) fn has_no_place(&self) -> bool {
        self.admission.commands.is_full()
    }

    /// Counts a refused command and returns the same answer as a refusal by [`Self::admit_command`].
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
        Problem::new(ProblemKind::Overloaded, format!("too many {} in progress; nothing was done", self.name))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use chassis::env::Tokens;
    use chassis::telemetry::Telemetry;
    use futures_util::StreamExt as _;
    use tokio::sync::watch;

    use super::*;
    use crate::http::StaffRule;
    use crate::metrics::Metrics;

    pub(in super::super) fn http_state() -> HttpState {
        let metrics = Arc::new(Metrics::new(&Telemetry::new("test").unwrap()));
        HttpState::new(watch::channel(None).1, metrics, Tokens::from("token"), StaffRule::Open)
    }

    /// Takes all places, so that no command is admitted while the permit is held.
    pub(in super::super) async fn all_command_places(state: &HttpState) -> OwnedSemaphorePermit {
        let all = u32::try_from(MAX_COMMANDS).unwrap();
        state.admission.commands.places.clone().acquire_many_owned(all).await.unwrap()
    }

    /// Waits until no batch is in progress.
    pub(in super::super) async fn all_places_are_free(state: &HttpState) {
        let all = u32::try_from(MAX_BATCHES).unwrap();
        drop(state.admission.batches.places.acquire_many(all).await.unwrap());
    }

    /// Returns a body that never ends.
    fn slow() -> Body {
        let first = futures_util::stream::once(async { Ok::<_, std::convert::Infallible>("{") });
        Body::from_stream(first.chain(futures_util::stream::pending()))
    }

    #[tokio::test]
    async fn commands_beyond_the_limit_are_refused() {
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
        // It is refused without waiting for a single byte.
        assert_eq!(state.admit_command(slow()).await.unwrap_err().status, 503);
        assert!(state.admit_batch(Body::from("{}")).await.is_ok(), "batches have places of their own");
        under_way.pop();
        assert!(state.admit_command(Body::from("{}")).await.is_ok());
    }

    #[tokio::test]
    async fn bodies_that_do_not_arrive_keep_no_others_out_and_time_out() {
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
    async fn a_body_that_is_too_large_is_refused_by_its_announced_and_by_its_actual_size() {
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
        assert!(state.admit_command(Body::from("{}")).await.is_ok(), "a small body needs no reservation");
        under_way.pop();
        assert!(state.admit_batch(Body::from(vec![b' '; MAX_BATCH_BYTES])).await.is_ok());
    }
}
