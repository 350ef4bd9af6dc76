//! The storing thread: chunks of rows to files, and files to a commit.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use custody_lake::files::{Encoded, FileSet};
use custody_lake::{CommitError, LakeError, Outcome, TxnStep, tags};
use tokio::runtime::Handle;

use crate::IngestError;
use crate::pipeline::{Ended, Pipeline, Progress};
use crate::reading::Chunk;
use crate::status::Counts;
use crate::stop::Stop;
use crate::streams::Streams;

/// How often a thread that waits for rows looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// The pause before a batch is offered again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The storing side of one assignment.
pub(crate) struct Storing<'a> {
    pipeline: &'a Pipeline,
    stop: &'a Stop,
    runtime: &'a Handle,
    progress: &'a Progress,
    /// The table's position before the batch.
    start: Option<u64>,
    batch: Batch,
}

/// What the next commit will hold.
struct Batch {
    files: FileSet,
    streams: Streams,
    counts: Counts,
    end: u64,
    since: Option<Instant>,
}

impl Batch {
    fn append(&mut self, chunk: &Chunk) -> Result<(), IngestError> {
        self.since.get_or_insert_with(Instant::now);
        self.files.append(&chunk.rows)?;
        self.streams.merge(&chunk.streams);
        self.counts.add(chunk.counts);
        self.end = chunk.end;
        Ok(())
    }
}

impl<'a> Storing<'a> {
    pub(crate) fn new(
        pipeline: &'a Pipeline,
        start: Option<u64>,
        stop: &'a Stop,
        runtime: &'a Handle,
        progress: &'a Progress,
    ) -> Self {
        let batch = Batch {
            files: FileSet::new(pipeline.table.columns()),
            streams: Streams::default(),
            counts: Counts::default(),
            end: start.unwrap_or(0),
            since: None,
        };
        Self { pipeline, stop, runtime, progress, start, batch }
    }

    /// Stores what comes until nothing more comes.
    pub(crate) fn run(mut self, receive: Receiver<Chunk>) -> Result<Ended, IngestError> {
        loop {
            let last = match receive.recv_timeout(self.patience()) {
                Ok(chunk) => {
                    self.batch.append(&chunk)?;
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            if (last || self.is_due()) && self.commit()? == Ended::Fenced {
                return Ok(Ended::Fenced);
            }
            if last {
                return Ok(Ended::Stopped);
            }
        }
    }

    fn patience(&self) -> Duration {
        let left =
            |since: Instant| self.pipeline.settings.flush_after.saturating_sub(since.elapsed());
        self.batch.since.map_or(TICK, left).min(TICK)
    }

    fn is_due(&self) -> bool {
        let settings = &self.pipeline.settings;
        let aged = self.batch.since.is_some_and(|since| since.elapsed() >= settings.flush_after);
        aged || self.batch.files.size() >= settings.flush_bytes
    }

    /// Commits the batch, if there is one, however often it takes.
    fn commit(&mut self) -> Result<Ended, IngestError> {
        if self.batch.since.is_none() {
            return Ok(Ended::Stopped);
        }
        let pipeline = self.pipeline;
        let end = self.batch.end;
        let tags = tags::write(&pipeline.app_id, self.batch.streams.iter());
        let name = format!("{}-{}", pipeline.partition.name, self.start.unwrap_or(0));
        let encoded = self.batch.files.finish(&name, &tags)?;
        let begun = Instant::now();
        let files = self.persist("the batch's files", || pipeline.table.store(&encoded))?;
        let steps = [TxnStep { app_id: pipeline.app_id.clone(), start: self.start, end }];
        let outcome = self.persist("the commit", || pipeline.table.commit(&files, &steps))?;
        match outcome {
            Outcome::Committed { .. } | Outcome::AlreadyDone => {
                self.landed(&encoded, begun.elapsed());
                Ok(Ended::Stopped)
            }
            Outcome::Fenced { app_id, found } => {
                let start = self.start;
                tracing::warn!(app_id, ?start, ?found, "fenced: the batch is dropped");
                pipeline.status.change(|s| s.fenced += 1);
                Ok(Ended::Fenced)
            }
        }
    }

    fn landed(&mut self, encoded: &[Encoded], took: Duration) {
        let (pipeline, end) = (self.pipeline, self.batch.end);
        self.start = Some(end);
        self.progress.committed.store(end, Ordering::Release);
        let bytes: u64 = encoded.iter().map(|e| e.file.size).sum();
        let counts = std::mem::take(&mut self.batch.counts);
        tracing::debug!(partition = pipeline.app_id, end, bytes, rows = counts.rows, "committed");
        pipeline.status.committed(end, counts, took);
        pipeline.stored.landed.notify_one();
        self.batch.streams = Streams::default();
        self.batch.since = None;
        if let Err(error) = pipeline.journal.release(&pipeline.partition, end) {
            tracing::warn!(partition = pipeline.app_id, %error, "the journal keeps what is stored");
        }
    }

    /// Does something with the store until it succeeds, is refused, or a stop has waited enough.
    fn persist<T, E, F>(&self, what: &'static str, work: impl Fn() -> F) -> Result<T, IngestError>
    where
        E: Transient + Into<IngestError> + std::fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        let (pipeline, app_id) = (self.pipeline, &self.pipeline.app_id);
        let trying = async {
            loop {
                let error = match work().await {
                    Ok(done) => return Ok(done),
                    Err(error) if error.is_transient() => error,
                    Err(error) => return Err(error.into()),
                };
                tracing::warn!(app_id, %error, "{what} cannot be stored yet; the journal keeps it");
                pipeline.status.change(|s| s.retries += 1);
                pipeline.status.storing(Some(error.to_string()));
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        let done = self.runtime.block_on(async {
            tokio::select! {
                biased;
                done = trying => done,
                () = self.stop.patience() => {
                    Err(IngestError::Unfinished { app_id: app_id.clone(), what })
                }
            }
        })?;
        pipeline.status.storing(None);
        Ok(done)
    }
}

/// Whether trying again may help.
trait Transient {
    fn is_transient(&self) -> bool;
}

impl Transient for LakeError {
    fn is_transient(&self) -> bool {
        !self.is_final()
    }
}

impl Transient for CommitError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Unknown { .. } => true,
            Self::Refused(_) => false,
        }
    }
}
