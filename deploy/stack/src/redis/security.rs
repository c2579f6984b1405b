//! Redis of a secured stack: TLS alone, and a user for each account, with the commands that its services send.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::STOP;
use crate::accounts::{self, Account, Secured};
use crate::certificates::{Certificate, authority};
use crate::layout::{Layout, write_private};
use crate::part::{Launch, OnDeath, Part, Role, Tier};
use crate::probe::Probe;
use crate::process::run;
use crate::provision::Tools;
use crate::size::Size;

/// User that joins the nodes of a cluster, and as whom replicas come to their masters.
const NODE: &str = "redis";

/// Accounts that use Redis.
const USERS: [Account; 3] = [Account::QueryApi, Account::Projector, Account::Owner];

/// Rights of each user, or of all, which the users of other deployments have as well.
const RIGHTS: &str = include_str!("../../../redis/rights");

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
    pub(super) fn write(layout: &Layout, Secured { certificates, logs }: Secured<'_>) -> Result<Self> {
        let users = write_users(layout, logs)?;
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

/// Writes the file of the users, who may use the keys of these logs, and returns its path. A server reads it at its start.
pub(crate) fn write_users(layout: &Layout, logs: &[&Size]) -> Result<PathBuf> {
    let users = layout.config().join("redis.users");
    write_private(&users, &users_of(layout, logs)?)?;
    Ok(users)
}

/// Lets the accounts of a running stack use the keys of these logs, also after a restart of a server.
pub(crate) fn admit(layout: &Layout, tools: &Tools, logs: &[&Size]) -> Result<()> {
    write_users(layout, logs)?;
    for account in USERS {
        let rights = rights_of(account, &prefixes_of(logs)).join(" ");
        let command = format!("ACL SETUSER {} clearselectors {rights}", account.name());
        administer(layout, tools, logs[0].redis_cluster, &command)?;
    }
    Ok(())
}

/// Sends a command to each running server, as the user that may do everything. Fails if one does not answer with `OK`.
pub(crate) fn administer(layout: &Layout, tools: &Tools, is_cluster: bool, command: &str) -> Result<()> {
    let (program, password) = (super::cli(tools), accounts::password(layout, NODE)?);
    let authority = authority(&layout.certificates()).to_string_lossy().into_owned();
    for port in super::ports(layout, is_cluster) {
        let port = port.to_string();
        // -e: an error is an exit status.
        let args = ["-e", "-h", "127.0.0.1", "-p", &port, "--tls", "--cacert", &authority, "--user", NODE];
        let mut launch = Launch::new(&program, args).env("REDISCLI_AUTH", &password);
        // Others can see the arguments of a process.
        launch.stdin = Some(format!("{command}\n"));
        let said = run(&launch)?;
        ensure!(said.trim() == "OK", "Redis at port {port} refused to change a user: {}", said.trim());
    }
    Ok(())
}

fn users_of(layout: &Layout, logs: &[&Size]) -> Result<String> {
    let mut text = String::from("user default off\n");
    text += &format!("user {NODE} on >{} ~* &* +@all\n", accounts::password(layout, NODE)?);
    for account in USERS {
        let (name, password, rights) =
            (account.name(), account.password(layout)?, rights_of(account, &prefixes_of(logs)).join(" "));
        text += &format!("user {name} on >{password} {rights}\n");
    }
    Ok(text)
}

fn prefixes_of(logs: &[&Size]) -> Vec<String> {
    logs.iter().map(|size| size.redis_prefix()).collect()
}

/// Returns the rights of an account, in the words of `ACL SETUSER`, with the keys and channels of these prefixes.
fn rights_of(account: Account, prefixes: &[String]) -> Vec<String> {
    let name = if account == Account::Owner { Account::Projector.name() } else { account.name() };
    let lines = RIGHTS.lines().filter_map(|line| line.split_once(' '));
    let words = lines.filter(|(of, _)| *of == "all" || *of == name).flat_map(|(_, rights)| rights.split(' '));
    let in_each = |word: &str| match word.contains("st:") {
        true => prefixes.iter().map(|prefix| word.replacen("st:", &format!("{prefix}:"), 1)).collect(),
        false => vec![word.to_owned()],
    };
    words.flat_map(in_each).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::{env, fs};

    use super::super::NODES;
    use super::*;
    use crate::layout::root;

    #[test]
    fn a_url_names_the_account_of_every_node() {
        let layout = Layout::new(Some(Path::new("state")), Some(20000)).unwrap();
        assert_eq!(secure_url(&layout, false, Account::QueryApi), "rediss://query-api@127.0.0.1:20021/");
        let cluster = secure_url(&layout, true, Account::Projector);
        assert!(cluster.starts_with("rediss-cluster://projector@127.0.0.1:20041?node=127.0.0.1:20042&"), "{cluster}");
        assert_eq!(cluster.matches("node=").count(), usize::from(NODES) - 1);
    }

    fn of_first_log(account: Account) -> String {
        rights_of(account, &["st".to_owned()]).join(" ")
    }

    /// Returns the users in the output or the file of a script, each with its rights.
    fn users_in(text: &str) -> Vec<(String, String)> {
        let users = text.lines().filter_map(|line| line.trim().strip_prefix("user "));
        let services = users.filter(|user| !user.starts_with("default "));
        services
            .map(|user| {
                let (name, rest) = user.split_once(" on #").unwrap();
                (name.to_owned(), rest.split_once(' ').unwrap().1.to_owned())
            })
            .collect()
    }

    #[test]
    fn containers_and_a_cluster_give_the_same_rights() {
        let folder = env::temp_dir().join(format!("stampede-rights-{}", std::process::id()));
        let ours = [Account::QueryApi, Account::Projector].map(|each| (each.name().to_owned(), of_first_log(each)));
        let run = |script: &str| {
            let output = Command::new(root().join(script)).arg(folder.join(script)).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(users_in(&run("deploy/kubernetes/secrets.sh")), ours);
        run("deploy/compose/secrets.sh");
        let users = fs::read_to_string(folder.join("deploy/compose/secrets.sh/valkey-users")).unwrap();
        assert_eq!(users_in(&users), ours);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn query_api_may_write_no_position_and_publish_nothing() {
        let has = |account: Account, right: &str| of_first_log(account).split(' ').any(|each| each == right);
        for right in ["+mset", "+del", "+publish", "+scan", "~st:*"] {
            assert!(has(Account::Projector, right) && !has(Account::QueryApi, right), "{right}");
        }
        for account in [Account::QueryApi, Account::Projector] {
            let rights = of_first_log(account);
            assert!(!rights.contains("+@") && !rights.contains("~*") && rights.contains("-@all"), "{rights}");
        }
    }
}
