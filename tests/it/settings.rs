//! Settings that contradict each other: each service refuses them with what to do, beside everything else that is wrong.

use chassis::env::{Env, Survey};

/// Settings, the services that refuse them, and a part of the advice.
type Case = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static str);

const ALL: &[&str] = &["command-api", "projector", "query-api"];
const READ_THE_LOG: &[&str] = &["command-api", "projector"];
const USE_REDIS: &[&str] = &["projector", "query-api"];
const COMMAND_API: &[&str] = &["command-api"];
const PROJECTOR: &[&str] = &["projector"];
const QUERY_API: &[&str] = &["query-api"];

const PLAIN_POSTGRES: (&str, &str) = ("POSTGRES_URL", "postgres://me:hunter2@host/db");
const PLAIN_REDIS: (&str, &str) = ("REDIS_URL", "redis://me:hunter2@host:1");
const SSL: (&str, &str) = ("KAFKA_SECURITY", "ssl");
const SASL: (&str, &str) = ("KAFKA_SECURITY", "sasl_ssl");
const OWN: (&str, &str) = ("INTERNAL_URL", "http://commands-1:8181");

const LISTENERS: &[Case] = &[
    (ALL, &[("TLS_CERT_FILE", "c.pem")], "TLS_KEY_FILE must be set"),
    (ALL, &[("TLS_KEY_FILE", "c.key")], "TLS_CERT_FILE must be set"),
    (ALL, &[("ADMIN_ADDR", "0.0.0.0:8299")], "set TLS_CERT_FILE and TLS_KEY_FILE, or"),
    (COMMAND_API, &[("HTTP_ADDR", "127.0.0.1:8181")], "HTTP_ADDR and INTERNAL_ADDR have the same port"),
    (QUERY_API, &[("HTTP_ADDR", "127.0.0.1:8282")], "HTTP_ADDR and ADMIN_ADDR have the same port"),
    (
        COMMAND_API,
        &[("INTERNAL_ADDR", "0.0.0.0:8181"), ("PLAINTEXT", "allowed")],
        "INTERNAL_URL must be set, such as to https://host:8181",
    ),
    (COMMAND_API, &[OWN, ("PEER_URLS", "http://commands-2:*")], "PEER_URLS does not allow INTERNAL_URL"),
    (
        COMMAND_API,
        &[OWN, ("TLS_CERT_FILE", "c.pem"), ("TLS_KEY_FILE", "c.key")],
        "INTERNAL_URL must begin with https://",
    ),
];

const SERVERS: &[Case] = &[
    (ALL, &[("POSTGRES_URL", "postgres://host/db?sslmode=prefer")], "write verify-full"),
    (ALL, &[("POSTGRES_URL", "postgres://host/db?sslmode=full")], "neither verify-full nor disable"),
    (ALL, &[PLAIN_POSTGRES, ("POSTGRES_PASSWORD", "hunter2")], "the URL has a password, too: remove one"),
    (ALL, &[PLAIN_POSTGRES, ("POSTGRES_CA_FILE", "/ca.pem")], "add sslmode=verify-full"),
    (QUERY_API, &[("POSTGRES_REPLICA_URLS", "postgres://host/db?sslmode=allow")], "write verify-full"),
    (USE_REDIS, &[PLAIN_REDIS, ("REDIS_PASSWORD", "hunter2")], "REDIS_URL has a password, too: remove one"),
    (USE_REDIS, &[PLAIN_REDIS, ("REDIS_CA_FILE", "/ca.pem")], "let it begin with rediss"),
    (READ_THE_LOG, &[("KAFKA_PASSWORD", "hunter2")], "KAFKA_SECURITY is plaintext: set it to sasl_ssl"),
    (READ_THE_LOG, &[("KAFKA_CA_FILE", "/ca.pem")], "KAFKA_SECURITY is plaintext: set it to ssl or sasl_ssl"),
    (READ_THE_LOG, &[SSL, ("KAFKA_USERNAME", "shop")], "KAFKA_SECURITY is ssl, without accounts: set it to sasl_ssl"),
    (READ_THE_LOG, &[SSL, ("KAFKA_CERT_FILE", "c.pem")], "KAFKA_KEY_FILE must be set"),
    (READ_THE_LOG, &[SSL, ("KAFKA_KEY_FILE", "c.key")], "KAFKA_CERT_FILE must be set"),
    (READ_THE_LOG, &[SASL, ("KAFKA_PASSWORD", "hunter2")], "KAFKA_USERNAME must be set"),
    (READ_THE_LOG, &[SASL, ("KAFKA_USERNAME", "shop")], "KAFKA_PASSWORD must be set"),
];

