//! A lane as its only writer sees it: batches appended to a segmented log.
//!
//! One batch is one `write` and one `fdatasync`, and is there wholly or not at all. The next
//! segment is prepared by a thread while the present one fills. When anything about an append
//! fails, the segment is poisoned: it ends at what was durable before, is never written again, and
//! the next append begins a new one.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, File, Meanwhile};
use super::format::{
    BATCH_HEADER, BatchHeader, FrameKind, SEGMENT_HEADER, SegmentHeader, batch_len, push_frame,
};
use super::room::Room;
use super::segment::{self, End, Segment};
use super::shelf::{Shelf, previous_of};
use super::{Lanes, now};
use crate::{ReadError, Topic};

/// A lane's first segment, and one that is needed before it was prepared, has at most this size.
const FIRST_SEGMENT: u64 = 4 << 20;
/// The longest batch.
pub(crate) const MAX_BATCH: usize = 256 << 20;

/// How a lane is kept.
#[derive(Clone, Debug)]
pub(crate) struct LaneOptions {
    /// The folder of its segments.
    pub(crate) dir: PathBuf,
    /// Which lane it is.
    pub(crate) lane: Lanes,
    /// Length of a segment.
    pub(crate) segment_bytes: u64,
    /// Whether an append waits for the disk. Only benchmarks say no.
    pub(crate) sync: bool,
    /// Lets tests make the next append fail.
    #[cfg(test)]
    pub(crate) fail: Arc<std::sync::atomic::AtomicBool>,
}

/// Frames that will be appended together.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// An empty batch; keep it and use it again.
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; BATCH_HEADER], count: 0 }
    }

    /// Empties it. A buffer that once grew large is given up.
    pub(crate) fn clear(&mut self) {
        const KEEP: usize = 8 << 20;
        if self.bytes.capacity() > KEEP {
            self.bytes.shrink_to(KEEP);
        }
        self.bytes.resize(BATCH_HEADER, 0);
        self.count = 0;
    }

    /// Adds a frame and returns its place in the batch, or `None` when it does not fit.
    pub(crate) fn push(&mut self, kind: FrameKind, header: &[u8], value: &[u8]) -> Option<u64> {
        let fits = self.bytes.len() + header.len() + value.len() < MAX_BATCH;
        if !fits || !push_frame(&mut self.bytes, kind, header, value) {
            return None;
        }
        self.count += 1;
        Some(u64::from(self.count) - 1)
    }

    /// Bytes of its frames.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - BATCH_HEADER
    }

    /// Whether it holds no frame.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The writing end of a lane.
#[derive(Debug)]
pub(crate) struct Lane {
    options: LaneOptions,
    shelf: Arc<Shelf>,
    current: Option<Segment>,
    end: End,
    synced_through: u64,
    prepared: Option<Meanwhile<io::Result<File>>>,
    begun: u64,
}

impl Lane {
    /// Opens the lane: finds its end, wipes a torn tail, begins nothing yet.
    pub(crate) fn open(options: LaneOptions, room: &Arc<Room>) -> Result<Self, ReadError> {
        let io = |error| ReadError::io(&options.dir, error);
        disk::make_folders(&options.dir).map_err(io)?;
        let shelf = Arc::new(Shelf::new(&options.dir, options.lane.topics(), Arc::clone(room)));
        let current = shelf.load(true)?;
        let end = shelf.last().map_or(End { position: 0, offset: 0 }, |last| last.end);
        let synced_through = end.position;
        let mut lane =
            Self { options, shelf, current, end, synced_through, prepared: None, begun: 0 };
        if lane.current.is_some() {
            lane.prepare_next();
        }
        Ok(lane)
    }

    /// What readers of this lane see.
    pub(crate) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// The offset that the next frame will have.
    pub(crate) fn next_offset(&self) -> u64 {
        self.end.offset
    }

