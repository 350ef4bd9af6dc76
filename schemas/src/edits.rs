//! What the proxy changed in a message on its way, kept as a body of the record.
//!
//! The request or response body on the record holds the bytes that *arrived* at the proxy; these
//! edits turn them into the bytes that *left* it, and turned back they give what arrived, byte for
//! byte. An edit that does not fit the bytes is an error, never a guess. Encoded it is a JSON array
//! of `{"offset", "old", "new"}`, in the order of offsets, which count bytes of what arrived.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// More edits than this are kept as one that spans them all.
const MAX_EDITS: usize = 4096;

/// One replaced stretch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Where it begins in the bytes that arrived.
    pub offset: usize,
    /// What stood there.
    pub old: String,
    /// What stands there now.
    pub new: String,
}

/// The edits of one message: in order, none touching the bytes of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits(Vec<Edit>);

/// Why edits cannot be read or do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditsError {
    /// The body is no list of edits.
    #[error("not a list of edits: {0}")]
    Form(String),
    /// They are not in order, or two overlap.
    #[error("edit {0} begins before the one before it ends")]
    Order(usize),
    /// The bytes hold something else where an edit says what they hold.
    #[error("edit {0} does not fit the bytes: they belong to another message, or were changed")]
    Misfit(usize),
}

impl Edits {
    /// Replaces each of `changes` (a stretch of `message` and what takes its place) and gives the
    /// edits with the bytes that they make. What changes nothing is left out.
    ///
    /// # Errors
    /// [`EditsError::Order`] when two stretches overlap, [`EditsError::Misfit`] when one is no
    /// stretch of text of the message.
    pub fn make(
        message: &Bytes,
        mut changes: Vec<(Range<usize>, String)>,
    ) -> Result<(Self, Bytes), EditsError> {
        changes.sort_by_key(|(range, _)| (range.start, range.end));
        let mut edits = Vec::with_capacity(changes.len());
        for (i, (range, new)) in changes.into_iter().enumerate() {
            let old = message.get(range.clone()).ok_or(EditsError::Misfit(i))?;
            let old = std::str::from_utf8(old).map_err(|_| EditsError::Misfit(i))?;
            if old != new {
                edits.push(Edit { offset: range.start, old: old.to_owned(), new });
            }
        }
        let edits = Self(edits);
        edits.check()?;
        let edited = edits.apply(message)?;
        if edits.0.len() > MAX_EDITS {
            return Ok((Self::spanning(message, &edits, &edited)?, edited));
        }
        Ok((edits, edited))
    }

    /// One edit from the first to the last of `edits`.
    fn spanning(message: &[u8], edits: &Self, edited: &[u8]) -> Result<Self, EditsError> {
        let (Some(first), Some(last)) = (edits.0.first(), edits.0.last()) else {
            return Ok(Self::default());
        };
        let after = message.len() - (last.offset + last.old.len());
        let text = |bytes: &[u8]| {
            let inside = bytes.get(first.offset..bytes.len() - after).unwrap_or_default();
            String::from_utf8(inside.to_vec()).map_err(|_| EditsError::Misfit(0))
        };
        Ok(Self(vec![Edit { offset: first.offset, old: text(message)?, new: text(edited)? }]))
    }

    /// Whether nothing was changed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Edit> {
        self.0.iter()
    }

    /// What left, from what arrived.
    ///
    /// # Errors
    /// [`EditsError::Misfit`].
    pub fn apply(&self, arrived: &[u8]) -> Result<Bytes, EditsError> {
        let mut left = Vec::with_capacity(arrived.len());
        let mut at = 0;
        for (i, edit) in self.0.iter().enumerate() {
            let between = arrived.get(at..edit.offset).ok_or(EditsError::Misfit(i))?;
            left.extend_from_slice(between);
            at = after(arrived, edit.offset, &edit.old).ok_or(EditsError::Misfit(i))?;
            left.extend_from_slice(edit.new.as_bytes());
        }
        left.extend_from_slice(&arrived[at..]);
        Ok(left.into())
    }

    /// What arrived, from what left.
    ///
    /// # Errors
    /// [`EditsError::Misfit`].
    pub fn undo(&self, left: &[u8]) -> Result<Bytes, EditsError> {
        let mut arrived = Vec::with_capacity(left.len());
        let mut at = 0_usize;
        for (i, edit) in self.0.iter().enumerate() {
            let between = edit.offset.checked_sub(arrived.len()).ok_or(EditsError::Order(i))?;
            let same = at.checked_add(between).and_then(|end| left.get(at..end));
            arrived.extend_from_slice(same.ok_or(EditsError::Misfit(i))?);
            at = after(left, at + between, &edit.new).ok_or(EditsError::Misfit(i))?;
            arrived.extend_from_slice(edit.old.as_bytes());
        }
        arrived.extend_from_slice(&left[at..]);
        Ok(arrived.into())
    }

    /// The bytes of the body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Numbers and strings can always be written.
        serde_json::to_vec(&self.0).unwrap_or_default().into()
    }

    /// The edits that a body holds.
    ///
    /// # Errors
    /// [`EditsError::Form`], [`EditsError::Order`].
    pub fn decode(body: &[u8]) -> Result<Self, EditsError> {
        let edits = serde_json::from_slice(body).map_err(|e| EditsError::Form(e.to_string()))?;
        let edits = Self(edits);
        edits.check().map(|()| edits)
    }

    fn check(&self) -> Result<(), EditsError> {
        let mut end = 0;
        for (i, edit) in self.0.iter().enumerate() {
            if edit.offset < end {
                return Err(EditsError::Order(i));
            }
            end = edit.offset.checked_add(edit.old.len()).ok_or(EditsError::Order(i))?;
        }
        Ok(())
    }
}

