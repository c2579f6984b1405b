//! Bounds the processor time of each instance of a service by control groups, so that one instance is the bottleneck on
//! a machine that could do more.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::layout::Layout;

const ROOT: &str = "/sys/fs/cgroup";
/// Period within which a quota holds. The usual one, 100 ms, would make an instance pause for most of it.
const PERIOD_US: u32 = 20_000;

/// The control groups of this machine, in the first or the second version.
enum Groups {
    One(PathBuf),
    Two(PathBuf),
}

impl Groups {
    fn of_this_machine() -> Result<Self> {
        let root = Path::new(ROOT);
        if root.join("cpu/cpu.cfs_quota_us").exists() {
            return Ok(Self::One(root.join("cpu")));
        }
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_ascii_whitespace().any(|name| name == "cpu") {
            return Ok(Self::Two(root.to_owned()));
        }
        bail!("--cores needs the control groups' processor controller, which this machine lacks; leave the option out");
    }
}

/// Creates the group of a process and returns the file that a process joins it by.
pub(crate) fn confine(layout: &Layout, name: &str, millicores: u32) -> Result<PathBuf> {
    let quota = PERIOD_US / 1000 * millicores;
    let write = |path: PathBuf, text: String| {
        fs::write(&path, text).with_context(|| {
            format!("cannot write {}, which --cores needs; run as root, or leave the option out", path.display())
        })
    };
    let (Groups::One(root) | Groups::Two(root)) = &Groups::of_this_machine()?;
    let group = group(root, layout).join(name);
    let made = fs::create_dir_all(&group);
    made.with_context(|| format!("cannot create {}, which --cores needs; leave the option out", group.display()))?;
    match Groups::of_this_machine()? {
        Groups::One(_) => {
            write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            write(group.join("cpu.cfs_quota_us"), quota.to_string())?;
        }
        Groups::Two(root) => {
            for parent in [root.as_path(), group.parent().unwrap_or(&root)] {
                write(parent.join("cgroup.subtree_control"), String::from("+cpu"))?;
            }
            write(group.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
        }
    }
    Ok(group.join("cgroup.procs"))
}

/// Removes the groups of a stack whose processes have ended.
pub(crate) fn clear(layout: &Layout) {
    let Ok(Groups::One(root) | Groups::Two(root)) = Groups::of_this_machine() else { return };
    let group = group(&root, layout);
    for child in fs::read_dir(&group).into_iter().flatten().flatten() {
        // A group with processes stays, and so does its parent.
        let _ = fs::remove_dir(child.path());
    }
    let _ = fs::remove_dir(group);
}

/// Remembers the cores of each instance for other commands.
pub(crate) fn store(layout: &Layout, millicores: Option<u32>) -> Result<()> {
    let path = path(layout);
    fs::write(&path, millicores.unwrap_or(1000).to_string()).with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the cores of each instance of the running stack; one if they are not bounded.
pub(crate) fn of(layout: &Layout) -> f64 {
    let stored = fs::read_to_string(path(layout)).ok().and_then(|text| text.trim().parse::<f64>().ok());
    stored.unwrap_or(1000.0) / 1000.0
}

fn path(layout: &Layout) -> PathBuf {
    layout.state.join("millicores")
}

fn group(root: &Path, layout: &Layout) -> PathBuf {
    root.join(format!("stampede-{}", layout.ports.edge()))
}
