//! Which partitions this worker carries, and how they come and go.
//!
//! # Life of an assignment
//! 1. A partition that appears among the wanted ones gets a pipeline, which begins where the table
//!    stands.
//! 2. A partition that leaves them is told so: its pipeline reads nothing more, commits what it
//!    has within a bounded time, and ends. If the partition comes back meanwhile, the new pipeline
//!    begins after the old one has ended.
//! 3. Who owns a partition is never decided here. Two workers may believe in the same partition
//!    for a while; the table lets one of them through and sends the other back to where it stands.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use custody_journal::Partition;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use crate::error::Severity;
use crate::stop::Stop;
use crate::{Ingest, IngestError};

/// Where a worker learns which partitions are its own.
#[derive(Clone, Debug)]
pub enum Assigned {
    /// Every partition that the journal has at the start. A stop carries what is durable by then.
    All,
    /// Those that a group of workers gives it at the moment. A stop commits what has been read;
    /// the others of the group go on from there.
    Group(watch::Receiver<BTreeSet<Partition>>),
}

/// The pipelines at work. Whoever drops it stops their threads too.
pub(crate) struct Crew<'a> {
    ingest: &'a Ingest,
    tasks: JoinSet<Result<(), IngestError>>,
    names: HashMap<Id, Partition>,
    working: BTreeMap<Partition, Stop>,
    /// Nobody else carries partitions of this journal.
    alone: bool,
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        self.working.values().for_each(Stop::leave);
    }
}

impl<'a> Crew<'a> {
    pub(crate) fn new(ingest: &'a Ingest, alone: bool) -> Self {
        let (tasks, names) = (JoinSet::new(), HashMap::new());
        Self { ingest, tasks, names, working: BTreeMap::new(), alone }
    }

    /// Starts what is wanted and does not work, tells the others to leave.
    pub(crate) fn adjust(&mut self, wanted: &BTreeSet<Partition>) {
        for (partition, stop) in &self.working {
            if !wanted.contains(partition) && !stop.is_leaving() {
                tracing::info!(?partition, "the partition goes to somebody else");
                stop.leave();
            }
        }
        for partition in wanted {
            if !self.working.contains_key(partition) {
                self.start(partition);
            }
        }
    }

    fn start(&mut self, partition: &Partition) {
        let Some(pipeline) = self.ingest.pipeline(partition) else { return };
        let stop = Stop::default();
        let (order, alone) = (stop.clone(), self.alone);
        let task = self.tasks.spawn(async move { pipeline.run(order, alone).await });
        self.names.insert(task.id(), partition.clone());
        self.working.insert(partition.clone(), stop);
    }

    /// Waits until a pipeline has ended; for ever when none works.
    pub(crate) async fn ended(&mut self) -> Result<(), IngestError> {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.dismiss(ended),
            None => std::future::pending().await,
        }
    }

    fn dismiss(
        &mut self,
        ended: Result<(Id, Result<(), IngestError>), JoinError>,
    ) -> Result<(), IngestError> {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(IngestError::Thread(error.to_string()))),
        };
        let stop = self.names.remove(&id).and_then(|partition| self.working.remove(&partition));
        let error = match result {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if stop.is_some_and(|stop| stop.is_leaving()) && error.severity() != Severity::Fatal {
            tracing::warn!(%error, "left a partition before everything was stored");
            return Ok(());
        }
        Err(error)
    }

    /// Ends every pipeline: a worker that is alone with what is durable by now, unless something
    /// has `failed`; others with what has been read. The first error, after all have ended.
    pub(crate) async fn stop(mut self, failed: bool) -> Result<(), IngestError> {
        let order = if self.alone && !failed { Stop::drain } else { Stop::leave };
        self.working.values().for_each(order);
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next_with_id().await {
            result = result.and(self.dismiss(ended));
        }
        result
    }
}
