//! Operations for the rows and lists of every view and the history of every aggregate, generated from their catalogues.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::super::json_schema::written_by;
use super::{Operation, edge_problems, headers, possessive, problems, reference, references, with_article};
use crate::aggregate::{AggregateType, ID_PATTERN, MAX_ID_CHARS, TYPES, route_name, type_name};
use crate::headers::{CONSISTENCY_TOKEN, PARKED};
use crate::problem::ProblemKind;
use crate::views::{
    Field, Key, Kind, List, MAX_EVENTS_FOLDED, Natural, Nested, RowFold, Source, VIEWS, View, row_fold,
};

/// Pattern of a minute; approximate, because it allows 31 days in every month.
const MINUTE: &str = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]$";
/// Header parameters of queries that may return a cached response.
const ASKED: [&str; 3] = [CONSISTENCY_TOKEN.name, "Prefer", "If-None-Match"];
/// Response headers of a row.
const SHOWN: [&str; 6] = [CONSISTENCY_TOKEN.name, "ETag", "Cache-Control", "Vary", "Age", PARKED.name];
/// Response headers of a list.
const LISTED: [&str; 4] = [CONSISTENCY_TOKEN.name, "Cache-Control", "Vary", PARKED.name];

pub(super) fn operations() -> Vec<Operation> {
    let mut all = vec![
        ("/v1/views".to_owned(), "get", views()),
        ("/v1/views/{view}".to_owned(), "get", any_list()),
        ("/v1/views/{view}/{key}".to_owned(), "get", any_row()),
    ];
    for view in VIEWS {
        all.push(match view.natural {
            Natural::Row(name) => (format!("/v1/{name}/{{id}}"), "get", row(view)),
            Natural::List(name) => (format!("/v1/{name}"), "get", list(view, view.name, None)),
        });
        all.extend(view.nested.iter().map(|nested| {
            let path = format!("/v1/{}/{{id}}/{}", nested.owner, nested.name);
            (path, "get", list(view, &format!("{}.{}", nested.owner, nested.name), Some(nested)))
        }));
    }
    for aggregate in TYPES {
        let path = format!("/v1/{}/{{id}}", route_name(aggregate));
        all.push((format!("{path}/history"), "get", history(aggregate)));
        all.push((format!("{path}/as-of"), "get", as_of(aggregate)));
    }
    all
}

/// Returns the tag of a view: the route name of its aggregate, or `views` if it is not fed by one aggregate.
fn tag(view: &View) -> &'static str {
    match view.source {
        Source::Aggregate(RowFold { aggregate, .. }) => route_name(aggregate),
        Source::Sum(_) | Source::View(_) => "views",
    }
}

/// Returns the component name of a view's row schema.
fn schema_name(view: &View) -> String {
    format!("views.{}", view.name)
}

/// Returns the row schemas of all views, by component name.
pub(super) fn schemas() -> Map<String, Value> {
    VIEWS.iter().map(|view| (schema_name(view), row_schema(view))).collect()
}

fn row_schema(view: &View) -> Value {
    json!({
        "type": "object",
        "description": format!("A row of the view `{}`. {}", view.name, view.about),
        "properties": {
            "key": key(view.key),
            "version": { "type": "integer", "minimum": 0, "description": "Version of the row, as in the `ETag`." },
            "data": data(view),
        },
        "required": ["key", "version", "data"],
    })
}

pub(super) fn data(view: &View) -> Value {
    match view.source {
        Source::Aggregate(RowFold { schema, .. }) => written_by(schema),
        Source::Sum(_) | Source::View(_) => {
            let names: Vec<_> = view.fields.iter().map(|field| field.name).collect();
            json!({ "type": "object", "properties": fields(view.fields), "required": names })
        }
    }
}

fn fields(fields: &[Field]) -> Value {
    fields.iter().map(|field| (field.name.to_owned(), kind(field.kind))).collect::<Map<_, _>>().into()
}

