//! Pagination cursors: opaque to clients, and valid only for the list that issued them.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The last row of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// Value of the field that the list is ordered by.
    pub(crate) value: String,
    pub(crate) key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    // A text with escapes cannot be borrowed from its JSON.
    #[serde(borrow)]
    list: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
}

/// Encodes a cursor; `list` identifies the list.
pub(super) fn write(list: &str, Position { value, key }: &Position) -> String {
    let written = serde_json::to_vec(&Written { list: list.into(), value: value.into(), key: key.into() })
        .expect("strings serialize to JSON");
    URL_SAFE_NO_PAD.encode(written)
}

pub(super) fn read(list: &str, text: &str) -> Result<Position, String> {
    let malformed = || "malformed cursor; send the one that an answer gave in `next`".to_owned();
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed())?;
    let written: Written<'_> = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
    if written.list != list {
        return Err("the cursor belongs to a list with another order or other filters".to_owned());
    }
    Ok(Position { value: written.value.into_owned(), key: written.key.into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_for_its_own_list_only() {
        let position = Position { value: "-7".to_owned(), key: "cd~1".to_owned() };
        let text = write("product?order=-price_cents", &position);
        assert_eq!(read("product?order=-price_cents", &text), Ok(position));
        assert!(read("product?order=price_cents", &text).is_err());
    }

    #[test]
    fn a_cursor_carries_any_text() {
        for text in ["", "\"", "\\", "a\nb", "ä €", "'; --", "\u{7f}"] {
            let position = Position { value: text.to_owned(), key: text.to_owned() };
            assert_eq!(read(text, &write(text, &position)), Ok(position), "{text:?}");
        }
    }

    #[test]
    fn a_malformed_cursor_is_refused() {
        for text in ["", "cd-1", "????", "e30", &URL_SAFE_NO_PAD.encode("null"), &URL_SAFE_NO_PAD.encode(b"\xff")] {
            assert!(read("product?order=key", text).is_err(), "{text}");
        }
    }
}
