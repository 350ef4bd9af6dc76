//! Journal to lake: every durable entry becomes exactly one row.
//!
//! # Life of a batch
//! 1. [`Ingest::run`] carries the partitions that are [`Assigned`] to this worker (`assigned`): the
//!    table says how far each is stored, the journal must go on from there (`pipeline`).
//! 2. One thread per partition reads entries and makes rows of them (`reading`, `part`). A record that is
//!    stored already is dropped after its hash was compared; another record under its identity is
//!    stored as a conflict (`known`, [`streams`]); what cannot be read is stored as it is.
//! 3. A second thread encodes rows into Parquet files as they come (`storing`). At 32 MB, after
//!    60 seconds, or at a stop, the files are stored and committed together with the new position.
//! 4. The journal is told what it no longer needs to keep.
//! 5. What was stored is read back, compared with what its writers have signed, and sealed; the
//!    head of the log of seals goes to the witnesses (`verify`).
//!
//! A batch is never taken apart or built again: whatever the store answers, the same files are
//! offered until the table says that they are in it, or that somebody else owns the partition.
//! Several workers need no agreement beyond that: whoever comes late finds the table's position
//! moved, drops the batch and goes on from there.

mod assigned;
mod error;
mod known;
pub mod metrics;
mod part;
mod pipeline;
mod reading;
mod status;
mod stop;
mod storing;
pub mod streams;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use custody_journal::{Journal, Partition, Topic};
use custody_lake::{Lake, Table, app_id};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use assigned::Assigned;
pub use error::{IngestError, Remedy};
pub use status::{Counts, Durations, PartitionStatus};
pub use verify::{SealStatus, Sealing, WitnessStatus};

use assigned::Crew;
use known::Stored;
use pipeline::Pipeline;
use verify::Sealer;

/// How long the log's care waits between two passes.
const CARE_EVERY: Duration = Duration::from_secs(30);
/// How long sealing waits for a commit before it looks by itself.
const SEAL_EVERY: Duration = Duration::from_secs(30);
/// How long one pass of sealing may take.
const PASS_TIMEOUT: Duration = Duration::from_secs(120);
/// The cluster that file journals belong to.
const FILE_CLUSTER: &str = "file";

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
            cluster: FILE_CLUSTER.to_owned(),
            epoch: 1,
        }
    }
}

impl Settings {
    /// How to go on with a journal that is not the one the table was filled from.
    fn remedy(&self) -> Remedy {
        if self.cluster == FILE_CLUSTER {
            Remedy::Writer
        } else {
            Remedy::Epoch(self.epoch.saturating_add(1))
        }
    }
}

