//! Checks how the server that `REDIS_URL` names is set up.
//!
//! Nothing wrong is served where it is not: a replica takes no writes, so that Postgres answers, and a position that is
//! evicted takes the rows of its view and partition with it. Operators are told, in `/readyz` and the log.

use std::collections::HashMap;
use std::time::Duration;

use chassis::readiness::Condition;
use chassis::redis::Connection;
use chassis::shutdown::Shutdown;
use redis::FromRedisValue as _;

const EVERY: Duration = Duration::from_secs(3);

/// Keeps the condition at what the server tells of itself, until shutdown. It does not wait for a server that is away:
/// another condition does.
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
                        Some(reason) => tracing::warn!(reason, "Redis is not set up as it should be"),
                        None => tracing::info!("Redis is set up as it should be"),
                    }
                    logged = unfit;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.requested() => {}
        }
    }
}

/// Returns what is wrong, from the text of `INFO`.
fn unfit(info: &str) -> Option<&'static str> {
    let fields: HashMap<_, _> = info.lines().filter_map(|line| line.split_once(':')).collect();
    if fields.get("role") == Some(&"slave") {
        return Some("REDIS_URL names a replica, which takes no writes: name the master");
    }
    let is_limited = fields.get("maxmemory").is_some_and(|bytes| *bytes != "0");
    let policy = fields.get("maxmemory_policy")?;
    match *policy {
        "noeviction" if is_limited => Some(
            "maxmemory-policy is noeviction: at its limit Redis takes no rows, and Postgres answers; set volatile-lru",
        ),
        policy if is_limited && policy.starts_with("allkeys") => {
            Some("maxmemory-policy may evict positions, and all rows with each of them; set volatile-lru")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_told_and_a_policy_that_drops_positions_or_takes_no_rows() {
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
        assert_eq!(super::unfit(""), None, "a server that tells nothing may be any");
    }
}
