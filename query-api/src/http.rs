//! HTTP routes, generated from the catalogue of views.

mod answers;
mod caching;
mod documents;
mod history;
mod as_of;
mod read_options;
mod parameters;
mod problems;
mod rows;
mod views;
pub(crate) mod status;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use chassis::border::{Border, Origins};
use schemas::aggregate::{TYPES, route_name};
use schemas::contracts::routes;
use schemas::feeds::ViewId;
use schemas::headers::{EXPOSED, SENT};
use schemas::problem::Problem;
use schemas::views::Natural;

use caching::Asker;

use crate::reads::Reads;
use crate::status::Latest;

/// Returns the border of the client listener, which also answers requests for unknown paths and methods.
pub(crate) fn border(origins: Origins) -> Border {
    let (sent, exposed) = (HeaderValue::from_static(SENT), HeaderValue::from_static(EXPOSED));
    Border { problem: Problem::json_of_status, allow: routes::allow, origins, sent, exposed, ..Border::plain() }
}

/// Builds the routes. `public_url` is the URL at which clients reach the system, without a trailing slash.
pub(crate) fn router(reads: Arc<Reads>, public_url: Arc<str>, latest: Latest) -> Router {
    let mut router = Router::new()
        .route("/v1/status", get(status::public).layer(Extension(latest)))
        .route("/v1/views", get(views::list))
        .route("/v1/views/{view}", get(rows::page_by_name))
        .route("/v1/views/{view}/{key}", get(rows::row_by_name));
    for view in ViewId::all() {
        router = match view.view().natural {
            Natural::Row(name) => router.route(
                &format!("/v1/{name}/{{id}}"),
                get(async move |reads, key, query, asked| rows::row_of(reads, view, key, query, asked).await),
            ),
            Natural::List(name) => router.route(
                &format!("/v1/{name}"),
                get(async move |reads, query, asked| rows::page_of(reads, view, query, asked).await),
            ),
        };
        for nested in view.view().nested {
            router = router.route(
                &format!("/v1/{}/{{id}}/{}", nested.owner, nested.name),
                get(async move |reads, id, query, asked| rows::page_under(reads, view, nested, id, query, asked).await),
            );
        }
    }
    for aggregate in TYPES {
        router = router.route(
            &format!("/v1/{}/{{id}}/history", route_name(aggregate)),
            get(async move |reads, url, id, query, asked| history::of(reads, url, aggregate, id, query, asked).await)
                .layer(Extension(public_url.clone())),
        );
        router = router.route(
            &format!("/v1/{}/{{id}}/as-of", route_name(aggregate)),
            get(async move |reads, id, query, asked| as_of::of(reads, aggregate, id, query, asked).await),
        );
    }
    router.merge(documents::routes()).layer(middleware::from_fn_with_state(reads.clone(), finish)).with_state(reads)
}

/// Adds the caching headers and counts the answer. This is one layer because each layer costs a request an allocation
/// or two.
async fn finish(State(reads): State<Arc<Reads>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let asker = Asker::of(request.headers());
    let mut response = next.run(request).await;
    caching::state(&mut response, asker);
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    reads.metrics.answered(route.to_owned(), response.status().as_u16(), begun.elapsed());
    response
}
