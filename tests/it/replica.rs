//! A replica that follows the primary while a long transaction reads from it.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{Client, Load, Service, Shop, eventually, free_addr, prove, read_log, server, sql};
use crate::outages::{OLD_REPEATS, Snapshot};
use crate::query_tier::reads;

/// Postgres servers of the test's own, because copying the other tests' databases would take long. They end when
/// dropped.
struct Servers {
    dir: PathBuf,
    /// Account that the servers run as if this process is root, because Postgres refuses to run as root.
    account: Option<(u32, u32)>,
    running: Vec<Child>,
}

impl Servers {
    async fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("stampede-replica-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&dir).unwrap();
        let account = geteuid().is_root().then(account);
        if let Some((uid, gid)) = account {
            chown(&dir, Some(uid), Some(gid)).unwrap();
        }
        Self { dir, account, running: Vec::new() }
    }

    /// Returns the URL of a primary with all tables.
    async fn primary(&mut self) -> String {
        let as_owner = ["--username=stampede", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];
        self.run("initdb", "primary", &as_owner).await;
        let url = self.start("primary", &[]).await;
        projector::migrate(&url.as_str().into()).await.unwrap();
        url
    }

    /// Returns the URL of a replica. Its replay waits for readers forever, but the primary keeps the rows that they
    /// need.
    async fn replica_of(&mut self, primary: &str) -> String {
        let as_replica = ["-R", "--checkpoint=fast", "--no-sync", "-d", primary];
        self.run("pg_basebackup", "replica", &as_replica).await;
        let settings = [
            "hot_standby_feedback=on",
            "wal_receiver_status_interval=1s",
            "max_standby_streaming_delay=-1",
            "hot_standby=on",
        ];
        self.start("replica", &settings).await
    }

