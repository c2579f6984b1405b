//! Catalogue of the views: `VIEWS.md`.

use domain::Event;

use super::{fields, line, names};
use crate::aggregate::type_name;
use crate::contracts::openapi;
use crate::views::{Key, Natural, Source, VIEWS, View};

const HEAD: &str = "# The views

Generated from the types that write and serve them, with `UPDATE_CONTRACTS=1 cargo test -p schemas contracts`. A view has
its rows at `/v1/views/{view}/{key}` and its lists at `/v1/views/{view}`, and at the paths below. `form` is the version of
its fold. Shared caches keep no row that names people.

| view | paths | key | names people | form | made from |
|---|---|---|---|---|---|
";

/// Returns the catalogue as Markdown. `events` has a sample of each event, with its name.
pub fn markdown(events: &[(&'static str, Event)]) -> String {
    let mut text = HEAD.to_owned();
    for view in VIEWS {
        let anchor = format!("[`{}`](#{})", view.name, view.name);
        let people = if view.is_personal { "yes" } else { "no" };
        let form = view.form.to_string();
        line(&mut text, &[&anchor, &paths(view), key(view.key), people, &form, &source(view, events)]);
    }
    for view in VIEWS {
        describe(&mut text, view);
    }
    text
}

fn paths(view: &View) -> String {
    let own = match (view.natural, view.key_range) {
        (Natural::Row(route), _) => format!("/v1/{route}/{{id}}"),
        (Natural::List(route), None) => format!("/v1/{route}"),
        (Natural::List(route), Some((from, to))) => format!("/v1/{route}?{from}=…&{to}=…"),
    };
    let nested = view.nested.iter().map(|nested| format!("/v1/{}/{{id}}/{}", nested.owner, nested.name));
    names([own].into_iter().chain(nested).collect::<Vec<_>>().iter().map(String::as_str))
}

fn key(key: Key) -> &'static str {
    match key {
        Key::Id => "id",
        Key::Day => "`YYYY-MM-DD`, in UTC",
        Key::Minute => "`YYYY-MM-DDTHH:MM`, in UTC",
    }
}

fn source(view: &View, events: &[(&'static str, Event)]) -> String {
    match view.source {
        Source::Aggregate(fold) => format!("all events of its {}", type_name(fold.aggregate)),
        Source::Sum(fold) => {
            let counted = events.iter().filter(|(_, event)| (fold.delta)("id", event).is_some());
            names(counted.map(|(name, _)| *name))
        }
        Source::View(name) => format!("the rows of `{name}`"),
    }
}

fn describe(text: &mut String, view: &View) {
    text.push_str(&format!("\n## {}\n\n{}\n", view.name, view.about));
    text.push_str(&fields(&openapi::row_data(view)).unwrap_or_default());
    text.push_str("\n| order, backwards with `-` | filters | default |\n|---|---|---|\n");
    for list in view.lists {
        let default = if list.descending { "backwards" } else { "forwards" };
        line(text, &[&format!("`{}`", list.order), &names(list.filters.iter().copied()), default]);
    }
    for nested in view.nested {
        let path = format!("`/v1/{}/{{id}}/{}`", nested.owner, nested.name);
        text.push_str(&format!("\n{path} filters by `{}`, by default ordered by `{}`.\n", nested.filter, nested.order));
    }
}
