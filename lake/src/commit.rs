//! The fenced commit: rows and the position up to which they were read, in one step, exactly once.
//!
//! ```text
//! 1  S = the newest snapshot
//! 2  per partition: S.txn == end → it is done · == start → go on · otherwise → fenced
//! 3  commit files and txns based on S, the very snapshot that was checked
//!    any error → the outcome is unknown → back to 1 with the same files
//! ```
//! The commit is built on S itself. If the table moves on meanwhile, Delta's conflict check looks
//! at every version after S and refuses when one of them carries a txn of ours: then step 2 finds
//! out what happened. A commit that another one merely overtook lands behind it without a retry.
//! A request that was given up on can only ever land at the version it was made for, and nobody
//! writes a later version before that one exists, so it cannot surface after its successor.

use std::collections::HashMap;
use std::time::Duration;

use deltalake_core::DeltaTableError;
use deltalake_core::kernel::transaction::CommitBuilder;
use deltalake_core::kernel::{Action, Add, Transaction};
use deltalake_core::protocol::{DeltaOperation, SaveMode};

use crate::columns::EVENT_DATE;
use crate::files::NewFile;
use crate::snapshot::Snapshot;
use crate::tables::{LakeError, Table};

/// How often one call tries before it gives up for now.
const ATTEMPTS: u32 = 8;
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause after the first failed attempt; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The name under which a table keeps the position of a partition: `{cluster}/{topic}@{epoch}/
/// {partition}`. A recreated topic begins a new epoch. File journals are cluster `file`, epoch 1.
#[must_use]
pub fn app_id(cluster: &str, topic: &str, epoch: u32, partition: &str) -> String {
    format!("{cluster}/{topic}@{epoch}/{partition}")
}

/// [`app_id`] of a partition of a file journal.
#[must_use]
pub fn file_app_id(topic: &str, partition: &str) -> String {
    app_id("file", topic, 1, partition)
}

/// How far a commit takes one journal partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnStep {
    /// `{cluster}/{topic}@{epoch}/{partition}`.
    pub app_id: String,
    /// Where the batch begins: the offset that the table must stand at, `None` at nothing.
    pub start: Option<u64>,
    /// The offset after the batch.
    pub end: u64,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the table, by this attempt.
    Committed {
        /// The version that it made.
        version: u64,
    },
    /// The table already stands at its end: an earlier attempt had landed.
    AlreadyDone,
    /// The table stands elsewhere: somebody else owns the partition. Drop the batch.
    Fenced {
        /// The partition.
        app_id: String,
        /// Where the table stands.
        found: Option<u64>,
    },
}

/// A commit neither landed nor was refused. The same files may be offered again.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store or the log does not answer.
    #[error(
        "the commit's outcome is unknown after {attempts} attempts; it goes on with the same files: {source}"
    )]
    Unknown {
        /// How many there were.
        attempts: u32,
        /// The last error.
        source: LakeError,
    },
    /// The table may not be used any more.
    #[error(transparent)]
    Refused(LakeError),
}

impl Table {
    /// Commits `files` and moves each partition of `steps` from its start to its end, or does
    /// neither.
    ///
    /// # Errors
    /// [`CommitError`]; nothing is known then, and the same call is safe at any time.
    pub async fn commit(
        &self,
        files: &[NewFile],
        steps: &[TxnStep],
    ) -> Result<Outcome, CommitError> {
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.attempt(files, steps).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) if error.is_final() => return Err(CommitError::Refused(error)),
                Err(error) => error,
            };
            tracing::debug!(table = self.name(), attempts, %error, "commit outcome unknown");
            if attempts == ATTEMPTS {
                return Err(CommitError::Unknown { attempts, source: error });
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn attempt(&self, files: &[NewFile], steps: &[TxnStep]) -> Result<Outcome, LakeError> {
        let one = async {
            let snapshot = self.snapshot().await?;
            match verdict(&snapshot, steps).await? {
                Verdict::GoOn => self.commit_on(&snapshot, files, steps).await,
                Verdict::Done => Ok(Outcome::AlreadyDone),
                Verdict::Fenced { app_id, found } => Ok(Outcome::Fenced { app_id, found }),
            }
        };
        let outcome = tokio::time::timeout(ATTEMPT_TIMEOUT, one).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let seconds = ATTEMPT_TIMEOUT.as_secs();
            Err(DeltaTableError::generic(format!("no answer within {seconds} s")).into())
        });
        outcome.map_err(|error| self.explained(error))
    }

    /// Step 3. The checkpoint and clean-up hooks are left out: they have a task of their own.
    async fn commit_on(
        &self,
        snapshot: &Snapshot,
        files: &[NewFile],
        steps: &[TxnStep],
    ) -> Result<Outcome, LakeError> {
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(vec![EVENT_DATE.to_owned()]),
            predicate: None,
        };
        let mut actions: Vec<Action> = files.iter().map(|f| Action::Add(add(f))).collect();
        actions.extend(steps.iter().map(|step| Action::Txn(transaction(step))));
        let committed = CommitBuilder::default()
            .with_actions(actions)
            .build(Some(&snapshot.state), self.log_store(), operation)
            .into_prepared_commit_future()
            .await?
            .await?;
        Ok(Outcome::Committed { version: committed.version })
    }
}

/// What step 2 says.
enum Verdict {
    GoOn,
    Done,
    Fenced { app_id: String, found: Option<u64> },
}

/// Compares every step with the snapshot. One commit moves all its partitions, so either all stand
/// at their start or all at their end.
async fn verdict(snapshot: &Snapshot, steps: &[TxnStep]) -> Result<Verdict, LakeError> {
    let mut done = 0;
    for step in steps {
        let found = snapshot.txn(&step.app_id).await?;
        let at_end = found == Some(step.end);
        if at_end {
            done += 1;
        } else if found != step.start {
            return Ok(Verdict::Fenced { app_id: step.app_id.clone(), found });
        }
    }
    match steps.first() {
        None => Ok(Verdict::GoOn),
        Some(_) if done == 0 => Ok(Verdict::GoOn),
        Some(_) if done == steps.len() => Ok(Verdict::Done),
        Some(first) => {
            let found = snapshot.txn(&first.app_id).await?;
            Ok(Verdict::Fenced { app_id: first.app_id.clone(), found })
        }
    }
}

fn transaction(step: &TxnStep) -> Transaction {
    Transaction::new(&step.app_id, i64::try_from(step.end).unwrap_or(i64::MAX))
}

fn add(file: &NewFile) -> Add {
    let date = Some(file.event_date.clone());
    let tags = file.tags.iter().map(|(k, v)| (k.clone(), Some(v.clone())));
    Add {
        path: file.path.to_string(),
        partition_values: HashMap::from([(EVENT_DATE.to_owned(), date)]),
        size: i64::try_from(file.size).unwrap_or(i64::MAX),
        modification_time: chrono::Utc::now().timestamp_millis(),
        data_change: true,
        stats: Some(file.stats.clone()),
        tags: Some(tags.collect()),
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
        clustering_provider: None,
    }
}
