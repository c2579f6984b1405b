//! The images and `deploy/compose.yaml`, built and run with podman. Images that compose.yaml only names are replaced by
//! those of `tests/images`, because none can be pulled everywhere; their layers are kept between runs.

mod compose;
mod podman;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::fixture::{Answer, Client, eventually, server};
use compose::Compose;
use podman::{Podman, output, root};

/// Port of the edge, outside the ranges of other tests.
const PORT: u16 = 23_900;
const PROGRAMS: [&str; 4] = ["command-api", "query-api", "projector", "edge"];
const IMAGES: [&str; 5] = ["command-api", "query-api", "projector", "edge", "tools"];
const SERVICES: [&str; 5] = ["command-api-1", "command-api-2", "query-api", "projector", "edge"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: installs podman and builds images"]
async fn each_image_starts_serves_and_drains_as_the_compose_file_says() {
    let podman = Podman::ready().await;
    build(&podman).await;
    for image in IMAGES {
        has_no_shell(&podman, image).await;
        has_bills(&podman, image).await;
    }
    let compose = Compose::new(&podman).await;
    start_servers(&compose).await;
    compose.up(&[], &SERVICES).await;
    let ready = join_all(SERVICES.iter().map(|service| compose.is_ready(service, 1))).await;
    let shop = Shop::new(&compose);
    shop.sells_by_order().await;
    shop.sells_in_a_sale().await;
    the_edge_finds_more_instances(&compose).await;
    // Both end with 1 if they find a difference.
    compose.exec("projector", &["projector", "audit"]).await;
    compose.run_tools(&["projector", "rebuild", "product", "--fast"]).await;
    shop.shows(1, Some(2)).await;

    // Not by `println!`, which a test that passes shows to nobody.
    let mut table = format!("\n{:<14} {:>8} {:>14} {:>12}\n", "image", "size", "start to ready", "stop");
    for (service, ready) in SERVICES.into_iter().zip(ready).rev() {
        let stopped = compose.drains(service).await;
        let image = service.trim_end_matches("-1").trim_end_matches("-2");
        let size = podman.size(&format!("localhost/stampede/{image}:test")).await as f64 / 1e6;
        let (ready, stopped) = (ready.as_secs_f64(), stopped.as_secs_f64());
        writeln!(table, "{service:<14} {size:>5.1} MB {ready:>11.1} s {stopped:>10.1} s").unwrap();
    }
    std::io::stdout().write_all(table.as_bytes()).unwrap();
    compose.down().await;
    start_servers(&compose).await;
    compose.up(&[], &SERVICES).await;
    join_all(SERVICES.iter().map(|service| compose.is_ready(service, 1))).await;
    shop.shows(1, Some(2)).await;
    shop.restocks().await;
    shop.shows(2, Some(2)).await;
}

/// Starts the servers and the jobs. podman before 4.6 cannot wait for health, so the order of the file's `depends_on` is
/// kept here.
async fn start_servers(compose: &Compose<'_>) {
    let (servers, jobs) = (["kafka-1", "postgres", "valkey"], ["create-topic", "migrate"]);
    compose.up(&[], &servers).await;
    for server in servers {
        compose.is_healthy(server, 1).await;
    }
    compose.up(&[], &jobs).await;
    for job in jobs {
        compose.succeeds(job).await;
    }
}

/// Starts two more of query-api, and waits until the edge knows all three.
async fn the_edge_finds_more_instances(compose: &Compose<'_>) {
    compose.up(&["--no-recreate", "--scale", "query-api=3"], &["query-api"]).await;
    join_all((1..=3).map(|number| compose.is_ready("query-api", number))).await;
    eventually("the edge has found three instances", async || {
        let log = compose.log("edge").await;
        let known = log.lines().rev().find_map(|line| line.strip_prefix("the instances are "))?;
        let queries = known.split_once(" for commands, ")?.1.strip_suffix(" for queries")?;
        (queries.split(' ').count() == 3).then_some(())
    })
    .await;
}

/// The client of a shop behind the published port of the edge, with one product `a`.
struct Shop {
    client: Client,
    staff: String,
}

/// Builds the images with the programs of this test run, and those that stand in for servers.
async fn build(podman: &Podman) {
    let built = PathBuf::from(server("TEST_STACK_BIN")).with_file_name("");
    let programs = root().join("target/images");
    fs::create_dir_all(&programs).unwrap();
    for program in PROGRAMS {
        let to = programs.join(program);
        output(Command::new("strip").arg("-o").arg(&to).arg(built.join(program))).await;
    }
    output(Command::new(root().join("deploy/sbom")).arg(programs.join("sbom"))).await;
    for image in IMAGES {
        let args = ["PROGRAMS=prebuilt", "PREBUILT=target/images", "GIT_COMMIT=of-this-test"];
        podman
            .build(root(), &root().join("deploy/images/Dockerfile"), image, &format!("stampede/{image}"), &args)
            .await;
    }
    let context = podman.folder("servers");
    for file in ["Dockerfile", "kafka", "postgres"] {
        fs::copy(root().join("tests/images").join(file), context.join(file)).unwrap();
    }
    fs::copy(root().join("deploy/kafka/log4j2.xml"), context.join("log4j2.xml")).unwrap();
    let libs = podman.folder("servers/libs");
    for jar in fs::read_dir(kafka_jars()).unwrap().map(|entry| entry.unwrap().path()) {
        if jar.extension().is_some_and(|extension| extension == "jar") {
            fs::copy(&jar, libs.join(jar.file_name().unwrap())).unwrap();
        }
    }
    for image in ["kafka", "postgres", "valkey"] {
        podman.build(&context, &context.join("Dockerfile"), image, &format!("stampede-servers/{image}"), &[]).await;
    }
}

/// Returns the folder with the jars that the tests' own brokers use.
fn kafka_jars() -> PathBuf {
    let folders = fs::read_dir(root().join(".stack/kafka")).unwrap().map(|entry| entry.unwrap().path());
    folders.filter(|folder| folder.join("complete").exists()).max().expect("`cargo stack test` has fetched the jars")
}

async fn has_no_shell(podman: &Podman, image: &str) {
    let image = format!("localhost/stampede/{image}:test");
    for shell in ["/bin/sh", "/bin/bash", "/usr/bin/dash", "/bin/busybox"] {
        let run = podman.command(&["run", "--rm", "--network", "none", "--entrypoint", shell, &image]).output().await;
        let run = run.unwrap();
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success() && told.contains("no such file"), "{image} has {shell}: {told}");
    }
    let user = podman.run(&["image", "inspect", "--format", "{{.Config.User}} {{.Config.StopSignal}}", &image]).await;
    assert_eq!(user, "65532:65532 SIGTERM");
    let label = "{{index .Labels \"org.opencontainers.image.revision\"}}";
    assert_eq!(podman.run(&["image", "inspect", "--format", label, &image]).await, "of-this-test");
}

