//! The fold of a batch without servers, for `benches/fold.rs`.

use schemas::chain::Reader;
use schemas::exceptions::Exceptions;
use schemas::feeds::FeedId;

use crate::config::Feeds;
use crate::fold::{Folder, Progress, Records};
use crate::log_reader::Batch;

/// Folds the values of a log with one partition into every view, from nothing, and returns the number of changed rows.
///
/// # Panics
/// Panics if a value is unreadable.
pub fn fold(values: &[Vec<u8>]) -> usize {
    let batch = Batch::of((0..).zip(values).map(|(offset, value)| (0, offset, value.as_slice())));
    let exceptions = Exceptions::default();
    let records = Records::of(&batch, &exceptions).expect("every value is readable");
    let mut progress = [Progress::new([Reader::START; FeedId::COUNT], Feeds::ALL, None)];
    Folder::default().fold(&records, &mut progress).expect("the values are one log").len()
}
