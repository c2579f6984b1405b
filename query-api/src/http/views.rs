//! `GET /v1/views`: the catalogue of views and their progress.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemas::feeds::ViewId;
use schemas::views::{Field, Key, List, VIEWS};
use serde::Serialize;

use super::answers;
use super::parameters::Parameters;
use super::problems::invalid;
use super::read_options::ReadOptions;
use crate::lists;
use crate::positions;
use crate::reads::Reads;

#[derive(Serialize)]
struct Catalogue<'a> {
    views: [Entry<'a>; VIEWS.len()],
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    /// Description of the view for people.
    about: &'a str,
    key: Key,
    fields: &'a [Field],
    /// Query parameters that the view's lists accept.
    filters: Vec<&'a str>,
    /// Number of times the view has been built: 1 at first, one more per rebuild.
    generation: u32,
    /// The available orders with their filters; each can also be reversed.
    lists: &'a [List],
    /// Consistency token of the records that the view shows; `null` if it shows none yet.
    applied: Option<String>,
    /// Number of records that another view shows and this one does not. This tier does not read the log, so it cannot
    /// compare with the log's end.
    lag: Option<u64>,
    /// Progress of each server; `null` if it has not been reached yet.
    redis: Option<Progress>,
    postgres: Option<Progress>,
}

#[derive(Serialize)]
struct Progress {
    applied: Option<String>,
    /// Age of the oldest record that is not shown; `null` if the end of the log is unknown.
    behind_secs: Option<f64>,
}

impl Progress {
    fn of(positions::Progress { applied, behind }: positions::Progress) -> Self {
        Self { applied, behind_secs: behind.map(|behind| behind.as_secs_f64()) }
    }
}

pub(super) async fn list(State(reads): State<Arc<Reads>>, parameters: Parameters, _: ReadOptions) -> Response {
    if let Err(detail) = parameters.end() {
        return invalid(detail);
    }
    let views = ViewId::all().map(|id| {
        let view = id.view();
        let [redis, postgres] = reads.positions.progress(id.feed()).map(|progress| progress.map(Progress::of));
        let range = view.key_range.map_or(vec![], |(from, to)| vec![from, to]);
        Entry {
            name: view.name,
            about: view.about,
            key: view.key,
            fields: view.fields,
            generation: reads.positions.generation(id.base()),
            filters: ["limit", "after", "order"].into_iter().chain(range).chain(lists::filters(view)).collect(),
            lists: view.lists,
            applied: reads.positions.shown(id.feed()),
            lag: reads.positions.lag(id.feed()),
            redis,
            postgres,
        }
    });
    let body = serde_json::to_string(&Catalogue { views }).expect("the catalogue serializes to JSON");
    answers::list(body, None)
}
