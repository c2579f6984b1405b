//! Parsing of the Redis URL.

use redis::{Client, ErrorKind, RedisResult};

use crate::env::Secret;

const CLUSTER: &str = "redis-cluster://";

/// Address of Redis.
pub(super) enum Place {
    Server(Client),
    /// Some nodes of the cluster; never empty.
    Cluster(Vec<Client>),
}

impl Place {
    /// Parses `redis://…`, or `redis-cluster://[user:password@]host:port[?node=host:port…]`. The user and password
    /// apply to every node.
    pub(super) fn parse(url: &Secret) -> RedisResult<Self> {
        let Some(rest) = url.expose().strip_prefix(CLUSTER) else {
            return Client::open(url.expose()).map(Self::Server);
        };
        let (first, query) = rest.split_once('?').unwrap_or((rest, ""));
        let first = first.trim_end_matches('/');
        let (user, first) = first.rsplit_once('@').map_or(("", first), |(user, host)| (user, host));
        let at = if user.is_empty() { "" } else { "@" };
        let mut nodes = vec![Client::open(format!("redis://{user}{at}{first}/"))?];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let unknown =
                (ErrorKind::InvalidClientConfig, "a cluster's URL takes node=host:port and no other parameter");
            let node = pair.strip_prefix("node=").ok_or(unknown)?;
            nodes.push(Client::open(format!("redis://{user}{at}{node}/"))?);
        }
        Ok(Self::Cluster(nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(url: &str) -> Vec<String> {
        match Place::parse(&Secret::from(url)).unwrap() {
            Place::Server(client) => vec![client.get_connection_info().addr().to_string()],
            Place::Cluster(nodes) => nodes.iter().map(|node| node.get_connection_info().addr().to_string()).collect(),
        }
    }

    #[test]
    fn a_url_names_one_server_or_nodes_of_a_cluster() {
        assert_eq!(nodes("redis://127.0.0.1:6379/"), ["127.0.0.1:6379"]);
        assert_eq!(nodes("redis-cluster://a:1"), ["a:1"]);
        assert_eq!(nodes("redis-cluster://a:1/?node=b:2&node=c:3"), ["a:1", "b:2", "c:3"]);
    }

    #[test]
    fn the_user_and_password_apply_to_every_node() {
        let Place::Cluster(nodes) = Place::parse(&Secret::from("redis-cluster://me:se%40cret@a:1?node=b:2")).unwrap()
        else {
            panic!("expected a cluster")
        };
        for node in nodes {
            let settings = node.get_connection_info().redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("me"), Some("se@cret")));
        }
    }

    #[test]
    fn an_invalid_url_is_refused() {
        for url in
            ["", "redis-cluster://", "redis-cluster://a:x", "redis-cluster://a:1?node=", "redis-cluster://a:1?b=2"]
        {
            assert!(Place::parse(&Secret::from(url)).is_err(), "{url:?}");
        }
    }
}
