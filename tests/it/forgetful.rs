//! A Redis that loses keys, or wakes up with what it had long ago, changes no answer under a token.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::AsyncTypedCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::fixture::{Shop, connect_to_redis, eventually};
use crate::projectors::Orders;

async fn keys(redis: &mut MultiplexedConnection, shop: &Shop) -> Vec<String> {
    redis.keys(format!("{}:*", shop.prefix)).await.unwrap()
}

/// A server of its own, which is killed when dropped.
struct OwnRedis {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl OwnRedis {
    async fn start(dir: PathBuf, port: u16) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--dir"]).arg(&dir);
        let child = command.stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let started = Self { child, dir, port };
        eventually("Redis answers", async || started.ask("PING").await.ok()).await;
        started
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn ask(&self, command: &str) -> redis::RedisResult<()> {
        let mut redis = connect_to_redis(&self.url()).await?;
        redis::cmd(command).query_async(&mut redis).await
    }

    /// As it was when it was told to save.
    async fn restart(mut self) -> Self {
        self.child.kill().await.unwrap();
        Self::start(self.dir.clone(), self.port).await
    }
}

#[tokio::test]
async fn a_restart_with_an_old_dump_shows_nothing_that_was_changed_since() {
    let mut shop = Shop::with_views(3).await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let redis = OwnRedis::start(std::env::temp_dir().join(format!("stampede-{}", shop.prefix)), port).await;
    shop.redis_url = redis.url();
    let mut orders = Orders::new(&shop).await;
    let _projector = shop.projector().await;
    orders.place("before", 3).await;
    redis.ask("SAVE").await.unwrap();
    orders.place("since", 3).await;
    let redis = redis.restart().await;
    orders.all_shown().await;
    orders.place("after", 3).await;
    orders.all_shown().await;
    std::fs::remove_dir_all(&redis.dir).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_vanish_at_any_moment_hide_nothing() {
    let shop = Shop::with_views(3).await;
    let mut orders = Orders::new(&shop).await;
    let (_one, _other) = (shop.projector().await, shop.projector().await);
    let is_over = Arc::new(AtomicBool::new(false));
    let evicting = tokio::spawn({
        let (shop, is_over, mut redis) = (shop.clone(), is_over.clone(), shop.redis().await);
        async move {
            let mut evicted = 0_usize;
            while !is_over.load(Ordering::Relaxed) {
                // Rows, positions, and the name of what lives, in turns.
                let keys = keys(&mut redis, &shop).await;
                if let Some(key) = keys.get(evicted * 7919 % keys.len().max(1)) {
                    redis.del(key).await.unwrap();
                    evicted += 1;
                }
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            }
            evicted
        }
    });
    orders.place("evicted", 60).await;
    is_over.store(true, Ordering::Relaxed);
    assert!(evicting.await.unwrap() > 60);
    orders.all_shown().await;
}
