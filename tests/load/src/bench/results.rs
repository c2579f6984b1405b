//! Results of a run, saved beside those of earlier ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::Value;

/// Saves the results of a run as JSON and returns the file's path. `json` gets the Unix time of the run.
pub(super) fn save(folder: &Path, bench: &str, json: impl FnOnce(u64) -> Value) -> Result<PathBuf> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let path = folder.join(format!("{bench}-{time}.json"));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(&path, format!("{:#}\n", json(time))).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Returns the machine's load average over the last minute.
pub(super) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read the load average")?;
    let first = text.split(' ').next().and_then(|first| first.parse().ok());
    first.with_context(|| format!("cannot parse the load average {text:?}"))
}
