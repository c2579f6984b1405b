//! Copies what the log has and the archive lacks.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, ensure};
use chassis::clock::now_ms;
use chassis::exit::Misuse;
use chassis::kafka::KafkaSettings;
use rdkafka::message::Message as _;
use schemas::record::Record;
use schemas::token::LogId;

use super::file::{FileWriter, Hash, remove_unfinished};
use super::folder::{Folder, Manifest, Progress, Stream};
use super::frame::Frame;
use super::meter::{Amount, Meter};
use super::topic_reader::TopicReader;

/// Length of the records after which a file ends.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

/// An archive that is written, and the log that it is of.
pub(super) struct Archiver {
    reader: TopicReader,
    /// Topic of the log.
    topic: String,
    folder: Folder,
    ends: Vec<End>,
    /// Held as long as this may write.
    _lock: File,
}

/// The end of a partition's files.
struct End {
    stream: Stream,
    next: i64,
    /// Hash of the last file.
    before: Hash,
}

/// The outcome of copying to the end that the log had at the beginning.
pub(super) struct Pass {
    /// Time of which the archive has every record; `None` if the pass was ended before.
    pub(super) complete_at_ms: Option<u64>,
    pub(super) amount: Amount,
    pub(super) summary: String,
}

impl Archiver {
    /// Opens the folder, or begins it. Returns `None` if the log is still empty.
    ///
    /// # Errors
    /// The folder is an archive of another log, or the log is not the one that the archive was copied from.
    pub(super) fn begin(kafka: &KafkaSettings, topic: &str, path: &Path) -> anyhow::Result<Option<Self>> {
        let (lock, reader) = (Folder::lock(path)?, TopicReader::new(kafka)?);
        let Some(manifest) = manifest(&reader, topic)? else { return Ok(None) };
        let folder = Folder::open_for(path, manifest)?;
        let mut ends = Vec::new();
        for stream in folder.manifest.streams() {
            remove_unfinished(&folder.of(stream));
            let (next, before) = folder.end(stream)?;
            ends.push(End { stream, next, before });
        }
        let archiver = Self { reader, topic: topic.to_owned(), folder, ends, _lock: lock };
        archiver.ends.iter().try_for_each(|end| archiver.compare_last(end))?;
        Ok(Some(archiver))
    }

    /// Fails unless the log has the last record that the archive has of a partition: after a restore of an older archive,
    /// for example, other records may be there.
    fn compare_last(&self, end: &End) -> anyhow::Result<()> {
        let Some(archived) = self.folder.last_frame(end.stream)? else { return Ok(()) };
        self.until(end)?;
        let (topic, last, mut frame) = (end.stream.topic(&self.topic), end.next - 1, Vec::new());
        self.reader.read((&topic, end.stream.partition), last..end.next, &|| false, |message| {
            Frame::of(message).encode(&mut frame);
            Ok(())
        })?;
        if frame == archived {
            return Ok(());
        }
        let reason = format!(
            "partition {} of {topic:?} has another record at offset {last} than the archive: it is another history. \
             Archive it to another folder",
            end.stream.partition
        );
        Err(Misuse::new(reason).into())
    }

    /// Returns the offset behind the last record of a partition.
    fn until(&self, End { stream, next, .. }: &End) -> anyhow::Result<i64> {
        let (partition, topic) = (stream.partition, stream.topic(&self.topic));
        // Logs of early builds have no topic of exceptions, and some never get one.
        let exists = stream.is_log || self.reader.partitions(&topic)? > 0;
        let (low, high) = if exists { self.reader.bounds(&topic, partition)? } else { (0, 0) };
        if low > *next {
            let gone = format!("partition {partition} of {topic:?} begins at offset {low}: the archive needs {next}");
            return Err(Misuse::new(gone).into());
        }
        // A new leader may know of the end a moment later.
        ensure!(high >= *next, "partition {partition} of {topic:?} ends before {high}, and the archive before {next}");
        Ok(high)
    }

