//! Parsing of the Redis URL.

use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, RedisConnectionInfo, RedisResult};

use crate::env::Secret;

/// Address of Redis. Lists of nodes are never empty.
pub(super) enum Place {
    Server(ConnectionInfo),
    /// Some nodes of the cluster.
    Cluster(Vec<ConnectionInfo>),
    /// Some sentinels, with the account of the servers that they watch.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        name: String,
        is_same_account: bool,
    },
}

impl Place {
    /// Parses the forms that [`RedisSettings`](super::RedisSettings) lists. The user and password apply to every node.
    pub(super) fn parse(url: &Secret) -> RedisResult<Self> {
        let unknown = || (ErrorKind::InvalidClientConfig, "the URL of Redis has none of the known forms");
        let (scheme, rest) = url.expose().split_once("://").ok_or_else(unknown)?;
        if rest.contains('#') {
            // The library's only fragment turns the verification of the server off.
            return Err((ErrorKind::InvalidClientConfig, "the URL of Redis takes no fragment").into());
        }
        let (plain, kind) = scheme.split_once('-').unwrap_or((scheme, ""));
        match kind {
            "" => url.expose().into_connection_info().map(Self::Server),
            "cluster" => {
                let nodes = Nodes::parse(plain, rest)?;
                if nodes.path.is_empty() && !nodes.is_same_account {
                    Ok(Self::Cluster(nodes.all))
                } else {
                    Err((ErrorKind::InvalidClientConfig, "a cluster's URL takes node=host:port alone").into())
                }
            }
            "sentinel" => {
                let Nodes { all: sentinels, path: name, is_same_account } = Nodes::parse(plain, rest)?;
                if name.is_empty() {
                    let missing = "a sentinel's URL names the master: redis-sentinel://host:port/name";
                    return Err((ErrorKind::InvalidClientConfig, missing).into());
                }
                Ok(Self::Sentinel { sentinels, name, is_same_account })
            }
            _ => Err(unknown().into()),
        }
    }

    pub(super) fn account(&self) -> &RedisConnectionInfo {
        self.first().redis_settings()
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.first().addr(), ConnectionAddr::TcpTls { .. })
    }

    fn first(&self) -> &ConnectionInfo {
        match self {
            Self::Server(info) => info,
            Self::Cluster(nodes) | Self::Sentinel { sentinels: nodes, .. } => &nodes[0],
        }
    }
}

struct Nodes {
    all: Vec<ConnectionInfo>,
    path: String,
    is_same_account: bool,
}

impl Nodes {
    /// Parses `[user:password@]host:port[/path][?node=host:port…]`. `scheme` is `redis` or `rediss`.
    fn parse(scheme: &str, rest: &str) -> RedisResult<Self> {
        let (first, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, first) = first.rsplit_once('@').map_or(("", first), |(user, host)| (user, host));
        let (first, path) = first.split_once('/').unwrap_or((first, ""));
        let at = if user.is_empty() { "" } else { "@" };
        let node = |address: &str| format!("{scheme}://{user}{at}{address}/").into_connection_info();
        let (mut all, mut is_same_account) = (vec![node(first)?], false);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("node", address)) => all.push(node(address)?),
                Some(("sentinels", "same")) => is_same_account = true,
                _ => return Err((ErrorKind::InvalidClientConfig, "the URL has an unknown parameter").into()),
            }
        }
        Ok(Self { all, path: path.to_owned(), is_same_account })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(url: &str) -> Vec<String> {
        let nodes = match Place::parse(&Secret::from(url)).unwrap() {
            Place::Server(node) => vec![node],
            Place::Cluster(nodes) | Place::Sentinel { sentinels: nodes, .. } => nodes,
        };
        nodes.iter().map(|node| node.addr().to_string()).collect()
    }

    #[test]
    fn a_url_names_one_server_or_nodes_of_a_cluster_or_sentinels() {
        assert_eq!(nodes("redis://127.0.0.1:6379/"), ["127.0.0.1:6379"]);
        assert_eq!(nodes("redis-cluster://a:1"), ["a:1"]);
        assert_eq!(nodes("redis-cluster://a:1/?node=b:2&node=c:3"), ["a:1", "b:2", "c:3"]);
        assert_eq!(nodes("redis-sentinel://a:1/shop?node=b:2"), ["a:1", "b:2"]);
        let told = Secret::from("redis-sentinel://a:1/shop?node=b:2&sentinels=same");
        let Place::Sentinel { name, is_same_account, .. } = Place::parse(&told).unwrap() else { panic!("no sentinel") };
        assert_eq!((name.as_str(), is_same_account), ("shop", true));
    }

    #[test]
    fn rediss_means_tls_for_every_node() {
        for url in ["rediss://a:1/", "rediss-cluster://a:1?node=b:2", "rediss-sentinel://a:1/shop?node=b:2"] {
            assert!(Place::parse(&Secret::from(url)).unwrap().is_tls(), "{url}");
            assert!(!Place::parse(&Secret::from(url.replace("rediss", "redis"))).unwrap().is_tls(), "{url}");
        }
    }

    #[test]
    fn the_user_and_password_apply_to_every_node() {
        let Place::Cluster(nodes) = Place::parse(&Secret::from("redis-cluster://me:se%40cret@a:1?node=b:2")).unwrap()
        else {
            panic!("expected a cluster")
        };
        for node in nodes {
            let settings = node.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("me"), Some("se@cret")));
        }
    }

    #[test]
    fn an_invalid_url_is_refused() {
        for url in [
            "",
            "http://a",
            "redis-ring://a:1",
            "redis-cluster://",
            "redis-cluster://a:x",
            "redis-cluster://a:1?node=",
            "redis-cluster://a:1?b=2",
            "redis-cluster://a:1/shop",
            "redis-sentinel://a:1",
            "redis-sentinel://a:1/",
            "rediss://a:1/#insecure",
        ] {
            assert!(Place::parse(&Secret::from(url)).is_err(), "{url:?}");
        }
    }
}
