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

use std::sync::{Arc, Mutex, PoisonError};

use custody_journal::keys::SignedRing;
use custody_lake::LakeError;
use custody_lake::identities::ReadBackError;
use custody_lake::tiles::{LogError, SealError};
use custody_schemas::id::StreamId;
use custody_schemas::seal::key::Signer;

pub(crate) use sealer::Sealer;
pub use stream::Fault;

/// The keyring in force, whenever somebody asks.
pub type Ring = Arc<dyn Fn() -> Option<SignedRing> + Send + Sync>;

/// Told of a stream of which something stored is not what was signed.
pub type Alarm = Arc<dyn Fn(&StreamId, &Fault) + Send + Sync>;

/// What sealing needs.
#[derive(Clone)]
pub struct Sealing {
    /// The keyring in force.
    pub ring: Ring,
    /// The key of the deployment log.
    pub log: Arc<Signer>,
    /// Who is told when something is wrong.
    pub alarm: Alarm,
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
    #[error("there is no keyring yet: enrol the writers with `custody keys enrol`")]
    NoRing,
}
