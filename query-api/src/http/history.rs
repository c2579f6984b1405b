//! `GET /v1/{aggregates}/{id}/history`: every event of an aggregate.
//!
//! With `version` or `at` the route answers as [`as_of`] does and adds a `Deprecation` header: clients of the previous
//! release have one release to migrate.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use schemas::aggregate::{AggregateId, AggregateType, route_name};
use schemas::contracts::schema_path;
use schemas::time::{TimeMs, to_rfc3339};
use schemas::token::LogId;
use schemas::views::CloudEvent;
use serde_json::value::RawValue;

use super::as_of::{self, Moment};
use super::parameters::Parameters;
use super::problems::invalid;
use super::read_options::ReadOptions;
use super::{answers, caching};
use crate::postgres::{EventPage, EventStream, JournalEvent};
use crate::reads::{ReadError, Reads};

const MAX_LIMIT: i64 = 1000;
/// `Deprecation` (RFC 9745): clients should use another route since 2026-11-27.
const DEPRECATION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("deprecation"), HeaderValue::from_static("@1795737600"));

/// Answers with a page of events as an array; `Link` carries the path of the next page.
pub(super) async fn of(
    State(reads): State<Arc<Reads>>,
    Extension(public_url): Extension<Arc<str>>,
    aggregate: AggregateType,
    Path(id): Path<String>,
    mut parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    let id = match AggregateId::new(aggregate, &id) {
        Ok(id) => id,
        Err(error) => return invalid(error.to_string()),
    };
    let asked_for = Moment::take(&mut parameters).and_then(|moment| {
        let page = page(&mut parameters)?;
        parameters.end()?;
        Ok((moment, page))
    });
    match asked_for {
        Ok((None, page)) => caching::personal(events(&reads, &public_url, &id, page, &asked).await),
        Ok((Some(moment), _)) => {
            let mut response = caching::personal(as_of::row(&reads, &id, moment, &asked).await);
            let successor = format!("</v1/{}/{}/as-of>; rel=\"successor-version\"", route_name(aggregate), id.id());
            response.headers_mut().extend([DEPRECATION]);
            response.headers_mut().extend(HeaderValue::try_from(successor).map(|link| (header::LINK, link)));
            response
        }
        Err(detail) => invalid(detail),
    }
}

async fn events(
    reads: &Reads,
    public_url: &str,
    id: &AggregateId,
    EventPage { after, limit }: EventPage,
    asked: &ReadOptions,
) -> Response {
    let stream = EventStream::of(id, asked.log);
    // One extra event shows whether there is a next page.
    let shown = match reads.history(asked.log, stream, EventPage { after, limit: limit + 1 }, &asked.fresh).await {
        Ok(shown) => shown,
        Err(error) => return answers::refused(error),
    };
    let page =
        &shown.found[..shown.found.len().min(usize::try_from(limit).expect("the limit was checked by the parser"))];
    if page.is_empty() {
        match is_any(reads, stream, after, asked).await {
            Ok(true) => {}
            Ok(false) => return answers::no_row(format!("{} has no events", id.as_str()), shown.token, None),
            Err(error) => return answers::refused(error),
        }
    }
    let about = About { aggregate: id.as_str(), log: asked.log.id, public_url };
    let body: Result<Vec<_>, _> = page.iter().map(|event| cloud_event(event, &about)).collect();
    match body.and_then(|events| serde_json::to_vec(&events)) {
        Ok(body) => {
            let next = page.last().filter(|_| page.len() < shown.found.len()).map(|last| {
                let aggregates = route_name(id.aggregate());
                format!("/v1/{aggregates}/{}/history?after={}&limit={limit}", id.id(), last.version)
            });
            answers::events(body, shown.token, next)
        }
        Err(error) => {
            tracing::error!(aggregate = id.as_str(), error = %error, "the journal contains invalid JSON");
            answers::refused(ReadError::Unavailable)
        }
    }
}

/// Returns whether the aggregate has any events, given that it has none after `after`. This distinguishes the end of a
/// history from an aggregate that does not exist.
async fn is_any(reads: &Reads, stream: EventStream<'_>, after: i64, asked: &ReadOptions) -> Result<bool, ReadError> {
    Ok(after > 0
        && !reads.events(asked.log, stream, EventPage { after: 0, limit: 1 }, &asked.fresh).await?.found.is_empty())
}