fn kind(kind: Kind) -> Value {
    match kind {
        Kind::Id => id(),
        Kind::Text => json!({ "type": "string" }),
        Kind::OneOf(values) => json!({ "type": "string", "enum": values }),
        Kind::Integer | Kind::Sum => json!({ "type": "integer", "format": "int64" }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Time => json!({ "type": "string", "format": "date-time" }),
        Kind::Array => json!({ "type": "array" }),
    }
}

pub(super) fn id() -> Value {
    json!({ "type": "string", "pattern": ID_PATTERN, "minLength": 1, "maxLength": MAX_ID_CHARS })
}

fn key(key: Key) -> Value {
    match key {
        Key::Id => id(),
        Key::Day => json!({ "type": "string", "format": "date" }),
        Key::Minute => json!({ "type": "string", "pattern": MINUTE }),
    }
}

fn in_query(name: &str, words: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "query", "description": words, "schema": schema })
}

fn in_path(name: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": schema })
}

/// Returns the problems that every query may be answered with, by status.
fn problems_of_all() -> Map<String, Value> {
    let kinds = [
        ProblemKind::InvalidRequest,
        ProblemKind::TokenAhead,
        ProblemKind::NotYet,
        ProblemKind::Parked,
        ProblemKind::Overloaded,
        ProblemKind::Unavailable,
    ];
    let mut answers = problems(&kinds, &[CONSISTENCY_TOKEN.name, "Cache-Control", "Vary"]);
    answers.extend(problems(&[ProblemKind::NotFound], &[CONSISTENCY_TOKEN.name, "Cache-Control", "Vary", "Age"]));
    let unchanged = json!({ "description": "The version matches `If-None-Match`.", "headers": headers(&SHOWN) });
    answers.insert("304".to_owned(), unchanged);
    answers
}

fn shared_name(status: &str) -> String {
    format!("query.{status}")
}

/// Returns the responses that all queries share, by component name.
pub(super) fn shared() -> Map<String, Value> {
    problems_of_all().into_iter().map(|(status, answer)| (shared_name(&status), answer)).collect()
}

/// Returns the responses of a query. With `is_one`, the result may also not exist or be unchanged.
fn responses(found: Value, is_one: bool) -> Map<String, Value> {
    let mut responses = Map::from_iter(edge_problems());
    let statuses: &[&str] = if is_one { &["304", "400", "404", "503"] } else { &["400", "503"] };
    for status in statuses {
        responses.insert((*status).to_owned(), reference("responses", &shared_name(status)));
    }
    responses.insert("200".to_owned(), found);
    responses
}

fn ok(words: &str, with: &[&str], media_type: &str, schema: &Value) -> Value {
    json!({ "description": words, "headers": headers(with), "content": { media_type: { "schema": schema } } })
}

fn one_of_all() -> Value {
    json!({ "anyOf": VIEWS.map(|view| reference("schemas", &schema_name(view))) })
}

fn page(row: &Value) -> Value {
    let next = json!({ "type": ["string", "null"], "description": "Value of `after` for the next page; `null` on the last page." });
    json!({
        "type": "object",
        "properties": { "rows": { "type": "array", "items": row }, "next": next },
        "required": ["rows", "next"],
    })
}

fn row(view: &View) -> Value {
    let mut parameters = vec![in_path("id", &key(view.key))];
    parameters.extend(references("parameters", ASKED));
    let found = ok("The row.", &SHOWN, "application/json", &reference("schemas", &schema_name(view)));
    json!({
        "operationId": format!("{}.row", view.name),
        "tags": [tag(view)],
        "summary": format!("Get {}", with_article(view.name)),
        "description": view.about,
        "parameters": parameters,
        "responses": responses(found, true),
    })
}

fn any_row() -> Value {
    let mut parameters = references("parameters", ["view"]);
    parameters.push(in_path("key", &json!({ "type": "string" })));
    parameters.extend(references("parameters", ASKED));
    json!({
        "operationId": "views.row",
        "tags": ["views"],
        "summary": "Get a row of a view",
        "parameters": parameters,
        "responses": responses(ok("The row.", &SHOWN, "application/json", &one_of_all()), true),
    })
}

