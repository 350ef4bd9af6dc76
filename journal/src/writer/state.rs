//! The state of a run, as it is noted at the beginning of a segment, and how it grows record by
//! record.
//!
//! The note lets the next run start from the newest segment alone: older ones may be deleted, and
//! a start takes as long as one segment takes to read.

use std::collections::HashMap;

use custody_schemas::event::Event;
use custody_schemas::id::{CallId, StreamId};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, Identity, decode};

use super::{is_ending, is_opening};
use custody_schemas::seal::Tree;

/// The note's version.
const VERSION: u8 = 1;

/// What a reader of the records so far knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The run's stream; none before the first.
    pub(crate) stream: Option<StreamId>,
    /// Its tree.
    pub(crate) tree: Tree,
    /// Whether its last record closed it.
    pub(crate) closed: bool,
    /// The openings of calls without an ending.
    pub(crate) open: HashMap<CallId, Vec<u8>>,
}

/// version ‖ stream length (u8) ‖ stream ‖ tree ‖ for every open call: length (u32) ‖ record.
pub(crate) fn encode(
    stream: Option<&StreamId>,
    tree: &Tree,
    open: &HashMap<CallId, Vec<u8>>,
) -> Vec<u8> {
    let stream = stream.map_or("", |stream| stream.as_str());
    let mut bytes = vec![VERSION, u8::try_from(stream.len()).unwrap_or(0)];
    bytes.extend_from_slice(stream.as_bytes());
    tree.encode(&mut bytes);
    for record in open.values() {
        bytes.extend_from_slice(&u32::try_from(record.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(record);
    }
    bytes
}

impl State {
    /// The reverse of [`encode`].
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [VERSION, len, rest @ ..] = bytes else { return None };
        let (stream, rest) = rest.split_at_checked(usize::from(*len))?;
        let stream = match std::str::from_utf8(stream).ok()? {
            "" => None,
            stream => Some(stream.parse().ok()?),
        };
        let (tree, mut rest) = Tree::decode(rest)?;
        let mut open = HashMap::new();
        while !rest.is_empty() {
            let (len, behind) = rest.split_first_chunk::<4>()?;
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            let (record, behind) = behind.split_at_checked(len)?;
            let Decoded::Event(event) = decode(record) else { return None };
            open.insert(event.call?, record.to_vec());
            rest = behind;
        }
        Some(Self { stream, tree, closed: false, open })
    }

    /// Takes in the next record; says what is wrong with it.
    pub(crate) fn push(&mut self, record: &[u8]) -> Result<(), &'static str> {
        let (identity, event) = match decode(record) {
            Decoded::Event(event) => (event.identity(), Some(event)),
            Decoded::Identified { identity, .. } => (identity, None),
            Decoded::Undecodable { .. } => return Err("a record cannot be read"),
        };
        if identity.kind == Kind::StreamOpened {
            self.stream = Some(identity.stream.clone());
            self.tree = Tree::default();
        }
        let follows = self.stream.as_ref() == Some(&identity.stream);
        if !follows || identity.seq.get() != self.tree.size() {
            return Err("records do not follow each other");
        }
        self.tree.push(&identity.leaf(record));
        self.closed = identity.kind == Kind::StreamClosed;
        if let Some(event) = event {
            self.count(&identity, &event, record);
        }
        Ok(())
    }

    fn count(&mut self, identity: &Identity, event: &Event, record: &[u8]) {
        let Some(call) = event.call else { return };
        if is_opening(&identity.kind) {
            self.open.insert(call, record.to_vec());
        } else if is_ending(&identity.kind) {
            self.open.remove(&call);
        }
    }
}

#[cfg(test)]
mod tests {
    use custody_schemas::event::Draft;
    use custody_schemas::id::{Bytes, Uint};
    use custody_schemas::record::Place;

    use super::*;

    fn record(kind: Kind, seq: u64, call: u8) -> Vec<u8> {
        let mut draft = Draft::new(kind);
        draft.call = Some(CallId::from_uuid(uuid::Uuid::from_bytes([call; 16])));
        let stream = StreamId::new("edge-1", uuid::Uuid::nil()).unwrap();
        let place = Place { stream, seq, at: Uint::new(seq), salt: Bytes([7; 16]) };
        draft.seal(place).unwrap().bytes
    }

    #[test]
    fn a_state_reads_back_with_its_open_calls() {
        let mut state = State::default();
        state.push(&record(Kind::StreamOpened, 0, 9)).unwrap();
        state.push(&record(Kind::CallRequested, 1, 1)).unwrap();
        state.push(&record(Kind::QueryRequested, 2, 2)).unwrap();
        state.push(&record(Kind::CallEnded, 3, 1)).unwrap();
        assert_eq!((state.open.len(), state.tree.size()), (1, 4));
        let bytes = encode(state.stream.as_ref(), &state.tree, &state.open);
        assert_eq!(State::decode(&bytes), Some(state.clone()));
        for cut in 0..bytes.len() {
            assert_ne!(State::decode(&bytes[..cut]), Some(state.clone()), "cut at {cut}");
        }
        assert!(state.push(&record(Kind::CallEnded, 5, 2)).is_err(), "a hole");
        assert!(state.push(b"{}").is_err());
    }
}
