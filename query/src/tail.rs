//! The tail: what the journal holds and the lake does not yet, as rows in memory.
//!
//! One thread follows each partition and reads it from where the lake stood at start to its end,
//! without ever skipping: every entry is folded into the [`Ledger`] once, and its row is kept until
//! the lake holds it. A question takes the rows from the offset at which its pinned version ends.
//!
//! Promises: at most [`Tail::LIMIT_BYTES`] of rows; when they are reached reading stops until the lake
//! catches up, and [`Taken::behind`] says how many entries a question cannot see. A record that was
//! sent twice is kept once. An entry is folded and its row kept in one step, and a question takes rows
//! and judgement in one step, so that it never claims what it does not hold. Rows are dropped only below what the lake was seen to hold.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use custody_journal::{Entry, EntryKind, Journal, Partition, Read, ReadError, Topic};
use custody_lake::batch::Rows;
use custody_lake::rows::{Arrival, Standing};
use custody_schemas::record::{self, Decoded};
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::completeness::{Fold, Ledger};

/// How long one read waits for something new.
const READ_WAIT: Duration = Duration::from_millis(100);
/// How long a thread rests after an error or while the memory is used up.
const REST: Duration = Duration::from_millis(200);
/// Entries and bytes of one read.
const READ_ENTRIES: usize = 4096;
const READ_BYTES: usize = 4 * 1024 * 1024;
/// Neighbouring batches are joined until they have this many rows.
const JOIN_ROWS: usize = 4096;

/// Offsets by partition.
pub(crate) type Offsets = BTreeMap<Partition, u64>;

/// The rows of a question beyond its pinned versions.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Rows of `events`.
    pub(crate) events: Vec<RecordBatch>,
    /// Rows of `bodies`.
    pub(crate) bodies: Vec<RecordBatch>,
    /// Entries of events that are durable and neither in the pinned versions nor in the rows.
    pub(crate) behind: u64,
    /// The same of bodies.
    pub(crate) bodies_behind: u64,
}

/// Follows every partition of a journal.
pub(crate) struct Tail {
    parts: Vec<Arc<Part>>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Held while events are folded and kept, and while rows are taken. Locked before `Part::held`.
    ledger: Mutex<Ledger>,
    bytes: AtomicUsize,
    limit_bytes: usize,
    stop: AtomicBool,
}

struct Part {
    partition: Partition,
    /// Asks for the partition's end; never reads.
    end: Mutex<Box<dyn Read>>,
    held: Mutex<Held>,
    freed: Condvar,
    position: watch::Sender<u64>,
}

struct Held {
    batches: VecDeque<Kept>,
    /// Every row at or above it that has been read is here.
    floor: u64,
    full: bool,
    problem: Option<String>,
}

struct Kept {
    rows: RecordBatch,
    last: u64,
    bytes: usize,
}

impl Tail {
    /// The most that the rows may take.
    pub(crate) const LIMIT_BYTES: usize = 256 * 1024 * 1024;

    /// Follows every partition of events and bodies from the offsets at which the lake stands.
    ///
    /// # Errors
    /// When a partition cannot be read from there.
    pub(crate) fn follow(
        journal: &dyn Journal,
        starts: &Offsets,
        ledger: Ledger,
        limit_bytes: usize,
    ) -> Result<Self, ReadError> {
        let shared = Arc::new(Shared {
            ledger: Mutex::new(ledger),
            bytes: AtomicUsize::new(0),
            limit_bytes,
            stop: AtomicBool::new(false),
        });
        let mut parts = Vec::new();
        for partition in journal.partitions()? {
            if partition.topic == Topic::Control {
                continue;
            }
            let from = starts.get(&partition).copied().unwrap_or(0);
            let reader = journal.reader(&partition, from)?;
            let part = Arc::new(Part {
                end: Mutex::new(journal.reader(&partition, from)?),
                held: Mutex::new(Held {
                    batches: VecDeque::new(),
                    floor: from,
                    full: false,
                    problem: None,
                }),
                freed: Condvar::new(),
                position: watch::Sender::new(reader.position()),
                partition,
            });
            spawn(Arc::clone(&part), Arc::clone(&shared), reader)?;
            parts.push(part);
        }
        Ok(Self { parts, shared })
    }

    /// Waits, no longer than `within`, until everything is read that is durable now.
    pub(crate) async fn catch_up(&self, within: Duration) {
        let all = async {
            for part in &self.parts {
                let Ok(end) = part.end() else { continue };
                let mut position = part.position.subscribe();
                while *position.borrow_and_update() < end && !part.held.lock().full {
                    if position.changed().await.is_err() {
                        break;
                    }
                }
            }
        };
        // Not caught up in time is a normal answer: `behind` tells.
        let _elapsed = tokio::time::timeout(within, all).await.is_err();
    }

