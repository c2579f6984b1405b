//! Canonical form of a body for hashing: JSON without white space, with fields in declaration order, without absent
//! ones.

use std::io::{ErrorKind, Result, Write};

use domain::AggregateType;
use serde::Serialize;
use serde_json::ser::Formatter;

/// Returns the fields that are written as `null` at the end of a body if they are absent, in this order, as the first
/// release did. No field may be added: any other absent field must leave no trace, so that all builds agree.
pub(super) fn written_as_null(aggregate: AggregateType, command: &str) -> &'static [&'static str] {
    match (aggregate, command) {
        (AggregateType::Product, "register") => &["limit_per_order"],
        (AggregateType::Product, "commit") => &["amount_cents"],
        (AggregateType::Order, "place") => &["sale", "ordered_at"],
        (AggregateType::Order, "ship" | "deliver") => &["carrier", "tracking"],
        (AggregateType::Order, "reject-line" | "cancel") | (AggregateType::Sale, "refuse") => &["reason"],
        (AggregateType::Product, "lapse-holds")
        | (AggregateType::Order, "expire")
        | (AggregateType::Sale, "open" | "close") => &["due_at"],
        (AggregateType::Sale, "return") => &["is_ordered"],
        _ => &[],
    }
}

/// Writes the canonical form of a body. `nulls` are the fields of [`written_as_null`].
pub(super) fn write(fields: &impl Serialize, nulls: &'static [&'static str], to: impl Write) {
    let canonical = Canonical { to, nulls, name: [0; MAX_NAME_BYTES], name_len: 0, place: Place::Rest, last: 0 };
    let mut json = serde_json::Serializer::with_formatter(canonical, Marks { depth: 0 });
    fields.serialize(&mut json).expect("bodies consist of values that JSON can represent");
}

/// Begins the name of a field of the body. JSON never contains these four bytes, because strings escape them.
const FIELD: &[u8] = b"\x01";
/// Begins the name of a field of a nested object.
const INNER_FIELD: &[u8] = b"\x02";
/// Separates a field's name from its value.
const VALUE: &[u8] = b"\x03";
/// Ends the fields of the body.
const END: &[u8] = b"\x04";

/// Maximum length of a field name, including its quotes.
const MAX_NAME_BYTES: usize = 64;

/// Formats JSON with marker bytes around field names in place of commas and colons.
struct Marks {
    depth: usize,
}

impl Formatter for Marks {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        self.depth += 1;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        self.depth -= 1;
        if self.depth == 0 {
            writer.write_all(END)?;
        }
        writer.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, _first: bool) -> Result<()> {
        writer.write_all(if self.depth == 1 { FIELD } else { INNER_FIELD })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> Result<()> {
        writer.write_all(VALUE)
    }
}

/// Converts the output of [`Marks`] to plain JSON. A field's name is buffered until the first piece of its value.
struct Canonical<W> {
    to: W,
    /// Fields that may still have to be written as `null`.
    nulls: &'static [&'static str],
    name: [u8; MAX_NAME_BYTES],
    name_len: usize,
    place: Place,
    last: u8,
}

/// Part of the JSON text to which the next piece belongs.
#[derive(Clone, Copy)]
enum Place {
    Name {
        inner: bool,
    },
    /// First piece of a value.
    Value {
        inner: bool,
    },
    Rest,
}

impl<W: Write> Canonical<W> {
    fn put(&mut self, piece: &[u8]) -> Result<()> {
        self.last = piece.last().copied().unwrap_or(self.last);
        self.to.write_all(piece)
    }

    /// Separates a field from the one before it.
    fn separate(&mut self) -> Result<()> {
        if self.last == b'{' { Ok(()) } else { self.put(b",") }
    }

    /// Writes the next `count` absent fields as `null`.
    fn put_nulls(&mut self, count: usize) -> Result<()> {
        let (absent, later) = self.nulls.split_at(count);
        self.nulls = later;
        for name in absent {
            self.separate()?;
            self.put(b"\"")?;
            self.put(name.as_bytes())?;
            self.put(b"\":null")?;
        }
        Ok(())
    }

    /// Writes a field's name and the first piece of its value, unless the field is absent.
    fn begin_value(&mut self, piece: &[u8], inner: bool) -> Result<()> {
        if piece == b"null" {
            return Ok(());
        }
        let (name, length) = (self.name, self.name_len);
        let is_here = |null: &&str| &name[1..length - 1] == null.as_bytes();
        if let Some(before) = self.nulls.iter().position(is_here).filter(|_| !inner) {
            self.put_nulls(before)?;
            self.nulls = &self.nulls[1..];
        }
        self.separate()?;
        self.put(&name[..length])?;
        self.put(b":")?;
        self.put(piece)
    }
}

impl<W: Write> Write for Canonical<W> {
    fn write(&mut self, piece: &[u8]) -> Result<usize> {
        match (piece, self.place) {
            (FIELD | INNER_FIELD, _) => {
                self.place = Place::Name { inner: piece == INNER_FIELD };
                self.name_len = 0;
            }
            (VALUE, Place::Name { inner }) => self.place = Place::Value { inner },
            (END, _) => self.put_nulls(self.nulls.len())?,
            (_, Place::Name { .. }) => {
                let end = self.name_len + piece.len();
                self.name.get_mut(self.name_len..end).ok_or(ErrorKind::FileTooLarge)?.copy_from_slice(piece);
                self.name_len = end;
            }
            (_, Place::Value { inner }) => {
                self.place = Place::Rest;
                self.begin_value(piece, inner)?;
            }
            (_, Place::Rest) => self.put(piece)?,
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}
