//! The first medium: everything that is recorded is durable here before it takes effect.
//!
//! # Life of an entry
//! 1. A proxy, an ingest worker or a query service asks its [`Writer`] for a
//!    [`Slot`]: queue places and room on disk for a call's opening *and* its
//!    ending. No room is a refusal before the effect.
//! 2. [`Slot::open`] hands over a draft and its bodies. Bodies are committed to
//!    on the caller's thread; larger ones are stored first, in a lane of their own.
//! 3. One committer thread takes everything that waits, gives each event its place in the stream
//!    (`seq`, time, salt), seals it, adds its leaf to the tree and writes all of it as one batch:
//!    one `write`, one `fdatasync`, then every waiter is woken.
//! 4. Where Kafka is the journal, a shipper (`ship`) carries this spool to it, bodies before
//!    records; with [`Durability::Replicated`] waiters are woken when Kafka has acknowledged.
//! 5. Readers ([`Read`]) follow the partition from any offset: ingest carries entries to the lake,
//!    the query service keeps the fresh tail.
//! 6. When the lake, or Kafka, holds them ([`Journal::release`]), segments leave after 72 hours, or
//!    earlier when the disk needs the room.
//!
//! # The contract
//! * What an append acknowledges MUST survive the loss of the process (and of power).
//! * Offsets grow; a partition MAY have holes, as a compacted Kafka topic has.
//! * Entries of one append MUST be read in their order, and bodies MUST NOT come after the record
//!   that commits to them.
//! * A reader MUST NOT return what is not durable, and MUST return an error, with the position,
//!   instead of skipping what it cannot read.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use custody_schemas::id::Micros;

#[doc(hidden)]
pub mod bench;
#[cfg(test)]
mod contract;
pub mod control;
pub mod file;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod keys;
pub mod metrics;
#[cfg(feature = "kafka")]
pub mod ship;
#[cfg(test)]
mod sim;
pub mod writer;

pub use file::FileJournal;
pub use writer::{
    Appended, Appending, Durability, Ends, Needs, OutBody, Part, Recovery, Slot, Writer,
    WriterOptions,
};

/// What a partition carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Records and signed checkpoints.
    Events,
    /// Chunks of bodies.
    Bodies,
    /// Control state.
    Control,
}

impl Topic {
    /// The topic's name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => custody_schemas::wire::TOPIC_EVENTS,
            Self::Bodies => custody_schemas::wire::TOPIC_BODIES,
            Self::Control => custody_schemas::wire::TOPIC_CONTROL,
        }
    }

    /// Whether entries of `kind` belong to this topic.
    #[must_use]
    pub const fn carries(self, kind: EntryKind) -> bool {
        match kind {
            EntryKind::Event | EntryKind::Checkpoint => matches!(self, Self::Events),
            EntryKind::Chunk => matches!(self, Self::Bodies),
            EntryKind::Control => matches!(self, Self::Control),
        }
    }
}

/// One ordered sequence of entries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// What it carries.
    pub topic: Topic,
    /// Its name: on Kafka its number, on local disk the writer's name, with `.bulk` behind it for
    /// the lane of large bodies.
    pub name: String,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A record: canonical bytes.
    Event,
    /// A signed checkpoint with the leaf data since the last one.
    Checkpoint,
    /// One chunk of a body; its header says which.
    Chunk,
    /// A control entry; its header is the key.
    Control,
}

/// One entry as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position in the partition.
    pub offset: u64,
    /// When it was written.
    pub journaled_at: Micros,
    /// What it is.
    pub kind: EntryKind,
    /// Chunk header or control key; empty for events and checkpoints.
    pub header: Bytes,
    /// The bytes.
    pub value: Bytes,
}

/// An entry that is to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// What it is.
    pub kind: EntryKind,
    /// Chunk header or control key.
    pub header: Bytes,
    /// The bytes.
    pub value: Bytes,
}

