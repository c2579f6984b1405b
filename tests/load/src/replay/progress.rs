//! Shows the progress of a replay: as a bar on a terminal, as occasional lines elsewhere.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Progress {
    bar: ProgressBar,
    total: u64,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    told: Instant,
    latency: Option<Histogram<u64>>,
    done: u64,
}

impl Progress {
    pub(super) fn new(total: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len}  {msg}  {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let now = Instant::now();
        Self { bar, total, state: Mutex::new(State { began: now, told: now, latency: None, done: 0 }) }
    }

    /// Adds answered commands. `latency` holds the latency of each in microseconds.
    pub(super) fn answered(&self, latency: &Histogram<u64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += latency.len();
        match &mut state.latency {
            // Cannot fail: both histograms have the same precision and resize automatically.
            Some(all) => drop(all.add(latency)),
            none => *none = Some(latency.clone()),
        }
        let text = state.text();
        self.bar.set_position(state.done);
        self.bar.set_message(text.clone());
        if self.bar.is_hidden() && state.told.elapsed() > LINE_EVERY {
            state.told = Instant::now();
            println!("{:>10} of {} commands  {text}", state.done, self.total);
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl State {
    fn text(&self) -> String {
        let rate = self.done as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        let at = |quantile| self.latency.as_ref().map_or(0, |all| all.value_at_quantile(quantile)) as f64 / 1000.0;
        format!("{rate:.0}/s  p50 {:.1} ms  p99 {:.1} ms", at(0.5), at(0.99))
    }
}
