//! The listeners of all services and of the edge's image: plain text goes to no other machine, unless the operator says so.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use chassis::env::{Env, EnvError};
use rustix::process::{Pid, Signal, kill_process};
use stack::certificates::{Certificate, Certificates};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::fixture::{Client, DEADLINE, SERVICE_TOKEN, by_http2, eventually, free_addr, server};

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

/// Returns a new authority, in a folder of its own.
fn authority() -> Certificates {
    let folder = PathBuf::from(server("TEST_STACKS_DIR")).join(Uuid::new_v4().simple().to_string());
    Certificates::at(folder, "openssl".into()).unwrap()
}

/// Runs a program that has to refuse its settings because of a listener, and returns its reason.
async fn refusal(mut program: Command) -> String {
    let run = program.stdin(Stdio::null()).kill_on_drop(true).output();
    let ended = tokio::time::timeout(DEADLINE, run).await.expect("it ends at once").unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(WRONG_SETTING), "{program:?}: {told}");
    assert!(told.contains("TLS_CERT_FILE") && told.contains("PLAINTEXT=allowed"), "{told}");
    told
}

#[tokio::test]
async fn every_listener_beyond_loopback_needs_tls_or_a_word() {
    let Certificate { certificate, key } = authority().of("service").unwrap();
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
            plain.env_clear().envs(with(&[]));
            refusal(plain).await;
            for more in [&tls[..], &[("PLAINTEXT", "allowed")]] {
                bind(service, &with(more).into_iter().collect()).await.unwrap();
            }
        }
    }
    assert_eq!(count, 6);
    fs::remove_dir_all(certificate.parent().unwrap()).unwrap();
}

/// Path that the edge itself answers.
const READY: &str = "/edge/ready";

/// The edge as its image runs it, in front of instances that do not exist. It is told to end when it is dropped.
struct Edge(Child);

impl Edge {
    /// Returns the program. Its folder has what nginx writes.
    fn program(folder: &Path, settings: &[(&str, &str)]) -> Command {
        let mut program = Command::new(format!("{}/edge", server("TEST_BIN_DIR")));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/edge");
        program.env("EDGE_DIR", folder).env("EDGE_SOURCE", source).env("EDGE_PORT", free_pair().to_string());
        program.envs([("COMMAND_APIS", "127.0.0.1:1"), ("QUERY_APIS", "127.0.0.1:1"), ("ACCESS_LOG_LINES", "0")]);
        program.envs(settings.iter().copied()).stdin(Stdio::null());
        program
    }

    fn start(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self(Self::program(folder, settings).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Ends it and waits until nginx has ended.
    async fn end(mut self) {
        self.terminate();
        let status = tokio::time::timeout(DEADLINE, self.0.wait()).await.expect("it ends in time").unwrap();
        assert!(status.success(), "{status}");
    }

    fn terminate(&self) {
        let pid = self.0.id().and_then(|pid| Pid::from_raw(pid.try_into().unwrap()));
        // A process that has ended is none any more.
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// Returns a free port on loopback that is followed by another one.
fn free_pair() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", port + 1)).is_ok();
    std::iter::repeat_with(|| free_addr().port()).find(is_free).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_follows_the_same_rule_and_serves_clients_by_tls() {
    let certificates = authority();
    let authority = certificates.authority();
    let folder = authority.with_file_name("edge");
    fs::create_dir(&folder).unwrap();
    let local = free_addr();
    let beyond = format!("0.0.0.0:{}", local.port());
    let open = ("HTTP_ADDR", beyond.as_str());

    let told = refusal(Edge::program(&folder, &[open])).await;
    assert!(told.contains(&beyond), "{told}");
    let allowed = Edge::start(&folder, &[open, ("PLAINTEXT", "allowed")]);
    let plain = Client::new(&format!("http://{local}"));
    is_served(&plain).await;
    allowed.end().await;

    let Certificate { certificate, key } = certificates.of("edge").unwrap();
    let files = [("TLS_CERT_FILE", certificate.to_str().unwrap()), ("TLS_KEY_FILE", key.to_str().unwrap())];
    let secured = Edge::start(&folder, &[&[open], &files[..]].concat());
    is_served(&Client::trusting(&authority, &format!("https://{local}"))).await;
    assert!(by_http2(&authority, local, READY).await.contains("ready"));
    plain.get(READY).await.problem(400, "invalid-request", "");
    let presented = fs::read_to_string(&certificate).unwrap();
    assert_eq!(handshake(local, &authority, "-tls1_1").await, None);
    for version in ["-tls1_2", "-tls1_3"] {
        let told = handshake(local, &authority, version).await.expect(version);
        assert!(told.contains("ALPN protocol: h2") && told.contains(presented.trim()), "{version}: {told}");
    }
    certificates.renew("edge").unwrap();
    let renewed = fs::read_to_string(&certificate).unwrap();
    eventually("the renewed certificate is presented", async || {
        handshake(local, &authority, "-tls1_3").await?.contains(renewed.trim()).then_some(())
    })
    .await;
    secured.end().await;
    fs::remove_dir_all(authority.parent().unwrap()).unwrap();
}

async fn is_served(client: &Client) {
    eventually("the edge is ready", async || (client.try_get(READY).await.ok()?.status == 200).then_some(())).await;
}

/// Returns the report of a client that offers this version of TLS alone, and HTTP/2; `None` if the handshake fails.
async fn handshake(edge: SocketAddr, authority: &Path, version: &str) -> Option<String> {
    let mut client = Command::new("openssl");
    // The level admits what old versions need, so that only the edge can refuse them.
    client.args(["s_client", version, "-cipher", "DEFAULT@SECLEVEL=0", "-alpn", "h2", "-verify_return_error"]);
    client.args(["-connect", &edge.to_string(), "-CAfile"]).arg(authority).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(DEADLINE, client.output()).await.expect("it ends at once").unwrap();
    ended.status.success().then(|| String::from_utf8_lossy(&ended.stdout).into_owned())
}