    /// The rows from `starts` on, and what `judge` says of the ledger that goes with them; `None`
    /// when some of them have been dropped already, because the lake holds them in a later version:
    /// pin that one.
    pub(crate) fn take_with<T>(
        &self,
        starts: &Offsets,
        judge: impl FnOnce(&Ledger) -> T,
    ) -> Result<Option<(Taken, T)>, ReadError> {
        let mut taken = Taken::default();
        let ledger = self.shared.ledger.lock();
        for part in &self.parts {
            let from = starts.get(&part.partition).copied().unwrap_or(0);
            let held = part.held.lock();
            if held.floor > from {
                return Ok(None);
            }
            let rows = held.batches.iter().filter_map(|kept| kept.from(from));
            match part.partition.topic {
                Topic::Events => taken.events.extend(rows),
                Topic::Bodies | Topic::Control => taken.bodies.extend(rows),
            }
            let position = *part.position.borrow();
            drop(held);
            let behind = part.end()?.saturating_sub(position.max(from));
            match part.partition.topic {
                Topic::Events => taken.behind += behind,
                Topic::Bodies | Topic::Control => taken.bodies_behind += behind,
            }
        }
        Ok(Some((taken, judge(&ledger))))
    }

    /// Drops the rows below `starts`, which the lake holds.
    pub(crate) fn trim(&self, starts: &Offsets) {
        for part in &self.parts {
            let Some(&below) = starts.get(&part.partition) else { continue };
            let mut held = part.held.lock();
            held.floor = held.floor.max(below);
            while held.batches.front().is_some_and(|kept| kept.last < below) {
                let dropped = held.batches.pop_front().map_or(0, |kept| kept.bytes);
                self.shared.bytes.fetch_sub(dropped, Ordering::AcqRel);
            }
            part.freed.notify_all();
        }
    }

    /// Bytes of the rows in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Acquire)
    }

    /// What keeps a partition from being read, when something does.
    pub(crate) fn problem(&self) -> Option<String> {
        self.parts.iter().find_map(|part| part.held.lock().problem.clone())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.parts.iter().for_each(|part| {
            part.freed.notify_all();
        });
    }
}

fn spawn(part: Arc<Part>, shared: Arc<Shared>, reader: Box<dyn Read>) -> Result<(), ReadError> {
    let name = format!("tail {}", part.partition.name);
    let spawned = std::thread::Builder::new().name(name).spawn(move || part.run(&shared, reader));
    spawned.map(drop).map_err(|source| ReadError::Io { path: "a new thread".into(), source })
}

impl Part {
    /// Bodies stop at half of the memory, so that they never keep events from being seen.
    fn limit_bytes(&self, shared: &Shared) -> usize {
        match self.partition.topic {
            Topic::Bodies => shared.limit_bytes / 2,
            Topic::Events | Topic::Control => shared.limit_bytes,
        }
    }

    fn end(&self) -> Result<u64, ReadError> {
        self.end.lock().end()
    }

    fn run(&self, shared: &Shared, mut reader: Box<dyn Read>) {
        while !shared.stop.load(Ordering::Acquire) {
            if shared.bytes.load(Ordering::Acquire) >= self.limit_bytes(shared) {
                self.rest(true, None);
                continue;
            }
            match reader.read(READ_ENTRIES, READ_BYTES, READ_WAIT) {
                Ok(entries) => self.add(shared, &entries, reader.position()),
                Err(ReadError::Gone { wanted, first }) => {
                    shared.ledger.lock().skipped(first.saturating_sub(wanted));
                    if let Err(error) = reader.seek(first) {
                        self.rest(false, Some(error.to_string()));
                    }
                }
                Err(error) => self.rest(false, Some(error.to_string())),
            }
        }
    }

    /// Waits a moment, or until rows are dropped.
    fn rest(&self, full: bool, problem: Option<String>) {
        if let Some(problem) = &problem {
            tracing::warn!(partition = self.partition.name, %problem, "the tail cannot read");
        }
        let mut held = self.held.lock();
        held.full = full;
        held.problem = problem;
        // Wakes whoever waits for a position that will not come.
        self.position.send_modify(|_| ());
        self.freed.wait_for(&mut held, REST);
    }

