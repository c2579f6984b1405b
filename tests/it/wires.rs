//! Wires to the servers of a secured stack: who is refused, and what each account may not do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chassis::env::Env;
use chassis::kafka::KafkaSettings;
use chassis::postgres::{self, PostgresError, PostgresSettings};
use chassis::redis::{RedisSettings, Subscriber, connect};
use command_api::create_topic;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use redis::{Cmd, ErrorKind, RedisResult, Value, cmd};
use schemas::cache::FILL;
use schemas::topic::LogTopic;
use tokio_postgres::error::SqlState;

use crate::fixture::eventually;
use crate::stack::{Stack, base_port};

/// Time for the brokers to answer a client that they let in.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Time for a client that they do not let in.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);

/// Files of a secured stack, by which its accounts come to the servers.
pub(crate) struct Wires(PathBuf);

impl Wires {
    /// Takes the files in a folder that is laid out like a state directory.
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Returns whether Kafka's brokers let a client in within this time.
    async fn is_let_in(settings: KafkaSettings, within: Duration) -> bool {
        let asked = move || {
            let consumer: BaseConsumer = settings.reader("wires").create().unwrap();
            consumer.fetch_metadata(Some("events"), within).is_ok()
        };
        tokio::task::spawn_blocking(asked).await.unwrap()
    }

    /// Asserts that each server refuses accounts with these passwords.
    pub(crate) async fn are_refused(&self) {
        for account in ["command-api", "projector"] {
            assert!(!Self::is_let_in(self.kafka_of(account), REFUSED_WITHIN).await, "{account}");
        }
        for account in ["owner", "command-api", "query-api", "projector"] {
            let error = postgres::connect(&self.postgres_of(account), "", "wires").await.unwrap_err();
            let PostgresError::Connect(error) = error else { panic!("{account}: {error}") };
            assert_eq!(error.code(), Some(&SqlState::INVALID_PASSWORD), "{account}");
        }
        for account in ["query-api", "projector"] {
            let error = self.ask(account, &cmd("TIME")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AuthenticationFailed, "{account}: {error}");
        }
    }

    fn password_file(&self, account: &str) -> PathBuf {
        self.0.join(format!("password-{account}"))
    }

    fn text(path: &Path) -> String {
        path.to_string_lossy().into_owned()
    }

    fn authority(&self) -> (&'static str, String) {
        ("TLS_CA_FILE", Self::text(&self.0.join("certificates/authority.pem")))
    }

