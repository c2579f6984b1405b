//! The access log of the edge.

use std::path::PathBuf;

/// Default number of lines a second, more than a shop without a rush has.
pub(crate) const LINES: u32 = 100;

/// Default share of the requests without a trace that get one, in percent.
pub(crate) const TRACED_PERCENT: u8 = 1;

/// Returns the lines of nginx's `split_clients` that select this share of the requests.
pub(super) fn traced(percent: u8) -> String {
    // nginx takes no 0 %.
    if percent == 0 { String::new() } else { format!("        {percent}%  1;") }
}

/// File and sampling of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AccessLog {
    pub(super) file: PathBuf,
    /// Lines that each worker writes a second, for answers and as many for refusals, before it leaves lines out; 0
    /// switches the log off.
    pub(super) lines: u32,
}

impl AccessLog {
    /// Returns the directives of nginx's server for clients. A worker writes its lines when its buffer is full, and after
    /// a second at the latest.
    pub(super) fn directives(&self) -> String {
        if self.lines == 0 {
            return String::new();
        }
        // It replaces the handler of the level above, and does the work of that one as well.
        let choose =
            format!(r#"log_by_lua_block {{ require("peers").release() require("access").choose({}) }}"#, self.lines);
        let write = format!("access_log {} access buffer=64k flush=1s if=$stands_for;", self.file.display());
        format!("        {choose}\n        {write}")
    }
}
