//! Checks that services make of the log, the tables and the shared settings before they serve.

use std::net::TcpListener;

use chassis::kafka::KafkaSettings;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use domain::TimeMs;
use projector::settings;
use schemas::events::WireEvent;
use schemas::idempotency::IdempotencyKey;
use schemas::journal::SEGMENT_OFFSETS;
use schemas::record::{Claim, Commit, Epoch, Record};
use schemas::time::parse_rfc3339;
use schemas::topic::{SETTINGS, coordination_topic};
use serde_json::json;
use tokio::process::Command;

use crate::fixture::{DEADLINE, Proxy, SERVICE_TOKEN, Service, Shop, append_all, batch_line, eventually, server};

fn admin(shop: &Shop) -> AdminClient<DefaultClientContext> {
    KafkaSettings::plaintext(&shop.brokers).admin("it").create().unwrap()
}

async fn set(shop: &Shop, name: &str, value: &str) {
    set_all(shop, &[(name, value)]).await;
}

/// Replaces the topic's configuration; settings that are not listed fall back to the broker's defaults.
async fn set_all(shop: &Shop, settings: &[(&str, &str)]) {
    let new = AlterConfig::new(ResourceSpecifier::Topic(&shop.topic));
    let config = settings.iter().fold(new, |config, (name, value)| config.set(name, value));
    let admin = admin(shop);
    admin.alter_configs([&config], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    // The broker acknowledges the change before its metadata shows it.
    eventually("the broker reports the settings", async || {
        let topic = ResourceSpecifier::Topic(&shop.topic);
        let told = admin.describe_configs([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        let is_told =
            |(name, value): &(&str, &str)| told.get(name).is_some_and(|entry| entry.value.as_deref() == Some(*value));
        settings.iter().all(is_told).then_some(())
    })
    .await;
}

/// Adds partitions to the topic.
async fn grow(shop: &Shop, partitions: usize) {
    grow_topic(shop, &shop.topic, partitions).await;
}

async fn grow_topic(shop: &Shop, topic: &str, partitions: usize) {
    let admin = admin(shop);
    let grown = NewPartitions::new(topic, partitions);
    admin.create_partitions([&grown], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    eventually("the broker reports the partitions", async || {
        let told = admin.inner().fetch_metadata(Some(topic), DEADLINE).unwrap();
        (told.topics()[0].partitions().len() == partitions).then_some(())
    })
    .await;
}

/// Runs a service in a process of its own, without servers to reach. Returns its exit code and its error output.
async fn exit(program: &str, args: &[&str], admin_addr: &str) -> (Option<i32>, String) {
    let mut command = Command::new(format!("{}/{program}", server("TEST_BIN_DIR")));
    command.env_clear().envs([("KAFKA_BROKERS", "127.0.0.1:1"), ("REDIS_URL", "redis://127.0.0.1:1")]);
    command.envs([("POSTGRES_URL", "postgres://it@127.0.0.1:1/it"), ("SERVICE_TOKEN", SERVICE_TOKEN)]);
    command.envs([("HTTP_ADDR", "127.0.0.1:0"), ("INTERNAL_ADDR", "127.0.0.1:0"), ("ADMIN_ADDR", admin_addr)]);
    let output = tokio::time::timeout(DEADLINE, command.args(args).kill_on_drop(true).output());
    let output = output.await.expect("the process ends in time").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_wrong_setting_ends_a_process_with_another_code_than_a_fault() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for program in ["command-api", "projector", "query-api"] {
        let (code, error) = exit(program, &[], "nowhere").await;
        assert!(code == Some(64) && error.contains("ADMIN_ADDR is set but invalid"), "{program}: {code:?}, {error}");
        let (code, error) = exit(program, &["frobnicate"], "127.0.0.1:0").await;
        assert!(code == Some(64) && error.contains("frobnicate"), "{program}: {code:?}, {error}");
        let (code, error) = exit(program, &[], &taken).await;
        assert!(code == Some(70) && error.contains(&taken), "{program}: {code:?}, {error}");
    }
    for args in [&["audit", "--all"][..], &["rebuild"], &["rebuild", "a-view"], &["settings", "unset"], &["reactor"]] {
        let (code, error) = exit("projector", args, "127.0.0.1:0").await;
        assert_eq!(code, Some(64), "{args:?}: {error}");
    }
}

/// Runs a service with these variables only. Returns its exit code, its output and its error output.
async fn run(program: &str, args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(format!("{}/{program}", server("TEST_BIN_DIR")));
    command.env_clear().envs(variables.iter().copied()).args(args).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("the process ends in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_service_prints_and_checks_its_settings_without_secrets() {
    let right = [
        ("POSTGRES_URL", "postgres://it:hunter2@127.0.0.1:1/it"),
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:1"),
        ("SERVICE_TOKEN", "hunter2-hunter2-hunter2"),
        ("SHUTDOWN_GRACE_MS", "5000"),
        ("KUBERNETES_PORT_443_TCP", "tcp://10.0.0.1:443"),
    ];
    let wrong = [
        ("POSTGRES_URLS", "hunter2"),
        ("SERVICE_TOKEN", "hunter2"),
        ("TLS_CERT_FILE", "without-a-key.pem"),
        ("SHUTDOWN_GRACE_MS", "hunter2"),
        ("LOG", "a=b"),
    ];
    for program in ["command-api", "projector", "query-api"] {
        let (code, text, errors) = run(program, &["--print-config"], &right).await;
        assert!(code == Some(0) && errors.is_empty(), "{program}: {code:?}, {errors}");
        let line = |wanted: &str| text.lines().filter(|line| *line == wanted).count() == 1;
        assert!(line("POSTGRES_URL=***") && line("SHUTDOWN_GRACE_MS=5000") && line("LOG_FORMAT=json"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("Unknown") && !text.contains("KUBERNETES"), "{text}");
        let (code, text, errors) = run(program, &["--check-config"], &right).await;
        assert!(code == Some(0) && text.is_empty() && errors.is_empty(), "{program}: {code:?}, {errors}");

        for option in ["--print-config", "--check-config", ""] {
            let args: Vec<&str> = [option].into_iter().filter(|option| !option.is_empty()).collect();
            let (code, text, errors) = run(program, &args, &wrong).await;
            assert_eq!(code, Some(64), "{program} {option}: {errors}");
            let named = [
                "LOG is set but invalid",
                "TLS_KEY_FILE must be set (expected: the key of TLS_CERT_FILE)",
                "SHUTDOWN_GRACE_MS is set but invalid",
            ];
            assert!(named.iter().all(|named| errors.contains(named)), "{program} {option}: {errors}");
            assert!((text + &errors).contains("POSTGRES_URLS"), "{program} {option}: {errors}");
            assert!(!errors.contains("hunter2"), "{program} {option}: {errors}");
        }
        let (code, text, _) = run(program, &["--help"], &[]).await;
        assert!(code == Some(0) && text.contains(program) && text.contains("--print-config"), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_argument_ends_a_process_like_a_wrong_setting() {
    const PROJECTOR: [(&str, &str); 15] = [
        ("migrate now", "\"now\""),
        ("audit --x", "\"--x\""),
        ("audit --sample", "--sample requires a number"),
        ("audit --sample all", "\"all\""),
        ("rebuild", "at least one view"),
        ("rebuild nowhere", "\"nowhere\""),
        ("rebuild product --x", "\"--x\""),
        ("rebuild product --share 0", "--share 0"),
        ("rebuild product --rollback --accept", "leave one of them out"),
        ("snapshots now", "\"now\""),
        ("settings get", "\"get\""),
        ("settings set REDIS_PREFIX", "set NAME VALUE"),
        ("settings set COLOUR red", "COLOUR"),
        ("reactor", "from-beginning | from-end"),
        ("reactor from-tomorrow", "from-beginning | from-end"),
    ];
    const COMMAND_API: [(&str, &str); 5] = [
        ("create-topic now", "\"now\""),
        ("except", "a partition and an offset"),
        ("except 0 first --because x", "\"first\""),
        ("exception-key", "exception-key FILE"),
        ("exception-key one two", "\"two\""),
    ];
    let all = PROJECTOR.map(|line| ("projector", line)).into_iter();
    for (program, (line, named)) in all.chain(COMMAND_API.map(|line| ("command-api", line))) {
        let args: Vec<&str> = line.split(' ').collect();
        let (code, error) = exit(program, &args, "127.0.0.1:0").await;
        assert!(code == Some(64) && error.contains(named), "{program} {line}: {code:?}, {error}");
    }
}

#[tokio::test]
async fn a_log_that_could_forget_is_refused_with_every_reason() {
    let shop = Shop::new(2).await;
    set(&shop, "cleanup.policy", "compact").await;
    for service in [shop.start_command_api("0-1").await, shop.start_projector()] {
        let failure = service.failure().await;
        assert!(failure.contains("cleanup.policy is \"compact\", not \"delete\""), "{failure}");
        assert!(failure.contains("retention.ms is \"604800000\", not \"-1\""), "{failure}");
    }
}

#[tokio::test]
async fn a_projector_commits_nothing_to_tables_of_another_form() {
    let shop = Shop::with_views(1).await;
    // The schema before a migration.
    shop.sql("ALTER TABLE journal_tail DROP COLUMN last_at_ms").await;
    let command_api = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    command_api.client().post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    let projector = shop.start_projector();
    projector.wait_for_waiting("postgres").await;
    eventually("the projector reports the missing column", async || {
        let readyz = projector.admin_client().get("/readyz").await.text;
        readyz.contains("last_at_ms").then_some(())
    })
    .await;
    assert_eq!(shop.sql("SELECT max(next_offset) FROM checkpoints").await.unwrap_or(0), 0);
    shop.sql("ALTER TABLE journal_tail ADD COLUMN last_at_ms bigint NOT NULL DEFAULT 0").await;
    eventually("the journal has the event", async || {
        (shop.sql("SELECT count(*) FROM journal").await == Some(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_is_changed_while_it_is_used_is_reported_until_it_is_set_back() {
    let shop = Shop::with_views(1).await;
    let services = [shop.projector().await, shop.command_api().await];
    let told = async |wanted: &str| {
        for service in &services {
            let metrics = service.admin_client().get("/metrics").await.text;
            metrics.lines().find(|line| line.starts_with("stampede_topic_differs") && line.ends_with(wanted))?;
        }
        Some(())
    };
    eventually("the topic is configured correctly", async || told(" 0").await).await;
    set(&shop, "retention.ms", "604800000").await;
    eventually("the difference is reported", async || told(" 1").await).await;
    set_all(&shop, &SETTINGS).await;
    eventually("the topic is configured correctly again", async || told(" 0").await).await;
}

#[tokio::test]
async fn a_log_with_other_partitions_than_it_was_made_with_is_refused() {
    let shop = Shop::new(2).await;
    grow(&shop, 3).await;
    let told = shop.env([("EVENTS_PARTITIONS", "2".to_owned())]);
    let failure = Service::command_api(&told).await.failure().await;
    assert!(failure.contains("it has 3 partitions, not 2"), "{failure}");
}

#[tokio::test]
async fn a_log_with_fewer_copies_than_asked_for_is_refused() {
    let shop = Shop::new(1).await;
    let told = shop.env([("EVENTS_REPLICATION", "3".to_owned()), ("EVENTS_MIN_ISR", "2".to_owned())]);
    let failure = Service::command_api(&told).await.failure().await;
    assert!(failure.contains("its replication factor is 1, not 3 or more"), "{failure}");
    assert!(failure.contains("min.insync.replicas is \"1\", not 2 or more"), "{failure}");
}

const WINDOW: &str = "IDEMPOTENCY_WINDOW_SECS";

/// Asserts that the failure names the difference and the command that resolves it.
fn names(failure: &str, name: &str, told: &str, kept: &str) {
    assert!(
        failure.contains(&format!("{name} is configured as \"{told}\", but stored as \"{kept}\" for this log")),
        "{failure}"
    );
    assert!(failure.contains(&format!("projector settings set {name} {told}")), "{failure}");
}

#[tokio::test]
async fn a_service_whose_settings_differ_from_the_first_ones_does_not_start() {
    let shop = Shop::with_views(2).await;
    let command_api = shop.command_api().await;
    let projector = shop.projector().await;
    let _reactor = shop.reactor(&command_api, 600).await;
    let short = (WINDOW, "60".to_owned());
    names(&Service::projector(&shop.env([short.clone()])).failure().await, WINDOW, "60", "900");
    names(&Service::command_api(&shop.write_env([short])).await.failure().await, WINDOW, "60", "900");
    let reactor = shop.reactor_env(&command_api.internal_addr(), 60);
    names(&Service::projector(&reactor).failure().await, "PAYMENT_WINDOW_SECS", "60", "600");
    let apart = shop.env([("REDIS_PREFIX", "apart".to_owned())]);
    names(&Service::projector(&apart).failure().await, "REDIS_PREFIX", "apart", &shop.prefix);
    names(&Service::query_api(&apart).await.failure().await, "REDIS_PREFIX", "apart", &shop.prefix);
    // A projector without views stores no idempotency keys.
    let none = [("PROJECTOR_VIEWS", "none".to_owned()), (WINDOW, "60".to_owned())];
    Service::projector(&shop.env(none)).wait_ready().await;
    for service in [command_api, projector] {
        service.wait_ready().await;
        service.stop().await;
    }
}

#[tokio::test]
async fn shared_settings_can_be_changed_on_purpose() {
    let shop = Shop::with_views(1).await;
    shop.projector().await.stop().await;
    let url = shop.postgres_url.as_str().into();
    assert!(settings::set(&url, "EVENTS_PARTITIONS", "2").await.is_err());
    assert!(settings::set(&url, WINDOW, "an hour").await.is_err());
    settings::set(&url, WINDOW, "3600").await.unwrap();
    names(&shop.start_projector().failure().await, WINDOW, "900", "3600");
    let env = shop.write_env([(WINDOW, "3600".to_owned())]);
    for service in [Service::projector(&env), Service::command_api(&env).await] {
        service.wait_ready().await;
        service.stop().await;
    }
}

#[tokio::test]
async fn partitions_that_were_added_are_refused_though_no_setting_names_their_number() {
    let shop = Shop::with_views(2).await;
    shop.projector().await.stop().await;
    grow(&shop, 3).await;
    grow_topic(&shop, &coordination_topic(&shop.topic), 3).await;
    for service in [shop.start_projector(), Service::command_api(&shop.write_env([])).await] {
        let failure = service.failure().await;
        assert!(failure.contains("the topic has 3 partitions, but the log was created with 2"), "{failure}");
    }
}

/// No setting names the number of partitions and there is no Postgres: the log itself records it, for any instance that
/// starts on it.
#[tokio::test]
async fn partitions_that_were_added_to_a_log_in_use_are_refused_by_what_the_log_says() {
    let shop = Shop::new(2).await;
    let running = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    running.client().post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    grow(&shop, 4).await;
    grow_topic(&shop, &coordination_topic(&shop.topic), 4).await;
    for share in [None, Some("0-3"), Some("2-3")] {
        let env = shop.write_env(share.map(|share| ("PARTITIONS", share.to_owned())));
        let failure = Service::command_api(&env).await.failure().await;
        assert!(failure.contains("the topic has 4 partitions, but the log was written with 2"), "{failure}");
    }
    for added in [2, 3] {
        let ends = admin(&shop).inner().fetch_watermarks(&shop.topic, added, DEADLINE).unwrap();
        assert_eq!(ends, (0, 0), "nothing was claimed in partition {added}");
    }
    let restocked = json!({ "quantity": 1 });
    running.client().post("/v1/products/cd/restock", restocked).await.accepted(&["product.restocked.v1"]);
}

#[tokio::test]
async fn a_coordination_topic_of_other_partitions_than_the_logs_is_refused() {
    let shop = Shop::with_views(2).await;
    grow_topic(&shop, &coordination_topic(&shop.topic), 4).await;
    for service in [shop.start_projector(), Service::command_api(&shop.write_env([])).await] {
        let failure = service.failure().await;
        assert!(failure.contains("it has 4 partitions, but the log has 2"), "{failure}");
    }
}

#[tokio::test]
async fn a_command_api_serves_without_postgres_and_ends_once_postgres_shows_that_its_settings_differ() {
    let mut shop = Shop::with_views(1).await;
    shop.projector().await.stop().await;
    let postgres = Proxy::in_url(&mut shop.postgres_url).await;
    let service = Service::command_api(&shop.write_env([(WINDOW, "3600".to_owned())])).await;
    service.wait_ready().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    service.client().post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    postgres.restore().await;
    names(&service.failure().await, WINDOW, "3600", "900");
}

const NONCE: u64 = 7;

fn claim() -> (String, Record<'static>) {
    (String::new(), Record::Claim(Claim { nonce: NONCE, url: "http://127.0.0.1:1".into(), partitions: None }))
}

/// Returns the first commit of a product, under the first claim.
fn commit(seq: u64, key: IdempotencyKey, at: TimeMs) -> (String, Record<'static>) {
    let aggregate = format!("product/{seq}");
    let commit = Commit {
        epoch: Epoch { claim: 0, nonce: NONCE },
        seq,
        command_id: key.to_string().into(),
        at_ms: at.0,
        aggregate: aggregate.clone().into(),
        version: 1,
        events: vec![WireEvent::newest(&domain::Event::Product(domain::product::Event::Discontinued))],
        fingerprint: 0,
        cause: None,
        trace: None,
        origin: None,
    };
    (aggregate, Record::Commit(commit))
}

#[tokio::test]
async fn keys_are_forgotten_by_the_logs_time_and_not_by_a_projectors_clock() {
    let shop = Shop::with_views(1).await;
    // These records are far outside the window by the projector's clock.
    let mut records = vec![claim()];
    for (seq, at) in [(1, "2026-01-01T00:00:00Z"), (2, "2026-01-01T00:14:00Z")] {
        records.push(commit(seq, IdempotencyKey::random(), parse_rfc3339(at).unwrap()));
    }
    append_all(&shop, 0, &records).await;
    let _projector = shop.projector().await;
    let kept = async |count: i64| {
        let is = shop.sql("SELECT (SELECT count(*) FROM repeats) * 1000 + count(*) FROM journal").await;
        (is == Some(count)).then_some(())
    };
    // The keys have timestamps of today, so they are not stored beside their records.
    eventually("the journal has both events and both keys are stored", async || kept(2_002).await).await;
    // The next command advances the log's time to the present.
    let command_api = shop.command_api().await;
    let registered = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    command_api.client().post("/v1/products/cd/register", registered).await.accepted(&["product.registered.v1"]);
    eventually("the journal has all events and the old keys are gone", async || kept(3).await).await;
}

#[tokio::test]
async fn keys_of_a_closed_segment_are_forgotten_once_a_later_one_is_past_their_window() {
    let shop = Shop::with_views(1).await;
    let mut records = vec![claim()];
    let then = parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
    for seq in 1..SEGMENT_OFFSETS.cast_unsigned() {
        records.push(commit(seq, IdempotencyKey::from_dedup_key(then, &seq.to_string()), then));
    }
    append_all(&shop, 0, &records).await;
    let _projector = shop.projector().await;
    let command_api = shop.command_api().await;
    let keys_of = async |segment: i64| {
        let with_keys = shop.sql("SELECT sum(1 + segment)::bigint FROM segment_keys").await;
        (with_keys == Some(1 + segment)).then_some(())
    };
    eventually("the first segment's keys are stored", async || keys_of(0).await).await;
    let register = |n| {
        batch_line("products", &format!("new-{n}"), "register", json!({ "name": "A", "price_cents": 1, "stock": 0 }))
    };
    let answers = command_api.client().batch(&(0..SEGMENT_OFFSETS).map(register).collect::<Vec<_>>()).await;
    assert!(answers.iter().all(|answer| answer["status"] == 200));
    eventually("only the second segment's keys are stored", async || keys_of(1).await).await;
}
