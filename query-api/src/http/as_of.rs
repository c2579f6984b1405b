//! `GET /v1/{aggregates}/{id}/as-of`: the row that an aggregate had at a version or time, folded from its events.
//!
//! The fold continues from the row in the view unless that row is newer than the moment; then it begins with the first
//! event. Old rows are not stored.
//!
//! Invariant: one request folds at most [`MAX_EVENTS_FOLDED`] events and holds one page of them in memory. A request
//! that needs more is refused before the first is read. All such requests share a fraction of the connections to
//! Postgres, so that they do not starve other reads.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use schemas::aggregate::{AggregateId, AggregateType};
use schemas::events::WireEvent;
use schemas::time::{TimeMs, parse_rfc3339};
use schemas::views::{AggregateRow, MAX_EVENTS_FOLDED, RowFold, row_body, row_fold};

use super::parameters::Parameters;
use super::problems::invalid;
use super::read_options::ReadOptions;
use super::{answers, caching};
use crate::postgres::{EventPage, EventStream, JournalEvent};
use crate::reads::{ReadError, Reads};
use crate::row::Row;

/// Number of events read at a time.
const PAGE: i64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// The state after this many events.
    Version(i64),
    /// The state after all events up to and including this time.
    At(TimeMs),
}

impl Moment {
    pub(super) fn take(parameters: &mut Parameters) -> Result<Option<Self>, String> {
        let version = parameters.take("version").map(|text| {
            let version = text.parse().ok().filter(|version| *version >= 0);
            version.map(Self::Version).ok_or_else(|| "version must be a number from 0 up".to_owned())
        });
        let at = parameters
            .take("at")
            .map(|text| parse_rfc3339(&text).map(Self::At).map_err(|error| format!("at: {error}")));
        match (version, at) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err("version and at exclude each other; send one of them".to_owned()),
            (Some(moment), None) | (None, Some(moment)) => moment.map(Some),
        }
    }

    fn includes(self, event: &JournalEvent) -> bool {
        match self {
            Self::Version(version) => event.version <= version,
            Self::At(time) => event.at_ms.cast_unsigned() <= time.0,
        }
    }

    /// Returns the number of events after `version` that the moment may include, at most one page.
    fn events_after(self, version: i64) -> i64 {
        match self {
            Self::Version(wanted) => (wanted - version).clamp(0, PAGE),
            Self::At(_) => PAGE,
        }
    }

    /// Returns whether an aggregate at `version` cannot have further events that the moment includes.
    fn is_reached(self, version: i64) -> bool {
        match self {
            Self::Version(wanted) => version >= wanted,
            // Further events may carry the same time.
            Self::At(_) => false,
        }
    }
}

/// A row folded up to the moment, or up to the newest event before it.
#[derive(Debug, Default)]
struct Folded {
    row: Option<AggregateRow>,
    version: i64,
}