    /// Copies to the end that the log has now, until `is_over` says so.
    pub(super) fn pass(&mut self, is_over: &dyn Fn() -> bool, tell: &dyn Fn(String)) -> anyhow::Result<Pass> {
        let began_ms = now_ms();
        let until = self.ends.iter().map(|end| self.until(end)).collect::<anyhow::Result<Vec<_>>>()?;
        let missing = self.ends.iter().zip(&until).map(|(end, until)| until.abs_diff(end.next)).sum();
        let mut meter = Meter::new(missing, tell);
        for (end, until) in self.ends.iter_mut().zip(until) {
            let copied = copy((&self.reader, &self.topic, &self.folder), end, until, is_over, &mut meter);
            if copied.is_err() {
                remove_unfinished(&self.folder.of(end.stream));
            }
            copied.with_context(|| format!("archive {}", end.stream.name()))?;
        }
        let complete_at_ms = (!is_over()).then_some(began_ms);
        if let Some(at_ms) = complete_at_ms {
            let next = self.ends.iter().map(|end| (end.stream.name(), end.next)).collect();
            self.folder.keep(&Progress { at_ms, next })?;
        }
        Ok(Pass { complete_at_ms, amount: meter.amount(), summary: meter.to_string() })
    }

    /// Returns the length of all files.
    pub(super) fn stored_bytes(&self) -> anyhow::Result<u64> {
        self.folder.stored_bytes()
    }
}

/// Copies the records of a partition before `until`.
fn copy(
    (reader, topic, folder): (&TopicReader, &str, &Folder),
    end: &mut End,
    until: i64,
    is_over: &dyn Fn() -> bool,
    meter: &mut Meter<'_>,
) -> anyhow::Result<()> {
    let (stream, path, from, mut before) = (end.stream, folder.of(end.stream), end.next, end.before);
    let (mut file, mut frame): (Option<FileWriter>, _) = (None, Vec::new());
    let mut finish = |file: FileWriter| {
        let footer = file.finish().context("finish a file")?;
        (end.next, end.before) = (footer.next(), footer.hash);
        anyhow::Ok(footer.hash)
    };
    reader.read((&stream.topic(topic), stream.partition), from..until, is_over, |message| {
        Frame::of(message).encode(&mut frame);
        let mut open = match file.take() {
            Some(open) => open,
            None => FileWriter::create(&path, message.offset(), before).context("begin a file")?,
        };
        open.push(&frame).context("write to a file")?;
        meter.add(frame.len());
        match open.bytes() >= FILE_BYTES {
            true => before = finish(open)?,
            false => file = Some(open),
        }
        Ok(())
    })?;
    file.map_or(Ok(()), |open| finish(open).map(drop))
}

/// Returns what an archive of the log is of; `None` if the log is still empty.
fn manifest(reader: &TopicReader, topic: &str) -> anyhow::Result<Option<Manifest>> {
    let partitions = reader.partitions(topic)?;
    if partitions == 0 {
        return Err(Misuse::new(format!("Kafka has no topic {topic:?}")).into());
    }
    let (low, high) = reader.bounds(topic, 0)?;
    if low > 0 {
        let gone = format!("partition 0 of {topic:?} begins at offset {low}: the records before that are gone");
        return Err(Misuse::new(gone).into());
    }
    let mut nonce = None;
    reader.read((topic, 0), 0..high.min(1), &|| false, |message| {
        let value = message.payload().unwrap_or_default();
        let Some(Record::Claim(claim)) = Record::decode(value).context("read the first record of the log")? else {
            return Err(Misuse::new(format!("{topic:?} is no log: its first record is no claim")).into());
        };
        nonce = Some(claim.nonce);
        Ok(())
    })?;
    Ok(nonce.map(|nonce| Manifest::new(LogId::of_nonce(nonce).to_string(), nonce, partitions)))
}
