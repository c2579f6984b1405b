//! `GET /v1/views/{view}` and `/v1/views/{view}/{key}`, and the natural routes of the same rows and lists.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use schemas::aggregate::AggregateId;
use schemas::feeds::ViewId;
use schemas::problem::ProblemKind;
use schemas::views::{Nested, Source};

use super::parameters::Parameters;
use super::problems::{invalid, problem};
use super::read_options::ReadOptions;
use super::{answers, caching};
use crate::lists::ListQuery;
use crate::positions::Scope;
use crate::postgres::Listed;
use crate::reads::{Reads, Shown};
use crate::row::RowKey;

const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 1000;

pub(super) async fn row_by_name(
    reads: State<Arc<Reads>>,
    Path((view, key)): Path<(String, String)>,
    parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    match ViewId::named(&view) {
        Some(view) => one(reads, view, &key, parameters, asked).await,
        None => no_view(&view),
    }
}

pub(super) async fn page_by_name(
    reads: State<Arc<Reads>>,
    Path(view): Path<String>,
    parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    match ViewId::named(&view) {
        Some(view) => page_of(reads, view, parameters, asked).await,
        None => no_view(&view),
    }
}

pub(super) async fn row_of(
    reads: State<Arc<Reads>>,
    view: ViewId,
    Path(key): Path<String>,
    parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    one(reads, view, &key, parameters, asked).await
}

async fn one(
    State(reads): State<Arc<Reads>>,
    view: ViewId,
    key: &str,
    parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    if let Err(detail) = view.view().key.check(key).and_then(|()| parameters.end()) {
        return invalid(detail);
    }
    let scope = match view.base().view().source {
        Source::Sum(_) | Source::View(_) => Scope::All,
        Source::Aggregate(row) => match AggregateId::new(row.aggregate, key) {
            Ok(id) => Scope::One(id.partition(asked.log.partitions)),
            Err(error) => return invalid(error.to_string()),
        },
    };
    let response = match reads.row(asked.log, RowKey { view, key, scope }, &asked.fresh).await {
        Ok(Shown { found, token, age, is_parked }) => {
            let response = match found {
                Some(row) => answers::row(row, token, age, &asked),
                None => answers::no_row(format!("the view {} has no row {key:?}", view.name()), token, age),
            };
            answers::parked(response, is_parked)
        }
        Err(error) => answers::refused(error),
    };
    kept_by(view, response)
}

pub(super) async fn page_of(
    reads: State<Arc<Reads>>,
    view: ViewId,
    mut parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    let query = limit(&mut parameters)
        .and_then(|limit| ListQuery::parse(view, limit, None, |name| parameters.take(name)))
        .and_then(|query| parameters.end().map(|()| query));
    page(reads, query, &asked).await
}

/// Answers with a list nested under the row `id` of another view.
pub(super) async fn page_under(
    reads: State<Arc<Reads>>,
    view: ViewId,
    nested: &Nested,
    Path(id): Path<String>,
    mut parameters: Parameters,
    asked: ReadOptions,
) -> Response {
    let query = limit(&mut parameters)
        .and_then(|limit| {
            let given = |name: &str| if name == nested.filter { Some(id.clone()) } else { parameters.take(name) };
            ListQuery::parse(view, limit, Some(nested.order), given)
        })
        .and_then(|query| parameters.end().map(|()| query));
    page(reads, query, &asked).await
}

fn limit(parameters: &mut Parameters) -> Result<i64, String> {
    parameters.take_limit(DEFAULT_LIMIT, MAX_LIMIT)
}

async fn page(State(reads): State<Arc<Reads>>, query: Result<ListQuery, String>, asked: &ReadOptions) -> Response {
    let mut query = match query {
        Ok(query) => query,
        Err(detail) => return invalid(detail),
    };
    let limit = usize::try_from(query.limit).expect("the limit was checked by the parser");
    // One extra row shows whether there is a next page.
    query.limit += 1;
    let response = match reads.page(asked.log, &query, &asked.fresh).await {
        Ok(shown) => {
            let response = answers::list(page_body(&query, &shown.found, limit), shown.token);
            answers::parked(response, shown.is_parked)
        }
        Err(error) => answers::refused(error),
    };
    kept_by(query.view, response)
}

/// Forbids caches to keep an answer from a view with personal data.
fn kept_by(view: ViewId, response: Response) -> Response {
    if view.view().is_personal { caching::personal(response) } else { response }
}

/// Assembles `{"rows":[…],"next":"…"}` from rows that are JSON already.
fn page_body(query: &ListQuery, rows: &[Listed], limit: usize) -> String {
    let page = &rows[..rows.len().min(limit)];
    let mut body = String::with_capacity(256 + page.iter().map(|row| row.body.len() + 1).sum::<usize>());
    body.push_str("{\"rows\":[");
    for (index, row) in page.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(&row.body);
    }
    body.push_str("],\"next\":");
    match page.last() {
        // Cursors are base64url, so they need no escaping.
        Some(last) if rows.len() > limit => body.extend(["\"", &query.cursor(&last.position), "\"}"]),
        _ => body.push_str("null}"),
    }
    body
}

fn no_view(name: &str) -> Response {
    let names = ViewId::all().map(ViewId::name).join(", ");
    problem(ProblemKind::NotFound, format!("there is no view {name:?}; there are {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::Position;

    #[test]
    fn a_page_names_the_next_one_only_if_there_is_one() {
        let query = ListQuery::parse(ViewId::named("product").unwrap(), 1, None, |_| None).unwrap();
        let row = |key: &str, body: &str| Listed {
            position: Position { value: key.to_owned(), key: key.to_owned() },
            body: body.to_owned(),
        };
        let rows = [row("a", "1"), row("b", "2")];
        assert_eq!(page_body(&query, &rows, 2), r#"{"rows":[1,2],"next":null}"#);
        let next = query.cursor(&rows[0].position);
        assert_eq!(page_body(&query, &rows, 1), format!(r#"{{"rows":[1],"next":"{next}"}}"#));
        assert_eq!(page_body(&query, &[], 1), r#"{"rows":[],"next":null}"#);
    }
}
