//! Files of an archive, each with successive records of one partition.
//!
//! A file is a frame of zstd with the records ([`super::frame`]), and a frame that zstd skips, with the footer. So
//! `zstd -dc` prints the records. The footer's hash is that of all bytes before it, among which is the hash of the
//! partition's file before this one.
//!
//! Invariant: a file has its name only once all of it is on the disk, and never changes afterwards.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use zstd::{Decoder, Encoder};

use super::frame;

pub(super) type Hash = [u8; 32];

/// End of a file's name, after its first offset.
const SUFFIX: &str = ".zst";
/// Name of a file that is being written.
const UNFINISHED: &str = "unfinished";
const LEVEL: i32 = 3;

/// Beginning of the footer: that of a frame that zstd skips with its length, and the format of this file.
const HEAD: [u8; 16] = *b"\x50\x2A\x4D\x18\x60\0\0\0starch01";
/// Length of the footer: head, first offset, number of records, their bytes, and two hashes.
const FOOTER: usize = HEAD.len() + 3 * 8 + 2 * size_of::<Hash>();
const _: () = assert!(FOOTER == 8 + 0x60, "the head states the length after itself");

/// The end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    /// Offset of the first record.
    pub(super) first: i64,
    pub(super) count: u64,
    /// Length of the records' frames.
    pub(super) bytes: u64,
    /// Hash of the file before.
    pub(super) before: Hash,
    pub(super) hash: Hash,
}

impl Footer {
    /// Returns the offset behind the last record.
    pub(super) fn next(&self) -> i64 {
        self.first.saturating_add_unsigned(self.count)
    }

    /// Returns the bytes, without those of the own hash.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = HEAD.to_vec();
        bytes.extend(self.first.to_be_bytes());
        bytes.extend(self.count.to_be_bytes());
        bytes.extend(self.bytes.to_be_bytes());
        bytes.extend(self.before);
        bytes
    }

    fn parse(footer: &[u8; FOOTER]) -> Option<Self> {
        let rest = footer.strip_prefix(&HEAD)?;
        let (first, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        let (before, hash) = rest.split_first_chunk()?;
        let [first, count, bytes] = [first, count, bytes].map(|bytes| u64::from_be_bytes(*bytes));
        Some(Self { first: first.cast_signed(), count, bytes, before: *before, hash: hash.try_into().ok()? })
    }
}

/// A file that is being written. Unless it is finished, the archive is as without it.
pub(super) struct FileWriter {
    folder: PathBuf,
    footer: Footer,
    encoder: Encoder<'static, Hashed<BufWriter<File>>>,
}

impl FileWriter {
    /// Begins the file of a partition's folder that follows the one with the hash `before`.
    pub(super) fn create(folder: &Path, first: i64, before: Hash) -> io::Result<Self> {
        let file = BufWriter::new(File::create(folder.join(UNFINISHED))?);
        let encoder = Encoder::new(Hashed { inner: file, hash: Sha256::new() }, LEVEL)?;
        let footer = Footer { first, count: 0, bytes: 0, before, hash: Hash::default() };
        Ok(Self { folder: folder.to_owned(), footer, encoder })
    }

    pub(super) fn push(&mut self, frame: &[u8]) -> io::Result<()> {
        self.encoder.write_all(frame)?;
        self.footer.count += 1;
        self.footer.bytes += frame.len() as u64;
        Ok(())
    }

    /// Returns the length of the records so far.
    pub(super) fn bytes(&self) -> u64 {
        self.footer.bytes
    }

    /// Gives the file its name once all of it is on the disk.
    pub(super) fn finish(self) -> io::Result<Footer> {
        let Self { folder, mut footer, encoder } = self;
        let mut written = encoder.finish()?;
        written.write_all(&footer.encode())?;
        footer.hash = written.hash.finalize().into();
        let mut file = written.inner;
        file.write_all(&footer.hash)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(folder.join(UNFINISHED), folder.join(name(footer.first)))?;
        File::open(&folder)?.sync_all()?;
        Ok(footer)
    }
}

/// Frees the disk of what an unfinished file takes.
pub(super) fn remove_unfinished(folder: &Path) {
    // There may be none. The next file overwrites it.
    let _ = fs::remove_file(folder.join(UNFINISHED));
}

fn name(first: i64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// Returns the files of a partition's folder in the order of their offsets; none if the folder does not exist.
pub(super) fn list(folder: &Path) -> anyhow::Result<Vec<(i64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let first = path.file_name().and_then(|name| name.to_str()?.strip_suffix(SUFFIX)?.parse().ok());
        files.extend(first.map(|first| (first, path)));
    }
    files.sort_unstable();
    Ok(files)
}

/// A finished file.
pub(super) struct ArchivedFile {
    path: PathBuf,
    length: u64,
    pub(super) footer: Footer,
}

impl ArchivedFile {
    /// Reads the footer.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let read = || {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            let mut footer = [0; FOOTER];
            if length >= FOOTER as u64 {
                file.seek(SeekFrom::End(-(FOOTER as i64)))?;
                file.read_exact(&mut footer)?;
            }
            Ok::<_, io::Error>((length, footer))
        };
        let (length, footer) = read().with_context(|| format!("read {}", path.display()))?;
        let footer = Footer::parse(&footer).with_context(|| format!("{} is cut off or damaged", path.display()))?;
        Ok(Self { path: path.to_owned(), length, footer })
    }

    /// Fails unless the file is as it was written, with this name, after the file with the hash `before`.
    pub(super) fn check(&self, before: &Hash) -> anyhow::Result<()> {
        let shown = self.path.display();
        let mut hashed = Hashed { inner: io::sink(), hash: Sha256::new() };
        let file = File::open(&self.path).with_context(|| format!("read {shown}"))?;
        let length = self.length - size_of::<Hash>() as u64;
        io::copy(&mut BufReader::with_capacity(1 << 20, file).take(length), &mut hashed)
            .with_context(|| format!("read {shown}"))?;
        ensure!(Hash::from(hashed.hash.finalize()) == self.footer.hash, "{shown} was changed: its hash differs");
        let is_own = self.path.file_name().is_some_and(|is| is == name(self.footer.first).as_str());
        ensure!(is_own, "{shown} has the records of {}", name(self.footer.first));
        ensure!(self.footer.before == *before, "{shown} does not follow the file before it");
        Ok(())
    }

    /// Returns the records.
    pub(super) fn frames(&self) -> anyhow::Result<FileReader> {
        let file = File::open(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        let frames = Decoder::new(file.take(self.length - FOOTER as u64))?.single_frame();
        Ok(FileReader { frames: BufReader::with_capacity(1 << 17, frames), left: self.footer.count })
    }
}

/// A reader of a file's frames.
pub(super) struct FileReader {
    frames: BufReader<Decoder<'static, BufReader<io::Take<File>>>>,
    left: u64,
}

impl FileReader {
    /// Reads the next frame, as [`frame::read`] does.
    pub(super) fn read(&mut self, into: &mut Vec<u8>) -> anyhow::Result<bool> {
        let is_one = frame::read(&mut self.frames, into)?;
        ensure!(is_one == (self.left > 0), "it has another number of records than its footer says");
        self.left -= u64::from(is_one);
        Ok(is_one)
    }
}

/// A writer that hashes what it passes on.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
