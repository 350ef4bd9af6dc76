//! Signed checkpoints of a stream, and the message that carries one through the journal.
//!
//! The message holds the leaf data since the stream's last checkpoint, so that the tree can be
//! computed across a hole in the records.

use tlog_tiles::Checkpoint as Text;

use super::key::{KeyError, Signer, open};
use super::{Leaf, Tree};
use crate::id::{Bytes, Hash, StreamId};

/// The most leaves that one message carries; a writer signs at least that often.
pub const MAX_LEAVES: usize = 8_192;

/// What a checkpoint says: a stream, its size, its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// `{deployment}/{stream}`.
    pub origin: String,
    /// Number of leaves.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

/// The origin line of a stream's checkpoints.
#[must_use]
pub fn origin(deployment: &str, stream: &StreamId) -> String {
    format!("{deployment}/{stream}")
}

impl Checkpoint {
    /// The tree's present head.
    #[must_use]
    pub fn of(origin: String, tree: &Tree) -> Self {
        Self { origin, size: tree.size(), root: tree.root() }
    }

    /// The note that says and signs it.
    ///
    /// # Errors
    /// When the origin cannot stand in a checkpoint.
    pub fn sign(&self, signer: &Signer) -> Result<String, KeyError> {
        let root = tlog_tiles::Hash(self.root.0);
        let text = Text::new(&self.origin, self.size, root, "")
            .map_err(|e| KeyError::Note(e.to_string()))?;
        let text = String::from_utf8(text.to_bytes()).map_err(|e| KeyError::Note(e.to_string()))?;
        signer.sign(&text)
    }

    /// Reads a note that one of the keys has signed.
    ///
    /// # Errors
    /// When the signature or the form is wrong.
    pub fn verify(note: &str, vkeys: &[&str]) -> Result<Self, KeyError> {
        Self::parse(&open(note, vkeys)?)
    }

    /// Reads the text of a note without looking at signatures.
    ///
    /// # Errors
    /// When the form is wrong.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if !text.ends_with('\n') {
            return Err(KeyError::Note("its last line has no end".to_owned()));
        }
        let text = Text::from_reader(&mut text.as_bytes(), false)
            .map_err(|e| KeyError::Note(e.to_string()))?;
        Ok(Self { origin: text.origin().to_owned(), size: text.size(), root: Bytes(text.hash().0) })
    }
}

/// What travels in `custody.events` beside the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The signed note.
    pub note: String,
    /// Index of the first leaf below.
    pub first: u64,
    /// The leaves since the last checkpoint.
    pub leaves: Vec<Leaf>,
}

/// A message cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint message: {0}")]
pub struct MessageError(&'static str);

const MAGIC: &[u8; 4] = b"CCP1";

impl Message {
    /// `CCP1` ‖ note length (u32) ‖ first (u64) ‖ count (u32), big endian, ‖ note ‖ leaf data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.leaves.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(self.note.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(20 + self.note.len() + self.leaves.len() * Leaf::BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&count.to_be_bytes());
        bytes.extend_from_slice(self.note.as_bytes());
        for leaf in &self.leaves {
            bytes.extend_from_slice(leaf.as_bytes());
        }
        bytes
    }

    /// The reverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(MessageError("no CCP1 at the beginning"))?;
        let (length, rest) = take::<4>(rest)?;
        let (first, rest) = take::<8>(rest)?;
        let (count, rest) = take::<4>(rest)?;
        let length = u32::from_be_bytes(length) as usize;
        let count = u32::from_be_bytes(count) as usize;
        let (note, leaves) = rest.split_at_checked(length).ok_or(MessageError("cut short"))?;
        if count > MAX_LEAVES || leaves.len() != count * Leaf::BYTES {
            return Err(MessageError("the number of leaves is wrong"));
        }
        let note = std::str::from_utf8(note).map_err(|_| MessageError("the note is no text"))?;
        let (leaves, _) = leaves.as_chunks::<{ Leaf::BYTES }>();
        Ok(Self {
            note: note.to_owned(),
            first: u64::from_be_bytes(first),
            leaves: leaves.iter().map(|data| Leaf::from_bytes(*data)).collect(),
        })
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), MessageError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(MessageError("cut short"))?;
    Ok((*head, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer::from_seed("audit.example/edge-1", &[3; 32]).unwrap().0
    }

    #[test]
    fn a_checkpoint_opens_with_its_key_and_with_no_other() {
        let stream = "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap();
        let checkpoint = Checkpoint::of(origin("audit.example", &stream), &Tree::new());
        let note = checkpoint.sign(&signer()).unwrap();
        assert_eq!(Checkpoint::verify(&note, &[signer().vkey()]).unwrap(), checkpoint);
        let other = Signer::from_seed("audit.example/edge-1", &[4; 32]).unwrap().0;
        assert!(Checkpoint::verify(&note, &[other.vkey()]).is_err());
        let forged = note.replacen("\n0\n", "\n1\n", 1);
        assert!(Checkpoint::verify(&forged, &[signer().vkey()]).is_err());
    }

    /// The text of the example in C2SP tlog-checkpoint.
    #[test]
    fn the_specifications_checkpoint_reads_back_and_a_malformed_one_is_refused() {
        let text =
            "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
        let read = Checkpoint::parse(text).unwrap();
        assert_eq!((read.origin.as_str(), read.size), ("example.com/behind-the-sofa", 20_852_163));
        let note = read.sign(&signer()).unwrap();
        assert!(note.starts_with(&format!("{text}\n— audit.example/edge-1 ")), "{note}");
        for wrong in [
            text.replacen("20852163", "020852163", 1),
            text.replacen("20852163", "-1", 1),
            text.replacen("CsUY", "CsU", 1),
            text.replacen("example.com/behind-the-sofa", "", 1),
            text.trim_end().to_owned(),
        ] {
            assert!(Checkpoint::parse(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_message_reads_back_and_a_damaged_one_is_an_error() {
        let leaves = vec![Leaf::from_bytes([9; 44]), Leaf::from_bytes([8; 44])];
        let message = Message { note: "text\n".into(), first: 7, leaves };
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Ok(message));
        for end in 0..bytes.len() {
            assert!(Message::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
