//! Reads a spool window by window and sends the bodies of each ahead of its records.
//!
//! The large bodies of a window's records are in the bulk lane before the records are in theirs:
//! whatever the bulk lane holds after a window was read belongs before it. Memory is bounded by
//! the window and by what the producer takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use custody_schemas::id::Uint;

use super::Trouble;
use super::marks::Mark;
use super::status::Tally;
use super::stop::Stop;
use crate::file::now;
use crate::file::reader::Reader;
use crate::file::shelf::Shelf;
use crate::kafka::producer::{Batch, Producer};
use crate::writer::acks::Acks;
use crate::{Entry, EntryKind, Read, ReadError};

/// The most entries of one window.
const ENTRIES: usize = 2048;
/// The most bytes, but for a first entry that is longer.
const BYTES: usize = 4 << 20;
/// How long it is waited for something new before anything else is looked at.
const TURN: Duration = Duration::from_millis(200);
/// How long entries that nobody waits for are gathered: what a window costs the broker and whoever
/// reads there, it costs for one entry as for many.
const GATHER: Duration = Duration::from_millis(20);
/// How often it is looked whether somebody has begun to wait for what is gathered.
const GLANCE: Duration = Duration::from_millis(1);

/// Some of a spool: records, and the bodies that have to be acknowledged before them.
pub(crate) struct Window {
    /// Chunks that were handed over.
    pub(crate) bodies: Arc<Batch>,
    /// Records and checkpoints, not handed over yet.
    pub(crate) records: Vec<Entry>,
    /// What is acknowledged once all of it is.
    pub(crate) up_to: Mark,
    /// Number of its entries.
    pub(crate) entries: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// Hands one entry over, waiting for room.
pub(crate) fn send(
    producer: &Producer,
    batch: &Arc<Batch>,
    entry: &Entry,
    over: &dyn Fn() -> bool,
) -> Result<(), Trouble> {
    while !producer.send(batch, entry.kind, &entry.header, &entry.value)? {
        if over() {
            return Err(Trouble::Over);
        }
        if let Some(broken) = producer.fatal() {
            return Err(broken.into());
        }
        producer.wait_for_room(TURN);
    }
    Ok(())
}

/// The reading end of a spool, for one attempt.
pub(crate) struct Source<'a> {
    main: Reader,
    bulk: Reader,
    main_shelf: Arc<Shelf>,
    bulk_shelf: Arc<Shelf>,
    tally: &'a Tally,
    stop: &'a Stop,
    /// Set when the other thread of this attempt has given up.
    broken: &'a AtomicBool,
    /// Who waits for what is read here; none when the spool's writer is gone, so that its end is
    /// the end.
    acks: Option<&'a Acks>,
    /// When the last window was read.
    last: Option<Instant>,
}

impl<'a> Source<'a> {
    /// Begins at the tally's mark.
    pub(crate) fn open(
        shelves: (&Arc<Shelf>, &Arc<Shelf>),
        tally: &'a Tally,
        stop: &'a Stop,
        broken: &'a AtomicBool,
        acks: Option<&'a Acks>,
    ) -> Result<Self, ReadError> {
        let mark = tally.mark();
        let from = |shelf: &Arc<Shelf>, mark: u64| {
            let first = shelf.first_offset();
            Reader::of_all(Arc::clone(shelf), mark.max(first))
        };
        let (main, bulk) = (from(shelves.0, mark.main)?, from(shelves.1, mark.bulk)?);
        let (main_shelf, bulk_shelf) = (Arc::clone(shelves.0), Arc::clone(shelves.1));
        Ok(Self { main, bulk, main_shelf, bulk_shelf, tally, stop, broken, acks, last: None })
    }

    /// Reads windows and hands them on, until the end of a resting spool or of the attempt.
    pub(crate) fn run(
        mut self,
        producer: &Producer,
        windows: &SyncSender<Window>,
    ) -> Result<(), Trouble> {
        let mut first = true;
        while !self.is_over() {
            self.gather();
            let before = self.main.position();
            let entries = read(&mut self.main, self.tally, TURN)?;
            if self.main.position() == before {
                if self.acks.is_none() || self.stop.is_asked() {
                    return Ok(());
                }
                continue;
            }
            let written_at = entries.first().map_or(Uint::new(now()), |entry| entry.journaled_at);
            self.tally.took(written_at, std::mem::take(&mut first));
            self.last = Some(Instant::now());
            let window = self.window(producer, entries)?;
            if windows.send(window).is_err() {
                return Err(Trouble::Over);
            }
        }
        Err(Trouble::Over)
    }

    /// Lets entries come together, unless somebody waits for one or there are many already.
    fn gather(&self) {
        let (Some(acks), Some(last)) = (self.acks, self.last) else { return };
        let behind = || self.main_shelf.end_offset().saturating_sub(self.main.position());
        while last.elapsed() < GATHER
            && behind() < ENTRIES as u64
            && !acks.is_awaited()
            && !self.stop.is_asked()
        {
            thread::sleep(GLANCE);
        }
    }

    fn is_over(&self) -> bool {
        self.stop.is_due() || self.broken.load(Ordering::Relaxed)
    }

    /// Sends the bodies among `entries` and those in the bulk lane that belong before them.
    fn window(&mut self, producer: &Producer, entries: Vec<Entry>) -> Result<Window, Trouble> {
        let up_to = Mark { main: self.main.position(), bulk: self.bulk_shelf.end_offset() };
        let mut window =
            Window { bodies: Arc::default(), records: Vec::new(), up_to, entries: 0, bytes: 0 };
        for entry in entries {
            window.count(&entry);
            match entry.kind {
                EntryKind::Event | EntryKind::Checkpoint => window.records.push(entry),
                EntryKind::Chunk => {
                    send(producer, &window.bodies, &entry, &|| self.is_over())?;
                }
                EntryKind::Control => {}
            }
        }
        while self.bulk.position() < up_to.bulk {
            for entry in read(&mut self.bulk, self.tally, Duration::ZERO)? {
                window.count(&entry);
                send(producer, &window.bodies, &entry, &|| self.is_over())?;
            }
        }
        Ok(window)
    }
}

impl Window {
    fn count(&mut self, entry: &Entry) {
        self.entries += 1;
        self.bytes += (entry.header.len() + entry.value.len()) as u64;
    }
}

/// Reads on; what somebody removed is counted and passed by, as nobody can bring it back.
fn read(reader: &mut Reader, tally: &Tally, wait: Duration) -> Result<Vec<Entry>, ReadError> {
    match reader.read(ENTRIES, BYTES, wait) {
        Err(ReadError::Gone { wanted, first }) if first > wanted => {
            let lost = first - wanted;
            tracing::error!(wanted, first, "entries were removed from the spool before shipping");
            tally.lost(lost);
            reader.seek(first)?;
            Ok(Vec::new())
        }
        other => other,
    }
}
