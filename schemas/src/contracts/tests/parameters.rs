//! Tests that every list parameter accepted by the read tier is valid according to the OpenAPI document.

use serde_json::{Value, json};

use super::super::openapi;
use crate::views::{Key, Kind, List, Natural, VIEWS, View};

/// Returns the paths of a view's lists, each with the filter implied by the path.
fn paths(view: &View) -> Vec<(String, Option<&'static str>)> {
    let nested = view.nested.iter().map(|nested| {
        let path = format!("/v1/{}/{{id}}/{}", nested.owner, nested.name);
        (path, Some(nested.filter))
    });
    let natural = match view.natural {
        Natural::List(name) => Some((format!("/v1/{name}"), None)),
        Natural::Row(_) => None,
    };
    [("/v1/views/{view}".to_owned(), None)].into_iter().chain(natural).chain(nested).collect()
}

/// Returns whether a list parameter allows a value; `None` if the path has no such parameter.
fn takes(document: &Value, path: &str, name: &str, text: &str) -> Option<bool> {
    let parameters = super::parameters(document, &document["paths"][path]["get"]);
    let schema =
        &parameters.iter().find(|parameter| parameter["in"] == "query" && parameter["name"] == name)?["schema"];
    let validator = jsonschema::draft202012::options().should_validate_formats(true).build(schema).unwrap();
    // Query parameters are text, so the value is also tried as JSON.
    let meant = serde_json::from_str(text).unwrap_or(Value::Null);
    Some(validator.is_valid(&json!(text)) || validator.is_valid(&meant))
}

fn values(kind: Kind) -> Vec<&'static str> {
    let values = match kind {
        Kind::Id => vec!["a", "cd-1.~_Z"],
        Kind::Text => vec!["a b", "größe"],
        Kind::OneOf(values) => values.to_vec(),
        Kind::Integer | Kind::Sum => vec!["-7", "0"],
        Kind::Boolean => vec!["true", "false"],
        Kind::Time | Kind::Array => panic!("no list is filtered by such a field"),
    };
    assert!(values.iter().all(|value| kind.check(value).is_ok()));
    values
}

fn keys(key: Key) -> Vec<&'static str> {
    let keys = match key {
        Key::Id => vec!["a", "cd-1.~_Z"],
        Key::Day => vec!["1997-01-01", "2028-02-29"],
        Key::Minute => vec!["1997-01-01T00:00", "2026-12-31T23:59"],
    };
    assert!(keys.iter().all(|value| key.check(value).is_ok()));
    keys
}

#[test]
fn every_value_that_a_list_accepts_is_valid_by_the_description() {
    let document = openapi::document();
    for view in VIEWS {
        for (path, given) in paths(view) {
            let serves = |list: &&List| given.is_none_or(|given| list.filters.contains(&given));
            let is_taken = |name: &str, text: &str| {
                assert_eq!(takes(&document, &path, name, text), Some(true), "{path}: {name}={text} of {}", view.name);
            };
            for list in view.lists.iter().filter(serves) {
                is_taken("order", list.order);
                is_taken("order", &format!("-{}", list.order));
                for filter in list.filters.iter().filter(|filter| Some(**filter) != given) {
                    let kind = view.field(filter).unwrap().kind;
                    values(kind).into_iter().for_each(|text| is_taken(filter, text));
                }
            }
            if let Some((from, to)) = view.key_range {
                keys(view.key).into_iter().for_each(|text| [from, to].iter().for_each(|name| is_taken(name, text)));
            }
        }
    }
}

#[test]
fn a_value_that_no_list_accepts_is_invalid_by_the_description() {
    let document = openapi::document();
    for (path, name, text, takes_it) in [
        ("/v1/views/{view}", "status", "lost", Some(false)),
        ("/v1/views/{view}", "discontinued", "yes", Some(false)),
        ("/v1/views/{view}", "from", "1997", Some(false)),
        ("/v1/revenue", "from", "1997-01-01T10:00", Some(false)),
        ("/v1/best-sellers", "order", "product", Some(false)),
        // A customer's orders are only listed by time.
        ("/v1/customers/{id}/orders", "order", "key", Some(false)),
        ("/v1/customers/{id}/orders", "status", "placed", None),
        ("/v1/customers/{id}/orders", "customer", "ann", None),
    ] {
        assert_eq!(takes(&document, path, name, text), takes_it, "{path}: {name}={text}");
    }
}

#[test]
fn the_default_order_is_documented() {
    let document = openapi::document();
    for (path, wanted) in [
        ("/v1/best-sellers", "-units"),
        ("/v1/low-stock", "available"),
        ("/v1/revenue", "key"),
        ("/v1/customers/{id}/orders", "-ordered_at"),
    ] {
        let parameters = super::parameters(&document, &document["paths"][path]["get"]);
        let order = parameters.iter().find(|parameter| parameter["name"] == "order").unwrap();
        assert_eq!(order["schema"]["default"], wanted, "{path}");
    }
}

#[test]
fn the_catalogue_of_views_has_the_documented_members() {
    let document = openapi::document();
    let told = &document["components"]["schemas"]["Views"]["properties"]["views"]["items"]["properties"];
    for (written, told) in [
        (serde_json::to_value(&VIEWS[0].lists[0]).unwrap(), &told["lists"]["items"]),
        (serde_json::to_value(&VIEWS[0].fields[0]).unwrap(), &told["fields"]["items"]),
    ] {
        let names = |json: &Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&written), names(&told["properties"]));
        assert!(jsonschema::draft202012::is_valid(told, &written), "{written}");
    }
}