impl Folded {
    /// Folds the events that the moment includes. Returns whether it includes no later ones.
    fn take(&mut self, fold: RowFold, events: &[JournalEvent], moment: Moment) -> Result<bool, serde_json::Error> {
        for event in events {
            if !moment.includes(event) {
                return Ok(true);
            }
            let event_then = WireEvent::upcast_parts(&event.r#type, &event.data)?;
            self.row = (fold.fold)(self.row.take(), &event_then, TimeMs(event.at_ms.cast_unsigned()));
            self.version = event.version;
        }
        Ok(moment.is_reached(self.version))
    }
}

pub(super) async fn of(
    State(reads): State<Arc<Reads>>,
    aggregate: AggregateType,
    Path(id): Path<String>,
    parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    match parse(aggregate, &id, parameters) {
        Ok((id, moment)) => caching::personal(row(&reads, &id, moment, &asked).await),
        Err(detail) => invalid(detail),
    }
}

fn parse(aggregate: AggregateType, id: &str, mut parameters: Parameters) -> Result<(AggregateId, Moment), String> {
    let id = AggregateId::new(aggregate, id).map_err(|error| error.to_string())?;
    let moment = Moment::take(&mut parameters)?;
    parameters.end()?;
    Ok((id, moment.ok_or("send version, a number of events, or at, a time")?))
}

/// Answers with the row as of the moment; also used by the deprecated form of the history route.
pub(super) async fn row(reads: &Reads, id: &AggregateId, moment: Moment, asked: &ReadOptions) -> Response {
    match folded(reads, id, moment, asked).await {
        Ok((folded, token)) => answer(id, moment, folded, token, asked),
        Err(Refusal::Read(error)) => answers::refused(error),
        Err(Refusal::TooManyEvents) => {
            let detail = format!(
                "{} had more than {MAX_EVENTS_FOLDED} events then, and its current row is newer: fold its history",
                id.as_str()
            );
            invalid(detail)
        }
    }
}

/// Reasons to refuse the request.
enum Refusal {
    Read(ReadError),
    TooManyEvents,
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// Waits for the token, then for a permit, and folds. Also returns the token of the positions that the result shows.
async fn folded(
    reads: &Reads,
    id: &AggregateId,
    moment: Moment,
    asked: &ReadOptions,
) -> Result<(Folded, Option<String>), Refusal> {
    reads.reach_journal(&asked.fresh).await?;
    let _turn = reads.turn_to_fold().await?;
    let stream = EventStream::of(id, asked.log);
    let (_, fold) = row_fold(id.aggregate());
    let mut folded = begin(reads, id, moment, asked).await?;
    let behind = reads
        .events(asked.log, stream, EventPage { after: folded.version + MAX_EVENTS_FOLDED, limit: 1 }, &asked.fresh)
        .await?;
    if behind.found.first().is_some_and(|event| moment.includes(event)) {
        return Err(Refusal::TooManyEvents);
    }
    loop {
        let limit = moment.events_after(folded.version);
        let shown = reads.events(asked.log, stream, EventPage { after: folded.version, limit }, &asked.fresh).await?;
        let is_end = i64::try_from(shown.found.len()).is_ok_and(|found| found < PAGE);
        let is_past = folded.take(fold, &shown.found, moment).map_err(|error| {
            tracing::error!(aggregate = id.as_str(), error = %error, "the journal contains an undecodable event");
            ReadError::Unavailable
        })?;
        if is_past || is_end {
            return Ok((folded, shown.token));
        }
    }
}

/// Returns the row in the view unless it is newer than the moment; else the empty state, to fold from the first event.
async fn begin(reads: &Reads, id: &AggregateId, moment: Moment, asked: &ReadOptions) -> Result<Folded, ReadError> {
    let (view, fold) = row_fold(id.aggregate());
    let Some((version, data)) = reads.kept_row(view, id.id()).await? else { return Ok(Folded::default()) };
    let is_then = match moment {
        Moment::Version(wanted) => version <= wanted,
        Moment::At(_) => {
            let stream = EventStream::of(id, asked.log);
            let last =
                reads.events(asked.log, stream, EventPage { after: version - 1, limit: 1 }, &asked.fresh).await?;
            last.found.first().is_some_and(|event| event.version == version && moment.includes(event))
        }
    };
    let row = if is_then { (fold.read)(&data).ok() } else { None };
    Ok(row.map_or_else(Folded::default, |row| Folded { row: Some(row), version }))
}

fn answer(id: &AggregateId, moment: Moment, folded: Folded, token: Option<String>, asked: &ReadOptions) -> Response {
    let Folded { row, version } = folded;
    let name = id.as_str();
    // The row is not the view's: this build folded it, so its tag carries the form of this build's fold.
    let generation = row_fold(id.aggregate()).0.form.cast_unsigned();
    match (row, moment) {
        (_, Moment::Version(wanted)) if wanted > version => {
            answers::no_row(format!("{name} has no version {wanted} yet; the newest is {version}"), token, None)
        }
        (Some(row), Moment::Version(_) | Moment::At(_)) => {
            let data = serde_json::to_string(&row).expect("a row serializes to JSON");
            let version = version.cast_unsigned();
            let body = row_body(id.id(), version, &data).into();
            answers::row(Row { version, generation, body }, token, None, asked)
        }
        (None, Moment::Version(_) | Moment::At(_)) => {
            answers::no_row(format!("{name} did not exist then"), token, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Origin;

    fn event(version: i64, r#type: &str, data: &str) -> JournalEvent {
        JournalEvent {
            version,
            r#type: r#type.to_owned(),
            data: data.to_owned(),
            at_ms: version * 1000,
            origin: Origin { log: None, partition: 0, offset: version },
            command_id: String::new(),
            cause: None,
            trace: None,
        }
    }

    fn history() -> [JournalEvent; 3] {
        [
            event(1, "product.registered.v1", r#"{"name":"Blue","price_cents":5,"stock":1}"#),
            event(2, "product.repriced.v1", r#"{"price_cents":7}"#),
            event(3, "product.repriced.v1", r#"{"price_cents":9}"#),
        ]
    }

    fn price(moment: Moment) -> (Option<u64>, i64, bool) {
        let mut folded = Folded::default();
        let fold = row_fold(schemas::aggregate::AggregateType::Product).1;
        let is_past = folded.take(fold, &history(), moment).unwrap();
        let price = folded.row.map(|row| match row {
            AggregateRow::Product(row) => row.price_cents,
            other => panic!("a product's events were folded to {other:?}"),
        });
        (price, folded.version, is_past)
    }

    #[test]
    fn a_moment_is_a_version_or_a_time_and_never_both() {
        let moment = |query: &str| Moment::take(&mut Parameters::parse(query).unwrap());
        assert_eq!(moment("after=7"), Ok(None));
        assert_eq!(moment("version=0"), Ok(Some(Moment::Version(0))));
        assert_eq!(moment("at=1970-01-01T00:00:01Z"), Ok(Some(Moment::At(TimeMs(1000)))));
        for (invalid, named) in [
            ("version=-1", "version"),
            ("version=", "version"),
            ("version=9223372036854775808", "version"),
            ("at=", "at: "),
            ("at=yesterday", "at: "),
            ("at=1970-01-01T00:00:01", "at: "),
            ("version=1&at=1970-01-01T00:00:01Z", "exclude each other"),
        ] {
            let error = moment(invalid).unwrap_err();
            assert!(error.contains(named), "{invalid}: {error}");
        }
    }

    #[test]
    fn a_request_without_a_moment_or_with_a_foreign_parameter_is_refused() {
        let parsed = |id: &str, query: &str| parse(AggregateType::Product, id, Parameters::parse(query).unwrap());
        assert!(parsed("cd-1", "version=1").is_ok());
        for (id, query, named) in
            [("cd-1", "", "version"), ("cd-1", "version=1&limit=2", "limit"), ("c d", "version=1", "")]
        {
            let error = parsed(id, query).unwrap_err();
            assert!(error.contains(named), "{id} {query}: {error}");
        }
    }

    #[test]
    fn no_more_events_are_read_than_a_version_can_need() {
        let limits = [0, 3, 4, PAGE, PAGE + 9].map(|wanted| Moment::Version(wanted).events_after(3));
        assert_eq!(limits, [0, 0, 1, PAGE - 3, PAGE]);
        assert_eq!(Moment::At(TimeMs(0)).events_after(3), PAGE);
    }

    #[test]
    fn the_state_then_is_what_the_events_up_to_then_make() {
        assert_eq!(price(Moment::Version(0)), (None, 0, true));
        assert_eq!(price(Moment::Version(2)), (Some(7), 2, true));
        assert_eq!(price(Moment::Version(3)), (Some(9), 3, true));
        assert_eq!(price(Moment::At(TimeMs(999))), (None, 0, true));
        assert_eq!(price(Moment::At(TimeMs(1000))), (Some(5), 1, true));
        assert_eq!(price(Moment::At(TimeMs(2999))), (Some(7), 2, true));
    }

    #[test]
    fn more_events_may_come_before_a_moment_that_none_has_passed() {
        assert_eq!(price(Moment::Version(4)), (Some(9), 3, false));
        assert_eq!(price(Moment::At(TimeMs(3000))), (Some(9), 3, false));
    }
}
