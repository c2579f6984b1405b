//! `GET /v1/views`: the catalogue, and how far each view is.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemas::feeds::ViewId;
use schemas::views::{Field, Key, List, VIEWS};
use serde::Serialize;

use super::answers;
use super::request::{Parameters, ReadOptions, invalid};
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
    /// What it shows.
    about: &'a str,
    key: Key,
    fields: &'a [Field],
    /// Query parameters of its lists.
    filters: Vec<&'a str>,
    /// How often the view was made anew, and once for its first making.
    generation: u32,
    /// The orders that there are, and with which filters; each goes backwards, too.
    lists: &'a [List],
    /// As a consistency token; `null`: it shows nothing yet.
    applied: Option<String>,
    /// Records that another view shows and this one does not. How far the log goes, this tier does not know.
    lag: Option<u64>,
    /// How far each server is; `null`: it was not heard of.
    redis: Option<Progress>,
    postgres: Option<Progress>,
}

#[derive(Serialize)]
struct Progress {
    applied: Option<String>,
    /// For how long the log has had records that are not shown; `null`: nobody has told where it ends.
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
    let body = serde_json::to_string(&Catalogue { views }).expect("the catalogue is JSON");
    answers::list(body, None)
}
