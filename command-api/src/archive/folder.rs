//! The folder of an archive: `archive.json`, which says of which log it is, a folder of files for each partition,
//! `progress.json`, and `lock`.
//!
//! Only `progress.json` is ever replaced. It says how far the archive went at a time, so that a missing last file is
//! found; the archive may have more.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use chassis::exit::Misuse;
use schemas::topic;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::file::{self, ArchivedFile, FileReader, Hash};
use super::frame::Frame;

const FORMAT: u32 = 1;
const MANIFEST: &str = "archive.json";
const PROGRESS: &str = "progress.json";
const LOCK: &str = "lock";

/// The log that an archive is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// ID of the log, as in tokens.
    pub(super) log: String,
    /// Nonce of the first claim of partition 0, in hexadecimal digits, which the ID is a part of.
    pub(super) nonce: String,
    pub(super) partitions: u32,
}

impl Manifest {
    pub(super) fn new(log: String, nonce: u64, partitions: u32) -> Self {
        Self { format: FORMAT, log, nonce: format!("{nonce:016x}"), partitions }
    }

    /// Returns the partitions of the log, and the one of its exceptions.
    pub(super) fn streams(&self) -> Vec<Stream> {
        let log = (0..self.partitions.cast_signed()).map(|partition| Stream { is_log: true, partition });
        log.chain([Stream { is_log: false, partition: 0 }]).collect()
    }

    /// Returns the hash that the first file of a partition follows.
    fn first_hash(&self, stream: Stream) -> Hash {
        let Self { format, log, nonce, partitions } = self;
        Sha256::digest(format!("stampede archive {format} {log} {nonce} {partitions} {}", stream.name())).into()
    }
}

/// A partition of the log, or that of its exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) is_log: bool,
    pub(super) partition: i32,
}

impl Stream {
    /// Returns the name of its folder.
    pub(super) fn name(self) -> String {
        format!("{}-{:05}", if self.is_log { "log" } else { "exceptions" }, self.partition)
    }

    /// Returns its topic, given that of the log.
    pub(super) fn topic(self, log: &str) -> String {
        if self.is_log { log.to_owned() } else { topic::exceptions(log) }
    }
}

/// The position of an archive at a time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Time, in milliseconds since 1970, of which the archive had every record.
    pub(super) at_ms: u64,
    /// Offset behind the last record, by the name of the partition's folder.
    pub(super) next: BTreeMap<String, i64>,
}

/// The archive in a folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    pub(super) manifest: Manifest,
}

