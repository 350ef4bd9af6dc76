//! One partition's way into its table: assigned, read, stored, and assigned anew when fenced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use custody_journal::{Journal, Partition, Read, ReadError, Topic};
use custody_lake::last::LastEntry;
use custody_lake::{LakeError, Table};
use tokio::runtime::Handle;

use crate::error::Severity;
use crate::known::{Known, Stored};
use crate::reading::Reading;
use crate::status::Shared;
use crate::stop::Stop;
use crate::storing::Storing;
use crate::{IngestError, Settings, app_id_of};

/// How many chunks of rows may wait between reading and storing.
const CHUNKS: usize = 4;
/// The pause before a fenced partition is looked at again.
const FENCED_PAUSE: Duration = Duration::from_millis(500);
/// The pause after an error that may be over the next time.
const PASSING_PAUSE: Duration = Duration::from_secs(1);
/// The pause before a partition is looked at again that somebody has to mend.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// How long the journal may take to show an entry that it holds.
const COMPARE_WITHIN: Duration = Duration::from_secs(5);

/// One partition.
pub(crate) struct Pipeline {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) table: Arc<Table>,
    pub(crate) stored: Arc<Stored>,
    pub(crate) partition: Partition,
    pub(crate) app_id: String,
    pub(crate) settings: Settings,
    pub(crate) status: Shared,
}

