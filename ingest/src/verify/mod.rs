//! Sealing: after a commit, what is stored is read back, compared with what its writers have
//! signed, and entered into the deployment log.
//!
//! A pass reads the files that are new in this worker's partitions, moves every stream on as far as
//! its checkpoints reach (`stream`), writes the tiles, appends the newest verified checkpoint of
//! each stream to the log, and only then says in the stream's folder how far it is. Every step may
//! be done again, by this worker or another: what a kill cuts off the next pass does. A cursor per
//! partition says from which offset on files have to be looked at after a start. Nothing of this
//! holds up the commits.

mod sealer;
pub(crate) mod stream;
pub mod witness;

use std::sync::{Arc, Mutex, PoisonError};

use custody_journal::keys::SignedRing;
use custody_lake::LakeError;
use custody_lake::identities::ReadBackError;
use custody_lake::tiles::{LogError, SealError};
use custody_schemas::id::StreamId;
use custody_schemas::seal::key::Signer;

pub(crate) use sealer::Sealer;
pub use stream::Fault;
pub use witness::{WitnessStatus, Witnesses};

/// The keyring in force, whenever somebody asks.
pub type Ring = Arc<dyn Fn() -> Option<SignedRing> + Send + Sync>;

/// Told of what is stored and is not what was signed.
pub type Alarm = Arc<dyn Fn(Alert) + Send + Sync>;

/// Something that is not as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The stream, or `log` for the deployment log.
    pub place: String,
    /// What is wrong, in a word.
    pub finding: &'static str,
    /// The index of the record, or the size of the tree.
    pub at: u64,
    /// The witness that has seen it.
    pub witness: Option<String>,
}

impl Alert {
    fn of(stream: &StreamId, fault: &Fault) -> Self {
        let (finding, at) = match fault {
            Fault::Altered(seq) => ("altered", *seq),
            Fault::Root(size) => ("root", *size),
            Fault::Unsigned(size) => ("unsigned", *size),
            Fault::Closed(size) => ("closed_key", *size),
        };
        Self { place: stream.to_string(), finding, at, witness: None }
    }
}

/// What sealing needs.
#[derive(Clone)]
pub struct Sealing {
    /// The keyring in force.
    pub ring: Ring,
    /// The key of the deployment log.
    pub log: Arc<Signer>,
    /// Who is told when something is wrong.
    pub alarm: Alarm,
    /// Who cosigns the log's head, if anybody is asked.
    pub witnesses: Option<Witnesses>,
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing").field("log", &self.log).finish_non_exhaustive()
    }
}

/// How sealing stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SealStatus {
    /// Leaves verified and sealed since the start.
    pub leaves: u64,
    /// Leaves sealed whose record was not stored.
    pub missing: u64,
    /// Findings of stored bytes that are not what was signed.
    pub faults: u64,
    /// Records that wait for a checkpoint.
    pub waiting: u64,
    /// Size of the deployment log.
    pub log_size: u64,
    /// Size of the log's newest head that enough witnesses have cosigned.
    pub witnessed: u64,
    /// How the witnesses stand that are asked.
    pub witnesses: Vec<WitnessStatus>,
    /// Why the last pass was cut off, if it was.
    pub problem: Option<String>,
}

/// A status that is read while it changes.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<SealStatus>);

impl Shared {
    pub(crate) fn get(&self) -> SealStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut SealStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Why a pass was cut off; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    /// The table cannot be read.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A stored file cannot be read back.
    #[error(transparent)]
    ReadBack(#[from] ReadBackError),
    /// The seals cannot be read or written.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The deployment log cannot be appended to.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Nobody has enrolled a writer yet.
    #[error("there is no keyring yet: put the writers on it with `custody keys add`")]
    NoRing,
}