/// Carries a journal into a lake.
pub struct Ingest {
    journal: Arc<dyn Journal>,
    lake: Lake,
    settings: Settings,
    stored: Arc<Stored>,
    sealing: Option<Sealing>,
    seals: Arc<verify::Shared>,
    /// Of every partition that this worker has ever carried, so that its counts go on.
    pipelines: Mutex<BTreeMap<Partition, Arc<Pipeline>>>,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Ingest {
    /// A worker that carries partitions of `journal` into `lake`.
    #[must_use]
    pub fn new(journal: Arc<dyn Journal>, lake: Lake, settings: Settings) -> Self {
        let stored = Arc::new(Stored::new(Arc::clone(lake.events())));
        let (sealing, seals) = (None, Arc::default());
        Self { journal, lake, settings, stored, sealing, seals, pipelines: Mutex::default() }
    }

    /// The same, sealing what it stores.
    #[must_use]
    pub fn sealing(self, sealing: Sealing) -> Self {
        Self { sealing: Some(sealing), ..self }
    }

    /// How sealing stands, where this worker seals.
    #[must_use]
    pub fn seals(&self) -> Option<SealStatus> {
        self.sealing.as_ref().map(|_| self.seals.get())
    }

    /// How every partition stands that this worker carries or has carried.
    #[must_use]
    pub fn status(&self) -> Vec<PartitionStatus> {
        let pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        pipelines.values().map(|pipeline| pipeline.status.get()).collect()
    }

    /// Works until `shutdown`; then commits and returns, see [`Assigned`] for how much.
    ///
    /// # Errors
    /// The first error that somebody has to act upon, after all partitions have stopped. What is
    /// not committed stays in the journal.
    pub async fn run(
        &self,
        assigned: Assigned,
        shutdown: CancellationToken,
    ) -> Result<(), IngestError> {
        let end = CancellationToken::new();
        let _ends = end.clone().drop_guard();
        let care = tokio::spawn(care(self.lake.clone(), end.clone()));
        let seal = tokio::spawn(self.seal(end.clone()));
        let result = match assigned {
            Assigned::All => {
                let all = self.journal.partitions().map_err(IngestError::Partitions)?;
                // As long as the sender lives, nobody waits for a change in vain.
                let (_keeps, all) = watch::channel(all.into_iter().collect());
                self.follow(all, shutdown, true).await
            }
            Assigned::Group(wanted) => self.follow(wanted, shutdown, false).await,
        };
        end.cancel();
        if let Err(error) = care.await {
            tracing::warn!(%error, "the care of the tables' logs ended early");
        }
        if let Err(error) = seal.await {
            tracing::warn!(%error, "sealing ended early");
        }
        result
    }

    /// Seals after every commit until `stop`, and once more then, because the last commits came
    /// before it.
    fn seal(&self, stop: CancellationToken) -> impl Future<Output = ()> + use<> {
        let sealer = self
            .sealing
            .clone()
            .map(|sealing| Sealer::new(self.lake.clone(), sealing, Arc::clone(&self.seals)));
        let (stored, seals) = (Arc::clone(&self.stored), Arc::clone(&self.seals));
        async move {
            let Some(mut sealer) = sealer else { return };
            let mut last = false;
            while !last {
                let carried = stored.carried();
                let passing = async {
                    sealer.pass(&carried).await?;
                    sealer.witness().await
                };
                let passed = tokio::time::timeout(PASS_TIMEOUT, passing);
                let problem = match passed.await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("the lake does not answer".to_owned()),
                };
                if let Some(problem) = &problem {
                    tracing::warn!(problem, "not sealed yet; the next pass tries again");
                }
                seals.change(|status| status.problem = problem);
                last = stop.is_cancelled();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = stored.landed.notified() => {}
                    () = tokio::time::sleep(SEAL_EVERY) => {}
                }
            }
        }
    }

    async fn follow(
        &self,
        mut wanted: watch::Receiver<BTreeSet<Partition>>,
        shutdown: CancellationToken,
        alone: bool,
    ) -> Result<(), IngestError> {
        let mut crew = Crew::new(self, alone);
        let result = loop {
            let now = wanted.borrow_and_update().clone();
            crew.adjust(&now);
            tokio::select! {
                biased;
                ended = crew.ended() => match ended {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
                () = shutdown.cancelled() => break Ok(()),
                changed = wanted.changed() => match changed {
                    Ok(()) => {}
                    Err(_) => break Err(IngestError::Membership),
                },
            }
        };
        let stopped = crew.stop(result.is_err()).await;
        result.and(stopped)
    }

    /// The pipeline of a partition; none for control state.
    fn pipeline(&self, partition: &Partition) -> Option<Arc<Pipeline>> {
        let table = table_of(&self.lake, partition)?;
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let pipeline = pipelines.entry(partition.clone()).or_insert_with(|| {
            Arc::new(Pipeline::new(
                Arc::clone(&self.journal),
                table,
                Arc::clone(&self.stored),
                partition.clone(),
                &self.settings,
            ))
        });
        Some(Arc::clone(pipeline))
    }
}

fn table_of(lake: &Lake, partition: &Partition) -> Option<Arc<Table>> {
    match partition.topic {
        Topic::Events => Some(Arc::clone(lake.events())),
        Topic::Bodies => Some(Arc::clone(lake.bodies())),
        Topic::Control => None,
    }
}

/// The name under which a partition's position is kept.
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
