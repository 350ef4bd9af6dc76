//! Sends a part of a stream again, with its bodies and checkpoints, from what a spool still holds.
//!
//! Always safe: whoever reads drops what it has. It serves when Kafka has lost what it had
//! acknowledged. A spool that a process writes is only read, up to what that process has shipped
//! already; the rest it will ship itself.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use custody_schemas::body::ChunkHeader;
use custody_schemas::id::{BodyId, StreamId};
use custody_schemas::record::{Decoded, decode};

use super::window::send;
use super::{Trouble, marks};
use crate::file::reader::Reader;
use crate::file::shelf::Shelf;
use crate::file::{LockError, Shelves, SpoolError};
use crate::kafka::KafkaSettings;
use crate::kafka::link::Link;
use crate::kafka::producer::{Batch, Broken, Producer};
use crate::kafka::wire::{Named, signed};
use crate::{Entry, EntryKind, Read, ReadError};

/// The most events that one call sends again.
const MOST: u64 = 250_000;
const ENTRIES: usize = 2048;
const BYTES: usize = 4 << 20;
const TURN: Duration = Duration::from_millis(200);

/// What is to be sent again.
#[derive(Clone, Debug)]
pub struct Resend {
    /// The journal's folder, in which the spools lie.
    pub dir: PathBuf,
    /// The stream.
    pub stream: StreamId,
    /// The first and the last `seq`.
    pub seqs: RangeInclusive<u64>,
    /// How long Kafka has to acknowledge all of it.
    pub patience: Duration,
}

/// What was sent again, and is acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resent {
    /// Events.
    pub events: u64,
    /// Checkpoints whose last event is in the range.
    pub checkpoints: u64,
    /// Chunks of bodies.
    pub chunks: u64,
    /// The first and the last `seq` that the spool still had.
    pub found: Option<(u64, u64)>,
}

/// Why nothing, or not all, was sent again. To try once more is safe.
#[derive(Debug, thiserror::Error)]
pub enum ResendError {
    /// There is no such spool.
    #[error(
        "{} has no spool of {writer}: name the folder of the process that wrote the stream",
        dir.display()
    )]
    NoSpool {
        /// Where it was looked for.
        dir: PathBuf,
        /// Whose it would be.
        writer: String,
    },
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// More than one call sends.
    #[error("more than {MOST} events: send them in several parts")]
    TooMany,
    /// Kafka did not take it, or not in time.
    #[error("Kafka has not acknowledged everything: {0}")]
    Kafka(String),
}

impl From<ReadError> for ResendError {
    fn from(error: ReadError) -> Self {
        Self::Spool(error.into())
    }
}

/// Sends a part of a stream again. Blocks.
///
/// # Errors
/// [`ResendError`].
pub fn resend(what: &Resend, settings: &KafkaSettings) -> Result<Resent, ResendError> {
    let spool = Kept::open(what)?;
    let part = spool.find(what)?;
    if part.events == 0 {
        return Ok(Resent::default());
    }
    let (main, bulk) = (spool.shelves.main(), spool.shelves.bulk());
    let mut out = Out::open(what, settings)?;
    each(bulk, 0, bulk.end_offset(), &mut |entry| {
        if part.has_chunk(&entry) { out.send(&entry) } else { Ok(()) }
    })?;
    each(main, part.from, part.to, &mut |entry| {
        if part.has_chunk(&entry) { out.send(&entry) } else { Ok(()) }
    })?;
    let chunks = out.settle()?;
    each(main, part.from, part.to, &mut |entry| {
        if is_wanted(what, &entry) { out.send(&entry) } else { Ok(()) }
    })?;
    let records = out.settle()?;
    let checkpoints = records.saturating_sub(part.events);
    Ok(Resent { events: part.events, checkpoints, chunks, found: part.found })
}

/// Hands every entry of a lane from `from` to before `to` to `visit`.
fn each(
    shelf: &Arc<Shelf>,
    from: u64,
    to: u64,
    visit: &mut dyn FnMut(Entry) -> Result<(), ResendError>,
) -> Result<(), ResendError> {
    let from = from.max(shelf.first_offset());
    if from >= to {
        return Ok(());
    }
    let mut reader = Reader::of_all(Arc::clone(shelf), from)?;
    while reader.position() < to {
        for entry in reader.read(ENTRIES, BYTES, Duration::ZERO)? {
            if entry.offset < to {
                visit(entry)?;
            }
        }
    }
    Ok(())
}

/// Whether `entry` is an event of the part, or a checkpoint over one.
fn is_wanted(what: &Resend, entry: &Entry) -> bool {
    let stream = what.stream.as_str();
    match entry.kind {
        EntryKind::Event => Named::of(&entry.value)
            .is_some_and(|named| named.stream == stream && what.seqs.contains(&named.seq)),
        EntryKind::Checkpoint => signed(&entry.value).is_some_and(|(of, size)| {
            of == stream && size.checked_sub(1).is_some_and(|last| what.seqs.contains(&last))
        }),
        EntryKind::Chunk | EntryKind::Control => false,
    }
}

