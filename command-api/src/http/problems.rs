//! `GET /problems/{slug}`: the explanation that a problem's `type` links to.

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use schemas::problem::{Problem, ProblemKind};

use super::answers;

pub(super) async fn explain(Path(slug): Path<String>) -> Response {
    match ProblemKind::ALL.into_iter().find(|kind| kind.slug() == slug) {
        Some(kind) => {
            let text = format!("{} ({})\n\n{}\n", kind.slug(), kind.status(), kind.explanation());
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
        }
        None => answers::problem(&Problem::new(ProblemKind::NotFound, "no such problem type")),
    }
}
