//! The record: the canonical bytes of an event, and how to read them back.
//!
//! Writing: a [`Draft`] gets its [`Place`] in a stream, over-long foreign strings are cut, and the
//! event becomes bytes that equal RFC 8785 on our subset of JSON. Reading never panics and never
//! throws bytes away: what cannot be understood is said, what can be identified is identified.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::bounds;
use crate::event::{Draft, Event, RECORD_VERSION};
use crate::id::{Hash, Micros, Salt, StreamId, Uint};
use crate::kind::Kind;
use crate::seal::{Leaf, flags};

/// The longest record.
pub const MAX_RECORD_BYTES: usize = 48 * 1024;

/// Where an event stands: what a stream's only writer gives it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The run that writes.
    pub stream: StreamId,
    /// The next leaf index of that run.
    pub seq: u64,
    /// max(clock, the last event's `at`).
    pub at: Micros,
    /// 128 random bits.
    pub salt: Salt,
}

/// An event with its canonical bytes and its leaf.
#[derive(Clone, Debug)]
pub struct Record {
    /// What is stored, hashed and shown.
    pub bytes: Vec<u8>,
    /// What the stream's tree commits to.
    pub leaf: Leaf,
    /// The event that the bytes say.
    pub event: Event,
}

/// Why a draft cannot become a record.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The record would be longer than [`MAX_RECORD_BYTES`].
    #[error(
        "the record of a {kind} event would have {bytes} bytes, more than {MAX_RECORD_BYTES}; put what is long into a body"
    )]
    TooLong {
        /// Kind of the event.
        kind: Kind,
        /// Length that it would have.
        bytes: usize,
    },
    /// A kind that this version does not know cannot be written.
    #[error("{0:?} is no kind that this version writes")]
    UnknownKind(String),
    /// The encoder failed.
    #[error("the record cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
}

impl Draft {
    /// Gives the draft its place and makes it a record.
    ///
    /// # Errors
    /// When the record would be too long even after every foreign string was cut, or its kind is
    /// unknown. Nothing is used up then: the caller gives the same `seq` to the next draft.
    pub fn seal(self, place: Place) -> Result<Record, SealError> {
        if let Kind::Unknown(name) = &self.kind {
            return Err(SealError::UnknownKind(name.clone()));
        }
        let mut event = Event {
            at: place.at,
            bodies: self.bodies,
            call: self.call,
            code: self.kind.code(),
            data: self.data,
            decision: self.decision,
            detail: self.detail,
            flags: 0,
            kind: self.kind,
            outcome: self.outcome,
            prev_call: self.prev_call,
            salt: place.salt,
            seq: Uint::new(place.seq),
            stream: place.stream,
            tenant: self.tenant,
            truncated: Vec::new(),
            v: RECORD_VERSION,
            what: self.what,
            who: self.who,
        };
        bounds::apply(&mut event);
        event.flags = flags(&event);
        let bytes = encode(&event)?;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(SealError::TooLong { kind: event.kind, bytes: bytes.len() });
        }
        let leaf = Leaf::new(hash(&bytes), event.at, event.code, event.flags);
        Ok(Record { bytes, leaf, event })
    }
}

/// The canonical bytes of an event.
///
/// # Errors
/// Never for the types of this crate; the encoder's signature has one.
pub fn encode(event: &Event) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::with_capacity(1024);
    serde_json::to_writer(&mut bytes, event)?;
    Ok(bytes)
}

/// SHA-256 of a record's bytes, the first part of its leaf.
#[must_use]
pub fn hash(bytes: &[u8]) -> Hash {
    crate::id::Bytes(Sha256::digest(bytes).into())
}

/// What makes an event one: enough to store it, count it and compute its leaf, whatever else in
/// it is new to this version.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Identity {
    /// When it was recorded.
    pub at: Micros,
    /// The number of its kind.
    pub code: u16,
    /// The leaf's flags.
    pub flags: u16,
    /// Its kind.
    pub kind: Kind,
    /// The leaf's index.
    pub seq: Uint,
    /// The run that wrote it.
    pub stream: StreamId,
}

/// What reading a record gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// All of it is understood.
    Event(Box<Event>),
    /// It is an event with a place in a stream, but something in it is not understood.
    Identified {
        /// Its identity.
        identity: Identity,
        /// What is not understood.
        problem: String,
    },
    /// Not even its identity can be read.
    Undecodable {
        /// Why.
        problem: String,
    },
}

impl Event {
    /// The part that places the event and makes its leaf.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            at: self.at,
            code: self.code,
            flags: self.flags,
            kind: self.kind.clone(),
            seq: self.seq,
            stream: self.stream.clone(),
        }
    }
}

impl Identity {
    /// The leaf of the record that has these bytes and this identity.
    #[must_use]
    pub fn leaf(&self, bytes: &[u8]) -> Leaf {
        Leaf::new(hash(bytes), self.at, self.code, self.flags)
    }
}

/// Reads a record of any version.
#[must_use]
pub fn decode(bytes: &[u8]) -> Decoded {
    if bytes.len() > MAX_RECORD_BYTES {
        return Decoded::Undecodable { problem: format!("{} bytes are too long", bytes.len()) };
    }
    // Checked once for the whole record, which is faster than string by string.
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Decoded::Undecodable { problem: "the bytes are not UTF-8".to_owned() };
    };
    let problem = match serde_json::from_str::<Event>(text) {
        Ok(event) => return Decoded::Event(Box::new(event)),
        Err(error) => error.to_string(),
    };
    match serde_json::from_str::<Identity>(text) {
        Ok(identity) => Decoded::Identified { identity, problem },
        Err(error) => Decoded::Undecodable { problem: error.to_string() },
    }
}
