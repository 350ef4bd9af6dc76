//! Why ingest cannot go on, and what that means for the rest of it.
//!
//! An error either passes (the same is tried again), or concerns one partition's journal, or ends
//! ingest: whoever runs it has to change something first, and each such error says what. In a group
//! a partition that somebody has to mend waits, visibly, and the others go on; a worker that is
//! alone ends.

use custody_journal::ReadError;
use custody_lake::files::FileError;
use custody_lake::identities::ReadBackError;
use custody_lake::{CommitError, LakeError};

/// Why ingest cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The table holds more than the journal ever had.
    #[error(
        "the lake holds {app_id} up to offset {stored}, but the journal ends at {end}: it was \
         made anew or restored from an older copy. {remedy}, or put the right journal back"
    )]
    Beyond {
        /// The partition.
        app_id: String,
        /// Where the table stands.
        stored: u64,
        /// Where the journal ends.
        end: u64,
        /// How to go on with the journal as it is.
        remedy: Remedy,
    },
    /// The journal holds something else where the table has been filled from.
    #[error(
        "the lake holds offset {offset} of {app_id}, but the journal has another entry there: it \
         was made anew and has been filled since. {remedy}, or put the right journal back"
    )]
    Replaced {
        /// The partition.
        app_id: String,
        /// The last offset in the table.
        offset: u64,
        /// How to go on with the journal as it is.
        remedy: Remedy,
    },
    /// The journal has deleted what was not stored yet.
    #[error(
        "{missing} offsets of {app_id}, from {stored}, were deleted from the journal before they \
         were stored: keep entries longer than ingest may stand still, resend what the writers' \
         spools still hold. {remedy} to go on from offset {first}: what is stored already is \
         dropped when it is read again, what is lost stays visible as a gap"
    )]
    Gone {
        /// The partition.
        app_id: String,
        /// Where the table stands.
        stored: u64,
        /// The oldest offset that is kept.
        first: u64,
        /// How many offsets lie between.
        missing: u64,
        /// How to go on with what is left.
        remedy: Remedy,
    },
    /// The journal cannot be read.
    #[error("{app_id}: {source}")]
    Journal {
        /// The partition.
        app_id: String,
        /// Why.
        source: ReadError,
    },
    /// The journal does not say which partitions it has.
    #[error("the journal's partitions cannot be listed: {0}")]
    Partitions(ReadError),
    /// Nobody says any more which partitions are ours.
    #[error("the membership in the group of ingest workers has ended; start this worker again")]
    Membership,
    /// The lake cannot be read or written.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A commit was refused, or did not land before the stop.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Something was still under way when a stop had waited long enough.
    #[error("{app_id}: the stop did not wait any longer for {what}; the journal keeps everything")]
    Unfinished {
        /// The partition.
        app_id: String,
        /// What was under way.
        what: &'static str,
    },
    /// Rows could not be encoded.
    #[error(transparent)]
    File(#[from] FileError),
    /// A stored file could not be read back.
    #[error(transparent)]
    ReadBack(#[from] ReadBackError),
    /// A thread could not be started, or ended without a word.
    #[error("a thread of ingest {0}; its entries stay in the journal")]
    Thread(String),
}

/// How to go on with a journal that is not the one the table was filled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Kafka: topics that were made anew begin a new epoch.
    Epoch(u32),
    /// Files: a writer's name is its partition's.
    Writer,
}

impl std::fmt::Display for Remedy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Epoch(next) => write!(f, "Set [journal] epoch = {next} wherever custody runs"),
            Self::Writer => {
                f.write_str("Give the writer a new name, so that it begins a partition of its own")
            }
        }
    }
}

/// What an error means for the rest of ingest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// It may be over the next time.
    Passing,
    /// Somebody has to mend this partition's journal, or say that it is another one.
    Partition,
    /// Nothing is stored until somebody has changed something.
    Fatal,
}

impl IngestError {
    pub(crate) const fn severity(&self) -> Severity {
        match self {
            Self::Journal { source: ReadError::Io { .. }, .. }
            | Self::ReadBack(_)
            | Self::Unfinished { .. }
            | Self::Commit(CommitError::Unknown { .. }) => Severity::Passing,
            Self::Lake(error) if !error.is_final() => Severity::Passing,
            Self::Beyond { .. }
            | Self::Replaced { .. }
            | Self::Gone { .. }
            | Self::Journal { .. } => Severity::Partition,
            Self::Partitions(_)
            | Self::Membership
            | Self::Lake(_)
            | Self::Commit(CommitError::Refused(_))
            | Self::File(_)
            | Self::Thread(_) => Severity::Fatal,
        }
    }
}
