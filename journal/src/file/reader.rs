//! Reads one partition of a lane from any offset, and follows it.
//!
//! Entries borrow from the window they were read in. Nothing beyond the lane's durable end is ever
//! returned; what is broken before it is an error with its position, and the reader stays there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_schemas::id::Uint;

use super::format::{BatchHeader, Frame, FrameKind, SEGMENT_HEADER, take_frame};
use super::segment::{Segment, Step, Walk};
use super::shelf::{Shelf, Stored};
use crate::{Entry, EntryKind, Read, ReadError, Topic};

/// A reader of one topic of one lane, or of all that the lane carries.
pub(crate) struct Reader {
    shelf: Arc<Shelf>,
    topic: Option<Topic>,
    /// The next offset.
    position: u64,
    place: Option<Place>,
}

/// Where in a segment the reader stands.
struct Place {
    walk: Walk,
    base: u64,
    /// The next batch.
    at: u64,
    /// The offset of that batch's first frame.
    offset: u64,
}

impl Reader {
    /// A reader that begins at `from`; 0 means the oldest offset.
    pub(crate) fn new(shelf: Arc<Shelf>, topic: Topic, from: u64) -> Result<Self, ReadError> {
        Self::of(shelf, Some(topic), from)
    }

    /// The same for everything in the lane, in its order.
    pub(crate) fn of_all(shelf: Arc<Shelf>, from: u64) -> Result<Self, ReadError> {
        Self::of(shelf, None, from)
    }

    fn of(shelf: Arc<Shelf>, topic: Option<Topic>, from: u64) -> Result<Self, ReadError> {
        let mut reader = Self { shelf, topic, position: 0, place: None };
        let from = if from == 0 { reader.shelf.first_offset() } else { from };
        reader.seek(from)?;
        Ok(reader)
    }

    /// Reads on from the present batch: fills `entries`, or returns `false` at the durable end.
    fn read_batch(
        &mut self,
        limits: &mut Limits,
        entries: &mut Vec<Entry>,
    ) -> Result<bool, ReadError> {
        let Some(stored) = self.shelf.holding(self.position)? else { return Ok(false) };
        if self.position >= stored.end.offset {
            return Ok(false);
        }
        let place = place(&mut self.place, &stored)?;
        let (header, body) = batch(place, &stored)?;
        let after = header.base + u64::from(header.count);
        if after > self.position {
            self.position = take(self.topic, self.position, &header, body, limits, entries, place)?;
        }
        if self.position >= after {
            place.at = header.next_position();
            place.offset = after;
        }
        Ok(true)
    }
}

/// What one call may still return.
struct Limits {
    entries: usize,
    bytes: usize,
}

/// Takes the frames from offset `from` on, as far as the limits allow; returns the next offset.
fn take(
    topic: Option<Topic>,
    from: u64,
    header: &BatchHeader,
    mut body: Bytes,
    limits: &mut Limits,
    entries: &mut Vec<Entry>,
    place: &Place,
) -> Result<u64, ReadError> {
    for offset in header.base..header.base + u64::from(header.count) {
        let Some(frame) = take_frame(&mut body) else {
            return Err(place.walk.segment().corrupt(place.at, "a frame runs over its batch"));
        };
        if offset < from {
            continue;
        }
        let Some(entry) = entry(topic, offset, header, frame) else { continue };
        let bytes = entry.header.len() + entry.value.len();
        if limits.entries == 0 || (!entries.is_empty() && bytes > limits.bytes) {
            limits.entries = 0;
            return Ok(offset);
        }
        limits.entries -= 1;
        limits.bytes = limits.bytes.saturating_sub(bytes);
        entries.push(entry);
    }
    Ok(header.base + u64::from(header.count))
}

fn entry(topic: Option<Topic>, offset: u64, batch: &BatchHeader, frame: Frame) -> Option<Entry> {
    let kind = match frame.kind {
        FrameKind::Event => EntryKind::Event,
        FrameKind::Checkpoint => EntryKind::Checkpoint,
        FrameKind::Chunk => EntryKind::Chunk,
        FrameKind::Control => EntryKind::Control,
        FrameKind::State | FrameKind::Other(_) => return None,
    };
    let journaled_at = Uint::new(batch.journaled_at);
    let Frame { header, value, .. } = frame;
    let wanted = topic.is_none_or(|topic| topic.carries(kind));
    wanted.then_some(Entry { offset, journaled_at, kind, header, value })
}

/// The place in the segment `stored`: the one held, or its beginning.
fn place<'a>(held: &'a mut Option<Place>, stored: &Stored) -> Result<&'a mut Place, ReadError> {
    let place = match held.take() {
        Some(place) if place.base == stored.base && place.walk.segment().path == stored.path => {
            place
        }
        _ => {
            let walk = Segment::open(&stored.path, false)?.walk();
            Place { walk, base: stored.base, at: SEGMENT_HEADER, offset: stored.base }
        }
    };
    Ok(held.insert(place))
}

fn batch(place: &mut Place, stored: &Stored) -> Result<(BatchHeader, Bytes), ReadError> {
    match place.walk.batch(place.at, stored.end.position)? {
        Step::Batch(header, body) if header.base == place.offset => Ok((header, body)),
        Step::Batch(..) => Err(place.walk.segment().corrupt(place.at, "offsets do not follow")),
        Step::Broken(reason) => Err(place.walk.segment().corrupt(place.at, reason)),
    }
}

impl Read for Reader {
    fn read(
        &mut self,
        max_entries: usize,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut limits = Limits { entries: max_entries, bytes: max_bytes };
        let mut entries = Vec::new();
        let until = Instant::now().checked_add(wait);
        let begun_at = self.position;
        loop {
            while limits.entries > 0 {
                match self.read_batch(&mut limits, &mut entries) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // what was read before it comes first; the error comes again
                    Err(_) if !entries.is_empty() => break,
                    Err(error) => return Err(error),
                }
            }
            let left = until.map_or(wait, |until| until.saturating_duration_since(Instant::now()));
            if self.position > begun_at || max_entries == 0 || left.is_zero() {
                return Ok(entries);
            }
            self.shelf.wait_beyond(self.position, left);
        }
    }

    fn seek(&mut self, offset: u64) -> Result<(), ReadError> {
        let end = self.shelf.end_offset();
        if offset > end {
            return Err(ReadError::Beyond { wanted: offset, end });
        }
        let stored = self.shelf.holding(offset)?;
        let behind = self.place.as_ref().is_some_and(|place| place.offset > offset);
        if behind {
            self.place = None;
        }
        if let Some(stored) = stored
            && offset < stored.end.offset
        {
            let place = place(&mut self.place, &stored)?;
            skip_to(place, &stored, offset)?;
        }
        self.position = offset;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn end(&self) -> Result<u64, ReadError> {
        Ok(self.shelf.end_offset())
    }
}

/// Goes to the batch that holds `offset`, reading headers only.
fn skip_to(place: &mut Place, stored: &Stored, offset: u64) -> Result<(), ReadError> {
    loop {
        let Some(header) = place.walk.header(place.at, stored.end.position)? else {
            let reason = "no batch header where one should be";
            return Err(place.walk.segment().corrupt(place.at, reason));
        };
        let after = header.base + u64::from(header.count);
        if after > offset || header.base != place.offset {
            return Ok(());
        }
        (place.at, place.offset) = (header.next_position(), after);
    }
}