/// Checks that an image has the bill of materials of each of our programs in it.
async fn has_bills(podman: &Podman, image: &str) {
    let image = format!("localhost/stampede/{image}:test");
    let label = "{{index .Labels \"stampede.sbom\"}}";
    let folder = podman.run(&["image", "inspect", "--format", label, &image]).await;
    let files = PathBuf::from(podman.run(&["image", "mount", &image]).await);
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(files.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let programs = names("usr/local/bin").into_iter().map(|program| format!("{program}.cdx.json"));
    assert_eq!(names(folder.trim_start_matches('/')), programs.collect(), "{image}");
    podman.run(&["image", "unmount", &image]).await;
}

impl Shop {
    fn new(compose: &Compose<'_>) -> Self {
        let staff = fs::read_to_string(compose.secrets.join("staff-token")).unwrap();
        Self { client: Client::new(&format!("http://127.0.0.1:{PORT}")), staff: format!("Bearer {staff}") }
    }

    async fn as_staff(&self, path: &str, data: Value) -> Answer {
        self.client.post_with(path, &[("authorization", &self.staff)], data).await
    }

    /// Sells one unit of three.
    async fn sells_by_order(&self) {
        let product = json!({ "name": "A", "price_cents": 500, "stock": 3 });
        let refused = self.client.post("/v1/products/a/register", product.clone()).await;
        assert_eq!(refused.status, 401, "{refused:?}");
        self.as_staff("/v1/products/a/register", product).await.accepted(&["product.registered.v1"]);
        let order = json!({ "customer": "c", "lines": [{ "product": "a", "quantity": 1, "amount_cents": 500 }] });
        let placed = self.client.post("/v1/orders/o/place", order).await;
        assert_eq!(placed.status, 200, "{placed:?}");
        self.shows(2, None).await;
    }

    /// Sells the only unit of a sale, which is one of two.
    async fn sells_in_a_sale(&self) {
        let (opens, closes) = ("2026-01-01T00:00:00Z", "2100-01-01T00:00:00Z");
        let sale = json!({ "product": "a", "units": 1, "price_cents": 100, "limit_per_customer": 1,
            "opens_at": opens, "closes_at": closes });
        self.as_staff("/v1/sales/s/schedule", sale).await.accepted(&["sale.scheduled.v1"]);
        let claim = |customer| json!({ "customer": customer, "order": customer, "quantity": 1 });
        eventually("the reactor has stocked and opened the sale", async || {
            (self.client.post("/v1/sales/s/claim", claim("c")).await.status == 200).then_some(())
        })
        .await;
        self.client.post("/v1/sales/s/claim", claim("d")).await.rejected("sold_out");
        eventually("the claim is an order", async || {
            (self.client.get("/v1/orders/s~c").await.status == 200).then_some(())
        })
        .await;
    }

    async fn restocks(&self) {
        self.as_staff("/v1/products/a/restock", json!({ "quantity": 1 })).await.accepted(&["product.restocked.v1"]);
    }

    /// Waits until the view has this many available units. A rebuild's generation is the second part of the `ETag`.
    async fn shows(&self, available: u32, generation: Option<u32>) {
        eventually("the view shows the stock", async || {
            let row = self.client.get_with("/v1/products/a", &[("cache-control", "no-cache")]).await;
            let is_rebuilt = generation.is_none_or(|generation| {
                row.header("etag").is_some_and(|etag| etag.ends_with(&format!("-{generation}\"")))
            });
            (row.status == 200 && row.json()["data"]["available"] == available && is_rebuilt).then_some(())
        })
        .await;
    }
}
