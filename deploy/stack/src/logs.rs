//! Reads, prints and rotates the logs of processes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;

/// Name of the background supervisor's own log.
pub(crate) const OWN: &str = "stack";
/// Number of log lines shown with a failure.
const END_LINES: usize = 40;
/// Number of bytes read from the end of a log to find its last lines.
const END_BYTES: u64 = 256 * 1024;

/// Prints the last lines of a log, and with `follow` the lines appended afterwards: `cargo stack logs`.
pub(crate) fn print(layout: &Layout, name: &str, lines: usize, follow: bool) -> Result<()> {
    let path = layout.log(name);
    if !path.is_file() {
        bail!("no log named `{name}`; available: {}", names(layout).join(", "));
    }
    let (text, mut position) = tail(&path, lines).with_context(|| format!("cannot read {}", path.display()))?;
    let mut out = io::stdout().lock();
    let mut write = |text: &[u8]| out.write_all(text).and_then(|()| out.flush());
    let mut reader_is_there = write(text.as_bytes()).is_ok();
    // The reader may close its end, as `| head` does.
    while reader_is_there && follow {
        thread::sleep(Duration::from_millis(100));
        // While a new run rotates the logs, the file may be absent for a moment.
        reader_is_there = write(&read_from(&path, &mut position).unwrap_or_default()).is_ok();
    }
    Ok(())
}

/// Returns the bytes appended since `position` and advances it. A log that has become shorter is read from its start.
pub fn read_from(path: &Path, position: &mut u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() < *position {
        *position = 0;
    }
    file.seek(SeekFrom::Start(*position))?;
    let mut new = Vec::new();
    *position += file.read_to_end(&mut new)? as u64;
    Ok(new)
}

/// Returns the last lines of a log, indented, to show with an error.
pub(crate) fn end_of(path: &Path) -> String {
    let text = tail(path, END_LINES).map_or_else(|error| format!("(cannot read the log: {error})"), |(text, _)| text);
    text.lines().filter_map(drawn).map(|line| format!("    {line}\n")).collect()
}

/// Returns the visible part of a line of which each part is drawn over by the next, as progress bars are; `None` if
/// nothing but a progress bar is left.
fn drawn(line: &str) -> Option<&str> {
    let visible = line.rsplit('\r').next().unwrap_or_default();
    (!visible.is_empty() || !line.contains('\r')).then_some(visible)
}

/// Renames the logs of the previous run to NAME.log.1, except for the supervisor's own, which is already in use.
pub fn rotate(layout: &Layout) {
    for name in names(layout).iter().filter(|name| *name != OWN) {
        let log = layout.log(name);
        // On failure the new run appends to the old log.
        let _ = fs::rename(&log, log.with_extension("log.1"));
    }
}

pub(crate) fn names(layout: &Layout) -> Vec<String> {
    let files = fs::read_dir(layout.logs()).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".log")?.to_owned())).collect();
    names.sort();
    names
}

pub(crate) fn tail(path: &Path, lines: usize) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = file.seek(SeekFrom::Start(length.saturating_sub(END_BYTES)))?;
    let mut bytes = Vec::new();
    let end = start + file.read_to_end(&mut bytes)? as u64;
    Ok((last_lines(&String::from_utf8_lossy(&bytes), lines), end))
}

fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.split_inclusive('\n').collect();
    all[all.len().saturating_sub(lines)..].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_bars_are_not_part_of_the_end() {
        assert_eq!(drawn("    Building [=> ] 3/9: a   \r   Compiling b v1.0.0"), Some("   Compiling b v1.0.0"));
        assert_eq!(drawn("    Building [=> ] 3/9: a   \r"), None);
        assert_eq!(drawn(""), Some(""));
    }

    #[test]
    fn the_last_lines_are_whole() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\nb", 5), "a\nb");
        assert_eq!(last_lines("", 5), "");
    }
}