fn list(view: &View, name: &str, nested: Option<&Nested>) -> Value {
    let mut parameters: Vec<_> = nested.iter().map(|_| in_path("id", &id())).collect();
    parameters.extend(list_parameters(view, nested));
    parameters.extend(references("parameters", ["limit", "after", CONSISTENCY_TOKEN.name, "Prefer"]));
    let schema = page(&reference("schemas", &schema_name(view)));
    json!({
        "operationId": format!("{name}.list"),
        "tags": [tag(view)],
        "summary": match nested {
            Some(nested) => format!("List a {}'s {}", nested.owner.trim_end_matches('s'), nested.name),
            None => format!("List {}", view.name.replace('_', " ")),
        },
        "description": format!("{} {}", view.about, orders(view, nested)),
        "parameters": parameters,
        "responses": responses(ok("A page.", &LISTED, "application/json", &schema), false),
    })
}

fn any_list() -> Value {
    let mut parameters = references("parameters", ["view", "limit", "after", CONSISTENCY_TOKEN.name, "Prefer"]);
    parameters.extend(any_list_parameters());
    let lists: Vec<_> = VIEWS.iter().map(|view| format!("`{}`: {}", view.name, orders(view, None))).collect();
    let mut responses = responses(ok("A page.", &LISTED, "application/json", &page(&one_of_all())), false);
    responses.insert("404".to_owned(), reference("responses", &shared_name("404")));
    json!({
        "operationId": "views.list",
        "tags": ["views"],
        "summary": "List a view's rows",
        "description": lists.join("\n\n"),
        "parameters": parameters,
        "responses": responses,
    })
}

/// Returns the list parameters of all views. A parameter that several views have accepts the values of any of them,
/// since the view is given by the path.
fn any_list_parameters() -> Vec<Value> {
    let order = json!({ "type": "string", "pattern": "^-?[a-z_]+$" });
    let mut parameters = vec![in_query("order", "An order that the view supports; prefix `-` for descending.", &order)];
    for own in VIEWS.iter().flat_map(|view| list_parameters(view, None)).filter(|own| own["name"] != "order") {
        match parameters.iter_mut().find(|known| known["name"] == own["name"]) {
            Some(known) => known["schema"] = either(&known["schema"], &own["schema"]),
            None => parameters.push(own),
        }
    }
    parameters
}

fn either(known: &Value, own: &Value) -> Value {
    let mut schemas = known["anyOf"].as_array().cloned().unwrap_or_else(|| vec![known.clone()]);
    if !schemas.contains(own) {
        schemas.push(own.clone());
    }
    match <[Value; 1]>::try_from(schemas) {
        Ok([only]) => only,
        Err(several) => json!({ "anyOf": several }),
    }
}

/// Returns the available lists: all of the view, or those below a row of another view.
fn lists<'a>(view: &'a View, nested: Option<&'a Nested>) -> impl Iterator<Item = &'a List> {
    view.lists.iter().filter(move |list| nested.is_none_or(|nested| list.filters.contains(&nested.filter)))
}

/// Returns the parameters `order`, filters and key range, as declared by the view.
fn list_parameters(view: &View, nested: Option<&Nested>) -> Vec<Value> {
    let is_fixed = |name: &str| nested.is_some_and(|nested| nested.filter == name);
    let orders: BTreeSet<_> = lists(view, nested).map(|list| list.order).collect();
    let orders: Vec<_> = orders.into_iter().flat_map(|order| [order.to_owned(), format!("-{order}")]).collect();
    let mut schema = json!({ "type": "string", "enum": orders });
    if let Some(default) = default_order(view, nested) {
        schema["default"] = default.into();
    }
    let mut parameters = vec![in_query("order", "Prefix `-` for descending.", &schema)];
    let filters: BTreeSet<_> = lists(view, nested).flat_map(|list| list.filters).copied().collect();
    for field in view.fields.iter().filter(|field| filters.contains(field.name) && !is_fixed(field.name)) {
        parameters.push(in_query(field.name, "Only rows with this value.", &kind(field.kind)));
    }
    if let Some((from, to)) = view.key_range {
        parameters.push(in_query(from, "First key, inclusive.", &key(view.key)));
        parameters.push(in_query(to, "Last key, inclusive.", &key(view.key)));
    }
    parameters
}

