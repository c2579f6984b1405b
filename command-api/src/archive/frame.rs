//! Records as an archive keeps them.
//!
//! A frame is a record after its own length. All numbers are big-endian:
//! `length u32 | offset i64 | timestamp i64 | key | value | number of headers u32 | name, value | …`. A key, name or value
//! is its length as i32, or -1 for none, and its bytes.

use std::io::{self, Read};

use anyhow::{Context as _, ensure};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

/// Maximum length of a frame: more than any broker takes, and little enough to be held in memory.
const MAX_BYTES: usize = 256 * 1024 * 1024;
/// Length of a frame's own length.
const PREFIX: usize = 4;
const NONE: i32 = -1;
/// Timestamp of a record without one. Kafka's own are not negative.
const NO_TIME: i64 = -1;

/// A record of a topic, with all that a consumer sees of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) offset: i64,
    /// Kafka's timestamp, in milliseconds since 1970.
    pub(super) timestamp_ms: Option<i64>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

impl<'a> Frame<'a> {
    pub(super) fn of(message: &'a BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key(),
            value: message.payload(),
            headers: headers.map(|header| (header.key, header.value)).collect(),
        }
    }

    /// Writes the frame, with its length, in the place of what the buffer has.
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.clear();
        into.extend([0; PREFIX]);
        into.extend(self.offset.to_be_bytes());
        into.extend(self.timestamp_ms.unwrap_or(NO_TIME).to_be_bytes());
        put(into, self.key);
        put(into, self.value);
        into.extend(length(self.headers.len()).to_be_bytes());
        for (name, value) in &self.headers {
            put(into, Some(name.as_bytes()));
            put(into, *value);
        }
        let length = length(into.len() - PREFIX).to_be_bytes();
        into[..PREFIX].copy_from_slice(&length);
    }

    /// Parses a frame as [`read`] returns it.
    pub(super) fn parse(frame: &'a [u8]) -> anyhow::Result<Self> {
        let mut rest = frame.get(PREFIX..).context("no frame")?;
        let offset = i64::from_be_bytes(take(&mut rest)?);
        let timestamp_ms = Some(i64::from_be_bytes(take(&mut rest)?)).filter(|ms| *ms != NO_TIME);
        let (key, value) = (bytes(&mut rest)?, bytes(&mut rest)?);
        let mut headers = Vec::new();
        for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
            let name = str::from_utf8(bytes(&mut rest)?.context("a header without a name")?)?;
            headers.push((name, bytes(&mut rest)?));
        }
        ensure!(rest.is_empty(), "a frame has {} bytes too many", rest.len());
        Ok(Self { offset, timestamp_ms, key, value, headers })
    }
}

/// Reads the next frame, with its length, in the place of what the buffer has. Returns false at the end.
pub(super) fn read(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    into.clear();
    if Read::take(&mut *from, PREFIX as u64).read_to_end(into)? == 0 {
        return Ok(false);
    }
    let prefix = into[..].try_into().map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_BYTES {
        return Err(io::Error::other("a frame is too long"));
    }
    into.resize(PREFIX + length, 0);
    from.read_exact(&mut into[PREFIX..])?;
    Ok(true)
}

/// Returns a length as Kafka states it.
fn length(of: usize) -> i32 {
    i32::try_from(of).expect("a record of Kafka has less than 2 GiB")
}

fn put(into: &mut Vec<u8>, bytes: Option<&[u8]>) {
    into.extend(bytes.map_or(NONE, |bytes| length(bytes.len())).to_be_bytes());
    into.extend(bytes.unwrap_or_default());
}

fn take<const N: usize>(rest: &mut &[u8]) -> anyhow::Result<[u8; N]> {
    let (taken, after) = rest.split_first_chunk().context("a frame is too short")?;
    *rest = after;
    Ok(*taken)
}

fn bytes<'a>(rest: &mut &'a [u8]) -> anyhow::Result<Option<&'a [u8]>> {
    let length = i32::from_be_bytes(take(rest)?);
    if length == NONE {
        return Ok(None);
    }
    let (taken, after) = usize::try_from(length)
        .ok()
        .and_then(|length| rest.split_at_checked(length))
        .context("a frame is too short")?;
    *rest = after;
    Ok(Some(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame<'static> {
        Frame {
            offset: 7,
            timestamp_ms: Some(1_700_000_000_000),
            key: Some(b"product/cd"),
            value: Some(b"st1{}"),
            headers: vec![("a", Some(b"1")), ("a", None), ("", Some(b""))],
        }
    }

    #[test]
    fn a_frame_keeps_all_of_a_record_also_what_is_absent() {
        let absent = Frame { timestamp_ms: None, key: None, value: None, headers: Vec::new(), ..frame() };
        let empty = Frame { key: Some(b""), value: Some(b""), ..absent.clone() };
        let (mut stored, mut encoded, mut read_back) = (Vec::new(), Vec::new(), Vec::new());
        let frames = [frame(), absent, empty];
        for frame in &frames {
            frame.encode(&mut encoded);
            stored.extend(&encoded);
        }
        let mut rest = &stored[..];
        for frame in &frames {
            assert!(read(&mut rest, &mut read_back).unwrap());
            assert_eq!(Frame::parse(&read_back).unwrap(), *frame);
        }
        assert!(!read(&mut rest, &mut read_back).unwrap());
    }

    #[test]
    fn a_frame_that_was_cut_or_lengthened_is_an_error() {
        let mut encoded = Vec::new();
        frame().encode(&mut encoded);
        for length in 0..encoded.len() {
            assert!(Frame::parse(&encoded[..length]).is_err(), "{length}");
            assert!(length == 0 || read(&mut &encoded[..length], &mut Vec::new()).is_err(), "{length}");
        }
        encoded.push(0);
        assert!(Frame::parse(&encoded).is_err());
        assert!(read(&mut &[0xFF; 8][..], &mut Vec::new()).is_err());
    }
}
