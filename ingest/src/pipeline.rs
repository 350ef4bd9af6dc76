//! One partition's way into its table: assigned, read, stored, and assigned anew when fenced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use custody_journal::{Journal, Partition, Read, ReadError, Topic};
use custody_lake::Table;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::known::Known;
use crate::reading::Reading;
use crate::status::{PartitionStatus, Shared};
use crate::storing::Storing;
use crate::{IngestError, Settings};

/// How many chunks of rows may wait between reading and storing.
const CHUNKS: usize = 4;
/// The pause before a fenced partition is looked at again.
const FENCED_PAUSE: Duration = Duration::from_millis(500);

/// One partition.
pub(crate) struct Pipeline {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) table: Arc<Table>,
    pub(crate) partition: Partition,
    pub(crate) app_id: String,
    pub(crate) settings: Settings,
    pub(crate) status: Shared,
}

/// Where a partition goes on, and what is known of it.
pub(crate) struct Assignment {
    /// The table's position.
    pub(crate) start: Option<u64>,
    pub(crate) reader: Box<dyn Read>,
    /// `None` for bodies, which have no identity of their own.
    pub(crate) known: Option<Known>,
}

/// What the storing thread tells the reading one.
pub(crate) struct Progress {
    /// Everything before this offset is in the table.
    pub(crate) committed: AtomicU64,
    /// Nobody takes rows any more.
    pub(crate) over: AtomicBool,
}

/// Why a pipeline's threads ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to, and everything is committed.
    Stopped,
    /// Somebody else has moved the partition on.
    Fenced,
}

impl Pipeline {
    pub(crate) fn new(
        journal: Arc<dyn Journal>,
        table: Arc<Table>,
        partition: Partition,
        app_id: String,
        settings: &Settings,
    ) -> Self {
        let status = Shared::new(&app_id);
        Self { journal, table, partition, app_id, settings: settings.clone(), status }
    }

    pub(crate) fn status(&self) -> PartitionStatus {
        self.status.get()
    }

    /// Looks up where the table stands and opens the journal there.
    pub(crate) async fn assign(&self) -> Result<Assignment, IngestError> {
        let start = self.table.snapshot().await?.txn(&self.app_id).await;
        let start = start.map_err(custody_lake::LakeError::from)?;
        let reader = self.open(start)?;
        let known = match self.partition.topic {
            Topic::Events => Some(Known::load(Arc::clone(&self.table), self.app_id.clone()).await?),
            Topic::Bodies | Topic::Control => None,
        };
        self.status.change(|s| {
            s.stored_to = start.unwrap_or(0);
            s.read_to = start.unwrap_or(0);
        });
        Ok(Assignment { start, reader, known })
    }

    fn open(&self, start: Option<u64>) -> Result<Box<dyn Read>, IngestError> {
        let app_id = || self.app_id.clone();
        let beyond = |stored, end| IngestError::Beyond { app_id: app_id(), stored, end };
        let wrong = |source| {
            if let ReadError::Beyond { wanted, end } = source {
                return beyond(wanted, end);
            }
            IngestError::Journal { app_id: app_id(), source }
        };
        let stored = start.unwrap_or(0);
        let reader = self.journal.reader(&self.partition, stored).map_err(wrong)?;
        let end = reader.end().map_err(wrong)?;
        if stored > end { Err(beyond(stored, end)) } else { Ok(reader) }
    }

    /// Works until `stop`, or until an error that waiting cannot mend.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), IngestError> {
        loop {
            let assignment = self.assign().await?;
            match Arc::clone(&self).work(assignment, stop.clone()).await? {
                Ended::Stopped => return Ok(()),
                Ended::Fenced => {
                    tracing::warn!(partition = self.app_id, "somebody else stored this partition");
                    stop.run_until_cancelled(tokio::time::sleep(FENCED_PAUSE)).await;
                }
            }
        }
    }

    /// Runs the two threads of one assignment to their end.
    async fn work(
        self: Arc<Self>,
        assignment: Assignment,
        stop: CancellationToken,
    ) -> Result<Ended, IngestError> {
        let (done, ended) = tokio::sync::oneshot::channel();
        let runtime = Handle::current();
        let name = format!("ingest {}", self.partition.name);
        let work = move || {
            let result = self.threads(assignment, &stop, &runtime);
            if done.send(result).is_err() {
                tracing::debug!("nobody waits for this partition any more");
            }
        };
        let spawned = std::thread::Builder::new().name(name).spawn(work);
        spawned.map_err(|e| IngestError::Thread(format!("could not start: {e}")))?;
        ended.await.unwrap_or_else(|_| Err(IngestError::Thread("ended without a word".to_owned())))
    }

    fn threads(
        &self,
        assignment: Assignment,
        stop: &CancellationToken,
        runtime: &Handle,
    ) -> Result<Ended, IngestError> {
        let (send, receive) = sync_channel(CHUNKS);
        let progress = Progress {
            committed: AtomicU64::new(assignment.start.unwrap_or(0)),
            over: AtomicBool::new(false),
        };
        let storing = Storing::new(self, assignment.start, stop, runtime, &progress);
        std::thread::scope(|scope| {
            let Assignment { reader, known, .. } = assignment;
            let reading = Reading::new(self, reader, known, send, stop, &progress);
            let reading = scope.spawn(|| reading.run());
            let stored = storing.run(receive);
            progress.over.store(true, Ordering::Release);
            let read = reading.join().unwrap_or_else(|_| {
                Err(IngestError::Thread("that reads a partition ended without a word".to_owned()))
            });
            let ended = stored?;
            read.map(|()| ended)
        })
    }
}
