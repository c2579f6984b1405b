//! The listeners of all services: plain text goes to no other machine, unless the operator says so.

use std::path::PathBuf;
use std::process::Stdio;

use chassis::env::{Env, EnvError};
use stack::certificates::{Certificate, Certificates};
use tokio::process::Command;
use uuid::Uuid;

use crate::fixture::{DEADLINE, SERVICE_TOKEN, server};

const SERVICES: [&str; 3] = ["command-api", "query-api", "projector"];
const WRONG_SETTING: i32 = 64;

/// Settings that let a service start. Nothing listens there.
const COMMON: [(&str, &str); 5] = [
    ("KAFKA_BROKERS", "127.0.0.1:1"),
    ("POSTGRES_URL", "postgres://x@127.0.0.1:1/x"),
    ("REDIS_URL", "redis://127.0.0.1:1/"),
    ("SERVICE_TOKEN", SERVICE_TOKEN),
    ("INTERNAL_URL", "http://localhost:1"),
];

fn configured(service: &str, env: &Env) -> Result<(), EnvError> {
    match service {
        "command-api" => command_api::Config::from_env(env).map(drop),
        "query-api" => query_api::Config::from_env(env).map(drop),
        _ => projector::Config::from_env(env).map(drop),
    }
}

/// Binds the listeners of a service.
async fn bind(service: &str, env: &Env) -> anyhow::Result<()> {
    match service {
        "command-api" => command_api::App::build(command_api::Config::from_env(env)?).await.map(drop),
        "query-api" => query_api::App::build(query_api::Config::from_env(env)?).await.map(drop),
        _ => projector::App::build(projector::Config::from_env(env)?).map(drop),
    }
}

fn certificate(folder: &str) -> Certificate {
    let folder = PathBuf::from(server("TEST_STACKS_DIR")).join(folder);
    Certificates::at(folder, "openssl".into()).unwrap().of("service").unwrap()
}

#[tokio::test]
async fn every_listener_beyond_loopback_needs_tls_or_a_word() {
    let Certificate { certificate, key } = certificate(&Uuid::new_v4().simple().to_string());
    let (file, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let tls = [("TLS_CERT_FILE", file), ("TLS_KEY_FILE", key), ("INTERNAL_URL", "https://localhost:1")];
    let mut count = 0;
    for service in SERVICES {
        let all: Env = COMMON.into_iter().collect();
        configured(service, &all).unwrap();
        let settings = all.settings();
        let addresses: Vec<_> =
            settings.iter().map(|setting| &*setting.name).filter(|name| name.ends_with("_ADDR")).collect();
        for open in &addresses {
            count += 1;
            let at = |name: &&str| if name == open { "0.0.0.0:0" } else { "127.0.0.1:0" };
            let at_ports: Vec<_> = addresses.iter().map(|name| (*name, at(name))).collect();
            let with = |more: &[(&str, &str)]| -> Vec<(String, String)> {
                let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
                COMMON.iter().map(owned).chain(at_ports.iter().map(owned)).chain(more.iter().map(owned)).collect()
            };
            let mut plain = Command::new(format!("{}/{service}", server("TEST_BIN_DIR")));
            plain.env_clear().envs(with(&[])).stdin(Stdio::null()).kill_on_drop(true);
            let ended = tokio::time::timeout(DEADLINE, plain.output()).await.expect("it ends at once").unwrap();
            let told = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(WRONG_SETTING), "{service}, {open}: {told}");
            assert!(told.contains("TLS_CERT_FILE") && told.contains("PLAINTEXT=allowed"), "{told}");
            for more in [&tls[..], &[("PLAINTEXT", "allowed")]] {
                bind(service, &with(more).into_iter().collect()).await.unwrap();
            }
        }
    }
    assert_eq!(count, 6);
    std::fs::remove_dir_all(certificate.parent().unwrap()).unwrap();
}
