//! Redis behind sentinels: the master fails over, and clients follow.

use std::path::PathBuf;
use std::process::Stdio;

use chassis::redis::{Subscriber, connect};
use futures_util::StreamExt as _;
use redis::{Value, cmd};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::fixture::{connect_to_redis, eventually, free_addr};

/// Servers of the test's own. They are killed, and their folder is removed, when dropped.
struct Servers {
    dir: PathBuf,
    running: Vec<Child>,
}

impl Servers {
    async fn start(&mut self, settings: &str, port: u16, more: &[&str]) -> u16 {
        let file = self.dir.join(format!("{port}.conf"));
        let folder = self.dir.display();
        std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\nsave \"\"\ndir {folder}\n{settings}")).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).args(more).stdout(Stdio::null()).kill_on_drop(true);
        self.running.push(command.spawn().unwrap());
        eventually("the server answers", async || {
            let mut redis = connect_to_redis(&format!("redis://127.0.0.1:{port}")).await.ok()?;
            cmd("PING").query_async::<Value>(&mut redis).await.ok()
        })
        .await;
        port
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[tokio::test]
async fn clients_follow_the_master_that_the_sentinels_name() {
    let dir = std::env::temp_dir().join(format!("stampede-sentinel-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut servers = Servers { dir, running: Vec::new() };
    let first = servers.start("", free_addr().port(), &[]).await;
    let replica = format!("replicaof 127.0.0.1 {first}\nrepl-diskless-sync-delay 0\n");
    let second = servers.start(&replica, free_addr().port(), &[]).await;
    let watch = format!(
        "sentinel monitor shop 127.0.0.1 {first} 1\nsentinel down-after-milliseconds shop 300\n\
         sentinel failover-timeout shop 3000\n"
    );
    let sentinel = servers.start(&watch, free_addr().port(), &["--sentinel"]).await;
    let asked = format!("redis://127.0.0.1:{sentinel}");
    eventually("the sentinel knows the replica", async || {
        let mut sentinel = connect_to_redis(&asked).await.unwrap();
        let replicas = cmd("SENTINEL").arg("REPLICAS").arg("shop").query_async::<Value>(&mut sentinel).await.ok()?;
        format!("{replicas:?}").contains(&second.to_string()).then_some(())
    })
    .await;

    // The first sentinel of the list is down.
    let settings = format!("redis-sentinel://127.0.0.1:1/shop?node=127.0.0.1:{sentinel}").as_str().into();
    let (mut redis, mut subscriber) = (connect(&settings).unwrap(), Subscriber::new(&settings).unwrap());
    let port = async |redis: &mut chassis::redis::Connection| {
        let info: String = cmd("INFO").arg("server").query_async(redis).await.ok()?;
        info.lines().find_map(|line| line.strip_prefix("tcp_port:")?.trim().parse::<u16>().ok())
    };
    assert_eq!(eventually("the master answers", async || port(&mut redis).await).await, first);
    servers.running[0].kill().await.unwrap();
    eventually("the next master answers", async || {
        let is_next = port(&mut redis).await? == second;
        cmd("SET").arg("a").arg(1).query_async::<Value>(&mut redis).await.ok().filter(|_| is_next)
    })
    .await;
    let mut news = eventually("it takes a subscriber", async || subscriber.subscribe("news").await.ok()).await;
    let received: i64 = cmd("PUBLISH").arg("news").arg("x").query_async(&mut redis).await.unwrap();
    assert_eq!((received, news.next().await.unwrap().get_payload::<String>().unwrap()), (1, "x".to_owned()));
}
