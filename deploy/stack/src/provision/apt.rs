//! Installs packages on Debian and Ubuntu.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Need, find};
use crate::logs;

/// Shell script that installs packages. Each argument lists the alternatives for one need, joined by commas, in order
/// of preference. While it runs, a policy-rc.d keeps packages from starting their servers; an existing one is left
/// alone.
const SCRIPT: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get update
packages=
for choice in "$@"; do
    for package in $(printf %s "$choice" | tr , ' '); do
        if [ -n "$(apt-cache show --no-all-versions "$package" 2>/dev/null)" ]; then
            packages="$packages $package"
            break
        fi
    done
done
apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 $packages
"#;

pub(super) fn install(missing: &[&'static Need], log: &Path) -> Result<()> {
    let names: Vec<_> = missing.iter().map(|need| need.name).collect();
    let packages: Vec<_> = missing.iter().filter_map(|need| need.packages.first().copied()).collect();
    let by_hand = format!(
        "missing on this machine: {}. On Debian or Ubuntu: apt-get install --no-install-recommends {}",
        names.join(", "),
        packages.join(" ")
    );
    if find::program("apt-get").is_none() {
        bail!("{by_hand}\n(apt-get is not available; install them with this system's package manager, then run again)");
    }
    let Some(mut command) = as_root() else {
        bail!("{by_hand}\n(installing needs root or passwordless sudo; install them, then run again)");
    };
    println!("Missing on this machine: {}.", names.join(", "));
    println!("Installing with apt-get: {} (log: {})", packages.join(" "), log.display());
    let choices = missing.iter().map(|need| need.packages.join(","));
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .args(["sh", "-c", SCRIPT, "sh"])
        .args(choices)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get failed; last lines of its log:\n{}\n{by_hand}", logs::end_of(log));
    }
    Ok(())
}

/// Returns a command that runs its arguments as root without a password prompt, or `None` if that is not possible.
fn as_root() -> Option<Command> {
    if rustix::process::geteuid().is_root() {
        return Some(Command::new("env"));
    }
    let sudo = find::program("sudo")?;
    let quiet =
        |command: &mut Command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet(Command::new(&sudo).args(["-n", "true"])).is_ok_and(|status| status.success()).then(|| {
        let mut command = Command::new(sudo);
        command.arg("-n");
        command
    })
}
