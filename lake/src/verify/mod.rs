//! Whether a lake is what its writers have signed: tables ↔ records ↔ leaves ↔ tiles ↔
//! checkpoints ↔ deployment log ↔ keyring.
//!
//! Needs nothing but the lake and, to trust nobody, the root's public key and an earlier head of
//! the log. Every disagreement is a [`Finding`] with its place: the file and row, the stream and
//! index, or the seal. What is merely not sealed yet, or missing below what is signed, is counted
//! apart.

mod bodies;
mod claims;
mod columns;
mod log;
mod streams;
mod tables;

use custody_schemas::id::Micros;
use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::key::KeyError;
use custody_schemas::seal::policy::Policy;

use crate::identities::ReadBackError;
use crate::storage::Storage;
use crate::tables::{Lake, LakeError, LakeOptions};
use crate::tiles::{LOG_FOLDER, SealError, Seals};
use crate::witnessed::Witnessed;

/// How many findings are kept; the others are counted.
const FINDINGS: usize = 1_000;

/// What a verification is asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Settings of the lake's store.
    pub storage: Storage,
    /// The root's public key, as the auditor keeps it; else the one that lies in the lake.
    pub root: Option<String>,
    /// A head of the deployment log that the auditor has kept, as its note.
    pub head: Option<String>,
    /// Whose cosignatures the auditor asks for.
    pub policy: Option<Policy>,
    /// Whether bodies are compared with their commitments, too.
    pub bodies: bool,
}

/// Something that is not as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where: a file with its row, a stream with its index, a seal.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
}

/// What a verification has found out.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The deployment.
    pub deployment: String,
    /// The root key under which the keyring was read.
    pub root: String,
    /// Whether that key came from the auditor and not from the lake.
    pub pinned: bool,
    /// The keyring's edition.
    pub edition: u64,
    /// Writers on it.
    pub writers: u64,
    /// Entries of the deployment log.
    pub log_size: u64,
    /// Root of the deployment log, hexadecimal.
    pub log_root: String,
    /// The auditor's earlier head, if one was given and is the beginning of this log.
    pub earlier: Option<u64>,
    /// The newest head that witnesses have cosigned, if there is one.
    pub witnessed: Option<Witnessed>,
    /// Streams in the log.
    pub streams: u64,
    /// Leaves under signed checkpoints.
    pub leaves: u64,
    /// Leaves of ended runs that the writer's next run has attested.
    pub attested: u64,
    /// Checkpoints whose signature and root were checked.
    pub checkpoints: u64,
    /// Data files that were read.
    pub files: u64,
    /// Records in them.
    pub records: u64,
    /// Records that no checkpoint in the log covers yet.
    pub unsealed: u64,
    /// Sealed leaves without a record.
    pub missing: u64,
    /// Where they are missing: stream, first and the index after the last; the first thousand.
    pub gaps: Vec<(String, u64, u64)>,
    /// Sealed leaves whose records retention has let go.
    pub expired: u64,
    /// Sealed leaves whose records were erased.
    pub erased: u64,
    /// Second records under one identity.
    pub conflicts: u64,
    /// Entries that nobody could read.
    pub undecodable: u64,
    /// Bodies that were compared with their commitments.
    pub bodies: u64,
    /// Bodies that records name and that are not there.
    pub bodies_missing: u64,
    /// Those that have expired or were erased.
    pub bodies_gone: u64,
    /// Time of the first and the last sealed leaf.
    pub period: Option<(Micros, Micros)>,
    /// What is wrong, at most so many as are kept.
    pub findings: Vec<Finding>,
    /// How many findings there are.
    pub found: u64,
}

impl Verdict {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.found == 0
    }

    /// Whether everything signed is there.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.missing == 0 && self.bodies_missing == 0
    }

    fn miss(&mut self, stream: &str, first: u64, end: u64) {
        self.missing += end - first;
        if self.gaps.len() < FINDINGS {
            self.gaps.push((stream.to_owned(), first, end));
        }
    }

    /// Adds something that is wrong.
    pub fn find(&mut self, place: impl Into<String>, problem: impl Into<String>) {
        self.found += 1;
        if self.findings.len() < FINDINGS {
            self.findings.push(Finding { place: place.into(), problem: problem.into() });
        }
    }
}

/// Why nothing could be said.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The lake cannot be opened or read.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A data file cannot be read at all.
    #[error(transparent)]
    ReadBack(#[from] ReadBackError),
    /// The seals cannot be read.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// There are no seals.
    #[error(
        "there are no seals in this lake: ingest writes them when it holds the log's key; see \
         `custody keys` and docs/evidence.md"
    )]
    Unsealed,
    /// The auditor's own key or head cannot be read.
    #[error("what you gave to compare with cannot be used: {0}")]
    Given(KeyError),
}

/// Told how far a verification is: done and all, in files.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Verifies the lake at `url`.
///
/// # Errors
/// When the lake cannot be read; what can be read and is wrong is in the verdict.
pub async fn lake(
    url: &str,
    request: &Request,
    progress: Progress<'_>,
) -> Result<Verdict, VerifyError> {
    let seals = Lake::seals_at(url, &request.storage)?;
    let deployment = deployment(&seals).await?;
    let mut verdict = Verdict { deployment: deployment.clone(), ..Verdict::default() };
    let Some(logged) = log::read(&seals, request, &mut verdict).await? else {
        return Ok(verdict);
    };
    let mut streams = streams::read(&seals, &logged, &mut verdict).await?;
    let options = LakeOptions {
        storage: request.storage.clone(),
        read_only: true,
        ..LakeOptions::new(&deployment)
    };
    let lake = Lake::open(url, &options).await?;
    let mut wanted = request.bodies.then(bodies::Wanted::default);
    tables::read(&lake, &mut streams, wanted.as_mut(), &mut verdict, progress).await?;
    claims::conclude(&streams, &mut verdict);
    if let Some(wanted) = wanted {
        wanted.compare(&lake, &streams.lawful, &mut verdict).await?;
    }
    Ok(verdict)
}

/// The deployment that the head of the log names.
async fn deployment(seals: &Seals) -> Result<String, VerifyError> {
    let head = seals.text(&format!("{LOG_FOLDER}checkpoint")).await?;
    let head = head.ok_or(VerifyError::Unsealed)?;
    Ok(head.lines().next().unwrap_or_default().to_owned())
}

/// The checkpoint that a note says, its signature unseen.
fn unsigned(note: &str) -> Result<Checkpoint, KeyError> {
    let text = note.split("\n\n").next().unwrap_or_default();
    Checkpoint::parse(&format!("{text}\n"))
}
