//! Starts operating system processes in their own groups, records them, and finds and stops them again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::part::{Account, Launch, Output};

/// Grace period of leftover processes before they are killed.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);
/// Variables of the caller's environment that processes inherit; any other could change their behaviour.
const PASSED_ON: [&str; 9] =
    ["PATH", "HOME", "USER", "TMPDIR", "TZ", "LOG", "LOG_FORMAT", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];

/// Identity of a process for a later run. The start time is part of it because pids are reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// Start time in clock ticks since the machine booted.
    pub(crate) started: u64,
    /// Boot id of the machine, because ticks are comparable only within one boot.
    pub(crate) boot: String,
    /// Number of the signal that asks the process to stop.
    pub(crate) stop: i32,
}

/// The needed fields of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) group: u32,
    pub(crate) started: u64,
}

/// Starts a process in its own group and records it.
pub fn spawn(layout: &Layout, name: &str, launch: &Launch, stop: Signal) -> Result<Child> {
    let what = || format!("cannot start {name}: {}", launch.program.display());
    let mut child = command(launch, &layout.log(name))?.process_group(0).spawn().with_context(what)?;
    let recorded = record(layout, name, child.id(), stop);
    if let Err(error) = recorded {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    if let (Some(text), Some(mut stdin)) = (&launch.stdin, child.stdin.take()) {
        // A process that does not read its input has failed already, and its exit status reports that.
        let _ = stdin.write_all(text.as_bytes());
    }
    Ok(child)
}

/// Runs a program of this account to its end, and returns what it printed.
pub(crate) fn run(launch: &Launch) -> Result<String> {
    let what = || launch.program.display();
    let mut child = Command::new(&launch.program)
        .args(&launch.args)
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", what()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why.
        let _ = stdin.write_all(launch.stdin.as_deref().unwrap_or_default().as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot run {}", what()))?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "{} {}: {}", what(), describe(output.status), said.trim());
    Ok(said)
}

/// Replaces this process with a program, whose exit status becomes its own. Returns only on failure, with the error.
pub(crate) fn exec(command: &mut Command) -> Error {
    Error::new(command.exec()).context(format!("cannot start {}", command.get_program().display()))
}

pub fn forget(layout: &Layout, name: &str) {
    // A record that remains is harmless: it matches no process.
    let _ = fs::remove_file(record_path(layout, name));
}

/// Sends a signal to a process group. A group that has ended is no error.
pub fn signal_group(pid: u32, signal: Signal) {
    if let Some(pid) = raw(pid) {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns the processor seconds that a process's threads have used so far. `/proc/PID/stat` would count hundredths of a
/// second, of which a confined instance has only a few between two looks. Threads that have ended do not count.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let used = threads.filter_map(|thread| {
        // A thread that has just ended has no file.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(used.sum()).as_secs_f64())
}

/// Returns a process's resident memory in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Formats an exit status, e.g. `exit 1` or `signal 9 (SIGKILL)`.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(number)) => format!("signal {number}{}", signal_name(number)),
        (None, None) => String::from("unknown exit status"),
    }
}

fn signal_name(number: i32) -> &'static str {
    match number {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        6 => " (SIGABRT)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

/// Parses a signal's name or number, e.g. `KILL`, `SIGKILL`, `kill` or `9`.
pub(crate) fn parse_signal(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse() {
        return Signal::from_named_raw(number);
    }
    let upper = text.to_ascii_uppercase();
    Some(match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ABRT" => Signal::ABORT,
        "KILL" => Signal::KILL,
        "SEGV" => Signal::SEGV,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "TERM" => Signal::TERM,
        "CONT" => Signal::CONT,
        "STOP" => Signal::STOP,
        _ => return None,
    })
}

/// Returns the processes of an earlier run in this state directory that are still alive, with the pids of each group.
pub(crate) fn leftovers(layout: &Layout) -> Vec<(Record, Vec<u32>)> {
    let files = fs::read_dir(layout.records()).into_iter().flatten().flatten();
    let records = files.filter_map(|file| serde_json::from_slice::<Record>(&fs::read(file.path()).ok()?).ok());
    let boot = boot();
    let table = table();
    records
        .filter(|record| record.boot == boot)
        .map(|record| (members(&record, &table), record))
        .filter(|(members, _)| !members.is_empty())
        .map(|(members, record)| (record, members))
        .collect()
}

/// Stops the leftover processes of an earlier run, and no others. Returns their names.
pub fn end_leftovers(layout: &Layout) -> Vec<String> {
    let names = end_those(layout, |_| true);
    // No process is left, so all records are stale.
    for file in fs::read_dir(layout.records()).into_iter().flatten().flatten() {
        let _ = fs::remove_file(file.path());
    }
    names
}

/// Stops the process of this name that an earlier run left behind.
pub(crate) fn end_leftover(layout: &Layout, name: &str) {
    end_those(layout, |recorded| recorded == name);
    forget(layout, name);
}

/// Stops recorded processes. Returns their names.
fn end_those(layout: &Layout, is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names = Vec::new();
    let asked = Instant::now();
    loop {
        let mut left = leftovers(layout);
        left.retain(|(record, _)| is_meant(&record.name));
        for (record, pids) in &left {
            let first = !names.contains(&record.name);
            let stop = Signal::from_named_raw(record.stop).unwrap_or(Signal::TERM);
            let signals = match asked.elapsed() > LEFTOVER_GRACE {
                true => [Signal::KILL, Signal::CONT],
                false => [stop, Signal::CONT],
            };
            if first {
                names.push(record.name.clone());
            }
            if first || asked.elapsed() > LEFTOVER_GRACE {
                signals.iter().for_each(|signal| pids.iter().for_each(|pid| signal_one(*pid, *signal)));
            }
        }
        if left.is_empty() || asked.elapsed() > 2 * LEFTOVER_GRACE {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    names
}

/// Returns the living processes of a record's group. The leader has the recorded pid and start time. If the leader is
/// gone, its remaining members hold the group's number, so no later process can have it as its pid.
fn members(record: &Record, table: &[(u32, Stat)]) -> Vec<u32> {
    let leader = table.iter().find(|(pid, _)| *pid == record.pid);
    if leader.is_some_and(|(_, stat)| stat.started != record.started) {
        return Vec::new();
    }
    let ours = |stat: &Stat| stat.group == record.pid && stat.started >= record.started && stat.state != 'Z';
    table.iter().filter(|(_, stat)| ours(stat)).map(|(pid, _)| *pid).collect()
}

fn table() -> Vec<(u32, Stat)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// Parses `/proc/PID/stat`. The name in parentheses may itself contain blanks and parentheses, so fields are counted
/// from the last closing one.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        group: fields.nth(1)?.parse().ok()?,
        started: fields.nth(16)?.parse().ok()?,
    })
}

