//! The segments of one lane, as its readers see them: which exist, how far they are durable, which
//! may be deleted.
//!
//! The lane's writer puts segments here and moves the end; readers look up and wait; whoever has
//! carried entries to the lake releases them. A lane that nobody writes has a fixed end.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::format::NO_PREVIOUS;
use super::room::Room;
use super::segment::{End, Segment};
use super::{clock, disk};
use crate::{ReadError, Topic};

/// Segments that stay whatever was released: the writer's recovery reads back through them.
const KEPT: usize = 2;

/// The segments of one lane.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: PathBuf,
    room: Arc<Room>,
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug)]
struct State {
    segments: VecDeque<Stored>,
    /// Released offsets of each topic that the lane carries.
    released: Vec<(Topic, u64)>,
}

/// One segment.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// The offset of its first frame.
    pub(crate) base: u64,
    /// The end of what is durable in it.
    pub(crate) end: End,
    /// When the last batch was written, µs; of a segment found on opening, the file's own time.
    pub(crate) touched_at: u64,
}

impl Shelf {
    /// An empty shelf for the lane in `dir`, which carries `topics`.
    pub(crate) fn new(dir: &Path, topics: &[Topic], room: Arc<Room>) -> Self {
        let released = topics.iter().map(|topic| (*topic, 0)).collect();
        let state = State { segments: VecDeque::new(), released };
        Self { dir: dir.to_owned(), room, state: Mutex::new(state), grown: Condvar::new() }
    }

    /// Lists the segments in the folder, finds the end of the last one, and leaves the rest to be
    /// checked when it is read. Where nobody else writes, `ours`, names and the last batch are made
    /// durable and a torn tail is wiped: what is read from now on survives a loss of power.
    pub(crate) fn load(&self, ours: bool) -> Result<Option<Segment>, ReadError> {
        let mut segments = Vec::new();
        for path in segment_files(&self.dir)? {
            segments.push(Segment::open(&path, ours)?);
        }
        segments.sort_by_key(|segment| segment.header.base);
        let mut stored = VecDeque::new();
        for (i, segment) in segments.iter().enumerate() {
            let end = match segments.get(i + 1).map(|next| next.header) {
                Some(next) if next.previous_base == segment.header.base => {
                    End { position: next.previous_end, offset: next.base }
                }
                None if ours => segment.settle()?,
                Some(_) | None => segment.find_end()?,
            };
            let touched_at = modified_at(&segment.path);
            self.room.grew(end.position);
            let (path, base) = (segment.path.clone(), segment.header.base);
            stored.push_back(Stored { path, base, end, touched_at });
        }
        if ours {
            disk::sync_folder(&self.dir).map_err(|error| ReadError::io(&self.dir, error))?;
        }
        self.state.lock().segments = stored;
        Ok(segments.pop())
    }

    /// Puts a new segment behind the others, or in place of the last one when that has its base.
    pub(crate) fn push(&self, segment: &Segment, now: u64) {
        let mut state = self.state.lock();
        let base = segment.header.base;
        if let Some(replaced) = state.segments.pop_back_if(|last| last.base == base) {
            self.room.shrank(replaced.end.position);
        }
        let end = End { position: super::format::SEGMENT_HEADER, offset: base };
        self.room.grew(end.position);
        let path = segment.path.clone();
        state.segments.push_back(Stored { path, base, end, touched_at: now });
    }

    /// Moves the end of the last segment and wakes the readers that wait.
    pub(crate) fn grow(&self, end: End, now: u64) {
        let mut state = self.state.lock();
        if let Some(last) = state.segments.back_mut() {
            self.room.grew(end.position.saturating_sub(last.end.position));
            last.end = end;
            last.touched_at = now;
        }
        drop(state);
        self.grown.notify_all();
    }

    /// The room that its segments take up.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// The last segment.
    pub(crate) fn last(&self) -> Option<Stored> {
        self.state.lock().segments.back().cloned()
    }

    /// All segments, oldest first.
    pub(crate) fn all(&self) -> Vec<Stored> {
        self.state.lock().segments.iter().cloned().collect()
    }

    /// Everything below this offset is no longer needed.
    pub(crate) fn released(&self) -> u64 {
        self.state.lock().released.iter().map(|(_, offset)| *offset).min().unwrap_or(0)
    }

    /// The oldest offset that is kept.
    pub(crate) fn first_offset(&self) -> u64 {
        self.state.lock().segments.front().map_or(0, |first| first.base)
    }

