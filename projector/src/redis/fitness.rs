//! Checks the configuration of the server that `REDIS_URL` names.
//!
//! An unsuitable configuration does not cause wrong answers: a replica accepts no writes, so Postgres answers, and an
//! evicted position invalidates the rows of its view and partition. Operators see it in `/readyz` and the log.

use std::collections::HashMap;
use std::time::Duration;

use chassis::readiness::Condition;
use chassis::redis::Connection;
use chassis::shutdown::Shutdown;
use redis::FromRedisValue as _;

const EVERY: Duration = Duration::from_secs(3);

/// Updates the readiness condition from the server's `INFO`, until shutdown. A server that is down does not count as
/// misconfigured: another condition covers that.
pub(crate) async fn watch(mut connection: Connection, settings: Condition, shutdown: Shutdown) {
    let mut info = redis::cmd("INFO");
    info.arg("replication").arg("memory");
    let mut logged = None;
    while !shutdown.is_requested() {
        match connection.ask_masters(info.clone()).await {
            Err(_) => settings.ready(),
            Ok(servers) => {
                let texts = servers.into_iter().filter_map(|(_, info)| String::from_redis_value(info).ok());
                let unfit = texts.filter_map(|info| unfit(&info)).next();
                match unfit {
                    Some(reason) => settings.waiting(reason),
                    None => settings.ready(),
                }
                if logged != unfit {
                    match unfit {
                        Some(reason) => tracing::warn!(reason, "Redis is misconfigured"),
                        None => tracing::info!("Redis is configured as required"),
                    }
                    logged = unfit;
                }
            }
        }
        shutdown.sleep(EVERY).await;
    }
}

/// Returns the problem with the server's configuration, if any, from the text of `INFO`.
fn unfit(info: &str) -> Option<&'static str> {
    let fields: HashMap<_, _> = info.lines().filter_map(|line| line.split_once(':')).collect();
    if fields.get("role") == Some(&"slave") {
        return Some("REDIS_URL names a replica, which accepts no writes: use the master's URL");
    }
    let is_limited = fields.get("maxmemory").is_some_and(|bytes| *bytes != "0");
    let policy = fields.get("maxmemory_policy")?;
    match *policy {
        "noeviction" if is_limited => Some(
            "maxmemory-policy is noeviction: at its limit Redis rejects rows, and Postgres answers; set volatile-lru",
        ),
        policy if is_limited && policy.starts_with("allkeys") => {
            Some("maxmemory-policy may evict positions, each of which invalidates all of its rows; set volatile-lru")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_reported_and_a_policy_that_evicts_positions_or_rejects_rows() {
        let unfit = |role: &str, maxmemory: u32, policy: &str| {
            unfit(&format!("# Replication\r\nrole:{role}\r\nmaxmemory:{maxmemory}\r\nmaxmemory_policy:{policy}\r\n"))
        };
        for policy in ["noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random"] {
            assert!(unfit("master", 1, policy).unwrap().contains("set volatile-lru"), "{policy}");
            assert_eq!(unfit("master", 0, policy), None, "nothing is evicted without a limit");
        }
        for policy in ["volatile-lru", "volatile-lfu", "volatile-ttl", "volatile-random"] {
            assert_eq!(unfit("master", 1, policy), None);
        }
        assert!(unfit("slave", 0, "volatile-lru").unwrap().contains("replica"));
        assert_eq!(super::unfit(""), None, "a server without `INFO` was rejected");
    }
}