fn record(layout: &Layout, name: &str, pid: u32, stop: Signal) -> Result<()> {
    let started = stat(pid).with_context(|| format!("{name} has already exited"))?.started;
    let record = Record { name: name.to_owned(), pid, started, boot: boot(), stop: stop.as_raw() };
    let path = record_path(layout, name);
    let text = serde_json::to_string(&record)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn record_path(layout: &Layout, name: &str) -> std::path::PathBuf {
    layout.records().join(format!("{name}.json"))
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn command(launch: &Launch, log: &Path) -> Result<Command> {
    let mut command = match &launch.group {
        // The shell joins the control group and becomes the program.
        Some(group) => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(group).arg(&launch.program);
            shell
        }
        None => Command::new(&launch.program),
    };
    command.args(&launch.args);
    if launch.env_of_caller {
        hide_cargo(&mut command);
    } else {
        command.env_clear().env("LC_ALL", "C.UTF-8");
        command.envs(PASSED_ON.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
    }
    command.envs(launch.env.iter().map(|(name, value)| (name, value)));
    command.stdin(if launch.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let log = append(log)?;
    match launch.output {
        Output::Log => command.stdout(log.try_clone()?).stderr(log),
        Output::Caller => &mut command,
    };
    if let Some(dir) = &launch.dir {
        command.current_dir(dir);
    }
    if let Account::User { uid, gid } = launch.account {
        command.uid(uid).gid(gid);
    }
    Ok(command)
}

/// Removes the variables that cargo set for this program, which another build must not inherit.
pub(crate) fn hide_cargo(command: &mut Command) {
    let of_cargo = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_cargo)) {
        command.env_remove(name);
    }
}

fn append(path: &Path) -> Result<File> {
    let file: io::Result<File> = File::options().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

fn signal_one(pid: u32, signal: Signal) {
    if let Some(pid) = raw(pid) {
        // It may have ended in the meantime.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: u32, started: u64) -> Record {
        Record { name: String::from("edge"), pid, started, boot: String::new(), stop: 15 }
    }

    fn stat(group: u32, started: u64) -> Stat {
        Stat { state: 'S', group, started }
    }

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) (b c) S 1 40 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 50 rest";
        assert_eq!(parse_stat(line), Some(Stat { state: 'S', group: 40, started: 987_654 }));
        let own = super::stat(std::process::id()).unwrap();
        assert!(own.started > 0 && own.group > 0);
    }

    #[test]
    fn processor_time_is_counted_between_ticks() {
        let own = std::process::id();
        let (before, begun) = (cpu_seconds(own).unwrap(), Instant::now());
        while cpu_seconds(own).unwrap() - before < 0.001 {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
        assert_eq!(cpu_seconds(u32::MAX), None);
    }

    #[test]
    fn a_leftover_is_known_by_pid_and_start_time() {
        let table = [(10, stat(10, 500)), (11, stat(10, 501)), (12, stat(12, 500))];
        assert_eq!(members(&record(10, 500), &table), [10, 11]);
    }

    #[test]
    fn a_reused_pid_is_no_leftover() {
        let table = [(10, stat(10, 900)), (11, stat(10, 901))];
        assert_eq!(members(&record(10, 500), &table), [0; 0]);
    }

    #[test]
    fn members_of_a_dead_leader_are_found_by_their_group() {
        let table = [(11, stat(10, 501)), (13, stat(10, 499))];
        assert_eq!(members(&record(10, 500), &table), [11]);
    }

    #[test]
    fn the_dead_are_no_leftovers() {
        let zombie = Stat { state: 'Z', group: 10, started: 500 };
        assert_eq!(members(&record(10, 500), &[(10, zombie)]), [0; 0]);
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        for text in ["KILL", "SIGKILL", "kill", "9"] {
            assert_eq!(parse_signal(text), Some(Signal::KILL), "{text}");
        }
        assert_eq!(parse_signal("NO"), None);
        assert_eq!(parse_signal("0"), None);
    }
}
