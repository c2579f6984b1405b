//! Controls a running stack: one line of JSON each way over a Unix socket in its state directory.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::services::Service;
use crate::status::Status;

/// Timeout of a request, longer than any part takes to start or stop.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Request {
    Status,
    /// Stops a process; answered when it has stopped.
    Stop {
        name: String,
    },
    /// Starts a process; answered when it is ready.
    Start {
        name: String,
    },
    /// Changes variables of the environment with which a process is started from now on; answered at once.
    Configure {
        name: String,
        env: Vec<(String, String)>,
    },
    /// Sends the signal with this number to a process; answered at once.
    Kill {
        name: String,
        signal: i32,
    },
    /// Starts a further instance of a service, by default from the program of the latest one; answered when it is ready
    /// and gets requests, or has failed.
    Add {
        service: Service,
        number: u16,
        /// Folder of the program.
        binaries: Option<PathBuf>,
        /// Seconds within which the instance has to be ready.
        within_secs: u64,
    },
    /// Takes an instance out of the edge, drains and stops it, and forgets it; answered when it has ended.
    Remove {
        name: String,
    },
    /// Stops the stack; answered when every process has ended.
    Down,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    Status(Status),
    Done(String),
    Failed(String),
}

/// A request and the channel for its single reply.
pub(crate) type Call = (Request, Sender<Reply>);

/// Exclusive lock of a state directory. Its supervisor holds it until the process ends, even if it crashes.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

/// Locks the state directory. Returns `None` if a stack is already running in it.
pub fn lock(layout: &Layout) -> Result<Option<Lock>> {
    let path = layout.lock();
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Returns whether a stack is running in the state directory.
pub fn is_locked(layout: &Layout) -> Result<bool> {
    Ok(layout.lock().exists() && lock(layout)?.is_none())
}

/// Waits until a stack that was asked to stop has released its lock.
fn wait_until_unlocked(layout: &Layout) -> Result<()> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    while is_locked(layout)? {
        if Instant::now() > deadline {
            bail!(
                "the stack has not stopped within {} s; see `cargo stack logs {}`",
                ANSWER_TIMEOUT.as_secs(),
                crate::logs::OWN
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Listens on the control socket and passes each request to `calls`. The caller holds the lock, so an existing socket
/// file is stale and is replaced.
pub(crate) fn serve(layout: &Layout, calls: impl Fn(Call) + Clone + Send + 'static) -> Result<()> {
    let path = layout.control();
    let _ = fs::remove_file(&path);
    let listener = through_folder(&path, |short| UnixListener::bind(short))
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let calls = calls.clone();
            // An error means that the caller disconnected, which concerns only that caller.
            thread::spawn(move || answer(&stream, &calls));
        }
    });
    Ok(())
}

/// Sends a request to the stack of this state directory and returns its reply, or `None` if no stack is running.
pub fn ask(layout: &Layout, request: &Request) -> Result<Option<Reply>> {
    let path = layout.control();
    let Ok(stream) = through_folder(&path, |short| UnixStream::connect(short)) else {
        if is_locked(layout)? {
            bail!("the stack is just starting or stopping; try again in a moment");
        }
        return Ok(None);
    };
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes()).context("cannot send the request to the stack")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("no answer from the stack")?;
    if answer.is_empty() {
        bail!("the stack ended before answering");
    }
    Ok(Some(serde_json::from_str(&answer).with_context(|| format!("invalid answer from the stack: {answer:?}"))?))
}

/// Sends a request that requires a running stack, and returns its success message. Fails if no stack is running or the
/// request failed.
pub fn tell(layout: &Layout, request: &Request) -> Result<String> {
    match ask(layout, request)? {
        Some(Reply::Done(text)) => Ok(text),
        Some(Reply::Failed(text)) => Err(anyhow!(text)),
        Some(Reply::Status(_)) => bail!("unexpected answer from the stack"),
        None => bail!("no stack is running; start one with `cargo stack up`"),
    }
}

/// Stops the running stack and waits until its lock is released. The reply may be lost when the supervisor exits, so
/// an error counts only while the lock is still held.
pub(crate) fn down(layout: &Layout) -> Result<()> {
    match ask(layout, &Request::Down) {
        Err(error) if is_locked(layout)? => return Err(error),
        Ok(Some(Reply::Failed(text))) => bail!(text),
        Ok(_) | Err(_) => {}
    }
    wait_until_unlocked(layout)
}

pub fn status(layout: &Layout) -> Result<Status> {
    match ask(layout, &Request::Status)? {
        Some(Reply::Status(status)) => Ok(status),
        Some(Reply::Failed(text)) => Err(anyhow!(text)),
        Some(Reply::Done(_)) => bail!("unexpected answer from the stack"),
        None => Ok(Status::down()),
    }
}

fn answer(mut stream: &UnixStream, calls: &impl Fn(Call)) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            let (sender, receiver) = mpsc::channel();
            calls((request, sender));
            receiver.recv().unwrap_or_else(|_| Reply::Failed(String::from("the stack is ending")))
        }
        Err(error) => Reply::Failed(format!("invalid request: {error}")),
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
}

/// Calls `then` with a short path of the socket, through a descriptor of its folder: a socket address has at most
/// 108 bytes, and the path of a checkout may be longer.
fn through_folder<T>(path: &Path, then: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    then(&PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str) -> Layout {
        let state = std::env::temp_dir().join(format!("stack-{name}-{}", std::process::id())).join("x".repeat(120));
        let layout = Layout::new(Some(&state), Some(20000)).unwrap();
        layout.create().unwrap();
        layout
    }

    #[test]
    fn a_request_is_answered_below_a_long_path_too() {
        let layout = layout("control");
        assert!(ask(&layout, &Request::Status).unwrap().is_none());
        serve(&layout, |(request, reply)| {
            let answer = match request {
                Request::Stop { name } => Reply::Done(format!("{name} stopped")),
                _ => Reply::Status(Status::down()),
            };
            reply.send(answer).unwrap();
        })
        .unwrap();
        assert_eq!(tell(&layout, &Request::Stop { name: String::from("redis") }).unwrap(), "redis stopped");
        assert_eq!(status(&layout).unwrap(), Status::down());
        fs::remove_dir_all(layout.state.parent().unwrap()).unwrap();
    }

    #[test]
    fn one_supervisor_at_a_time_holds_the_lock() {
        let layout = layout("lock");
        let held = lock(&layout).unwrap();
        assert!(held.is_some());
        assert!(lock(&layout).unwrap().is_none());
        assert!(is_locked(&layout).unwrap());
        drop(held);
        assert!(!is_locked(&layout).unwrap());
        fs::remove_dir_all(layout.state.parent().unwrap()).unwrap();
    }
}
