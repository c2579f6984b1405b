//! Reads an archive from its beginning, and reports what is wrong with it.

use std::path::Path;

use anyhow::Context as _;
use chassis::postgres::PostgresSettings;
use schemas::journal::{SEGMENT_OFFSETS, SegmentHashes};

use super::folder::{Folder, Progress, Stream};
use super::frame::Frame;
use super::meter::{Amount, Meter};

/// Outcome of a verification.
#[derive(Debug)]
pub struct Verified {
    /// ID of the log.
    pub log: String,
    pub partitions: u32,
    pub amount: Amount,
    /// Time of which the archive had every record, in milliseconds since 1970; 0 if it is not known.
    pub at_ms: u64,
    /// Number of closed segments of the journal that have the hashes of the archive's records.
    pub segments: usize,
    pub faults: Vec<String>,
}

/// A closed segment of the journal: partition, number and hash.
pub(super) type Segment = (u32, i64, Vec<u8>);

/// Reads the closed segments of the journal.
pub(super) async fn segments(postgres: &PostgresSettings) -> anyhow::Result<Vec<Segment>> {
    let options = "-c statement_timeout=0";
    let client = chassis::postgres::connect(postgres, options, "command-api archive").await?;
    let rows = client.query("SELECT partition, segment, hash FROM segments", &[]).await;
    let rows = rows.context("read the closed segments of the journal")?;
    Ok(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), row.get(1), row.get(2))).collect())
}

/// Verifies the archive in a folder, and compares it with segments of the journal. Blocks.
pub(super) fn verify(path: &Path, segments: &[Segment], tell: &dyn Fn(String)) -> anyhow::Result<Verified> {
    let folder = Folder::open(path)?;
    let progress = folder.progress()?;
    let mut meter = Meter::new(progress.next.values().sum::<i64>().cast_unsigned(), tell);
    let (mut faults, mut same) = (Vec::new(), 0);
    for stream in folder.manifest.streams() {
        let mut hashes = SegmentHashes::default();
        let next = match read(&folder, &progress, stream, &mut hashes, &mut meter) {
            Ok(next) => next,
            Err(error) => {
                faults.push(format!("{error:#}"));
                continue;
            }
        };
        let of_stream = |segment: &&Segment| stream.is_log && segment.0 == stream.partition.cast_unsigned();
        let is_whole = |segment: &&Segment| (segment.1 + 1) * SEGMENT_OFFSETS <= next;
        for (partition, segment, hash) in segments.iter().filter(of_stream).filter(is_whole) {
            match hashes.hash(*segment).is_some_and(|archived| archived[..] == hash[..]) {
                true => same += 1,
                false => faults.push(format!(
                    "segment {segment} of partition {partition} has other records in the journal than in the archive"
                )),
            }
        }
    }
    let (log, partitions) = (folder.manifest.log, folder.manifest.partitions);
    Ok(Verified { log, partitions, amount: meter.amount(), at_ms: progress.at_ms, segments: same, faults })
}

/// Reads a partition, and returns the offset behind its last record.
fn read(
    folder: &Folder,
    progress: &Progress,
    stream: Stream,
    hashes: &mut SegmentHashes,
    meter: &mut Meter<'_>,
) -> anyhow::Result<i64> {
    let mut frames = folder.frames(stream)?;
    while frames.read()? {
        let frame = Frame::parse(frames.frame())?;
        if stream.is_log {
            hashes.take(frame.offset, frame.value.unwrap_or_default());
        }
        meter.add(frames.frame().len());
    }
    folder.check_end(progress, stream, frames.next_offset())?;
    Ok(frames.next_offset())
}