    fn add(&self, shared: &Shared, entries: &[Entry], position: u64) {
        let decoded: Vec<_> = entries.iter().map(decode).collect();
        let mut ledger = shared.ledger.lock();
        if !entries.is_empty() {
            match self.rows(&mut ledger, entries, &decoded) {
                Ok(Some(kept)) => self.keep(shared, kept),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(partition = self.partition.name, %error, "rows do not fit");
                    ledger.skipped(entries.len() as u64);
                }
            }
        }
        let mut held = self.held.lock();
        held.full = false;
        held.problem = None;
        self.position.send_if_modified(|at| std::mem::replace(at, position) != position);
        drop((held, ledger));
    }

    fn keep(&self, shared: &Shared, kept: Kept) {
        shared.bytes.fetch_add(kept.bytes, Ordering::AcqRel);
        let mut held = self.held.lock();
        if kept.last < held.floor {
            shared.bytes.fetch_sub(kept.bytes, Ordering::AcqRel);
            return;
        }
        held.batches.push_back(kept);
        while let Some(joined) = held.last_two_joined() {
            let first = held.batches.len() - 2;
            let parts = held.batches.split_off(first);
            let before = parts.iter().map(|part| part.bytes).sum();
            shared.bytes.fetch_add(joined.bytes, Ordering::AcqRel);
            shared.bytes.fetch_sub(before, Ordering::AcqRel);
            held.batches.push_back(joined);
        }
    }

    /// The entries as rows, without those that have been read before.
    fn rows(
        &self,
        ledger: &mut Ledger,
        entries: &[Entry],
        decoded: &[Option<Decoded>],
    ) -> Result<Option<Kept>, ArrowError> {
        let mut rows = match self.partition.topic {
            Topic::Events => Rows::events(),
            Topic::Bodies | Topic::Control => Rows::bodies(),
        };
        let mut last = 0;
        for (entry, decoded) in entries.iter().zip(decoded) {
            last = entry.offset;
            let arrival = Arrival {
                partition: &self.partition.name,
                offset: entry.offset,
                journaled_at: entry.journaled_at,
                stored_at: None,
            };
            match entry.kind {
                EntryKind::Event => {
                    if let Some(decoded) = decoded {
                        event(&mut rows, ledger, entry, decoded, &arrival);
                    }
                }
                EntryKind::Checkpoint => {
                    if !rows.checkpoint(&entry.value, &arrival) {
                        ledger.undecodable();
                    }
                }
                EntryKind::Chunk => {
                    rows.chunk(&entry.header, &entry.value, &arrival);
                }
                EntryKind::Control => {}
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        Kept::new(rows.finish()?, last).map(Some)
    }
}

/// Outside of any lock.
fn decode(entry: &Entry) -> Option<Decoded> {
    (entry.kind == EntryKind::Event).then(|| record::decode(&entry.value))
}

fn event(
    rows: &mut Rows,
    ledger: &mut Ledger,
    entry: &Entry,
    decoded: &Decoded,
    arrival: &Arrival<'_>,
) {
    match ledger.fold(decoded, &entry.value) {
        Fold::New => rows.record(&entry.value, decoded, Standing::Event, arrival),
        Fold::Conflict => rows.record(&entry.value, decoded, Standing::Conflict, arrival),
        Fold::Duplicate => {}
    }
}

impl Held {
    /// The last two batches as one, when the last is not much smaller: so each row is copied a few
    /// times only, and the batches stay few.
    fn last_two_joined(&self) -> Option<Kept> {
        let mut newest = self.batches.iter().rev();
        let (last, before) = (newest.next()?, newest.next()?);
        let rows = (last.rows.num_rows(), before.rows.num_rows());
        if rows.0 + rows.1 > JOIN_ROWS || rows.1 > 2 * rows.0 {
            return None;
        }
        let rows = concat_batches(&last.rows.schema(), [&before.rows, &last.rows]).ok()?;
        Kept::new(rows, last.last).ok()
    }
}

impl Kept {
    fn new(rows: RecordBatch, last: u64) -> Result<Self, ArrowError> {
        let bytes = rows.get_array_memory_size();
        Ok(Self { rows, last, bytes })
    }

    /// The rows at or above `offset`; offsets ascend.
    fn from(&self, offset: u64) -> Option<RecordBatch> {
        if self.last < offset {
            return None;
        }
        let offsets = self.rows.column_by_name("journal_offset")?;
        let offsets = offsets.as_primitive_opt::<Int64Type>()?.values();
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let first = offsets.partition_point(|at| *at < offset);
        let rows = self.rows.num_rows() - first;
        (rows > 0).then(|| self.rows.slice(first, rows))
    }
}
