//! Secrets are replaced while the system runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{Client, Load, Service, Shop, eventually, free_addr, pause, prove, read_log};

const OLD: &str = "token-before-the-rotation";
const NEW: &str = "token-after-the-rotation";

/// The file with the tokens of one service.
struct TokenFile(PathBuf);

impl TokenFile {
    fn new(shop: &Shop, service: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("{}-{service}-token", shop.topic)));
        file.write(&[OLD]);
        file
    }

    /// Replaces the file as a whole, as operators and Kubernetes do.
    fn write(&self, tokens: &[&str]) {
        let next = self.0.with_extension("next");
        std::fs::write(&next, tokens.join("\n") + "\n").unwrap();
        std::fs::rename(&next, &self.0).unwrap();
    }

    fn env(&self) -> [(&'static str, String); 2] {
        [("SERVICE_TOKEN", String::new()), ("SERVICE_TOKEN_FILE", self.0.to_str().unwrap().to_owned())]
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A proxy to an internal listener, which counts the tokens that it sees and the answers.
struct Relay {
    addr: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    new: AtomicUsize,
    answered: AtomicUsize,
    refused: AtomicUsize,
}

impl Relay {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
        let counts = seen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                let seen = counts.clone();
                tokio::spawn(pass(from_client, to_server, move |bytes| {
                    seen.new.fetch_add(count(bytes, NEW), Ordering::Relaxed);
                }));
                let seen = counts.clone();
                tokio::spawn(pass(from_server, to_client, move |bytes| {
                    let answered = count(bytes, "HTTP/1.1 200") + count(bytes, "HTTP/1.1 101");
                    seen.answered.fetch_add(answered, Ordering::Relaxed);
                    let refused = count(bytes, "HTTP/1.1 4") + count(bytes, "HTTP/1.1 5");
                    seen.refused.fetch_add(refused, Ordering::Relaxed);
                }));
            }
        });
        Self { addr, seen }
    }

    fn refused(&self) -> usize {
        self.seen.refused.load(Ordering::Relaxed)
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, look: impl Fn(&[u8])) {
    let mut bytes = vec![0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        look(&bytes[..read]);
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

fn count(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

/// Waits until an internal listener answers a holder of the token with the status.
async fn answers(service: &Service, token: &str, status: u16) {
    let (client, bearer) = (service.internal_client(), format!("Bearer {token}"));
    eventually("the changed file is in use", async || {
        let answer = client.get_with("/openapi.json", &[("authorization", &bearer)]).await;
        (answer.status == status).then_some(())
    })
    .await;
}

/// Places orders, which the reactor reserves and confirms, until it is aborted.
async fn place_orders(commands: Client) {
    for n in 0.. {
        let line = json!({ "product": "rotated", "quantity": 1, "amount_cents": 1 });
        let order = json!({ "customer": "ann", "lines": [line] });
        commands.post(&format!("/v1/orders/rotated-{n}/place"), order).await.accepted(&["order.placed.v1"]);
        pause().await;
    }
}

#[tokio::test]
async fn the_service_token_is_replaced_under_load_without_a_failed_request() {
    let shop = Shop::with_views(2).await;
    let internal = [free_addr(), free_addr()];
    let relays = [Relay::to(internal[0]).await, Relay::to(internal[1]).await];
    let files = ["first", "second", "reactor"].map(|service| TokenFile::new(&shop, service));
    let instance = |n: usize| {
        let own = [
            ("PARTITIONS", n.to_string()),
            ("INTERNAL_ADDR", internal[n].to_string()),
            ("INTERNAL_URL", format!("http://{}", relays[n].addr)),
        ];
        shop.write_env(own.into_iter().chain(files[n].env()))
    };
    let (first, second) = (Service::command_api(&instance(0)).await, Service::command_api(&instance(1)).await);
    first.wait_ready().await;
    second.wait_ready().await;
    let reacts =
        [("PROJECTOR_VIEWS", "none".to_owned()), ("REACTOR_COMMAND_URLS", format!("http://{}", relays[0].addr))];
    let reactor = Service::projector(&shop.env(reacts.into_iter().chain(files[2].env())));
    reactor.wait_ready().await;
    let stock = json!({ "name": "A", "price_cents": 1, "stock": 1_000_000 });
    first.client().post("/v1/products/rotated/register", stock).await.accepted(&["product.registered.v1"]);
    // The second instance forwards nothing yet: it opens its link to the first one with the new token.
    let load = Load::start(vec![first.client()]);
    let orders = tokio::spawn(place_orders(first.client()));
    load.answered(100).await;
    let refused = load.refused();

    files.iter().for_each(|file| file.write(&[OLD, NEW]));
    answers(&first, NEW, 200).await;
    answers(&second, NEW, 200).await;
    files.iter().rev().for_each(|file| file.write(&[NEW, OLD]));
    let sends_new = async || (relays[0].seen.new.load(Ordering::Relaxed) > 0).then_some(());
    eventually("the reactor sends the new token", sends_new).await;
    files.iter().for_each(|file| file.write(&[NEW]));
    answers(&first, OLD, 403).await;
    answers(&second, OLD, 403).await;

    let before = relays[0].seen.answered.load(Ordering::Relaxed);
    for n in 0..8 {
        let path = format!("/v1/products/late-{n}/register");
        let record = json!({ "name": "A", "price_cents": 1, "stock": 1 });
        second.client().post(&path, record).await.accepted(&["product.registered.v1"]);
    }
    let goes_on = async || (relays[0].seen.answered.load(Ordering::Relaxed) > before + 2).then_some(());
    eventually("the reactor goes on", goes_on).await;
    assert!(!orders.is_finished(), "an order was refused");
    orders.abort();
    assert_eq!(load.refused(), refused, "commands were refused");
    prove(load.end().await, &read_log(&shop).await);
    assert_eq!(relays.each_ref().map(Relay::refused), [0, 0], "a holder of a valid token was refused");
}