    /// The folder of its segments.
    #[cfg(feature = "kafka")]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// About how many bytes are stored from `offset` on: within a segment frames are taken to be
    /// of one length.
    #[cfg(feature = "kafka")]
    pub(crate) fn bytes_from(&self, offset: u64) -> u64 {
        let state = self.state.lock();
        let behind = |stored: &Stored| {
            let bytes = stored.end.position.saturating_sub(super::format::SEGMENT_HEADER);
            let frames = stored.end.offset.saturating_sub(stored.base);
            let left = stored.end.offset.saturating_sub(offset.max(stored.base));
            if left == frames { bytes } else { bytes / frames.max(1) * left }
        };
        state.segments.iter().map(behind).sum()
    }

    /// The offset after the last durable frame.
    pub(crate) fn end_offset(&self) -> u64 {
        self.state.lock().segments.back().map_or(0, |last| last.end.offset)
    }

    /// Waits up to `wait` until the end lies beyond `offset`.
    pub(crate) fn wait_beyond(&self, offset: u64, wait: Duration) {
        // nobody waits for longer than a day without looking again
        let until = Instant::now() + wait.min(Duration::from_secs(24 * 3600));
        let mut state = self.state.lock();
        let behind =
            |state: &State| state.segments.back().is_none_or(|last| last.end.offset <= offset);
        while behind(&state) && !self.grown.wait_until(&mut state, until).timed_out() {}
    }

    /// The segment that holds `offset`, or the one that will. `Gone` when it has been deleted.
    pub(crate) fn holding(&self, offset: u64) -> Result<Option<Stored>, ReadError> {
        let state = self.state.lock();
        let Some(first) = state.segments.front() else { return Ok(None) };
        let after = state.segments.partition_point(|stored| stored.base <= offset);
        let gone = |first| Err(ReadError::Gone { wanted: offset, first });
        if after == 0 {
            return gone(first.base);
        }
        let stored = &state.segments[after - 1];
        match state.segments.get(after) {
            // a segment between the two was removed behind our back
            Some(next) if offset >= stored.end.offset => gone(next.base),
            _ => Ok(Some(stored.clone())),
        }
    }

    /// Forgets the last segment, whose file somebody removed.
    pub(crate) fn forget_last(&self) {
        if let Some(gone) = self.state.lock().segments.pop_back() {
            self.room.shrank(gone.end.position);
        }
    }

    /// Notes that entries of `topic` below `up_to` are no longer needed.
    pub(crate) fn release(&self, topic: Topic, up_to: u64) {
        for (released, offset) in &mut self.state.lock().released {
            if *released == topic {
                *offset = up_to.max(*offset);
            }
        }
    }

    /// Deletes released segments that were last written before `before` (µs), oldest first, and
    /// the others as long as `pressed` says so.
    pub(crate) fn reclaim(&self, before: u64, pressed: impl Fn() -> bool) -> Result<(), ReadError> {
        while let Some(old) = self.take_reclaimable(before, &pressed) {
            match disk::remove(&old.path) {
                Ok(()) => self.room.shrank(old.end.position),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.room.shrank(old.end.position);
                }
                Err(error) => return Err(ReadError::io(old.path, error)),
            }
            tracing::info!(segment = %old.path.display(), "deleted a released journal segment");
        }
        Ok(())
    }

    fn take_reclaimable(&self, before: u64, pressed: impl Fn() -> bool) -> Option<Stored> {
        let mut state = self.state.lock();
        let released = state.released.iter().map(|(_, offset)| *offset).min().unwrap_or(0);
        let oldest = state.segments.front()?;
        let due = oldest.touched_at < before || pressed();
        let free = state.segments.len() > KEPT && oldest.end.offset <= released && due;
        if free { state.segments.pop_front() } else { None }
    }
}

/// What the next segment says of the one before, if that one reaches up to it.
pub(crate) fn previous_of(stored: &[Stored], base: u64) -> (u64, u64) {
    let before = stored.iter().rev().find(|stored| stored.base < base);
    let before = before.filter(|before| before.end.offset == base);
    before.map_or((NO_PREVIOUS, 0), |before| (before.base, before.end.position))
}

fn segment_files(dir: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let mut found = disk::list(dir).map_err(|error| ReadError::io(dir, error))?;
    found.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
    Ok(found)
}

fn modified_at(path: &Path) -> u64 {
    disk::modified(path).map_or(0, clock::micros)
}
