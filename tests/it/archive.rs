//! An archive of the log has every record of it whatever happens, shows each damage, and gives each record its offset
//! again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use chassis::kafka::KafkaSettings;
use command_api::archive::{Archive, Restored, Verified, restore, verify};
use projector::audit::audit;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use schemas::topic::exceptions;
use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use crate::fixture::{Client, DEADLINE, Service, Shop, batch_line, eventually, server};

const PRODUCTS: usize = 40;
/// Number of commands after which the journal of three partitions has closed segments.
const MANY: usize = 4_500;

/// A folder that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("stampede-archive-{}", Uuid::new_v4().simple())))
    }

    /// Returns a copy of it.
    fn copy(&self) -> Self {
        let copy = Self::new();
        for file in self.files() {
            let to = copy.0.join(file.strip_prefix(&self.0).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&file, to).unwrap();
        }
        copy
    }

    /// Returns the paths of all files in order.
    fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut folders) = (Vec::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
    }

    /// Returns the files with records of a partition in order.
    fn of(&self, name: &str) -> Vec<PathBuf> {
        let folder = self.0.join(name);
        let of_it = |path: &PathBuf| path.parent() == Some(&folder) && path.extension().is_some_and(|end| end == "zst");
        self.files().into_iter().filter(of_it).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It may not exist yet.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn kafka(shop: &Shop) -> KafkaSettings {
    KafkaSettings::from_env(&shop.env([])).unwrap()
}

async fn archive(shop: &Shop, folder: &Folder) -> anyhow::Result<u64> {
    let archive = Archive { kafka: kafka(shop), topic: shop.topic.clone(), folder: folder.0.clone() };
    Ok(archive.once(|line| println!("{line}")).await?.records)
}

async fn restored(shop: &Shop, folder: &Folder) -> anyhow::Result<Restored> {
    let topic = command_api::config::topic(&shop.env([])).unwrap();
    restore(&kafka(shop), &topic, folder.0.clone(), |line| println!("{line}")).await
}

async fn verified(folder: &Folder) -> Verified {
    verify(folder.0.clone(), None, |_| ()).await.unwrap()
}

/// Returns a process that archives the shop's log.
fn program(shop: &Shop, folder: &Folder, args: &[&str]) -> Command {
    let mut command = Command::new(format!("{}/command-api", server("TEST_BIN_DIR")));
    command.arg("archive").arg(&folder.0).args(args);
    command.envs([("KAFKA_BROKERS", &shop.brokers), ("EVENTS_TOPIC", &shop.topic)]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

/// A record as a consumer sees it: offset, timestamp, key, value and headers.
type Seen = (i64, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

/// Reads all records of the log and of its exceptions.
async fn all_records(shop: &Shop) -> Vec<Vec<Seen>> {
    let (settings, topic, partitions) = (kafka(shop), shop.topic.clone(), shop.partitions.cast_signed());
    let read = move || {
        let consumer: BaseConsumer = settings.reader("it").create().unwrap();
        let exceptions = exceptions(&topic);
        let mut all = Vec::new();
        for (topic, partition) in (0..partitions).map(|partition| (&topic, partition)).chain([(&exceptions, 0)]) {
            let (begin, end) = consumer.fetch_watermarks(topic, partition, DEADLINE).unwrap();
            assert_eq!(begin, 0);
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
            consumer.assign(&assignment).unwrap();
            let mut records: Vec<Seen> = Vec::new();
            while (records.len() as i64) < end {
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
                records.push((
                    message.offset(),
                    message.timestamp().to_millis(),
                    owned(message.key()),
                    owned(message.payload()),
                    headers.map(|header| (header.key.to_owned(), owned(header.value))).collect(),
                ));
            }
            all.push(records);
        }
        all
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

fn product(n: usize) -> String {
    format!("p-{}", n % PRODUCTS)
}

async fn register(commands: &Client) {
    let data = json!({ "name": "A", "price_cents": 5, "stock": 10 });
    let lines: Vec<_> = (0..PRODUCTS).map(|n| batch_line("products", &product(n), "register", data.clone())).collect();
    assert!(commands.batch(&lines).await.iter().all(|answer| answer["status"] == 200));
}

/// Restocks the products in turn, and returns the joined tokens.
async fn restock(commands: &Client, count: usize) -> String {
    let line = |n: usize| batch_line("products", &product(n), "restock", json!({ "quantity": n + 1 }));
    let answers = commands.batch(&(0..count).map(line).collect::<Vec<_>>()).await;
    assert!(answers.iter().all(|answer| answer["status"] == 200));
    let last = answers.iter().rev().take(PRODUCTS).map(|answer| answer["token"].as_str().unwrap());
    last.collect::<Vec<_>>().join(",")
}

/// Appends what no build of this system writes, with all that a record can have, to the log and to its exceptions.
async fn append_foreign(shop: &Shop) {
    let producer: FutureProducer = kafka(shop).producer("it").create().unwrap();
    let headers = OwnedHeaders::new().insert(Header { key: "a", value: Some("1") });
    let headers = headers.insert(Header { key: "a", value: None::<&str> });
    let of_log = FutureRecord::to(&shop.topic).partition(0).key("key").payload("foreign").headers(headers);
    let topic = exceptions(&shop.topic);
    let empty = FutureRecord::<str, str>::to(&shop.topic).partition(0).timestamp(1_000_000_000_000);
    let excepted = FutureRecord::<str, _>::to(&topic).partition(0).payload("an exception");
    producer.send(of_log, DEADLINE).await.unwrap();
    producer.send(empty, DEADLINE).await.unwrap();
    producer.send(excepted, DEADLINE).await.unwrap();
}

/// Returns what the views show, at these tokens or later.
async fn views(queries: &Client, token: &str) -> Vec<Value> {
    let fresh = [("consistency-token", token), ("prefer", "wait=30")];
    let mut shown = Vec::new();
    for n in 0..PRODUCTS {
        let answer = queries.get_with(&format!("/v1/products/{}", product(n)), &fresh).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        shown.push(answer.json());
    }
    let history = queries.get("/v1/products/p-1/history?limit=50").await;
    assert_eq!(history.status, 200, "{history:?}");
    shown.push(history.json());
    shown
}

#[tokio::test]
async fn a_log_of_which_only_the_archive_is_left_is_restored_with_its_offsets_views_and_tokens() {
    let shop = Shop::with_views(3).await;
    let services = [shop.command_api().await, shop.projector().await, shop.query_api().await];
    let [command_api, _, query_api] = &services;
    let (folder, commands) = (Folder::new(), command_api.client());
    register(&commands).await;
    append_foreign(&shop).await;

    // It is killed while commands run, and goes on with what the folder has.
    let mut tokens = String::new();
    let mut partly = None;
    for round in 0..3 {
        let mut archiver = program(&shop, &folder, &["--every", "1"]).spawn().unwrap();
        let had = if round == 0 { 0 } else { folder.of("log-00000").len() };
        tokens = restock(&commands, MANY / 3).await;
        eventually("it archives", async || (folder.0.exists() && folder.of("log-00000").len() > had).then_some(()))
            .await;
        archiver.kill().await.unwrap();
        fs::write(folder.0.join("log-00001/unfinished"), "cut off").unwrap();
        assert_eq!(verified(&folder).await.faults, [""; 0]);
        partly.get_or_insert_with(|| folder.copy());
    }
    let answer = commands
        .post_with("/v1/products/p-1/restock", &[("idempotency-key", "the-last")], json!({ "quantity": 7 }))
        .await
        .accepted(&["product.restocked.v1"]);
    let tokens = format!("{tokens},{}", answer.token());
    let before = views(&query_api.client(), &tokens).await;
    eventually("full segments are closed", async || {
        (shop.sql("SELECT count(*) FROM segments").await >= Some(2)).then_some(())
    })
    .await;
    archive(&shop, &folder).await.unwrap();
    assert_eq!(archive(&shop, &folder).await.unwrap(), 0, "nothing is archived twice");
    let postgres = shop.postgres_url.as_str().into();
    let found = verify(folder.0.clone(), Some(&postgres), |_| ()).await.unwrap();
    assert_eq!(found.faults, [""; 0]);
    assert!(found.segments >= 2 && found.at_ms > 0, "{found:?}");
    let first = "(SELECT partition, segment FROM segments ORDER BY partition, segment LIMIT 1)";
    shop.sql(&format!("UPDATE segments SET hash = sha256('') WHERE (partition, segment) IN {first}")).await;
    let found = verify(folder.0.clone(), Some(&postgres), |_| ()).await.unwrap();
    assert_eq!(found.faults.len(), 1, "{found:?}");
    assert!(found.faults[0].contains("has other records in the journal"), "{found:?}");
    for service in services {
        service.stop().await;
    }
    archive(&shop, &folder).await.unwrap();
    let records = all_records(&shop).await;

    // A restore that was interrupted is repeated.
    let second = Shop::with_views(3).await;
    let begun = restored(&second, &partly.unwrap()).await.unwrap();
    assert!(begun.found.records == 0 && begun.written.records > 0, "{begun:?}");
    let rest = restored(&second, &folder).await.unwrap();
    assert!(rest.found == begun.written && rest.written.records > 0, "{rest:?}");
    let again = restored(&second, &folder).await.unwrap();
    assert_eq!((again.written.records, again.found.records), (0, records.iter().map(Vec::len).sum::<usize>() as u64));
    assert_eq!(all_records(&second).await, records);

    let _projector = second.projector().await;
    let (command_api, query_api) = (second.command_api().await, second.query_api().await);
    assert_eq!(views(&query_api.client(), &tokens).await, before);
    let repeat = [("idempotency-key", "the-last")];
    let repeated = command_api.client().post_with("/v1/products/p-1/restock", &repeat, json!({ "quantity": 7 })).await;
    assert_eq!((repeated.header("idempotent-replayed"), repeated.json()), (Some("true"), answer.json()));
    let token = restock(&command_api.client(), PRODUCTS).await;
    assert_ne!(views(&query_api.client(), &token).await, before);
    let config = projector::Config::from_env(&second.env([])).unwrap();
    assert_eq!(audit(&config, None).await.unwrap().differences, []);

    // The restored log goes on, and so does its archive.
    assert!(archive(&second, &folder).await.unwrap() > PRODUCTS as u64);
    assert_eq!(verified(&folder).await.faults, [""; 0]);
}

/// A log with three files for each of two partitions, and its command-api.
async fn archived() -> (Shop, Service, Folder) {
    let (shop, folder) = (Shop::new(2).await, Folder::new());
    let command_api = shop.command_api().await;
    register(&command_api.client()).await;
    for _ in 0..3 {
        restock(&command_api.client(), PRODUCTS).await;
        archive(&shop, &folder).await.unwrap();
    }
    (shop, command_api, folder)
}

#[tokio::test]
async fn each_damage_of_an_archive_is_found() {
    let (_shop, _command_api, folder) = archived().await;
    assert_eq!(verified(&folder).await.faults, [""; 0]);
    let files = folder.of("log-00000");
    assert_eq!(files.len(), 3);
    let length = fs::metadata(&files[1]).unwrap().len() as usize;
    let flip = |at: usize| {
        move |files: &[PathBuf], _: &Path| {
            let mut bytes = fs::read(&files[1]).unwrap();
            bytes[at] ^= 1;
            fs::write(&files[1], bytes).unwrap();
        }
    };
    let swap = |one: &Path, other: &Path| {
        let between = one.with_extension("between");
        fs::rename(one, &between).unwrap();
        fs::rename(other, one).unwrap();
        fs::rename(between, other).unwrap();
    };
    type Damage = Box<dyn Fn(&[PathBuf], &Path)>;
    let mut damages: Vec<(String, Damage)> = Vec::new();
    for at in [0, 8, length / 2, length - 105, length - 100, length - 80, length - 40, length - 1] {
        damages.push((format!("flipped byte {at} of {length}"), Box::new(flip(at))));
    }
    for missing in 0..3 {
        let remove = move |files: &[PathBuf], _: &Path| fs::remove_file(&files[missing]).unwrap();
        damages.push((format!("missing file {missing}"), Box::new(remove)));
    }
    for kept in [0, 50, length - 1] {
        let cut = move |files: &[PathBuf], _: &Path| {
            fs::File::options().write(true).open(&files[1]).unwrap().set_len(kept as u64).unwrap();
        };
        damages.push((format!("cut to {kept} bytes"), Box::new(cut)));
    }
    damages.push(("swapped files".to_owned(), Box::new(move |files, _| swap(&files[0], &files[1]))));
    // The first records of both partitions have the same offset.
    let exchange = move |files: &[PathBuf], folder: &Path| {
        swap(&files[0], &folder.join("log-00001").join(files[0].file_name().unwrap()));
    };
    damages.push(("files of other partitions".to_owned(), Box::new(exchange)));
    for (name, damage) in damages {
        let copy = folder.copy();
        damage(&copy.of("log-00000"), &copy.0);
        let found = verified(&copy).await;
        assert!(!found.faults.is_empty(), "{name} is not found");
        println!("{name}: {}", found.faults[0].replace(copy.0.to_str().unwrap(), ""));
    }
}

#[tokio::test]
async fn a_full_disk_leaves_an_archive_that_is_good_and_is_continued() {
    let (shop, command_api, folder) = archived().await;
    let had = verified(&folder).await.amount.records;
    restock(&command_api.client(), MANY).await;
    // Files of at most 4 KiB: writing more fails, as it does on a full disk.
    let mut limited = Command::new("bash");
    limited.args(["-c", r#"trap '' XFSZ; ulimit -f 4; exec "$@""#, "bash"]);
    let full = program(&shop, &folder, &["--once"]);
    limited.arg(full.as_std().get_program()).args(full.as_std().get_args());
    limited.envs(full.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("File too large"), "{text}");
    assert!(!folder.0.join("log-00000/unfinished").exists());
    let found = verified(&folder).await;
    assert_eq!((found.faults, found.amount.records), (Vec::new(), had));
    assert!(archive(&shop, &folder).await.unwrap() >= MANY as u64);
    assert_eq!(verified(&folder).await.faults, [""; 0]);
}

#[tokio::test]
async fn another_log_and_another_history_are_refused() {
    let (shop, command_api, folder) = archived().await;
    let other = Shop::new(2).await;
    let of_other = other.command_api().await;
    register(&of_other.client()).await;
    let refused = archive(&other, &folder).await.unwrap_err().to_string();
    assert!(refused.contains("is an archive of the log"), "{refused}");
    let before = all_records(&other).await;
    let refused = restored(&other, &folder).await.unwrap_err().to_string();
    assert!(refused.contains("has another record at offset 0"), "{refused}");
    of_other.stop().await;
    assert_eq!(all_records(&other).await.len(), before.len());
    let fewer = Shop::new(1).await;
    let refused = restored(&fewer, &folder).await.unwrap_err().to_string();
    assert!(refused.contains("it has 1 partitions, not 2"), "{refused}");

    // A log that was restored from an older archive, and goes on, is not that of the newer archive.
    let (older, second) = (folder.copy(), Shop::new(2).await);
    restock(&command_api.client(), PRODUCTS).await;
    archive(&shop, &folder).await.unwrap();
    restored(&second, &older).await.unwrap();
    let goes_on = second.command_api().await;
    restock(&goes_on.client(), 2 * PRODUCTS).await;
    let refused = archive(&second, &folder).await.unwrap_err().to_string();
    assert!(refused.contains("it is another history"), "{refused}");
    let refused = restored(&second, &folder).await.unwrap_err().to_string();
    assert!(refused.contains("has another record at offset"), "{refused}");
    archive(&second, &older).await.unwrap();
    assert_eq!(verified(&older).await.faults, [""; 0]);
}