/// The position after `text`, if it stands at `from`.
fn after(bytes: &[u8], from: usize, text: &str) -> Option<usize> {
    bytes.get(from..)?.starts_with(text.as_bytes()).then_some(from + text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edits_say_what_was_changed_and_give_it_back() {
        let arrived = Bytes::from_static(b"{\"name\":\"ehr__read\",\"id\":1}");
        let changes = vec![(25..26, "\"a\"".to_owned()), (8..19, "\"read\"".to_owned())];
        let (edits, left) = Edits::make(&arrived, changes).unwrap();
        assert_eq!(left, "{\"name\":\"read\",\"id\":\"a\"}");
        assert_eq!(edits.undo(&left).unwrap(), arrived);
        assert_eq!(
            edits.encode(),
            "[{\"offset\":8,\"old\":\"\\\"ehr__read\\\"\",\"new\":\"\\\"read\\\"\"},\
             {\"offset\":25,\"old\":\"1\",\"new\":\"\\\"a\\\"\"}]"
        );
        assert_eq!(Edits::decode(&edits.encode()).unwrap(), edits);
    }

    #[test]
    fn edits_of_another_message_are_an_error() {
        let arrived = Bytes::from_static(b"abc");
        let (edits, left) = Edits::make(&arrived, vec![(1..2, "x".to_owned())]).unwrap();
        assert_eq!(left, "axc");
        assert_eq!(edits.apply(b"axc"), Err(EditsError::Misfit(0)));
        assert_eq!(edits.undo(b"a"), Err(EditsError::Misfit(0)));
        let overlap = vec![(0..2, "x".to_owned()), (1..3, "y".to_owned())];
        assert_eq!(Edits::make(&arrived, overlap), Err(EditsError::Order(1)));
        assert_eq!(Edits::make(&arrived, vec![(2..9, String::new())]), Err(EditsError::Misfit(0)));
        assert!(matches!(Edits::decode(b"{}"), Err(EditsError::Form(_))));
    }

    #[test]
    fn very_many_edits_are_kept_as_one() {
        let arrived = Bytes::from("\n".repeat(10_000));
        let changes = (0..10_000).map(|i| (i..i + 1, " ".to_owned())).collect();
        let (edits, left) = Edits::make(&arrived, changes).unwrap();
        assert_eq!((edits.len(), left.len()), (1, 10_000));
        assert_eq!(edits.undo(&left).unwrap(), arrived);
    }

    proptest! {
        #[test]
        fn whatever_is_changed_can_be_turned_back(
            pieces in prop::collection::vec(("[a-zé]{0,6}", "[a-zü]{0,6}", any::<bool>()), 0..12)
        ) {
            let mut message = String::new();
            let mut changes = Vec::new();
            for (old, new, change) in pieces {
                let from = message.len();
                message.push_str(&old);
                if change {
                    changes.push((from..message.len(), new));
                }
            }
            let arrived = Bytes::from(message);
            let (edits, left) = Edits::make(&arrived, changes).unwrap();
            let decoded = Edits::decode(&edits.encode()).unwrap();
            prop_assert_eq!(decoded.undo(&left).unwrap(), arrived.clone());
            prop_assert_eq!(decoded.apply(&arrived).unwrap(), left);
        }

        #[test]
        fn no_body_and_no_bytes_make_it_panic(body in "[\\[\\]{}\",:a-z0-9]{0,40}", bytes in any::<Vec<u8>>()) {
            if let Ok(edits) = Edits::decode(body.as_bytes()) {
                drop(edits.apply(&bytes));
                drop(edits.undo(&bytes));
            }
        }
    }
}