/// One reader of one partition, with a position of its own. Its calls block: give it a thread.
pub trait Read: Send {
    /// The next entries, at most `max_entries` and, beyond the first, at most `max_bytes` of them.
    /// Waits up to `wait` until there is something new. An empty list says that nothing came, or
    /// nothing for this reader: then [`position`](Self::position) has moved past it.
    ///
    /// # Errors
    /// [`ReadError`]; the position stays where it was.
    fn read(
        &mut self,
        max_entries: usize,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, ReadError>;

    /// Goes to `offset`; the next read returns the first entry at or after it.
    ///
    /// # Errors
    /// [`ReadError::Gone`] when it has been deleted, [`ReadError::Beyond`] after the end.
    fn seek(&mut self, offset: u64) -> Result<(), ReadError>;

    /// The next offset to be read.
    fn position(&self) -> u64;

    /// The offset after the last durable entry.
    ///
    /// # Errors
    /// [`ReadError::Io`] when the medium does not answer.
    fn end(&self) -> Result<u64, ReadError>;
}

/// A journal: partitions to read, and the right to delete what is no longer needed.
pub trait Journal: Send + Sync {
    /// Every partition, in a stable order.
    ///
    /// # Errors
    /// [`ReadError::Io`] when the medium does not answer.
    fn partitions(&self) -> Result<Vec<Partition>, ReadError>;

    /// A reader of `partition` that begins at `from`; 0 means the oldest entry that is kept.
    ///
    /// # Errors
    /// As [`Read::seek`], and [`ReadError::NoPartition`].
    fn reader(&self, partition: &Partition, from: u64) -> Result<Box<dyn Read>, ReadError>;

    /// Says that everything below `up_to` is in the lake and may be deleted, after the retention
    /// time or under disk pressure. On Kafka it tells the consumer group, for displays of its lag:
    /// there the retention time alone deletes.
    ///
    /// Partitions may share their segments: release each of them up to its reader's position, also
    /// where that reader skipped everything and there was nothing to store.
    ///
    /// # Errors
    /// [`ReadError::NoPartition`], or [`ReadError::Io`] when a deletion failed.
    fn release(&self, partition: &Partition, up_to: u64) -> Result<(), ReadError>;
}

/// Raw appends to one partition group, in the blocking form that the contract suite uses.
pub trait Append: Send {
    /// Appends `entries` atomically and returns their offsets once they are durable.
    ///
    /// # Errors
    /// [`std::io::Error`]; then it is unknown whether they are stored.
    fn append(&mut self, entries: &[NewEntry]) -> Result<Range<u64>, std::io::Error>;
}

/// Why a journal could not be read or opened.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The entries have been deleted.
    #[error("offset {wanted} has been deleted; the journal begins at {first}")]
    Gone {
        /// What was asked for.
        wanted: u64,
        /// The oldest offset that is kept.
        first: u64,
    },
    /// The position lies after the end.
    #[error(
        "offset {wanted} lies beyond the journal's end {end}: it has lost entries or was replaced"
    )]
    Beyond {
        /// What was asked for.
        wanted: u64,
        /// The journal's end.
        end: u64,
    },
    /// Bytes that were durable cannot be read.
    #[error(
        "{} is damaged at byte {position}: {reason}. Restore the file from a copy. Or move the \
         writer's folder out of the journal's, keep it, and start a writer of another name: what \
         only that folder holds stays visible as a gap",
        segment.display()
    )]
    Corrupt {
        /// The file.
        segment: PathBuf,
        /// The first byte that cannot be read.
        position: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A later version wrote this.
    #[error(
        "{} has format {found}, this build knows {known}: start a custody of that version or later",
        segment.display()
    )]
    Newer {
        /// The file.
        segment: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this build reads.
        known: u32,
    },
    /// There is no such partition.
    #[error(
        "the journal has no partition {} of {}; on Kafka `custody topics check` tells what is \
         missing, and a topic that was made anew needs another `epoch` in [journal]",
        .0.name, .0.topic.name()
    )]
    NoPartition(Partition),
    /// The operating system's answer, or that of Kafka's client. Where waiting may help, waiting is
    /// enough: the same call goes on where it stood.
    #[error("cannot read the journal at {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

impl ReadError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
