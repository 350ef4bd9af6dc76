//! The reading thread: journal entries to chunks of rows.

use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::RecordBatch;
use custody_journal::{Entry, EntryKind, Read, ReadError, Topic};
use custody_lake::batch::Rows;
use custody_lake::files::FileError;
use custody_lake::rows::{Arrival, Standing};
use custody_schemas::id::{Micros, StreamId, Uint};
use custody_schemas::record::{Decoded, decode, hash};
use tokio_util::sync::CancellationToken;

use crate::IngestError;
use crate::known::{Known, Novelty};
use crate::pipeline::{Pipeline, Progress};
use crate::status::Counts;
use crate::streams::Streams;

/// Entries of one read at most.
const READ_ENTRIES: usize = 4096;
/// Bytes of one read at most, beyond its first entry.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// How long one read waits for something new.
const READ_WAIT: Duration = Duration::from_millis(200);
/// Rows of one chunk at most.
const CHUNK_ROWS: usize = 8192;
/// Bytes of one chunk's values at most, beyond its last row.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// How long a row waits for others to join its chunk.
const CHUNK_AGE: Duration = Duration::from_millis(500);
/// The pause after a read that may succeed later.
const READ_PAUSE: Duration = Duration::from_millis(500);
/// How long a stop waits for what is durable to be read.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Rows on their way to a file.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) rows: RecordBatch,
    /// Everything before this offset is in this chunk or in those before it.
    pub(crate) end: u64,
    /// The records in it.
    pub(crate) streams: Streams,
    pub(crate) counts: Counts,
}

/// The reading side of one assignment.
pub(crate) struct Reading<'a> {
    pipeline: &'a Pipeline,
    reader: Box<dyn Read>,
    known: Option<Known>,
    send: SyncSender<Chunk>,
    stop: &'a CancellationToken,
    progress: &'a Progress,
    rows: Rows,
    streams: Streams,
    counts: Counts,
    since: Option<Instant>,
}

/// How far a stop still reads.
struct Stop {
    target: u64,
    deadline: Instant,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(
        pipeline: &'a Pipeline,
        reader: Box<dyn Read>,
        known: Option<Known>,
        send: SyncSender<Chunk>,
        stop: &'a CancellationToken,
        progress: &'a Progress,
    ) -> Self {
        let rows = match pipeline.partition.topic {
            Topic::Events => Rows::events(),
            Topic::Bodies | Topic::Control => Rows::bodies(),
        };
        let (streams, counts) = (Streams::default(), Counts::default());
        Self { pipeline, reader, known, send, stop, progress, rows, streams, counts, since: None }
    }

    /// Reads until everything that was durable at the stop is sent, or nobody takes it any more.
    pub(crate) fn run(mut self) -> Result<(), IngestError> {
        let mut stop = None;
        while !self.progress.over.load(Ordering::Acquire) {
            if stop.is_none() && self.stop.is_cancelled() {
                let target = self.reader.end().map_err(|e| self.wrong(e))?;
                stop = Some(Stop { target, deadline: Instant::now() + STOP_WITHIN });
            }
            if let Some(Stop { target, deadline }) = &stop
                && (self.reader.position() >= *target || Instant::now() >= *deadline)
            {
                self.send_rows()?;
                return Ok(());
            }
            let entries = self.read()?;
            self.take(&entries)?;
            if self.is_due(entries.is_empty()) && !self.send_rows()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next entries; none after a pause when reading may succeed later.
    fn read(&mut self) -> Result<Vec<Entry>, IngestError> {
        match self.reader.read(READ_ENTRIES, READ_BYTES, READ_WAIT) {
            Ok(entries) => Ok(entries),
            Err(ReadError::Io { path, source }) => {
                let problem = format!("{}: {source}", path.display());
                tracing::warn!(partition = self.pipeline.app_id, problem, "cannot read");
                self.pipeline.status.change(|s| s.problem = Some(problem));
                std::thread::sleep(READ_PAUSE);
                Ok(Vec::new())
            }
            Err(error) => Err(self.wrong(error)),
        }
    }

    fn wrong(&self, source: ReadError) -> IngestError {
        IngestError::Journal { app_id: self.pipeline.app_id.clone(), source }
    }

    fn is_due(&self, idle: bool) -> bool {
        let aged = self.since.is_some_and(|since| idle || since.elapsed() >= CHUNK_AGE);
        aged || self.rows.len() >= CHUNK_ROWS || self.rows.bytes() >= CHUNK_BYTES
    }

    fn take(&mut self, entries: &[Entry]) -> Result<(), IngestError> {
        if let Some(known) = &mut self.known {
            known.committed(self.progress.committed.load(Ordering::Acquire));
        }
        let stored_at = Some(now());
        for entry in entries {
            self.since.get_or_insert_with(Instant::now);
            let pipeline = self.pipeline;
            let arrival = Arrival {
                partition: &pipeline.partition.name,
                offset: entry.offset,
                journaled_at: entry.journaled_at,
                stored_at,
            };
            match entry.kind {
                EntryKind::Event => self.event(entry, &arrival)?,
                EntryKind::Checkpoint => {
                    let read = self.rows.checkpoint(&entry.value, &arrival);
                    self.counts.undecodable += u64::from(!read);
                }
                EntryKind::Chunk => {
                    let read = self.rows.chunk(&entry.header, &entry.value, &arrival);
                    self.counts.undecodable += u64::from(!read);
                }
                // The journal hands control entries to readers of control partitions only.
                EntryKind::Control => {}
            }
        }
        Ok(())
    }

    fn event(&mut self, entry: &Entry, arrival: &Arrival<'_>) -> Result<(), IngestError> {
        let decoded = decode(&entry.value);
        let identity: Option<(&StreamId, u64)> = match &decoded {
            Decoded::Event(event) => Some((&event.stream, event.seq.get())),
            Decoded::Identified { identity, .. } => Some((&identity.stream, identity.seq.get())),
            Decoded::Undecodable { .. } => None,
        };
        let mut standing = Standing::Event;
        if let (Some((stream, seq)), Some(known)) = (identity, &mut self.known) {
            match known.judge(stream, seq, hash(&entry.value))? {
                Novelty::New => {
                    self.streams.insert(stream, seq);
                }
                Novelty::Duplicate => {
                    self.counts.duplicates += 1;
                    return Ok(());
                }
                Novelty::Conflict => {
                    self.counts.conflicts += 1;
                    standing = Standing::Conflict;
                }
            }
        }
        self.counts.undecodable += u64::from(identity.is_none());
        self.rows.record(&entry.value, &decoded, standing, arrival);
        Ok(())
    }

    /// Hands over what has been read; false when nobody takes it any more.
    fn send_rows(&mut self) -> Result<bool, IngestError> {
        let end = self.reader.position();
        self.since = None;
        if self.rows.is_empty() && self.counts == Counts::default() {
            return Ok(true);
        }
        if let Some(known) = &mut self.known {
            known.sent(end);
        }
        self.counts.rows = self.rows.len() as u64;
        let chunk = Chunk {
            rows: self.rows.finish().map_err(FileError::from)?,
            end,
            streams: std::mem::take(&mut self.streams),
            counts: std::mem::take(&mut self.counts),
        };
        self.pipeline.status.change(|s| s.read_to = end);
        Ok(self.send.send(chunk).is_ok())
    }
}

fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uint::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
