//! The lines that a supervisor prints.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use super::member::Member;
use super::{Phase, Supervisor, Words};

/// Interval between lines that show how far the starting parts are.
const REMINDER: Duration = Duration::from_secs(10);
/// Interval between such lines on a terminal, where each is drawn over the previous one.
const REDRAW: Duration = Duration::from_secs(1);
/// Width to which a redrawn line is cut. A longer line could wrap and would not be drawn over.
const REDRAWN_CHARS: usize = 79;

impl Supervisor {
    /// Prints, at intervals, how far the starting parts are.
    pub(super) fn remind(&mut self) {
        let interval = if self.is_terminal { REDRAW } else { REMINDER };
        if self.phase != Phase::Starting || self.reminded.elapsed() < interval {
            return;
        }
        self.reminded = Instant::now();
        let progress = |member: &Member| Some((member.part.name.clone(), member.progress(&self.layout)?));
        let late: Vec<_> = self.members.iter().filter_map(progress).collect();
        if self.is_terminal {
            let parts: Vec<_> = late.iter().map(|(name, text)| format!("{name}: {text}")).collect();
            let line = format!("{:>6.1} s  {}", self.began.elapsed().as_secs_f64(), parts.join("; "));
            let line: String = line.chars().take(REDRAWN_CHARS).collect();
            let _ = write!(io::stdout(), "\r\x1b[K{line}").and_then(|()| io::stdout().flush());
        } else {
            late.iter().for_each(|(name, text)| self.announce(&format!("{name:<18} {text}")));
        }
    }

    pub(super) fn say(&self, index: usize, what: &str) {
        self.announce(&format!("{:<18} {what}", self.members[index].part.name));
    }

    /// Prints a line with the time since the start. Ignores write errors, because the supervisor still has to stop its
    /// processes when its terminal is gone.
    pub(super) fn announce(&self, what: &str) {
        if self.is_terminal {
            let _ = write!(io::stdout(), "\r\x1b[K");
        }
        if self.phase != Phase::Stopping || self.words != Words::Start {
            let _ = writeln!(io::stdout(), "{:>6.1} s  {what}", self.began.elapsed().as_secs_f64());
        }
    }
}
