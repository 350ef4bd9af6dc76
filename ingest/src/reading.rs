//! The reading thread: journal entries to chunks of rows.

use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::RecordBatch;
use custody_journal::{Entry, Read, ReadError};
use custody_schemas::id::{Micros, Uint};

use crate::IngestError;
use crate::known::{Known, Novelty};
use crate::part::{Identity, Part, Source, build, build_all};
use crate::pipeline::{Pipeline, Progress};
use crate::status::Counts;
use crate::stop::Stop;
use crate::streams::Streams;

/// Entries of one read at most.
const READ_ENTRIES: usize = 4096;
/// Bytes of one read at most, beyond its first entry.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// How long one read waits for something new.
const READ_WAIT: Duration = Duration::from_millis(200);
/// Entries that become rows together, beyond the last read.
const GATHER_ENTRIES: usize = 4096;
/// Bytes that become rows together, beyond the last read.
const GATHER_BYTES: usize = 8 * 1024 * 1024;
/// How long an entry waits for others.
const GATHER_AGE: Duration = Duration::from_millis(500);
/// The pause after a read that may succeed later.
const READ_PAUSE: Duration = Duration::from_millis(500);
/// How often the journal is asked where it ends.
const END_EVERY: Duration = Duration::from_secs(1);
/// How long a stop waits for what is durable to be read.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

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
    stop: &'a Stop,
    progress: &'a Progress,
    gathered: Vec<Entry>,
    bytes: usize,
    since: Option<Instant>,
    asked_at: Option<Instant>,
    troubled: bool,
}

/// How far a stop still reads.
struct Drain {
    target: u64,
    deadline: Instant,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(
        pipeline: &'a Pipeline,
        reader: Box<dyn Read>,
        known: Option<Known>,
        send: SyncSender<Chunk>,
        stop: &'a Stop,
        progress: &'a Progress,
    ) -> Self {
        Self {
            pipeline,
            reader,
            known,
            send,
            stop,
            progress,
            gathered: Vec::new(),
            bytes: 0,
            since: None,
            asked_at: None,
            troubled: false,
        }
    }

    /// Reads until everything that was durable at the stop is sent, or what has been read when
    /// the partition is left, or nobody takes it any more.
    pub(crate) fn run(mut self) -> Result<(), IngestError> {
        let mut drain = None;
        while !self.progress.over.load(Ordering::Acquire) {
            if drain.is_none() && self.stop.is_requested() {
                let target = self.target()?;
                drain = Some(Drain { target, deadline: Instant::now() + DRAIN_WITHIN });
            }
            if let Some(Drain { target, deadline }) = &drain
                && (self.reader.position() >= *target
                    || self.stop.is_leaving()
                    || Instant::now() >= *deadline)
            {
                self.send_rows()?;
                return Ok(());
            }
            self.look_ahead();
            let idle = !self.gather()?;
            if self.is_due(idle) && !self.send_rows()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Where a stop ends.
    fn target(&self) -> Result<u64, IngestError> {
        if self.stop.is_leaving() {
            return Ok(self.reader.position());
        }
        self.reader.end().map_err(|e| self.pipeline.unreadable(e))
    }

    /// Asks now and then where the journal ends, for the status alone.
    fn look_ahead(&mut self) {
        if self.asked_at.is_some_and(|asked| asked.elapsed() < END_EVERY) {
            return;
        }
        self.asked_at = Some(Instant::now());
        if let Ok(end) = self.reader.end() {
            self.pipeline.status.change(|s| s.end = Some(end));
        }
    }

    /// Reads the next entries; false when there are none, also after a pause when reading may
    /// succeed later.
    fn gather(&mut self) -> Result<bool, IngestError> {
        let entries = match self.reader.read(READ_ENTRIES, READ_BYTES, READ_WAIT) {
            Ok(entries) => entries,
            Err(error @ ReadError::Io { .. }) => {
                tracing::warn!(partition = self.pipeline.app_id, %error, "cannot read");
                self.pipeline.status.reading(Some(error.to_string()));
                self.troubled = true;
                std::thread::sleep(READ_PAUSE);
                return Ok(false);
            }
            Err(error) => return Err(self.pipeline.unreadable(error)),
        };
        if std::mem::take(&mut self.troubled) {
            self.pipeline.status.reading(None);
        }
        if entries.is_empty() {
            return Ok(false);
        }
        self.since.get_or_insert_with(Instant::now);
        self.bytes += entries.iter().map(|entry| entry.value.len()).sum::<usize>();
        self.gathered.extend(entries);
        Ok(true)
    }

    fn is_due(&self, idle: bool) -> bool {
        let aged = self.since.is_some_and(|since| idle || since.elapsed() >= GATHER_AGE);
        aged || self.gathered.len() >= GATHER_ENTRIES || self.bytes >= GATHER_BYTES
    }

    /// Hands over what has been gathered; false when nobody takes it any more.
    fn send_rows(&mut self) -> Result<bool, IngestError> {
        if let Some(known) = &mut self.known {
            known.committed(self.progress.committed.load(Ordering::Acquire));
        }
        let entries = std::mem::take(&mut self.gathered);
        (self.bytes, self.since) = (0, None);
        let source = Source {
            topic: self.pipeline.partition.topic,
            partition: &self.pipeline.partition.name,
            stored_at: now(),
        };
        let mut parts = build_all(&entries, source)?.into_iter().peekable();
        while let Some((run, part)) = parts.next() {
            let position = self.reader.position();
            let after = run.last().map_or(position, |entry| entry.offset + 1);
            let end = if parts.peek().is_some() { after } else { position };
            let chunk = self.judge(run, part, source, end)?;
            if self.send.send(chunk).is_err() {
                return Ok(false);
            }
            let at = |entry: Option<&Entry>| entry.map(|entry| entry.journaled_at);
            self.pipeline.status.read(end, at(run.first()), at(run.last()));
        }
        Ok(true)
    }

    /// Compares every record of a part with what is known, and builds the part again when one of
    /// them is not new.
    fn judge(
        &mut self,
        run: &[Entry],
        part: Part,
        source: Source<'_>,
        end: u64,
    ) -> Result<Chunk, IngestError> {
        let mut streams = Streams::default();
        let mut novelties = Vec::with_capacity(part.identities.len());
        for identity in &part.identities {
            let novelty = self.novelty(identity.as_ref())?;
            if let (Some((stream, seq, _)), Novelty::New) = (identity, novelty) {
                streams.insert(stream, *seq);
            }
            novelties.push(novelty);
        }
        let all_new = novelties.iter().all(|novelty| *novelty == Novelty::New);
        let part = if all_new { part } else { build(run, source, Some(&novelties))? };
        if let Some(known) = &mut self.known {
            known.sent(end);
        }
        Ok(Chunk { rows: part.rows, end, streams, counts: part.counts })
    }

    fn novelty(&mut self, identity: Option<&Identity>) -> Result<Novelty, IngestError> {
        match (&mut self.known, identity) {
            (Some(known), Some((stream, seq, hash))) => known.judge(stream, *seq, *hash),
            _ => Ok(Novelty::New),
        }
    }
}

fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uint::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
