//! Origins that may use the API from a browser (CORS).

use clap::Args;

use super::limits::items;
use crate::part::Launch;

/// The allowed origins, given to the services and to the edge alike.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Origins {
    /// Origin that may use the API from a browser, e.g. `https://shop.example`, or `*` for any; may be given several times
    #[arg(long = "cors-origin", value_name = "ORIGIN", value_parser = origin)]
    origins: Vec<String>,
}

impl Origins {
    /// Parses a list separated by commas.
    pub(super) fn parse(list: &str) -> Result<Self, String> {
        Ok(Self { origins: items(list).map(origin).collect::<Result<_, _>>()? })
    }

    /// Adds the origins to a service's environment.
    pub(crate) fn add_to(&self, launch: Launch) -> Launch {
        if self.origins.is_empty() {
            return launch;
        }
        launch.env("CORS_ORIGINS", if self.are_all() { "*".to_owned() } else { self.origins.join(",") })
    }

    /// Returns the template's placeholders and their values.
    pub(super) fn values(&self) -> Vec<(&'static str, String)> {
        let default = if self.are_all() { "*" } else { "\"\"" };
        let listed = self.origins.iter().filter(|origin| *origin != "*");
        let listed = listed.map(|origin| format!("\n        \"{origin}\" $http_origin;"));
        let lines = format!("        default {default};{}", listed.collect::<String>());
        let vary = if self.origins.is_empty() || self.are_all() { "" } else { "Origin" };
        vec![("origins", lines), ("vary", vary.to_owned())]
    }

    fn are_all(&self) -> bool {
        self.origins.iter().any(|origin| origin == "*")
    }
}

/// Parses an origin as strictly as its use in nginx's configuration requires. The services check the rest.
fn origin(text: &str) -> Result<String, String> {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    let is_origin = text.split_once("://").is_some_and(|(scheme, authority)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && !authority.is_empty()
            && authority.bytes().all(is_of_name)
    });
    if is_origin || text == "*" {
        Ok(text.to_owned())
    } else {
        Err("write it as https://shop.example, or *".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(origins: &[&str], name: &str) -> String {
        let origins = Origins { origins: origins.iter().map(|text| origin(text).unwrap()).collect() };
        origins.values().into_iter().find(|(key, _)| *key == name).unwrap().1
    }

    #[test]
    fn an_answer_depends_on_the_origin_only_where_some_are_listed() {
        assert_eq!((value(&[], "origins"), value(&[], "vary")), ("        default \"\";".into(), String::new()));
        assert_eq!((value(&["*"], "origins"), value(&["*"], "vary")), ("        default *;".into(), String::new()));
        let listed = ["https://shop.example", "http://localhost:3000"];
        assert!(value(&listed, "origins").ends_with("        \"http://localhost:3000\" $http_origin;"));
        assert_eq!(value(&listed, "vary"), "Origin");
    }

    #[test]
    fn only_origins_are_taken() {
        for text in ["shop.example", "https://", "https://a b", "https://shop.example/", "~x", "https://a\" 1; }"] {
            assert!(origin(text).is_err(), "{text}");
        }
    }
}