    fn command(&self, program: &str, folder: &str) -> Command {
        let mut command = Command::new(format!("{}/{program}", server("TEST_POSTGRES_BIN_DIR")));
        command.arg("-D").arg(self.dir.join(folder)).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    async fn run(&self, program: &str, folder: &str, args: &[&str]) {
        let mut command = self.command(program, folder);
        command.args(args);
        let status = tokio::process::Command::from(command).kill_on_drop(true).status().await.unwrap();
        assert!(status.success(), "{program} failed");
    }

    /// Starts a server and returns its URL once it answers.
    async fn start(&mut self, folder: &str, more: &[&str]) -> String {
        let port = free_addr().port();
        let mut command = self.command("postgres", folder);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-p", &port.to_string()]);
        // Truncating a table takes an exclusive lock, which also blocks readers of the replica, so vacuum must not.
        let settings = ["fsync=off", "autovacuum=off"];
        command.args(settings.iter().chain(more).flat_map(|set| ["-c", set]));
        self.running.push(command.spawn().unwrap());
        let url = format!("postgresql://stampede@127.0.0.1:{port}/postgres");
        eventually("the server answers", async || {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok()?;
            drop(client);
            connection.await.ok()
        })
        .await;
        url
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in self.running.iter_mut().rev() {
            // The server ends its own processes, within five seconds.
            let pid = Pid::from_raw(server.id().cast_signed()).unwrap();
            if matches!(server.try_wait(), Ok(None)) && kill_process(pid, Signal::QUIT).is_ok() {
                let _ = server.wait();
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Returns the ids of an account other than root.
fn account() -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let mut fields = passwd.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    ids("postgres").or_else(|| ids("nobody")).expect("the account postgres or nobody exists")
}

/// A product whose price each command changes, and a list of it that the replica answers, or the primary while the
/// replica is behind.
struct Priced {
    commands: Client,
    query_api: Service,
    replica: String,
    price: u32,
}

impl Priced {
    /// Changes the price and returns the token.
    async fn reprice(&mut self) -> String {
        self.price += 1;
        let repriced = self.commands.post("/v1/products/cd/reprice", json!({ "price_cents": self.price })).await;
        repriced.accepted(&["product.repriced.v1"]).token()
    }

    async fn is_listed(&self, token: &str) {
        let fresh = [("consistency-token", token), ("prefer", "wait=30")];
        let page = self.query_api.client().get_with("/v1/views/product", &fresh).await;
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.json();
        let row = page["rows"].as_array().unwrap().iter().find(|row| row["key"] == "cd").unwrap_or(&Value::Null);
        assert_eq!(row["data"]["price_cents"], self.price, "{row}");
    }

    async fn is_on_replica(&self) -> bool {
        let price = "SELECT (data ->> 'price_cents')::bigint FROM view_product WHERE key = 'cd'";
        sql(&self.replica, price).await == Some(self.price.into())
    }

    /// Returns the number of reads from the replica and from the primary.
    async fn reads(&self) -> (u64, u64) {
        (reads(&self.query_api, "replica").await, reads(&self.query_api, "postgres").await)
    }

    /// Waits until the replica has caught up and answers a list alone.
    async fn comes_from_replica(&mut self) {
        let token = self.reprice().await;
        eventually("the replica has the price", async || self.is_on_replica().await.then_some(())).await;
        let (of_replica, of_primary) = self.reads().await;
        self.is_listed(&token).await;
        assert_eq!(self.reads().await, (of_replica + 1, of_primary));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_long_transaction_on_a_replica_folding_goes_on_and_lists_from_it_show_what_tokens_name() {
    let mut servers = Servers::new().await;
    let primary = servers.primary().await;
    let replica = servers.replica_of(&primary).await;
    let shop = Shop { postgres_url: primary, has_tables: true, ..Shop::new(1).await };
    let (command_api, projector) = (shop.command_api().await, shop.projector().await);
    let query_api = shop.query_api_with([("POSTGRES_REPLICA_URLS", replica.clone())]).await;
    let mut priced = Priced { commands: command_api.client(), query_api, replica, price: 1 };
    let product = json!({ "name": "A", "price_cents": 1, "stock": 5 });
    let token = priced.commands.post("/v1/products/cd/register", product).await.token();
    eventually("the replica is queried", async || {
        priced.is_listed(&token).await;
        (priced.reads().await.0 > 0).then_some(())
    })
    .await;
    shop.sql(OLD_REPEATS).await;
    priced.comes_from_replica().await;
    let long = Snapshot::open(&priced.replica).await;
    let before = long.rows().await;
    let kept = "SELECT count(*) FROM pg_stat_replication WHERE backend_xmin IS NOT NULL";
    eventually("the primary knows of the replica's transaction", async || {
        (shop.sql(kept).await == Some(1)).then_some(())
    })
    .await;

    let load = Load::start(vec![priced.commands.clone()]);
    for round in 1..=100 {
        let token = priced.reprice().await;
        priced.is_listed(&token).await;
        if round % 25 == 0 {
            shop.sql("VACUUM (TRUNCATE false)").await;
            priced.comes_from_replica().await;
        }
    }
    let heard = prove(load.end().await, &read_log(&shop).await);
    assert_eq!(long.rows().await, before, "the snapshot changed");

    // The next projector drops a table that the transaction has read, so the replica's replay stops before that.
    projector.stop().await;
    let _projector = shop.projector().await;
    for _ in 0..20 {
        let token = priced.reprice().await;
        priced.is_listed(&token).await;
    }
    let is_there = "SELECT count(*) FROM pg_class WHERE relname = 'repeats_1'";
    assert_eq!((shop.sql(is_there).await, sql(&priced.replica, is_there).await), (Some(0), Some(1)));
    assert!(!priced.is_on_replica().await, "the replica's replay did not stop");
    assert_eq!(long.rows().await, before, "the snapshot changed");
    long.end().await;
    priced.comes_from_replica().await;
    let config = projector::Config::from_env(&shop.env([])).unwrap();
    assert_eq!(projector::audit::audit(&config, None).await.unwrap().differences, [], "{heard}");
}
