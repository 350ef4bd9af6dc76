//! What a writer takes beside drafts, and what it tells.

use bytes::Bytes;
use custody_schemas::id::{Hash, Micros, StreamId};

/// Where an event ended up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The stream that holds it.
    pub stream: StreamId,
    /// Its leaf index.
    pub seq: u64,
    /// When it was recorded.
    pub at: Micros,
    /// Its offset in the partition of events.
    pub offset: u64,
}

/// Which of a record's bodies it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The bytes of the request, or of a relayed message.
    Request,
    /// The bytes of the response.
    Response,
    /// What the proxy changed.
    Edits,
}

/// A body that is handed over with a draft; the writer commits to it and fills in the draft's
/// reference.
#[derive(Clone, Debug)]
pub struct OutBody {
    /// Which reference of the draft it becomes.
    pub part: Part,
    /// Exactly the bytes that passed.
    pub bytes: Bytes,
}

/// The offsets after the last durable entry of each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Of records, checkpoints and small bodies.
    pub main: u64,
    /// Of large bodies.
    pub bulk: u64,
}

/// What a run knows of the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Its stream.
    pub stream: StreamId,
    /// How many leaves of it are there.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
    /// Whether it was closed in order.
    pub clean: bool,
    /// How many leaves below its last signed size are missing.
    pub lost: u64,
}

/// What was found when a writer was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The stream that this run writes.
    pub stream: StreamId,
    /// The run before, if there was one.
    pub previous: Option<Previous>,
    /// How many calls had no ending; this run has ended them as `unknown`.
    pub orphans: u64,
}

/// How a writer is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The present stream.
    pub stream: StreamId,
    /// Why nothing can be recorded at the moment.
    pub problem: Option<String>,
    /// Calls that hold a slot.
    pub slots: usize,
    /// Bytes in the spool.
    pub spool_used_bytes: u64,
    /// Bytes that the spool may hold.
    pub spool_max_bytes: u64,
    /// Events appended since start.
    pub events: u64,
    /// Batches written since start: events divided by this is what one sync carries.
    pub commits: u64,
    /// Runs that ended because the disk failed.
    pub poisoned: u64,
}