    fn kafka(&self, account: &str, password: &Path, authority: Option<(&'static str, String)>) -> KafkaSettings {
        let told = [
            ("KAFKA_BROKERS", format!("127.0.0.1:{}", base_port() + 1)),
            ("KAFKA_SECURITY", "sasl_ssl".to_owned()),
            ("KAFKA_USERNAME", account.to_owned()),
            ("KAFKA_PASSWORD_FILE", Self::text(password)),
        ];
        KafkaSettings::from_env(&told.into_iter().chain(authority).collect()).unwrap()
    }

    fn kafka_of(&self, account: &str) -> KafkaSettings {
        self.kafka(account, &self.password_file(account), Some(self.authority()))
    }

    fn postgres(&self, account: &str, options: &str, authority: Option<(&'static str, String)>) -> PostgresSettings {
        let url = format!("postgres://{account}@127.0.0.1:{}/stampede{options}", base_port() + 20);
        let told = [("POSTGRES_URL", url), ("POSTGRES_PASSWORD_FILE", Self::text(&self.password_file(account)))];
        PostgresSettings::from_env(&told.into_iter().chain(authority).collect()).unwrap()
    }

    fn postgres_of(&self, account: &str) -> PostgresSettings {
        self.postgres(account, "?sslmode=verify-full&channel_binding=require", Some(self.authority()))
    }

    fn redis(&self, account: &str, scheme: &str, authority: Option<(&'static str, String)>) -> RedisSettings {
        let url = format!("{scheme}://{account}@127.0.0.1:{}/", base_port() + 21);
        let told = [("REDIS_URL", url), ("REDIS_PASSWORD_FILE", Self::text(&self.password_file(account)))];
        RedisSettings::from_env(&told.into_iter().chain(authority).collect()).unwrap()
    }

    async fn ask(&self, account: &str, command: &Cmd) -> RedisResult<Value> {
        let mut connection = connect(&self.redis(account, "rediss", Some(self.authority()))).unwrap();
        command.query_async(&mut connection).await
    }
}

/// One test, because a secured stack takes a while to start.
#[tokio::test]
async fn servers_refuse_whoever_has_no_tls_or_no_account_and_accounts_what_they_do_not_need() {
    let stack = Stack::up_with(&["--secure", "--servers-only"]).await;
    let wires = Wires::at(stack.state().to_owned());
    let log = LogTopic { name: "events".to_owned(), partitions: Some(1), replication: 1, min_isr: 1 };
    create_topic(&wires.kafka_of("owner"), &log).await.unwrap();
    kafka(&wires).await;
    projector::migrate(&wires.postgres_of("owner")).await.unwrap();
    postgres(&wires).await;
    redis(&wires).await;
}

async fn kafka(wires: &Wires) {
    let is_let_in = Wires::is_let_in;
    for account in ["command-api", "projector"] {
        assert!(is_let_in(wires.kafka_of(account), ANSWERS_WITHIN).await, "{account}");
    }
    let plain = KafkaSettings::plaintext(format!("127.0.0.1:{}", base_port() + 1));
    assert!(!is_let_in(plain, REFUSED_WITHIN).await, "plaintext");
    let password = wires.password_file("projector");
    assert!(!is_let_in(wires.kafka("projector", &password, None), REFUSED_WITHIN).await, "another authority");
    let wrong = wires.kafka("command-api", &password, Some(wires.authority()));
    assert!(!is_let_in(wrong, REFUSED_WITHIN).await, "another account's password");

    let write = async |account: &str, topic: &str| {
        let mut config = wires.kafka_of(account).producer("wires");
        // An account that may write nowhere is no idempotent producer either, which would be its first error.
        config.set("enable.idempotence", (account == "command-api").to_string());
        let producer: FutureProducer = config.create().unwrap();
        let record = FutureRecord::<(), str>::to(topic).partition(0).payload("written by a test");
        producer.send(record, ANSWERS_WITHIN).await.map_err(|(error, _)| error.rdkafka_error_code().unwrap())
    };
    write("command-api", "events").await.unwrap();
    write("command-api", "events.clock").await.unwrap();
    let denied = |code| code == RDKafkaErrorCode::TopicAuthorizationFailed;
    assert!(write("projector", "events").await.is_err_and(denied), "projector writes events");
    assert!(write("command-api", "events.exceptions").await.is_err_and(denied), "command-api writes exceptions");
    for account in ["command-api", "projector"] {
        let admin: AdminClient<DefaultClientContext> = wires.kafka_of(account).admin("wires").create().unwrap();
        let options = AdminOptions::new().request_timeout(Some(ANSWERS_WITHIN));
        let deleted = admin.delete_topics(&["events"], &options).await.unwrap();
        assert!(deleted[0].as_ref().is_err_and(|(_, code)| denied(*code)), "{account}: {deleted:?}");
        let mut all = rdkafka::TopicPartitionList::new();
        all.add_partition_offset("events", 0, rdkafka::Offset::End).unwrap();
        let deleted = admin.delete_records(&all, &options).await;
        let refused = match &deleted {
            Ok(partitions) => partitions.elements().iter().all(|partition| partition.error().is_err()),
            Err(error) => *error != KafkaError::Canceled,
        };
        assert!(refused, "{account}: {deleted:?}");
    }
}

async fn postgres(wires: &Wires) {
    let connect = async |settings: &PostgresSettings| postgres::connect(settings, "", "wires").await;
    for account in ["owner", "command-api", "query-api", "projector"] {
        let client = connect(&wires.postgres_of(account)).await.unwrap();
        let sql = "SELECT rolsuper OR rolcreaterole OR rolbypassrls FROM pg_roles WHERE rolname = current_user";
        assert!(!client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "{account} has too many rights");
        let plain = connect(&wires.postgres(account, "?sslmode=disable", None)).await;
        assert!(plain.is_err(), "{account} came in without TLS");
        let other = connect(&wires.postgres(account, "?sslmode=verify-full", None)).await;
        assert!(other.is_err(), "{account} trusted another authority");
    }
    for (account, statement) in [
        ("query-api", "DELETE FROM product_rows"),
        ("query-api", "SELECT FROM state_snapshots"),
        ("command-api", "DELETE FROM journal_tail"),
        ("command-api", "SELECT FROM order_rows"),
        ("projector", "DROP TABLE journal_tail"),
    ] {
        let client = connect(&wires.postgres_of(account)).await.unwrap();
        let error = client.batch_execute(statement).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{account}: {statement}: {error}");
    }

    // A new password is used without a restart.
    let settings = wires.postgres_of("query-api");
    let pool = postgres::pool(&settings, "", 2, "wires").unwrap();
    let first = pool.get().await.unwrap();
    let administrator = PostgresSettings::from_env(&Env::from([
        ("POSTGRES_URL", format!("postgres://stampede@127.0.0.1:{}/stampede?sslmode=verify-full", base_port() + 20)),
        ("POSTGRES_PASSWORD_FILE", Wires::text(&wires.0.join("postgres-password"))),
        wires.authority(),
    ]));
    let administrator = connect(&administrator.unwrap()).await.unwrap();
    administrator.batch_execute("ALTER ROLE \"query-api\" PASSWORD 'the-second-one'").await.unwrap();
    // The file has the new password a moment later than the server.
    let (connected, ()) = tokio::join!(pool.get(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::fs::write(wires.password_file("query-api"), "the-second-one").unwrap();
    });
    drop(connected.expect("a new connection has the new password"));
    first.query_one("SELECT 1", &[]).await.unwrap();
}

async fn redis(wires: &Wires) {
    // The password was changed for Postgres alone.
    std::fs::write(wires.password_file("query-api"), "the-second-one").unwrap();
    let set = cmd("ACL").arg(&["SETUSER", "query-api", "resetpass", ">the-second-one"]).to_owned();
    wires.ask("redis", &set).await.unwrap();

    for scheme in ["redis", "rediss"] {
        // Plaintext, and an authority that did not sign the certificate.
        let mut connection = connect(&wires.redis("projector", scheme, None)).unwrap();
        assert!(cmd("PING").query_async::<Value>(&mut connection).await.is_err(), "{scheme}");
    }
    let command = |words: &str| {
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap_or_default());
        command.arg(words.collect::<Vec<_>>());
        command
    };
    for (account, words) in [
        ("query-api", "MGET {st:0}:product {st:0}:1:product:cd"),
        ("query-api", "TIME"),
        ("projector", "MSET {st:0}:product 1/1"),
        ("projector", "PUBLISH st:news x"),
    ] {
        wires.ask(account, &command(words)).await.unwrap_or_else(|error| panic!("{account} {words}: {error}"));
    }
    // It caches a row that it read from Postgres.
    let keys = ["{st:0}:product", "{st:0}:00000000000000ab:product:cd", "{st:0}:product.ahead"];
    wires.ask("projector", &command("SET {st:0}:product 00000000000000ab.1.0/5")).await.unwrap();
    let fill =
        cmd("EVAL").arg(FILL).arg(3).arg(&keys).arg(&["00000000000000ab.1.0", "5", "60", "1", "1\n{}"]).to_owned();
    assert_eq!(wires.ask("query-api", &fill).await.unwrap(), Value::Int(1));
    for (account, words) in [
        ("query-api", "MSET {st:0}:product 1/1"),
        ("query-api", "SET {st:0}:product 1/1"),
        ("query-api", "SET {st:0}:product.ahead x"),
        ("query-api", "SET {st:0}:end 1/1"),
        ("query-api", "EVAL redis.call('SET',KEYS[1],'1/1') 1 {st:0}:product"),
        ("query-api", "DEL {st:0}:product"),
        ("query-api", "EXPIRE {st:0}:product 1"),
        ("query-api", "PUBLISH st:news x"),
        ("query-api", "SET other 1"),
        ("query-api", "GET other"),
        ("query-api", "KEYS *"),
        ("query-api", "SUBSCRIBE other"),
        ("query-api", "CONFIG GET *"),
        ("query-api", "FLUSHALL"),
        ("query-api", "EVAL redis.call('DEL',KEYS[1]) 1 {st:0}:product"),
        ("projector", "FLUSHALL"),
        ("projector", "CONFIG SET maxmemory 1"),
        ("projector", "ACL LIST"),
        ("projector", "SHUTDOWN NOSAVE"),
        ("projector", "SET other 1"),
    ] {
        let error = wires.ask(account, &command(words)).await.unwrap_err().to_string();
        assert!(error.contains("permissions") || error.contains("can't"), "{account} {words}: {error}");
    }
    Subscriber::new(&wires.redis("query-api", "rediss", Some(wires.authority())))
        .unwrap()
        .subscribe("st:news")
        .await
        .unwrap();

    new_passwords_of_redis(wires).await;
}

/// An open connection takes a new password, and so does the next one.
async fn new_passwords_of_redis(wires: &Wires) {
    let settings = wires.redis("query-api", "rediss", Some(wires.authority()));
    let mut connection = connect(&settings).unwrap();
    cmd("TIME").query_async::<Value>(&mut connection).await.unwrap();
    let set = cmd("ACL").arg(&["SETUSER", "query-api", "resetpass", ">the-third-one"]).to_owned();
    wires.ask("redis", &set).await.unwrap();
    std::fs::write(wires.password_file("query-api"), "the-third-one").unwrap();
    cmd("TIME").query_async::<Value>(&mut connection).await.unwrap();
    let kill = cmd("CLIENT").arg(&["KILL", "USER", "query-api"]).to_owned();
    wires.ask("redis", &kill).await.unwrap();
    eventually("the next connection has the new password", async || {
        cmd("TIME").query_async::<Value>(&mut connection).await.ok()
    })
    .await;
}
