//! `GET /v1/views/{view}` and `/v1/views/{view}/{key}`, and the same by their natural names.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use schemas::aggregate::AggregateId;
use schemas::problem::{Problem, ProblemKind};
use schemas::views::{Source, VIEWS};

use super::answers;
use super::request::{Asked, Parameters, invalid};
use crate::positions::Scope;
use crate::postgres::PageQuery;
use crate::reads::Reads;

const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 1000;

pub(super) async fn row_by_name(
    reads: State<Arc<Reads>>,
    Path((view, key)): Path<(String, String)>,
    parameters: Parameters,
    asked: Asked,
) -> Response {
    match named(&view) {
        Some(view) => one(reads, view, &key, parameters, asked).await,
        None => no_view(&view),
    }
}

pub(super) async fn page_by_name(
    reads: State<Arc<Reads>>,
    Path(view): Path<String>,
    parameters: Parameters,
    asked: Asked,
) -> Response {
    match named(&view) {
        Some(view) => page_of(reads, view, parameters, asked).await,
        None => no_view(&view),
    }
}

/// `view`: its index in [`VIEWS`].
pub(super) async fn row_of(
    reads: State<Arc<Reads>>,
    view: usize,
    Path(key): Path<String>,
    (parameters, asked): (Parameters, Asked),
) -> Response {
    one(reads, view, &key, parameters, asked).await
}

async fn one(
    State(reads): State<Arc<Reads>>,
    view: usize,
    key: &str,
    parameters: Parameters,
    asked: Asked,
) -> Response {
    if let Err(detail) = VIEWS[view].key.check(key).and_then(|()| parameters.end()) {
        return invalid(detail);
    }
    let scope = match VIEWS[view].source {
        Source::Sum => Scope::All,
        Source::Aggregate(aggregate) => match AggregateId::new(aggregate, key) {
            Ok(id) => Scope::One(id.partition(asked.log.partitions)),
            Err(error) => return invalid(error.to_string()),
        },
    };
    match reads.row(asked.log, (view, key, scope), &asked.fresh).await {
        Ok(shown) => match shown.found {
            Some(row) => answers::row(row, shown.token, shown.age, &asked),
            None => {
                let detail = format!("the view {} has no row {key:?}", VIEWS[view].name);
                answers::no_row(detail, shown.token, shown.age)
            }
        },
        Err(error) => answers::refused(error),
    }
}

/// `view`: its index in [`VIEWS`].
pub(super) async fn page_of(
    State(reads): State<Arc<Reads>>,
    view: usize,
    parameters: Parameters,
    asked: Asked,
) -> Response {
    let mut query = match page_query(view, parameters) {
        Ok(query) => query,
        Err(detail) => return invalid(detail),
    };
    let limit = usize::try_from(query.limit).expect("checked when it was parsed");
    // One more tells whether there is a next page.
    query.limit += 1;
    match reads.page(asked.log, view, &query, &asked.fresh).await {
        Ok(shown) => answers::list(page_body(&shown.found, limit), shown.token),
        Err(error) => answers::refused(error),
    }
}

fn page_query(view: usize, mut parameters: Parameters) -> Result<PageQuery, String> {
    let view = VIEWS[view];
    let mut query = PageQuery { limit: parameters.take_limit(DEFAULT_LIMIT, MAX_LIMIT)?, ..PageQuery::default() };
    if let Some(after) = parameters.take("after") {
        view.key.check(&after).map_err(|error| format!("after: {error}"))?;
        query.after = after;
    }
    if let Some((from, to)) = view.key_range {
        for (name, bound) in [(from, &mut query.from), (to, &mut query.to)] {
            *bound = parameters.take(name);
            bound.as_deref().map_or(Ok(()), |key| view.key.check(key)).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    parameters.end()?;
    Ok(query)
}

/// `{"rows":[…],"next":"…"}`, of rows that are JSON already.
fn page_body(rows: &[(String, String)], limit: usize) -> String {
    let page = &rows[..rows.len().min(limit)];
    let mut body = String::with_capacity(32 + page.iter().map(|(_, row)| row.len() + 1).sum::<usize>());
    body.push_str("{\"rows\":[");
    for (index, (_, row)) in page.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(row);
    }
    body.push_str("],\"next\":");
    match page.last() {
        // Keys need no escapes.
        Some((key, _)) if rows.len() > limit => body.extend(["\"", key, "\"}"]),
        _ => body.push_str("null}"),
    }
    body
}

fn named(name: &str) -> Option<usize> {
    VIEWS.iter().position(|view| view.name == name)
}

fn no_view(name: &str) -> Response {
    let names = VIEWS.map(|view| view.name).join(", ");
    answers::problem(&Problem::new(ProblemKind::NotFound, format!("there is no view {name:?}; there are {names}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_the_next_one_only_if_there_is_one() {
        let rows = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())];
        assert_eq!(page_body(&rows, 2), r#"{"rows":[1,2],"next":null}"#);
        assert_eq!(page_body(&rows, 1), r#"{"rows":[1],"next":"a"}"#);
        assert_eq!(page_body(&[], 1), r#"{"rows":[],"next":null}"#);
    }
}
