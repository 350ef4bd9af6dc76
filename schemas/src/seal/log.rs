//! What stands in the deployment log: the checkpoints of streams that the lake has verified, and
//! which keyring was in force.
//!
//! An entry is a text. A stream's checkpoint stands there as the signed note that its writer made;
//! a keyring by its edition and hash. The log's own head is signed by a key that the keyring names
//! `log` and that carries the deployment's name.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::checkpoint::{self, Checkpoint};
use super::key::KeyError;
use super::keyring::Keyring;
use crate::id::{Hash, StreamId};
use crate::record::hash;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A stream's checkpoint, with the note that says and signs it.
    Stream {
        /// The stream.
        stream: StreamId,
        /// What the note says; its signature is not checked by reading it.
        checkpoint: Checkpoint,
        /// The note.
        note: String,
    },
    /// A keyring came into force.
    Keyring {
        /// Its edition.
        edition: u64,
        /// SHA-256 of its signed note.
        hash: Hash,
    },
}

/// The entry for a keyring's signed note.
#[must_use]
pub fn keyring_entry(ring: &Keyring, note: &str) -> String {
    let hash = BASE64_STANDARD.encode(hash(note.as_bytes()).0);
    format!("{}/keyring\n{}\n{hash}\n", ring.deployment, ring.edition)
}

/// Reads an entry of the log of `deployment`.
///
/// # Errors
/// When it is none.
pub fn read(deployment: &str, entry: &[u8]) -> Result<Entry, KeyError> {
    let wrong = |what: &str| KeyError::Note(format!("log entry: {what}"));
    let text = std::str::from_utf8(entry).map_err(|_| wrong("it is no text"))?;
    if let Some(rest) = text.strip_prefix(&format!("{deployment}/keyring\n")) {
        return keyring(rest).ok_or_else(|| wrong("it names no keyring"));
    }
    let said = text.split("\n\n").next().unwrap_or_default();
    let checkpoint = Checkpoint::parse(&format!("{said}\n"))?;
    let stream = stream_of(deployment, &checkpoint).ok_or_else(|| wrong("it names no stream"))?;
    Ok(Entry::Stream { stream, checkpoint, note: text.to_owned() })
}

fn keyring(text: &str) -> Option<Entry> {
    let mut lines = text.lines();
    let edition = lines.next()?.parse().ok()?;
    let hash = BASE64_STANDARD.decode(lines.next()?).ok()?;
    let hash = crate::id::Bytes(hash.try_into().ok()?);
    lines.next().is_none().then_some(Entry::Keyring { edition, hash })
}

/// The stream that a checkpoint of this deployment is about.
#[must_use]
pub fn stream_of(deployment: &str, checkpoint: &Checkpoint) -> Option<StreamId> {
    let stream = checkpoint.origin.strip_prefix(deployment)?.strip_prefix('/')?.parse().ok()?;
    (checkpoint::origin(deployment, &stream) == checkpoint.origin).then_some(stream)
}

/// Reads a stream's checkpoint and checks that one of its writer's keys has signed it.
///
/// # Errors
/// When it is not signed by such a key, or is about another stream.
pub fn verify_stream(
    ring: &Keyring,
    stream: &StreamId,
    note: &str,
) -> Result<Checkpoint, KeyError> {
    let checkpoint = Checkpoint::verify(note, &ring.of_writer(stream.writer()))?;
    if stream_of(&ring.deployment, &checkpoint).as_ref() != Some(stream) {
        return Err(KeyError::Note(format!("it is about {}", checkpoint.origin)));
    }
    Ok(checkpoint)
}

/// Reads the head of a deployment's log and checks that one of the log's keys has signed it.
///
/// # Errors
/// When it is not signed by such a key, or is another log's.
pub fn verify_head(ring: &Keyring, note: &str) -> Result<Checkpoint, KeyError> {
    let head = Checkpoint::verify(note, &ring.of_log())?;
    if head.origin != ring.deployment {
        return Err(KeyError::Note(format!("it is the head of {}", head.origin)));
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Micros;
    use crate::seal::Tree;
    use crate::seal::key::Signer;
    use crate::seal::keyring::WriterKey;

    #[test]
    fn an_entry_reads_back_and_counts_only_for_its_own_writer_and_stream() {
        let stream: StreamId = "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap();
        let other: StreamId = "edge-1/0190c8a0-7b1e-7000-8000-000000000002".parse().unwrap();
        let signer = Signer::from_seed("a.example/edge-1", &[3; 32]).unwrap().0;
        let key = WriterKey {
            name: "edge-1".into(),
            vkey: signer.vkey().to_owned(),
            from: Micros::new(0),
            until: None,
            retired: false,
        };
        let ring = Keyring {
            deployment: "a.example".into(),
            edition: 4,
            writers: vec![key],
            ..Keyring::default()
        };
        let origin = checkpoint::origin("a.example", &stream);
        let checkpoint = Checkpoint::of(origin, &Tree::new());
        let note = checkpoint.sign(&signer).unwrap();
        let expected = Entry::Stream { stream: stream.clone(), checkpoint, note: note.clone() };
        assert_eq!(read("a.example", note.as_bytes()).unwrap(), expected);
        assert!(read("b.example", note.as_bytes()).is_err());
        assert!(verify_stream(&ring, &stream, &note).is_ok());
        assert!(verify_stream(&ring, &other, &note).is_err());
        let entry = keyring_entry(&ring, "note");
        let expected = Entry::Keyring { edition: 4, hash: hash(b"note") };
        assert_eq!(read("a.example", entry.as_bytes()).unwrap(), expected);
    }
}
