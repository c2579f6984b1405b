//! `?version=` and `?at=`: the row that an aggregate had then, folded from its events.
//!
//! A page of events at a time is in memory.

use axum::response::Response;
use schemas::aggregate::AggregateId;
use schemas::events::WireEvent;
use schemas::problem::{Problem, ProblemKind};
use schemas::time::{TimeMs, parse_rfc3339};
use schemas::views::{AggregateRow, RowFold, row_body, row_fold};

use super::super::answers;
use super::super::request::{Asked, Parameters};
use super::MAX_LIMIT;
use crate::postgres::JournalEvent;
use crate::reads::{ReadError, Reads, Row};

/// The most that one request folds: about a second's work.
const MAX_EVENTS: i64 = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// After this many events.
    Version(i64),
    /// After all events up to and with this time.
    At(TimeMs),
}

impl Moment {
    pub(super) fn take(parameters: &mut Parameters) -> Result<Option<Self>, String> {
        let version = parameters.take("version").map(|text| {
            let version = text.parse().ok().filter(|version| *version >= 0);
            version.map(Self::Version).ok_or_else(|| "version is a number from 0 on".to_owned())
        });
        let at = parameters
            .take("at")
            .map(|text| parse_rfc3339(&text).map(Self::At).map_err(|error| format!("at: {error}")));
        match (version, at) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err("version and at name two moments; give one of them".to_owned()),
            (Some(moment), None) | (None, Some(moment)) => moment.map(Some),
        }
    }

    fn includes(self, event: &JournalEvent) -> bool {
        match self {
            Self::Version(version) => event.version <= version,
            Self::At(time) => event.at_ms.cast_unsigned() <= time.0,
        }
    }

    /// Whether an aggregate of this version has come so far.
    fn is_reached(self, version: i64) -> bool {
        match self {
            Self::Version(wanted) => version >= wanted,
            // Nobody knows what else will happen at this time.
            Self::At(_) => false,
        }
    }
}

/// What was folded up to the moment, or to the newest event before it.
#[derive(Debug, Default)]
struct Folded {
    row: Option<AggregateRow>,
    version: i64,
}

impl Folded {
    /// Whether the moment is behind these events.
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

pub(super) async fn of(reads: &Reads, id: &AggregateId, moment: Moment, asked: &Asked) -> Response {
    let name = id.as_str();
    let place = (name, id.partition(asked.log.partitions));
    let (view, fold) = row_fold(id.aggregate());
    let mut folded = Folded::default();
    loop {
        let shown = match reads.history(asked.log, place, (folded.version, MAX_LIMIT), &asked.fresh).await {
            Ok(shown) => shown,
            Err(error) => return answers::refused(error),
        };
        let is_past = match folded.take(fold, &shown.found, moment) {
            Ok(is_past) => is_past,
            Err(error) => {
                tracing::error!(aggregate = name, error = %error, "the journal holds an event that does not read");
                return answers::refused(ReadError::Unavailable);
            }
        };
        let is_end = i64::try_from(shown.found.len()).is_ok_and(|found| found < MAX_LIMIT);
        if is_past || is_end {
            // It is no row of the view, but made the way that this build makes them.
            return answer(id, view.form.cast_unsigned(), (moment, folded), shown.token, asked);
        }
        if folded.version >= MAX_EVENTS {
            let detail = format!("{name} had more than {MAX_EVENTS} events by then: fold them from its history");
            return answers::problem(&Problem::new(ProblemKind::InvalidRequest, detail));
        }
    }
}

fn answer(
    id: &AggregateId,
    generation: u32,
    (moment, folded): (Moment, Folded),
    token: Option<String>,
    asked: &Asked,
) -> Response {
    let Folded { row, version } = folded;
    let name = id.as_str();
    match (row, moment) {
        (_, Moment::Version(wanted)) if wanted > version => {
            answers::no_row(format!("{name} has no version {wanted} yet; the newest is {version}"), token, None)
        }
        (Some(row), Moment::Version(_) | Moment::At(_)) => {
            let data = serde_json::to_string(&row).expect("rows hold nothing that JSON cannot");
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

    fn event(version: i64, r#type: &str, data: &str) -> JournalEvent {
        JournalEvent {
            version,
            r#type: r#type.to_owned(),
            data: data.to_owned(),
            at_ms: version * 1000,
            partition: 0,
            offset: version,
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
            other => panic!("{other:?} came of a product's events"),
        });
        (price, folded.version, is_past)
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
