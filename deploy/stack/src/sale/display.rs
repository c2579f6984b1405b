//! How the rush goes: a bar on a terminal, a line now and then anywhere else.

use std::io::IsTerminal as _;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::rush::Rush;

const EVERY: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Until it is over.
pub(super) fn show(rush: &Rush, opened: Instant) {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(rush.buyers) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} buyers  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut told = Instant::now();
    while !rush.is_over() {
        thread::sleep(EVERY);
        let (answered, text) = (rush.answered.load(Ordering::Relaxed), text(rush, opened));
        bar.set_position(answered);
        bar.set_message(text.clone());
        if bar.is_hidden() && told.elapsed() > LINE_EVERY {
            told = Instant::now();
            println!("{answered:>11} of {} buyers  {text}", rush.buyers);
        }
    }
    bar.finish_and_clear();
}

fn text(rush: &Rush, opened: Instant) -> String {
    let state = rush.state();
    let at = |all: &Option<Histogram<u64>>, share| {
        all.as_ref().map_or(0.0, |all| all.value_at_quantile(share) as f64 / 1_000.0)
    };
    let seconds = opened.elapsed().as_secs_f64();
    let rate = state.commands.as_ref().map_or(0, Histogram::len) as f64 / seconds;
    format!(
        "{seconds:.1} s  {rate:.0}/s  {} accepted  {} sold out  {} again  commands {:.1}/{:.1} ms  queries {:.1}/{:.1} ms  \
         visible {:.1}/{:.1} ms",
        state.counts.accepted,
        state.counts.sold_out,
        state.counts.retried,
        at(&state.commands, 0.5),
        at(&state.commands, 0.99),
        at(&state.queries, 0.5),
        at(&state.queries, 0.99),
        at(&state.visible, 0.5),
        at(&state.visible, 0.99),
    )
}