/// A spool and how far of it is sent again.
struct Kept {
    shelves: Shelves,
    end: u64,
}

impl Kept {
    fn open(what: &Resend) -> Result<Self, ResendError> {
        let writer = what.stream.writer();
        let dir = what.dir.join(writer);
        if !dir.join("main").is_dir() {
            return Err(ResendError::NoSpool { dir: what.dir.clone(), writer: writer.to_owned() });
        }
        let (shelves, shipped) = match Shelves::resting(writer, &dir) {
            Ok(shelves) => (shelves, u64::MAX),
            Err(SpoolError::Lock(LockError::InUse(_))) => {
                let shipped = marks::read(&dir).unwrap_or_default().main;
                (Shelves::glimpsed(writer, &dir)?, shipped)
            }
            Err(error) => return Err(error.into()),
        };
        let end = shelves.main().end_offset().min(shipped);
        Ok(Self { shelves, end })
    }

    /// Looks for the part.
    fn find(&self, what: &Resend) -> Result<Part, ResendError> {
        let mut part = Part::default();
        // small bodies stand between their record and the entry before it
        let mut behind_last = 0;
        each(self.shelves.main(), 0, self.end, &mut |entry| {
            if entry.kind == EntryKind::Chunk {
                return Ok(());
            }
            let begins = std::mem::replace(&mut behind_last, entry.offset + 1);
            if is_wanted(what, &entry) {
                part.take(&entry, begins);
            }
            if part.events > MOST { Err(ResendError::TooMany) } else { Ok(()) }
        })?;
        Ok(part)
    }
}

/// Where in the spool the part lies, and its bodies.
#[derive(Debug, Default)]
struct Part {
    from: u64,
    to: u64,
    bodies: HashSet<BodyId>,
    events: u64,
    found: Option<(u64, u64)>,
}

impl Part {
    /// Takes in an event or a checkpoint that begins, with its bodies, at `begins`.
    fn take(&mut self, entry: &Entry, begins: u64) {
        if self.to == 0 {
            self.from = begins;
        }
        self.to = entry.offset + 1;
        let Some(Named { seq, .. }) = Named::of(&entry.value) else { return };
        self.events += 1;
        self.found = Some((self.found.map_or(seq, |(first, _)| first), seq));
        if let Decoded::Event(event) = decode(&entry.value) {
            let bodies = [&event.bodies.request, &event.bodies.response, &event.bodies.edits];
            self.bodies.extend(bodies.into_iter().flatten().map(|body| body.body));
        }
    }

    fn has_chunk(&self, entry: &Entry) -> bool {
        entry.kind == EntryKind::Chunk
            && ChunkHeader::decode(&entry.header)
                .is_ok_and(|header| self.bodies.contains(&header.body))
    }
}

/// Sends entries and waits for them.
struct Out {
    producer: Producer,
    link: Arc<Link>,
    batch: Arc<Batch>,
    sent: u64,
    until: Instant,
}

impl Out {
    fn open(what: &Resend, settings: &KafkaSettings) -> Result<Self, ResendError> {
        let link = Arc::new(Link::default());
        let producer = Producer::new(settings, &link);
        let producer = producer.map_err(|Broken(why)| ResendError::Kafka(why))?;
        let until = Instant::now() + what.patience;
        Ok(Self { producer, link, batch: Arc::default(), sent: 0, until })
    }

    fn send(&mut self, entry: &Entry) -> Result<(), ResendError> {
        let is_late = || Instant::now() >= self.until;
        let sent = send(&self.producer, &self.batch, entry, &is_late);
        sent.map_err(|trouble| self.failed(&trouble))?;
        self.sent += 1;
        Ok(())
    }

    /// Waits until everything is acknowledged; how much that is.
    fn settle(&mut self) -> Result<u64, ResendError> {
        let batch = std::mem::take(&mut self.batch);
        loop {
            match batch.wait(TURN) {
                Ok(true) => return Ok(std::mem::take(&mut self.sent)),
                Ok(false) if Instant::now() < self.until => {}
                Ok(false) => {
                    let why = self.producer.diagnose().map_or_else(Into::into, |()| Trouble::Over);
                    return Err(self.failed(&why));
                }
                Err(broken) => return Err(self.failed(&broken.into())),
            }
        }
    }

    fn failed(&self, trouble: &Trouble) -> ResendError {
        let late = matches!(trouble, Trouble::Over);
        let why = if late { "not in time".to_owned() } else { trouble.to_string() };
        ResendError::Kafka(self.link.problem().unwrap_or(why))
    }
}