/// Where a partition goes on, and what is known of it.
struct Assignment {
    /// The table's position.
    start: Option<u64>,
    reader: Box<dyn Read>,
    /// `None` for bodies, which have no identity of their own.
    known: Option<Known>,
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
        stored: Arc<Stored>,
        partition: Partition,
        settings: &Settings,
    ) -> Self {
        let app_id = app_id_of(settings, &partition);
        let status = Shared::new(&app_id, &partition);
        Self { journal, table, stored, partition, app_id, settings: settings.clone(), status }
    }

    /// Works until `stop`, or until an error that waiting cannot help. A worker of a group waits
    /// for a partition that somebody has to mend, one that is `alone` does not.
    pub(crate) async fn run(self: Arc<Self>, stop: Stop, alone: bool) -> Result<(), IngestError> {
        self.status.change(|s| s.assigned = true);
        let result = self.work_on(&stop, alone).await;
        self.status.change(|s| s.assigned = false);
        result
    }

    async fn work_on(self: &Arc<Self>, stop: &Stop, alone: bool) -> Result<(), IngestError> {
        loop {
            let pause = match self.work_once(stop).await {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::Fenced) if stop.is_leaving() => return Ok(()),
                Ok(Ended::Fenced) => FENCED_PAUSE,
                Err(error) if stop.is_requested() => return Err(error),
                Err(error) => match error.severity() {
                    Severity::Fatal => return Err(error),
                    Severity::Partition if alone => return Err(error),
                    Severity::Passing => self.put_off(&error, PASSING_PAUSE),
                    Severity::Partition => self.put_off(&error, REFUSED_PAUSE),
                },
            };
            stop.pause(pause).await;
        }
    }

    fn put_off(&self, error: &IngestError, pause: Duration) -> Duration {
        tracing::error!(partition = self.app_id, %error, "the partition waits");
        self.status.storing(Some(error.to_string()));
        pause
    }

    async fn work_once(self: &Arc<Self>, stop: &Stop) -> Result<Ended, IngestError> {
        let assignment = tokio::select! {
            biased;
            assignment = self.assign() => assignment?,
            () = stop.patience() => {
                let app_id = self.app_id.clone();
                return Err(IngestError::Unfinished { app_id, what: "the lake's position" });
            }
        };
        Arc::clone(self).work(assignment, stop.clone()).await
    }

    /// Looks up where the table stands and opens the journal there.
    async fn assign(self: &Arc<Self>) -> Result<Assignment, IngestError> {
        let snapshot = self.table.snapshot().await?;
        let start = snapshot.txn(&self.app_id).await.map_err(LakeError::from)?;
        let last = match start {
            Some(_) => snapshot.last_entry(&self.app_id).await?,
            None => None,
        };
        let pipeline = Arc::clone(self);
        let opened = tokio::task::spawn_blocking(move || pipeline.open(start, last)).await;
        let reader = opened.map_err(|e| IngestError::Thread(e.to_string()))??;
        let known = match self.partition.topic {
            Topic::Events => {
                self.stored.carries(&self.app_id);
                Some(Known::load(&self.stored).await?)
            }
            Topic::Bodies | Topic::Control => None,
        };
        self.status.assigned_at(start.unwrap_or(0));
        Ok(Assignment { start, reader, known })
    }

    /// A reader that goes on from `start`, if the journal is the one that filled the table.
    fn open(
        &self,
        start: Option<u64>,
        last: Option<LastEntry>,
    ) -> Result<Box<dyn Read>, IngestError> {
        let stored = start.unwrap_or(0);
        let mut reader =
            self.journal.reader(&self.partition, stored).map_err(|e| self.unreadable(e))?;
        let end = reader.end().map_err(|e| self.unreadable(e))?;
        if stored > end {
            return Err(self.unreadable(ReadError::Beyond { wanted: stored, end }));
        }
        if let Some(last) = last {
            self.compare(reader.as_mut(), &last)?;
            reader.seek(stored).map_err(|e| self.unreadable(e))?;
        }
        // What an earlier life of this worker stored may go.
        if let Err(error) = self.journal.release(&self.partition, stored) {
            tracing::warn!(partition = self.app_id, %error, "the journal keeps what is stored");
        }
        Ok(reader)
    }

    /// Whether the journal holds the newest entry that the table holds. An entry that the journal
    /// has deleted cannot be compared.
    fn compare(&self, reader: &mut dyn Read, last: &LastEntry) -> Result<(), IngestError> {
        match reader.seek(last.offset) {
            Ok(()) => {}
            Err(ReadError::Gone { .. }) => return Ok(()),
            Err(error) => return Err(self.unreadable(error)),
        }
        let deadline = Instant::now() + COMPARE_WITHIN;
        while Instant::now() < deadline {
            let found = match reader.read(1, usize::MAX, COMPARE_WITHIN) {
                Ok(found) => found,
                Err(ReadError::Gone { .. }) => return Ok(()),
                Err(error) => return Err(self.unreadable(error)),
            };
            if let Some(entry) = found.first() {
                let same = entry.offset == last.offset && entry.value == last.bytes;
                return if same { Ok(()) } else { Err(self.replaced(last.offset)) };
            }
        }
        let app_id = self.app_id.clone();
        Err(IngestError::Unfinished { app_id, what: "the journal's newest stored entry" })
    }

    fn replaced(&self, offset: u64) -> IngestError {
        let (app_id, remedy) = (self.app_id.clone(), self.settings.remedy());
        IngestError::Replaced { app_id, offset, remedy }
    }

    /// What an error of the journal means for this partition.
    pub(crate) fn unreadable(&self, source: ReadError) -> IngestError {
        let (app_id, remedy) = (self.app_id.clone(), self.settings.remedy());
        match source {
            ReadError::Beyond { wanted, end } => {
                IngestError::Beyond { app_id, stored: wanted, end, remedy }
            }
            ReadError::Gone { wanted, first } => {
                let missing = first.saturating_sub(wanted);
                IngestError::Gone { app_id, stored: wanted, first, missing, remedy }
            }
            ReadError::Corrupt { .. }
            | ReadError::Newer { .. }
            | ReadError::NoPartition(_)
            | ReadError::Io { .. } => IngestError::Journal { app_id, source },
        }
    }

    /// Runs the two threads of one assignment to their end.
    async fn work(
        self: Arc<Self>,
        assignment: Assignment,
        stop: Stop,
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
        stop: &Stop,
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