/// Returns the order that applies if the request names neither an order nor a filter.
fn default_order(view: &View, nested: Option<&Nested>) -> Option<String> {
    let declared = nested.map(|nested| nested.order.to_owned());
    declared.or_else(|| view.lists.iter().find(|list| list.filters.is_empty()).map(directed))
}

/// Returns the order of a list in its default direction.
fn directed(list: &List) -> String {
    format!("{}{}", if list.descending { "-" } else { "" }, list.order)
}

/// Returns documentation of the supported combinations of orders and filters. Others have no index and are refused.
fn orders(view: &View, nested: Option<&Nested>) -> String {
    let is_free = |name: &&&str| nested.is_none_or(|nested| nested.filter != **name);
    let orders = lists(view, nested).map(|list| {
        let filters: Vec<_> = list.filters.iter().filter(is_free).copied().collect();
        match &*filters {
            [] => format!("by `{}`", directed(list)),
            filters => format!("by `{}` with `{}`", directed(list), filters.join("`, `")),
        }
    });
    let orders: Vec<_> = orders.collect();
    match nested {
        Some(nested) => format!("Supported lists: {}. The default `order` is `{}`.", orders.join(", "), nested.order),
        None => format!(
            "Supported lists: {}. The default `order` is the first that supports the given filters.",
            orders.join(", ")
        ),
    }
}

fn views() -> Value {
    let found = ok("The views.", &["Cache-Control", "Vary"], "application/json", &reference("schemas", "Views"));
    json!({
        "operationId": "views",
        "tags": ["views"],
        "summary": "List the views",
        "description": "Fields, lists and progress of each view.",
        "responses": responses(found, false),
    })
}

fn history(aggregate: AggregateType) -> Value {
    let aggregates = route_name(aggregate);
    let mut parameters = references("parameters", ["id", "history-limit", "history-after"]);
    parameters.extend(references("parameters", ["history-version", "history-at"]));
    parameters.extend(references("parameters", ASKED));
    let (then, _) = row_fold(aggregate);
    let content = json!({
        "application/json": { "schema": reference("schemas", &schema_name(then)) },
        "application/cloudevents-batch+json": {
            "schema": { "type": "array", "items": reference("schemas", "CloudEvent") },
        },
    });
    let found = json!({
        "description": "A page of events, oldest first, with a `Link` to the next page. With the deprecated parameters \
            `version` or `at`, the past state of the row, with the header `Deprecation`.",
        "headers": headers(&[CONSISTENCY_TOKEN.name, "ETag", "Cache-Control", "Vary", "Link", "Deprecation"]),
        "content": content,
    });
    json!({
        "operationId": format!("{aggregates}.history"),
        "tags": [aggregates],
        "summary": format!("List {} events", possessive(aggregate)),
        "description": "All events of the aggregate, as CloudEvents.",
        "parameters": parameters,
        "responses": responses(found, true),
    })
}

fn as_of(aggregate: AggregateType) -> Value {
    let aggregates = route_name(aggregate);
    let mut parameters = references("parameters", ["id", "version", "at"]);
    parameters.extend(references("parameters", ASKED));
    let (view, _) = row_fold(aggregate);
    let shown = [CONSISTENCY_TOKEN.name, "ETag", "Cache-Control", "Vary"];
    let row = ok("The past state of the row.", &shown, "application/json", &reference("schemas", &schema_name(view)));
    json!({
        "operationId": format!("{aggregates}.as-of"),
        "tags": [aggregates],
        "summary": format!("Get {} as of a version or a time", with_article(type_name(aggregate))),
        "description": format!(
            "Requires either `version` or `at`. The state is folded from the events up to then, or from the newest row \
             and the events after it. A request that requires more than {MAX_EVENTS_FOLDED} events is refused."
        ),
        "parameters": parameters,
        "responses": responses(row, true),
    })
}
