//! Why a writer could not be opened, and why an event could not be appended.

use std::io;
use std::sync::Arc;

use custody_schemas::record::SealError;

use crate::ReadError;
use crate::file::SpoolError;

/// Why an event is not, or maybe not, recorded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no room in the spool, or on its disk.
    #[error(
        "the spool has no room: {needed} bytes needed, {left} left. Make ingest run, enlarge \
         the spool, or free disk space"
    )]
    Full {
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes that are left for this.
        left: u64,
    },
    /// As many calls are open, or appends under way, as are allowed.
    #[error("{limit} appends are under way already, try again later")]
    Busy {
        /// How many may be.
        limit: usize,
    },
    /// The ending's bodies are longer than the slot was made for, and there is no room for more.
    #[error("the ending has {bytes} bytes of bodies, its slot was made for {reserved}")]
    TooLarge {
        /// Length of the bodies.
        bytes: u64,
        /// What the slot set aside.
        reserved: u64,
    },
    /// The disk failed. The writer begins a new run as soon as it can.
    #[error("the journal cannot be written{}: {source}", if *.maybe { " (it may be recorded)" } else { "" })]
    Unavailable {
        /// Whether the event may nevertheless have reached the disk. Even then no reader sees it.
        maybe: bool,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The call has no recorded opening, or has an ending already.
    #[error("the call is not open in the journal")]
    NotOpen,
    /// The writer was closed.
    #[error("the journal is closed")]
    Closed,
    /// The caller uses the journal wrongly.
    #[error("not to be appended like this: {0}")]
    Invalid(&'static str),
    /// The draft cannot become a record; it has taken no `seq`.
    #[error(transparent)]
    Seal(Arc<SealError>),
}

/// Why a writer could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The name cannot name a writer.
    #[error("{0:?} cannot name a writer: 1 to 64 of a-z 0-9 . _ -, beginning with one of a-z 0-9")]
    Name(String),
    /// The spool is in use or cannot be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The last run cannot be read back.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The first events of the run could not be stored.
    #[error("cannot begin a run: {0}")]
    Begin(AppendError),
    /// No thread.
    #[error("cannot start the journal's threads: {0}")]
    Thread(io::Error),
}