    /// How many segments were begun since the lane was opened.
    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }

    /// Makes sure that a batch of about `body_len` bytes fits into the present segment.
    pub(crate) fn make_way(&mut self, body_len: usize) -> io::Result<()> {
        let need = batch_len(body_len);
        if self.current.as_ref().is_some_and(|now| self.end.position + need <= now.size) {
            return Ok(());
        }
        let begun = self.begin_segment(need);
        if begun.is_err() {
            // A half-begun segment may be there under its name and say where this one ends.
            self.poison();
        }
        begun
    }

    /// Appends a batch and returns its offsets once it is durable.
    pub(crate) fn append(&mut self, batch: &mut Batch, at: u64) -> io::Result<Range<u64>> {
        let result = self.try_append(batch, at);
        if result.is_err() {
            self.poison();
        }
        result
    }

    fn try_append(&mut self, batch: &mut Batch, at: u64) -> io::Result<Range<u64>> {
        self.make_way(batch.len())?;
        let Some(segment) = &self.current else {
            return Err(io::Error::other("the lane has no segment"));
        };
        let (head, body) = batch.bytes.split_at_mut(BATCH_HEADER);
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let header = BatchHeader {
            key: segment.header.key,
            position: self.end.position,
            base: self.end.offset,
            journaled_at: at,
            synced_through: self.synced_through,
            body_len: u32::try_from(body.len()).map_err(too_long)?,
            body_crc: crc32c::crc32c(body),
            count: batch.count,
        };
        head.copy_from_slice(&header.encode());
        segment.file.write_all_at(&batch.bytes, self.end.position)?;
        self.sync(segment)?;
        let offsets = self.end.offset..self.end.offset + u64::from(batch.count);
        self.end = End { position: header.next_position(), offset: offsets.end };
        if self.options.sync {
            self.synced_through = self.end.position;
        }
        self.shelf.grow(self.end, at);
        Ok(offsets)
    }

    fn sync(&self, segment: &Segment) -> io::Result<()> {
        #[cfg(test)]
        if self.options.fail.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.options.sync {
            segment.file.sync_data()?;
        }
        if segment.is_in_place()? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "somebody removed the segment's file"))
    }

    /// Never writes to the present segment again. It is forgotten only if it is certainly gone:
    /// as long as it may be there, the next segment has to say where it ends.
    fn poison(&mut self) {
        if let Some(segment) = self.current.take()
            && matches!(segment.is_in_place(), Ok(false))
        {
            self.shelf.forget_last();
        }
    }

    fn begin_segment(&mut self, need: u64) -> io::Result<()> {
        let need = (SEGMENT_HEADER + need).next_multiple_of(SEGMENT_HEADER);
        let prepared = self.prepared.take().and_then(Meanwhile::end);
        let file = match prepared {
            Some(Ok(file)) if file.len_and_inode()?.0 >= need => file,
            Some(Err(error)) => {
                tracing::warn!(%error, "the next segment could not be prepared; taking a small one");
                self.prepare(need)?
            }
            _ => {
                let size = self.options.segment_bytes.min(FIRST_SEGMENT).max(need);
                self.prepare(size)?
            }
        };
        let at = now();
        let base = self.end.offset;
        let (previous_base, previous_end) = previous_of(&self.shelf.all(), base);
        let lane = self.options.lane.code();
        let key = rand::random();
        let header = SegmentHeader { lane, base, created_at: at, key, previous_base, previous_end };
        let segment = Segment::begin(&self.options.dir, file, header)?;
        self.shelf.push(&segment, at);
        self.end.position = SEGMENT_HEADER;
        self.synced_through = SEGMENT_HEADER;
        self.current = Some(segment);
        self.begun += 1;
        self.prepare_next();
        Ok(())
    }

    fn prepare(&self, size: u64) -> io::Result<File> {
        self.shelf.room().takes(size);
        segment::prepare(&self.options.dir, size)
    }

    fn prepare_next(&mut self) {
        if !self.options.lane.prepares() {
            return;
        }
        self.shelf.room().takes(self.options.segment_bytes);
        let (dir, size) = (self.options.dir.clone(), self.options.segment_bytes);
        let in_dir = self.options.dir.as_path();
        match Meanwhile::start("journal-prepare", in_dir, move || segment::prepare(&dir, size)) {
            Ok(thread) => self.prepared = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to prepare the next segment"),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(thread) = self.prepared.take()
            && thread.end().is_none()
        {
            tracing::error!("the thread that prepares segments panicked");
        }
    }
}

/// The folder of a lane.
pub(crate) fn dir_of(spool: &Path, lane: Lanes) -> PathBuf {
    spool.join(lane.folder())
}

impl Lanes {
    const fn code(self) -> u8 {
        match self {
            Self::Main => 0,
            Self::Bulk => 1,
            Self::Control => 2,
        }
    }

    const fn folder(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Bulk => "bulk",
            Self::Control => "log",
        }
    }

    /// What its frames are.
    pub(crate) const fn topics(self) -> &'static [Topic] {
        match self {
            Self::Main => &[Topic::Events, Topic::Bodies],
            Self::Bulk => &[Topic::Bodies],
            Self::Control => &[Topic::Control],
        }
    }

    /// Whether segments are prepared ahead: where they fill quickly.
    const fn prepares(self) -> bool {
        match self {
            Self::Main | Self::Bulk => true,
            Self::Control => false,
        }
    }
}
