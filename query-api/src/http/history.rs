//! `GET /v1/{aggregates}/{id}/history`: every event of an aggregate, or its state then.

mod then;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use schemas::aggregate::{AggregateId, AggregateType, route_name};
use schemas::contracts::schema_path;
use schemas::time::{TimeMs, to_rfc3339};
use schemas::views::CloudEvent;
use serde_json::value::RawValue;

use then::Moment;

use super::answers;
use super::request::{Asked, Parameters, invalid};
use crate::postgres::JournalEvent;
use crate::reads::Reads;

const MAX_LIMIT: i64 = 1000;

/// A page is an array; the path of the next one is in `Link`.
pub(super) async fn of(
    State(reads): State<Arc<Reads>>,
    Extension(public_url): Extension<Arc<str>>,
    aggregate: AggregateType,
    Path(id): Path<String>,
    mut parameters: Parameters,
    asked: Asked,
) -> Response {
    let id = match AggregateId::new(aggregate, &id) {
        Ok(id) => id,
        Err(error) => return invalid(error.to_string()),
    };
    match Moment::take(&mut parameters) {
        Ok(None) => {}
        Ok(Some(moment)) => {
            return match parameters.end() {
                Ok(()) => then::of(&reads, &id, moment, &asked).await,
                Err(detail) => invalid(detail),
            };
        }
        Err(detail) => return invalid(detail),
    }
    let (after, limit) = match page(&mut parameters).and_then(|page| parameters.end().map(|()| page)) {
        Ok(page) => page,
        Err(detail) => return invalid(detail),
    };
    let place = (id.as_str(), id.partition(asked.log.partitions));
    // One more tells whether there is a next page.
    let shown = match reads.history(asked.log, place, (after, limit + 1), &asked.fresh).await {
        Ok(shown) => shown,
        Err(error) => return answers::refused(error),
    };
    let page = &shown.found[..shown.found.len().min(usize::try_from(limit).expect("checked when it was parsed"))];
    if page.is_empty() && after == 0 {
        return answers::no_row(format!("{id} has no events", id = id.as_str()), shown.token, None);
    }
    let log = format!("/logs/{}", asked.log.id);
    let about = About { aggregate: id.as_str(), log: &log, public_url: &public_url };
    let body: Result<Vec<_>, _> = page.iter().map(|event| cloud_event(event, &about)).collect();
    match body.and_then(|events| serde_json::to_vec(&events)) {
        Ok(body) => {
            let next = page.last().filter(|_| page.len() < shown.found.len()).map(|last| {
                format!("/v1/{}/{}/history?after={}&limit={limit}", route_name(aggregate), id.id(), last.version)
            });
            answers::events(body, shown.token, next)
        }
        Err(error) => {
            tracing::error!(aggregate = id.as_str(), error = %error, "the journal holds data that is not JSON");
            answers::refused(crate::reads::ReadError::Unavailable)
        }
    }
}

/// After which version, and how many.
fn page(parameters: &mut Parameters) -> Result<(i64, i64), String> {
    let limit = parameters.take_limit(MAX_LIMIT, MAX_LIMIT)?;
    let after = match parameters.take("after") {
        Some(text) => text.parse().ok().filter(|after| *after >= 0).ok_or("after is a version")?,
        None => 0,
    };
    Ok((after, limit))
}

/// What the events of a page share.
struct About<'a> {
    aggregate: &'a str,
    log: &'a str,
    public_url: &'a str,
}

fn cloud_event<'a>(event: &'a JournalEvent, about: &About<'a>) -> Result<CloudEvent<'a>, serde_json::Error> {
    Ok(CloudEvent {
        specversion: "1.0",
        id: format!("{}-{}-{}", event.partition, event.offset, event.version),
        source: about.log,
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
    use serde_json::json;

    use super::*;

    fn journalled() -> JournalEvent {
        JournalEvent {
            version: 2,
            r#type: "product.repriced.v1".to_owned(),
            data: r#"{"price_cents":7}"#.to_owned(),
            at_ms: 852_121_800_250,
            partition: 3,
            offset: 1042,
            command_id: "key".to_owned(),
            cause: None,
            trace: None,
        }
    }

    #[test]
    fn an_event_leaves_as_a_cloud_event_that_names_its_schema() {
        let about = About { aggregate: "product/cd-1", log: "/logs/k7x2", public_url: "https://shop.example" };
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
        // Of all attributes the specification wants lower-case letters and digits, 20 at most.
        let is_name =
            |name: &String| name.len() <= 20 && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
        assert!(event.as_object().unwrap().keys().all(is_name));
    }
}
