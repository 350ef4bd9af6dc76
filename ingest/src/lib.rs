//! Journal to lake: every durable entry becomes exactly one row.
//!
//! # Life of a batch
//! 1. [`Ingest::run`] looks at every partition of the journal: the table says how far it is stored,
//!    the journal must go on from there (`pipeline`).
//! 2. One thread per partition reads entries and makes rows of them (`reading`, `part`). A record that is
//!    stored already is dropped after its hash was compared; another record under its identity is
//!    stored as a conflict (`known`, [`streams`]); what cannot be read is stored as it is.
//! 3. A second thread encodes rows into Parquet files as they come (`storing`). At 32 MB, after
//!    60 seconds, or at a stop, the files are stored and committed together with the new position.
//! 4. The journal is told what it no longer needs to keep.
//!
//! A batch is never taken apart or built again: whatever the store answers, the same files are
//! offered until the table says that they are in it, or that somebody else owns the partition.

mod known;
mod part;
mod pipeline;
mod reading;
mod status;
mod storing;
pub mod streams;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use custody_journal::{Journal, Partition, ReadError, Topic};
use custody_lake::files::FileError;
use custody_lake::identities::ReadBackError;
use custody_lake::{CommitError, Lake, LakeError, Table, app_id};
use tokio_util::sync::CancellationToken;

pub use status::{Counts, PartitionStatus};

use pipeline::Pipeline;

/// How long the log's care waits between two passes.
const CARE_EVERY: Duration = Duration::from_secs(30);

/// When a batch is committed, and under which name its position is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of encoded files at which a batch is committed.
    pub flush_bytes: usize,
    /// Age of a batch's first row at which it is committed.
    pub flush_after: Duration,
    /// Name of the journal's cluster; `file` for a file journal.
    pub cluster: String,
    /// Counted up by the operator when topics are made anew.
    pub epoch: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flush_bytes: 32 * 1024 * 1024,
            flush_after: Duration::from_secs(60),
            cluster: "file".to_owned(),
            epoch: 1,
        }
    }
}

/// Why ingest cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The table holds more than the journal ever had.
    #[error(
        "the lake holds {app_id} up to offset {stored}, but the journal ends at {end}: it was \
         replaced or restored from an older copy. Give the writer a new name, so that it begins a \
         partition of its own, or put the right journal back"
    )]
    Beyond {
        /// The partition.
        app_id: String,
        /// Where the table stands.
        stored: u64,
        /// Where the journal ends.
        end: u64,
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
    /// The lake cannot be read or written.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A commit was refused, or did not land before the stop.
    #[error(transparent)]
    Commit(#[from] CommitError),
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

/// Carries a journal into a lake.
pub struct Ingest {
    pipelines: Vec<Arc<Pipeline>>,
    lake: Lake,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Ingest {
    /// Prepares to carry every partition of events and bodies of `journal`.
    ///
    /// # Errors
    /// When the journal does not say which partitions it has.
    pub fn new(
        journal: &Arc<dyn Journal>,
        lake: Lake,
        settings: &Settings,
    ) -> Result<Self, IngestError> {
        let partitions = journal.partitions().map_err(IngestError::Partitions)?;
        let pipelines = partitions
            .into_iter()
            .filter_map(|partition| {
                let table = table_of(&lake, &partition)?;
                let app_id = app_id_of(settings, &partition);
                let journal = Arc::clone(journal);
                Some(Arc::new(Pipeline::new(journal, table, partition, app_id, settings)))
            })
            .collect();
        Ok(Self { pipelines, lake })
    }

    /// How every partition stands.
    #[must_use]
    pub fn status(&self) -> Vec<PartitionStatus> {
        self.pipelines.iter().map(|pipeline| pipeline.status()).collect()
    }

    /// Works until `shutdown`; then reads what is durable by now, commits it and returns.
    ///
    /// # Errors
    /// The first error that waiting cannot mend, after the other partitions have stopped. What is
    /// not committed stays in the journal.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), IngestError> {
        for pipeline in &self.pipelines {
            pipeline.assign().await?;
        }
        let stop = shutdown.child_token();
        // Whoever drops this future stops its threads too.
        let _stops = stop.clone().drop_guard();
        let mut running = tokio::task::JoinSet::new();
        for pipeline in &self.pipelines {
            let (pipeline, stop) = (Arc::clone(pipeline), stop.clone());
            running.spawn(async move { pipeline.run(stop).await });
        }
        let care = tokio::spawn(care(self.lake.clone(), stop.clone()));
        let mut result = Ok(());
        while let Some(ended) = running.join_next().await {
            let ended = ended.unwrap_or_else(|e| Err(IngestError::Thread(e.to_string())));
            if let Err(error) = ended {
                stop.cancel();
                result = result.and(Err(error));
            }
        }
        stop.cancel();
        if let Err(error) = care.await {
            tracing::warn!(%error, "the care of the tables' logs ended early");
        }
        result
    }
}

fn table_of(lake: &Lake, partition: &Partition) -> Option<Arc<Table>> {
    match partition.topic {
        Topic::Events => Some(Arc::clone(lake.events())),
        Topic::Bodies => Some(Arc::clone(lake.bodies())),
        Topic::Control => None,
    }
}

fn app_id_of(settings: &Settings, partition: &Partition) -> String {
    app_id(&settings.cluster, partition.topic.name(), settings.epoch, &partition.name)
}

/// Checkpoints the tables' logs and cleans them up, apart from the commits.
async fn care(lake: Lake, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(CARE_EVERY)).await.is_some() {
        for table in [lake.events(), lake.bodies()] {
            if let Err(error) = table.maintain().await {
                tracing::warn!(table = table.name(), %error, "the table's log stays as it is");
            }
        }
    }
}