const LIMITS: &[Case] = &[
    (READ_THE_LOG, &[("EVENTS_PARTITIONS", "0")], "EVENTS_PARTITIONS must be greater"),
    (READ_THE_LOG, &[("EVENTS_MIN_ISR", "0")], "EVENTS_MIN_ISR must be greater"),
    (READ_THE_LOG, &[("EVENTS_MIN_ISR", "2")], "raise EVENTS_REPLICATION"),
    (READ_THE_LOG, &[("EVENTS_REPLICATION", "0"), ("EVENTS_MIN_ISR", "0")], "EVENTS_REPLICATION must be greater"),
    (READ_THE_LOG, &[("IDEMPOTENCY_WINDOW_SECS", "0")], "IDEMPOTENCY_WINDOW_SECS must be greater"),
    (COMMAND_API, &[("PARTITIONS", "0-4"), ("EVENTS_PARTITIONS", "4")], "beyond the 4 of EVENTS_PARTITIONS"),
    (COMMAND_API, &[("STATE_MAX_MIB", "0")], "STATE_MAX_MIB must be greater"),
    (PROJECTOR, &[("PAYMENT_WINDOW_SECS", "0")], "PAYMENT_WINDOW_SECS must be greater"),
    (PROJECTOR, &[("CONFIRM_WITHIN_SECS", "0")], "CONFIRM_WITHIN_SECS must be greater"),
    (PROJECTOR, &[("REACTOR_COMMAND_URLS", "http://c:8181"), ("SERVICE_TOKEN", "")], "requires SERVICE_TOKEN"),
    (QUERY_API, &[("POSTGRES_CONNECTIONS", "0")], "POSTGRES_CONNECTIONS must be greater"),
    (QUERY_API, &[("REDIS_CALLS", "0")], "REDIS_CALLS must be greater"),
    (QUERY_API, &[("POSTGRES_QUEUE_MS", "0")], "set POSTGRES_QUEUE=0 as well"),
    (QUERY_API, &[("PUBLIC_URL", "shop.example")], "PUBLIC_URL must be a URL such as"),
];

/// Reads all settings of a service, of which those of no case are right.
fn survey(service: &str, settings: &[(&str, &str)]) -> Survey {
    let right = [
        ("POSTGRES_URL", "postgres://host/db"),
        ("REDIS_URL", "redis://host:1"),
        ("SERVICE_TOKEN", "0123456789abcdef"),
    ];
    let env: Env = right.into_iter().chain(settings.iter().copied()).collect();
    match service {
        "command-api" => env.survey(command_api::Config::from_env),
        "projector" => env.survey(projector::Config::from_env),
        "query-api" => env.survey(query_api::Config::from_env),
        _ => unreachable!("there are three services"),
    }
}

#[test]
fn every_service_refuses_settings_that_contradict_each_other_beside_all_that_is_wrong() {
    // The last setting that every service reads.
    let (wrong, zero) = (("SHUTDOWN_GRACE_MS", "soon"), ("SHUTDOWN_GRACE_MS", "0"));
    for service in ALL {
        assert!(survey(service, &[]).errors.is_empty(), "{service}");
        let errors = survey(service, &[zero]).errors;
        assert!(errors.len() == 1 && errors[0].to_string().contains("must be greater than 0"), "{service}: {errors:?}");
    }
    for (services, settings, told) in [LISTENERS, SERVERS, LIMITS].concat() {
        for service in services {
            let settings = [settings, &[wrong]].concat();
            let errors: Vec<_> = survey(service, &settings).errors.iter().map(ToString::to_string).collect();
            let has = |part: &str| errors.iter().any(|error| error.contains(part));
            let is_complete = has(told) && has("SHUTDOWN_GRACE_MS is set but invalid");
            assert!(is_complete && !has("hunter2"), "{service} {settings:?}: {errors:#?}");
            // A zero is also less than another setting demands.
            assert!(errors.len() == 2 || told.contains("greater"), "{service} {settings:?}: {errors:#?}");
        }
    }
}
