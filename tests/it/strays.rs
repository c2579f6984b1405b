//! A log record that no build can read halts only its partition, and an operator's exception lets all of its readers
//! continue.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::AggregateType;
use projector::audit::audit;
use projector::rebuild::{Options, rebuild};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::fixture::{Client, Service, Shop, append_values, eventually, pause, server};

const PARTITIONS: u32 = 3;
const HALTED: u32 = 1;

/// Returns the name of an aggregate in a partition.
fn id(aggregate: AggregateType, partition: u32) -> String {
    let mut names = (0..).map(|n| format!("of-{partition}-{n}"));
    names.find(|name| schemas::aggregate::partition(aggregate, name, PARTITIONS) == partition).unwrap()
}

fn product(partition: u32) -> String {
    id(AggregateType::Product, partition)
}

/// A signing key pair, whose files are deleted when dropped.
struct Keys {
    file: PathBuf,
    public: String,
}

impl Keys {
    fn new(shop: &Shop) -> Self {
        let file = std::env::temp_dir().join(format!("stampede-{}", shop.topic));
        command_api::make_key(Some(file.to_str().unwrap().to_owned())).unwrap();
        let public = std::fs::read_to_string(file.with_extension("pub")).unwrap();
        Self { file, public }
    }

    /// Runs `except` as an operator does, and returns its output, or its error output if it fails.
    async fn except(&self, shop: &Shop, offset: i64) -> Result<String, String> {
        let mut command = Command::new(format!("{}/command-api", server("TEST_BIN_DIR")));
        command.envs([("KAFKA_BROKERS", &shop.brokers), ("EVENTS_TOPIC", &shop.topic)]);
        command.env("LOG_EXCEPTION_SIGNING_KEY_FILE", &self.file);
        command.args(["except", &HALTED.to_string(), &offset.to_string(), "--because", "a test wrote it"]);
        let output = command.output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        for file in [self.file.clone(), self.file.with_extension("pub")] {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Commands on a product of each partition, with their keys, until `over` is set.
struct Load {
    over: Arc<AtomicBool>,
    sent: JoinHandle<Vec<(u32, String, bool)>>,
}

impl Load {
    fn begin(commands: &Client) -> Self {
        let (commands, over) = (commands.clone(), Arc::new(AtomicBool::new(false)));
        let is_over = over.clone();
        let sent = tokio::spawn(async move {
            let mut sent = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                for partition in 0..PARTITIONS {
                    let key = format!("load-{}", sent.len());
                    let is_taken = restock(&commands, partition, &key).await;
                    assert!(is_taken || partition == HALTED, "partition {partition} did not accept {key}");
                    sent.push((partition, key, is_taken));
                }
                pause().await;
            }
            sent
        });
        Self { over, sent }
    }

    /// Retries the refused commands until they take effect, and returns the number of commands sent to the partition.
    async fn end(self, commands: &Client, partition: u32) -> usize {
        self.over.store(true, Ordering::Relaxed);
        let sent = self.sent.await.unwrap();
        assert!(sent.iter().any(|(_, _, is_taken)| !is_taken), "nothing was refused");
        let here = sent.iter().filter(|(at, ..)| *at == partition);
        for (_, key, _) in here.clone() {
            eventually("the refused command is accepted", async || {
                restock(commands, partition, key).await.then_some(())
            })
            .await;
        }
        here.count()
    }
}

/// Returns whether the command was accepted.
async fn restock(commands: &Client, partition: u32, key: &str) -> bool {
    let patience = if partition == HALTED { "wait=1" } else { "wait=20" };
    let headers = [("idempotency-key", key), ("prefer", patience)];
    let path = format!("/v1/products/{}/restock", product(partition));
    let answer = commands.post_with(&path, &headers, json!({ "quantity": 1 })).await;
    assert!([200, 503].contains(&answer.status.as_u16()), "{answer:?}");
    answer.status == 200
}

struct Halting {
    shop: Shop,
    keys: Keys,
    command_api: Service,
    projector: Service,
    queries: Client,
    _query_api: Service,
}

impl Halting {
    /// Creates a shop with a product in each partition.
    async fn new() -> Self {
        let shop = Shop::with_views(PARTITIONS).await;
        let keys = Keys::new(&shop);
        let command_api = Service::command_api(&shop.write_env(owns_all(&keys))).await;
        command_api.wait_ready().await;
        let honours = ("LOG_EXCEPTION_KEYS", keys.public.clone());
        let reacts = ("REACTOR_COMMAND_URLS", format!("http://{}", command_api.internal_addr()));
        let projector = Service::projector(&shop.env([honours, reacts]));
        projector.wait_ready().await;
        let query_api = shop.query_api().await;
        for partition in 0..PARTITIONS {
            let data = json!({ "name": "A", "price_cents": 5, "stock": 1000 });
            let path = format!("/v1/products/{}/register", product(partition));
            command_api.client().post(&path, data).await.accepted(&["product.registered.v1"]);
        }
        let queries = query_api.client();
        Self { shop, keys, command_api, projector, queries, _query_api: query_api }
    }

    /// Sends a command to a product of the partition and waits until the view shows it.
    async fn goes_on(&self, partition: u32, key: &str) {
        let (commands, product) = (self.command_api.client(), product(partition));
        let restock = format!("/v1/products/{product}/restock");
        let token = eventually("a command is accepted", async || {
            let headers = [("idempotency-key", key)];
            let answer = commands.post_with(&restock, &headers, json!({ "quantity": 1 })).await;
            (answer.status == 200).then(|| answer.token())
        })
        .await;
        self.queries.is_stored(&token).await;
        let fresh = [("consistency-token", token.as_str()), ("prefer", "wait=10")];
        assert_eq!(self.queries.get_with(&format!("/v1/products/{product}"), &fresh).await.status, 200);
    }

    /// Places an order in one partition for a product in another and waits until it is confirmed.
    async fn confirms(&self, order: u32, of_product: u32) {
        let order = id(AggregateType::Order, order);
        let lines = json!([{ "product": product(of_product), "quantity": 1, "amount_cents": 5 }]);
        let place = format!("/v1/orders/{order}/place");
        let placed = self.command_api.client().post(&place, json!({ "customer": "ann", "lines": lines })).await;
        placed.accepted(&["order.placed.v1"]);
        eventually("the order is confirmed", async || {
            let answer = self.queries.get(&format!("/v1/orders/{order}")).await;
            (answer.status == 200 && answer.json()["data"]["status"] == "confirmed").then_some(())
        })
        .await;
    }

    /// Waits until every reader of the partition reports whether it is halted.
    async fn tell(&self, halted: bool) {
        let is = if halted { " 1" } else { " 0" };
        for (service, reader) in
            [(&self.command_api, ""), (&self.projector, "reader=\"views\""), (&self.projector, "reader=\"reactor\"")]
        {
            eventually(&format!("the partition's halted metric is{is}: {reader}"), async || {
                let metrics = service.admin_client().get("/metrics").await.text;
                let is_of = |line: &&str| {
                    line.starts_with("stampede_partition_halted")
                        && line.contains(&format!("partition=\"{HALTED}\""))
                        && line.contains(reader)
                };
                let line = metrics.lines().find(is_of)?.to_owned();
                line.ends_with(is).then_some(())
            })
            .await;
            assert_eq!(
                service.admin_client().get("/readyz").await.status,
                200,
                "a halted partition made the service unready"
            );
        }
    }

    async fn stock(&self, partition: u32) -> Value {
        self.queries.get(&format!("/v1/products/{}", product(partition))).await.json()["data"]["stock"].clone()
    }
}

fn owns_all(keys: &Keys) -> [(&'static str, String); 2] {
    [("PARTITIONS", format!("0-{}", PARTITIONS - 1)), ("LOG_EXCEPTION_KEYS", keys.public.clone())]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_record_halts_one_partition_until_an_exception_lets_every_reader_go_on() {
    let mut halting = Halting::new().await;
    let commands = halting.command_api.client();
    let load = Load::begin(&commands);
    halting.goes_on(HALTED, "before").await;
    let offset = append_values(&halting.shop, HALTED, &[(String::new(), b"stop".to_vec())]).await[0];
    halting.tell(true).await;

    let others: Vec<_> = (0..PARTITIONS).filter(|partition| *partition != HALTED).collect();
    for partition in &others {
        halting.goes_on(*partition, "meanwhile").await;
    }
    halting.confirms(others[0], others[1]).await;

    let refused = halting.keys.except(&halting.shop, offset - 1).await.unwrap_err();
    assert!(refused.contains("can be read"), "{refused}");
    let told = halting.keys.except(&halting.shop, offset).await.unwrap();
    assert!(told.contains("\nstop\n"), "{told}");

    halting.goes_on(HALTED, "after").await;
    halting.confirms(HALTED, HALTED).await;
    halting.tell(false).await;
    let restocked = load.end(&commands, HALTED).await;
    halting.goes_on(HALTED, "last").await;
    assert_eq!(halting.stock(HALTED).await, 1000 + restocked + 3);

    // Later readers see the same log.
    let config =
        projector::Config::from_env(&halting.shop.env([("LOG_EXCEPTION_KEYS", halting.keys.public.clone())])).unwrap();
    assert_eq!(audit(&config, None).await.unwrap().differences, []);
    let wish = Options { views: vec!["product".to_owned()], ..Options::default() };
    assert_eq!(rebuild(&config, &wish, |_| ()).await.unwrap()[0].generation, Some(2));
    let later = Service::command_api(&halting.shop.write_env(owns_all(&halting.keys))).await;
    std::mem::replace(&mut halting.command_api, later).crash().await;
    halting.goes_on(HALTED, "later").await;
}