fn page(parameters: &mut Parameters) -> Result<EventPage, String> {
    let limit = parameters.take_limit(MAX_LIMIT, MAX_LIMIT)?;
    let after = match parameters.take_after() {
        Some(text) => {
            text.parse().ok().filter(|after| *after >= 0).ok_or("after must be a version, a number from 0 up")?
        }
        None => 0,
    };
    Ok(EventPage { after, limit })
}

/// Attributes that all events of a page share.
struct About<'a> {
    aggregate: &'a str,
    log: LogId,
    public_url: &'a str,
}

fn cloud_event<'a>(event: &'a JournalEvent, about: &About<'a>) -> Result<CloudEvent<'a>, serde_json::Error> {
    Ok(CloudEvent {
        specversion: "1.0",
        id: format!("{}-{}-{}", event.origin.partition, event.origin.offset, event.version),
        source: format!("/logs/{}", event.origin.log.unwrap_or(about.log)),
        r#type: &event.r#type,
        subject: about.aggregate,
        time: to_rfc3339(TimeMs(event.at_ms.cast_unsigned())),
        datacontenttype: "application/json",
        dataschema: format!("{}{}", about.public_url, schema_path(&event.r#type)),
        version: event.version.cast_unsigned(),
        commandid: &event.command_id,
        cause: event.cause.as_deref(),
        traceparent: event.trace.as_deref(),
        data: serde_json::from_str::<&RawValue>(&event.data)?,
    })
}

#[cfg(test)]
mod tests {
    use schemas::token::Token;
    use serde_json::json;

    use super::*;
    use crate::postgres::Origin;

    fn k7x2() -> LogId {
        "k7x2.0-0".parse::<Token>().unwrap().log
    }

    fn journalled() -> JournalEvent {
        JournalEvent {
            version: 2,
            r#type: "product.repriced.v1".to_owned(),
            data: r#"{"price_cents":7}"#.to_owned(),
            at_ms: 852_121_800_250,
            origin: Origin { log: None, partition: 3, offset: 1042 },
            command_id: "key".to_owned(),
            cause: None,
            trace: None,
        }
    }

    #[test]
    fn a_page_begins_after_a_version_from_0_up() {
        let page = |query: &str| {
            let mut parameters = Parameters::parse(query).unwrap();
            super::page(&mut parameters).map(|page| (page.after, page.limit))
        };
        assert_eq!(page(""), Ok((0, MAX_LIMIT)));
        assert_eq!(page("after="), Ok((0, MAX_LIMIT)));
        assert_eq!(page("after=7&limit=2"), Ok((7, 2)));
        for invalid in ["after=-1", "after=1.5", "after=x", "after=9223372036854775808", "limit=0", "limit=1001"] {
            let (name, _) = invalid.split_once('=').unwrap();
            let error = page(invalid).unwrap_err();
            assert!(error.starts_with(name), "{invalid}: {error}");
        }
    }

    #[test]
    fn an_event_names_its_cause_and_its_trace_if_it_has_them() {
        let about = About { aggregate: "product/cd-1", log: k7x2(), public_url: "" };
        let caused = JournalEvent { cause: Some("2-7-1".into()), trace: Some("00-a-b-01".into()), ..journalled() };
        let event = serde_json::to_value(cloud_event(&caused, &about).unwrap()).unwrap();
        assert_eq!((&event["cause"], &event["traceparent"]), (&json!("2-7-1"), &json!("00-a-b-01")));
    }

    #[test]
    fn an_event_whose_data_is_no_json_is_an_error() {
        let about = About { aggregate: "product/cd-1", log: k7x2(), public_url: "" };
        assert!(cloud_event(&JournalEvent { data: "{".to_owned(), ..journalled() }, &about).is_err());
    }

    #[test]
    fn an_event_leaves_as_a_cloud_event_that_names_its_schema() {
        let about = About { aggregate: "product/cd-1", log: k7x2(), public_url: "https://shop.example" };
        let event = serde_json::to_value(cloud_event(&journalled(), &about).unwrap()).unwrap();
        let expected = json!({
            "specversion": "1.0",
            "id": "3-1042-2",
            "source": "/logs/k7x2",
            "type": "product.repriced.v1",
            "subject": "product/cd-1",
            "time": "1997-01-01T12:30:00.25Z",
            "datacontenttype": "application/json",
            "dataschema": "https://shop.example/schemas/product.repriced.v1.json",
            "version": 2,
            "commandid": "key",
            "data": { "price_cents": 7 },
        });
        assert_eq!(event, expected);
        // The specification limits attribute names to lower-case letters and digits, at most 20.
        let is_name =
            |name: &String| name.len() <= 20 && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
        assert!(event.as_object().unwrap().keys().all(is_name));
    }
}