impl Folder {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = path.join(MANIFEST);
        let text = fs::read(&file).with_context(|| format!("{} is no archive: read {MANIFEST}", path.display()))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?;
        ensure!(manifest.format == FORMAT, "{} is of format {}, not {FORMAT}", path.display(), manifest.format);
        Ok(Self { path: path.to_owned(), manifest })
    }

    /// Opens the archive of this log, or begins it. Refuses that of another log.
    pub(super) fn open_for(path: &Path, manifest: Manifest) -> anyhow::Result<Self> {
        if !path.join(MANIFEST).exists() {
            for stream in manifest.streams() {
                fs::create_dir_all(path.join(stream.name())).with_context(|| format!("create {}", path.display()))?;
            }
            replace(&path.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
        }
        let folder = Self::open(path)?;
        if folder.manifest != manifest {
            let Manifest { log, partitions, .. } = &folder.manifest;
            let (path, other) = (path.display(), &manifest.log);
            return Err(Misuse::new(format!(
                "{path} is an archive of the log {log} with {partitions} partitions, and this is the log {other} with {}",
                manifest.partitions
            ))
            .into());
        }
        Ok(folder)
    }

    /// Lets one process at a time write into the folder, until the returned file is closed.
    pub(super) fn lock(path: &Path) -> anyhow::Result<File> {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        let lock = File::create(path.join(LOCK)).with_context(|| format!("write into {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => bail!("another process archives to {}", path.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    pub(super) fn of(&self, stream: Stream) -> PathBuf {
        self.path.join(stream.name())
    }

    /// Returns the offset and the hash that the next file of a partition continues from.
    pub(super) fn end(&self, stream: Stream) -> anyhow::Result<(i64, Hash)> {
        let Some((_, last)) = file::list(&self.of(stream))?.pop() else {
            return Ok((0, self.manifest.first_hash(stream)));
        };
        let footer = ArchivedFile::open(&last)?.footer;
        Ok((footer.next(), footer.hash))
    }

    /// Returns the frame of the last record of a partition.
    pub(super) fn last_frame(&self, stream: Stream) -> anyhow::Result<Option<Vec<u8>>> {
        let Some((_, last)) = file::list(&self.of(stream))?.pop() else { return Ok(None) };
        let file = ArchivedFile::open(&last)?;
        file.check(&file.footer.before)?;
        let (mut frames, mut frame, mut last) = (file.frames()?, Vec::new(), None);
        while frames.read(&mut frame)? {
            std::mem::swap(last.get_or_insert_default(), &mut frame);
        }
        Ok(last)
    }

    /// Returns the length of all files.
    pub(super) fn stored_bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for stream in self.manifest.streams() {
            for (_, path) in file::list(&self.of(stream))? {
                bytes += path.metadata().with_context(|| format!("read {}", path.display()))?.len();
            }
        }
        Ok(bytes)
    }

    pub(super) fn keep(&self, progress: &Progress) -> anyhow::Result<()> {
        replace(&self.path.join(PROGRESS), &serde_json::to_vec_pretty(progress)?)
    }

    /// Returns the progress; an empty one if the file was removed, or there never was one.
    pub(super) fn progress(&self) -> anyhow::Result<Progress> {
        let path = self.path.join(PROGRESS);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Progress::default()),
            text => serde_json::from_slice(&text.with_context(|| format!("read {}", path.display()))?)
                .with_context(|| format!("{} is damaged", path.display())),
        }
    }

    /// Fails unless a partition has the records that it had once.
    pub(super) fn check_end(&self, progress: &Progress, stream: Stream, next: i64) -> anyhow::Result<()> {
        let had = progress.next.get(&stream.name()).copied().unwrap_or(0);
        ensure!(
            next >= had,
            "{} ends before offset {next}, but had the records before {had}: its last files are missing. To do without \
             them, remove {PROGRESS}",
            stream.name()
        );
        Ok(())
    }

    pub(super) fn frames(&self, stream: Stream) -> anyhow::Result<Frames> {
        let files = file::list(&self.of(stream))?;
        let before = self.manifest.first_hash(stream);
        Ok(Frames { files: files.into_iter(), next: 0, before, open: None, frame: Vec::new() })
    }
}

/// The frames of a partition, from offset 0 on. Each file is checked before its first frame is returned.
pub(super) struct Frames {
    files: std::vec::IntoIter<(i64, PathBuf)>,
    next: i64,
    /// Hash of the file before the next one.
    before: Hash,
    open: Option<(PathBuf, FileReader)>,
    frame: Vec<u8>,
}

impl Frames {
    /// Returns the offset behind the last record so far.
    pub(super) fn next_offset(&self) -> i64 {
        self.next
    }

    /// Returns the frame that was read.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Reads the next frame. Returns false at the end of the archive.
    pub(super) fn read(&mut self) -> anyhow::Result<bool> {
        loop {
            if let Some((path, reader)) = &mut self.open {
                let shown = || format!("read {}", path.display());
                if reader.read(&mut self.frame).with_context(shown)? {
                    let offset = Frame::parse(&self.frame).with_context(shown)?.offset;
                    ensure!(offset == self.next, "{}: offset {offset} follows {}", path.display(), self.next - 1);
                    self.next += 1;
                    return Ok(true);
                }
                self.open = None;
            }
            let Some((first, path)) = self.files.next() else { return Ok(false) };
            ensure!(
                first == self.next,
                "{}: the file before it is missing, which begins at offset {}",
                path.display(),
                self.next
            );
            let file = ArchivedFile::open(&path)?;
            file.check(&self.before)?;
            self.before = file.footer.hash;
            self.open = Some((path, file.frames()?));
        }
    }
}

/// Replaces a file by one that is complete.
fn replace(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let replaced = || {
        let mut file = File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    replaced().with_context(|| format!("write {}", path.display()))
}
