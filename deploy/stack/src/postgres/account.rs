//! Chooses the account that runs Postgres, which refuses to run as root.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::part::{Account, Launch};

/// Accounts of a Debian system that may run Postgres, in order of preference.
const NAMES: [&str; 2] = ["postgres", "nobody"];

/// An account that can use the data folder, and the means by which it reaches the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unprivileged {
    /// The caller is not root.
    Caller,
    /// The account reaches the folder without privileges.
    User { uid: u32, gid: u32 },
    /// The folder is below one that other users may not enter, such as /root. The process keeps one capability, to
    /// enter folders, and is otherwise unprivileged.
    WithCapability { uid: u32, gid: u32, capability: &'static str },
}

/// Chooses an account that can reach `folder`, which must exist.
pub(super) fn choose(folder: &Path) -> Result<Unprivileged> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Unprivileged::Caller);
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some((uid, gid)) = NAMES.iter().find_map(|name| ids(&passwd, name)) else {
        bail!("Postgres refuses to run as root, and this machine has no account `{}`", NAMES.join("` or `"));
    };
    let ways = [
        Unprivileged::User { uid, gid },
        Unprivileged::WithCapability { uid, gid, capability: "dac_read_search" },
        Unprivileged::WithCapability { uid, gid, capability: "dac_override" },
    ];
    let Some(way) = ways.into_iter().find(|way| way.reaches(folder)) else {
        bail!(
            "Postgres refuses to run as root, and the account with uid {uid} may not enter {}; \
             move the checkout, or set --state-dir to a folder that other users may enter",
            folder.display()
        );
    };
    Ok(way)
}

impl Unprivileged {
    pub(super) fn launch(self, program: &Path, args: &[&str]) -> Launch {
        match self {
            Self::Caller => Launch::new(program, args.iter().copied()),
            Self::User { uid, gid } => {
                let account = Account::User { uid, gid };
                Launch { account, ..Launch::new(program, args.iter().copied()) }
            }
            Self::WithCapability { uid, gid, capability } => {
                let program = program.to_string_lossy();
                let wrapped = setpriv(uid, gid, capability).into_iter().chain([program.into_owned()]);
                Launch::new("setpriv", wrapped.chain(args.iter().map(|arg| (*arg).to_owned())))
            }
        }
    }

    /// Returns the uid and gid that must own the data, or `None` if the caller owns it already.
    pub(super) fn ids(self) -> Option<(u32, u32)> {
        match self {
            Self::Caller => None,
            Self::User { uid, gid } | Self::WithCapability { uid, gid, .. } => Some((uid, gid)),
        }
    }

    /// Returns whether the account reaches the folder, by running `stat` as that account: `access` ignores
    /// capabilities.
    fn reaches(self, folder: &Path) -> bool {
        let launch = self.launch(Path::new("stat"), &[&folder.join(".").to_string_lossy()]);
        let mut command = Command::new(launch.program);
        command.args(launch.args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Account::User { uid, gid } = launch.account {
            use std::os::unix::process::CommandExt;
            command.uid(uid).gid(gid);
        }
        command.status().is_ok_and(|status| status.success())
    }
}

fn setpriv(uid: u32, gid: u32, capability: &str) -> Vec<String> {
    vec![
        format!("--reuid={uid}"),
        format!("--regid={gid}"),
        String::from("--clear-groups"),
        format!("--inh-caps=-all,+{capability}"),
        format!("--ambient-caps=-all,+{capability}"),
        format!("--bounding-set=-all,+{capability}"),
        String::from("--"),
    ]
}

fn ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres2:x:9:9::/:\npostgres:x:101:104::/var/lib:/bin/bash\n";
        assert_eq!(ids(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids(passwd, "nobody"), None);
    }
}
