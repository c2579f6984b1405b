//! Shows the progress of the rush: as a bar on a terminal, as occasional lines elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::observations::Observations;

const EVERY: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Shows the progress until every buyer is answered.
pub(super) async fn show(observations: &RefCell<Observations>) {
    let buyers = observations.borrow().buyers;
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(buyers) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} buyers  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut told = Instant::now();
    while observations.borrow().answered < buyers {
        tokio::time::sleep(EVERY).await;
        let (answered, text) = (observations.borrow().answered, observations.borrow().so_far());
        if bar.is_hidden() && told.elapsed() > LINE_EVERY {
            told = Instant::now();
            println!("{answered:>11} of {buyers} buyers  {text}");
        }
        bar.set_position(answered);
        bar.set_message(text);
    }
    bar.finish_and_clear();
}
