//! Variables that no service reads and that look like misspelt settings.

use super::{Env, Setting};

/// Ends of the names that Kubernetes gives a pod for each service of its namespace: they begin with the service's name,
/// which may be like a setting's.
const OF_A_POD: [&str; 3] = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"];
const WITHIN_OF_A_POD: [&str; 4] = ["_SERVICE_PORT_", "_TCP", "_UDP", "_SCTP"];

/// A variable that may be a misspelt setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is no setting; is {similar} meant?")]
pub struct Strange {
    pub name: String,
    /// The name of the setting.
    pub similar: String,
}

impl Env {
    /// Returns the variables that are none of `settings` and have a name like one of theirs.
    pub fn strange(&self, settings: &[Setting]) -> Vec<Strange> {
        let known: Vec<String> = settings.iter().flat_map(Setting::variables).collect();
        let unknown = self.variables.keys().filter(|name| !known.contains(name) && !is_of_a_pod(name));
        let strange = unknown.filter_map(|name| {
            let similar = known.iter().find(|known| is_similar(&name.to_ascii_uppercase(), known))?;
            Some(Strange { name: name.clone(), similar: similar.clone() })
        });
        strange.collect()
    }
}

fn is_of_a_pod(name: &str) -> bool {
    OF_A_POD.iter().any(|end| name.ends_with(end)) || WITHIN_OF_A_POD.iter().any(|part| name.contains(part))
}

/// Returns whether one name probably stands for the other: up to two letters differ, fewer in a short name, or one of
/// them has further words at its end, such as a unit.
fn is_similar(name: &str, known: &str) -> bool {
    let is_beginning = |short: &str, long: &str| {
        short.contains('_') && long.strip_prefix(short).is_some_and(|rest| rest.starts_with('_'))
    };
    let typos = match name.len().min(known.len()) {
        0..5 => 0,
        5..9 => 1,
        _ => 2,
    };
    is_beginning(name, known) || is_beginning(known, name) || distance(name, known) <= typos
}

/// Returns the number of letters to insert, remove or replace in order to make one text of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an environment in which all of these settings were read.
    fn read(names: &[&str], secrets: &[&str]) -> Vec<Setting> {
        let env = Env::default();
        names.iter().for_each(|name| assert_eq!(env.optional::<String>(name), Ok(None)));
        secrets.iter().for_each(|name| assert!(env.optional_secret(name).unwrap().is_none()));
        env.settings()
    }

    #[test]
    fn a_misspelt_setting_is_pointed_out() {
        let names = ["LOG", "KAFKA_BROKERS", "HTTP_ADDR", "IDEMPOTENCY_WINDOW_SECS", "SHUTDOWN_GRACE_MS"];
        let settings = read(&names, &["POSTGRES_URL", "SERVICE_TOKEN"]);
        for (name, similar) in [
            ("POSTGRES_URLS", "POSTGRES_URL"),
            ("POSTGRES_URI", "POSTGRES_URL"),
            ("KAFKA_BROKER", "KAFKA_BROKERS"),
            ("KAFAK_BROKERS", "KAFKA_BROKERS"),
            ("KAFKA_BROKERS_FILE", "KAFKA_BROKERS"),
            ("kafka_brokers", "KAFKA_BROKERS"),
            ("IDEMPOTENCY_WINDOW", "IDEMPOTENCY_WINDOW_SECS"),
            ("SHUTDOWN_GRACE", "SHUTDOWN_GRACE_MS"),
            ("SERVICE_TOKENS_FILE", "SERVICE_TOKEN_FILE"),
        ] {
            let strange = Env::from([(name, "x")]).strange(&settings);
            assert_eq!(strange.len(), 1, "{name}");
            assert_eq!((strange[0].name.as_str(), strange[0].similar.as_str()), (name, similar));
        }
        let known = Env::from([("KAFKA_BROKERS", "x"), ("POSTGRES_URL_FILE", "x")]);
        assert_eq!(known.strange(&settings), []);
    }

    #[test]
    fn usual_variables_of_a_container_and_of_a_pod_are_no_settings() {
        let names = ["LOG", "LOG_FORMAT", "KAFKA_BROKERS", "HTTP_ADDR", "PARTITIONS", "PUBLIC_URL", "REDIS_PREFIX"];
        let settings = read(&names, &["POSTGRES_URL", "REDIS_URL", "SERVICE_TOKEN"]);
        let usual = [
            "PATH",
            "HOME",
            "HOSTNAME",
            "LANG",
            "LC_ALL",
            "PWD",
            "SHLVL",
            "TERM",
            "USER",
            "LOGNAME",
            "TZ",
            "_",
            "HTTP_PROXY",
            "https_proxy",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "POD_NAME",
            "POD_IP",
            "NODE_NAME",
            "KUBERNETES_SERVICE_HOST",
            "KUBERNETES_PORT_443_TCP_ADDR",
            "KUBERNETES_SERVICE_PORT_HTTPS",
            "POSTGRES_USER",
            "POSTGRES_DB",
            "POSTGRES_HOST",
            "POSTGRES_PORT",
            "POSTGRES_SERVICE_HOST",
            "REDIS_HOST",
            "REDIS_PORT",
            "REDIS_PORT_6379_TCP",
            "REDIS_PORT_6379_TCP_PROTO",
            "KAFKA_PORT",
            "KAFKA_BROKERS_SERVICE_HOST",
            "KAFKA_BROKERS_PORT_9092_TCP",
            "KAFKA_BROKERS_SERVICE_PORT_TCP_CLIENTS",
            "COMMAND_API_SERVICE_HOST",
            "QUERY_API_PORT_8082_TCP",
            "RUST_LOG",
            "RUST_BACKTRACE",
            "CARGO_HOME",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "JAVA_HOME",
            "GIT_COMMIT",
        ];
        let env: Env = usual.map(|name| (name, "x")).into_iter().collect();
        assert_eq!(env.strange(&settings), []);
    }

    #[test]
    fn a_setting_of_one_service_is_not_taken_for_one_of_another() {
        let services = ["command-api", "projector", "query-api"].map(crate::reference::variables);
        for own in &services {
            let names: Vec<&str> = own.iter().map(String::as_str).collect();
            let settings = read(&names, &[]);
            let env: Env = services.iter().flatten().map(|name| (name.as_str(), "x")).collect();
            assert_eq!(env.strange(&settings), []);
        }
    }
}
