//! Redis of a secured stack: TLS alone, and a user for each account, with the commands that its services send.

use std::path::PathBuf;

use anyhow::Result;

use super::STOP;
use crate::accounts::{self, Account};
use crate::certificates::{Certificate, Certificates};
use crate::layout::{Layout, write_private};
use crate::part::{Launch, OnDeath, Part, Role, Tier};
use crate::probe::Probe;

/// User that joins the nodes of a cluster, and as whom replicas come to their masters.
const NODE: &str = "redis";

/// Commands that every client sends to begin with, to find the nodes of a cluster, and to follow keys that move.
const COMMON: &str = "+ping +hello +auth +select +client|setname +info +cluster|slots +asking";

/// Commands of query-api: it reads positions and rows, and caches the rows that it read from Postgres by a script.
const QUERIES: &str = "+mget +get +time +subscribe +unsubscribe +evalsha +eval +script|load +zscore +getrange +set";

/// Commands of the projector and its tools, which write rows and positions, and publish news of them.
const PROJECTION: &str = "+mget +get +mset +set +getrange +expire +del +unlink +zadd +zscore +zremrangebyscore +publish \
                          +time +scan +evalsha +eval +script|load";

/// Returns the URL for an account, without its password.
pub(crate) fn secure_url(layout: &Layout, is_cluster: bool, account: Account) -> String {
    let (name, url) = (account.name(), super::url(layout, is_cluster));
    url.replacen("redis", "rediss", 1).replacen("://", &format!("://{name}@"), 1)
}

/// Files of the servers.
pub(super) struct Security {
    users: PathBuf,
    pair: Certificate,
    authority: PathBuf,
    password: String,
}

impl Security {
    pub(super) fn write(layout: &Layout, certificates: &Certificates) -> Result<Self> {
        let users = layout.config().join("redis.users");
        write_private(&users, &users_of(layout)?)?;
        let (pair, authority) = (certificates.of(super::NAME)?, certificates.authority());
        Ok(Self { users, pair, authority, password: accounts::password(layout, NODE)? })
    }

    /// Returns the server with TLS in place of plaintext, and with users.
    pub(super) fn protect(&self, mut part: Part, port: u16) -> Part {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let told = [
            ("--port", "0".to_owned()),
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", text(&self.pair.certificate)),
            ("--tls-key-file", text(&self.pair.key)),
            ("--tls-ca-cert-file", text(&self.authority)),
            ("--tls-auth-clients", "no".to_owned()),
            ("--aclfile", text(&self.users)),
        ];
        part.launch.args.extend(told.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        // This program has no client for TLS.
        let ready = Probe::Log { line: "Ready to accept connections", port };
        part.role = Role::Server { ready, stop: STOP, on_death: OnDeath::Leave, tier: Tier::Redis };
        part
    }

    /// Returns the node of a cluster, which reaches the others by TLS as well.
    pub(super) fn protect_node(&self, part: Part, port: u16) -> Part {
        let mut part = self.protect(part, port);
        for (name, value) in [("--tls-cluster", "yes"), ("--tls-replication", "yes"), ("--masteruser", NODE)] {
            part.launch.args.extend([name.to_owned(), value.to_owned()]);
        }
        part.launch.args.extend(["--masterauth".to_owned(), self.password.clone()]);
        part
    }

    /// Returns the launch of `redis-cli` with what it needs to reach the servers.
    pub(super) fn of_tool(&self, mut launch: Launch) -> Launch {
        let authority = self.authority.to_string_lossy();
        let more = ["--tls", "--cacert", &*authority, "--user", NODE];
        launch.args.splice(0..0, more.map(str::to_owned));
        launch.env("REDISCLI_AUTH", &self.password)
    }
}

fn users_of(layout: &Layout) -> Result<String> {
    let mut text = String::from("user default off\n");
    let mut user = |name: &str, password: String, rights: &str| {
        text += &format!("user {name} on >{password} {rights}\n");
    };
    user(NODE, accounts::password(layout, NODE)?, "~* &* +@all");
    // Keys begin with the prefix in braces, which make the keys of a partition stay together.
    let queries = format!("resetkeys ~{{st:*}}:* resetchannels &st:news -@all {COMMON} {QUERIES}");
    user(Account::QueryApi.name(), Account::QueryApi.password(layout)?, &queries);
    // The keys of older builds, which it removes, have no braces.
    let projection = format!("resetkeys ~{{st:*}}:* ~st:* resetchannels &st:news -@all {COMMON} {PROJECTION}");
    user(Account::Projector.name(), Account::Projector.password(layout)?, &projection);
    user(Account::Owner.name(), Account::Owner.password(layout)?, &projection);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::NODES;
    use super::*;

    #[test]
    fn a_url_names_the_account_of_every_node() {
        let layout = Layout::new(Some(Path::new("state")), Some(20000)).unwrap();
        assert_eq!(secure_url(&layout, false, Account::QueryApi), "rediss://query-api@127.0.0.1:20021/");
        let cluster = secure_url(&layout, true, Account::Projector);
        assert!(cluster.starts_with("rediss-cluster://projector@127.0.0.1:20041?node=127.0.0.1:20042&"), "{cluster}");
        assert_eq!(cluster.matches("node=").count(), usize::from(NODES) - 1);
    }
}
