//! Processor time of processes, in user and kernel mode, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

/// Returns the seconds that a process, its threads and all its descendants have used so far, or `None` if the process
/// is gone. Descendants matter because Postgres has one process per connection.
pub(super) fn of_tree(root: u32) -> Option<f64> {
    let processes = processes();
    let mut ticks = processes.get(&root)?.ticks;
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for (pid, child) in processes.iter().filter(|(_, process)| process.parent == parent) {
            ticks += child.ticks;
            parents.push(*pid);
        }
    }
    Some(seconds(ticks))
}

/// Returns the seconds used by this process's children that have ended.
pub(super) fn of_ended_children() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = fields.get(13..15)?.iter().map(|ticks| ticks.parse::<u64>());
    Some(seconds(ticks.sum::<Result<_, _>>().ok()?))
}

/// Returns the idle seconds of all processors together.
pub(super) fn idle() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    // After user, nice and system follow idle and iowait.
    let fields = stat.lines().next()?.split_ascii_whitespace().skip(4).take(2);
    Some(seconds(fields.map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>().ok()?))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// The needed fields of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    parent: u32,
    /// Clock ticks used by the process and by its children that have ended.
    ticks: u64,
}

impl Process {
    fn parse(stat: &str) -> Option<Self> {
        // The name may contain spaces and parentheses; the state, the parent and, at index 11, the times follow it.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let ticks = fields.get(11..15)?.iter().map(|ticks| ticks.parse::<u64>());
        Some(Self { parent: fields[1].parse().ok()?, ticks: ticks.sum::<Result<_, _>>().ok()? })
    }
}

fn processes() -> BTreeMap<u32, Process> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = folders.filter_map(|folder| {
        let pid = folder.file_name().to_str()?.parse().ok()?;
        // A process that has just ended has no file.
        Some((pid, Process::parse(&fs::read_to_string(folder.path().join("stat")).ok()?)?))
    });
    processes.collect()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn a_process_includes_the_time_of_its_ended_children() {
        let line = "42 (a) (b c) S 1 40 40 0 -1 4194560 1 2 3 4 50 6 7 8 20 0 1 0 987654 1000 50 rest";
        assert_eq!(Process::parse(line), Some(Process { parent: 1, ticks: 71 }));
        assert_eq!(Process::parse("42 (a) S 1"), None);
    }

    #[test]
    fn a_tree_has_at_least_the_time_of_its_root_and_none_if_that_is_gone() {
        assert!(of_tree(process::id()).is_some());
        // Larger than any pid.
        assert_eq!(of_tree(u32::MAX), None);
    }
}
