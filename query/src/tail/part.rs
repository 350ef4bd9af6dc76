//! One partition: a thread that reads it, and the rows that it keeps.
//!
//! Promises: nothing is skipped but what the journal has deleted, and that is counted; an entry is
//! folded and its row kept in one step; after an error reading goes on from the same offset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::error::ArrowError;
use custody_journal::{Entry, EntryKind, Journal, Partition, Read, ReadError, Topic};
use custody_lake::batch::Rows;
use custody_lake::rows::{Arrival, Standing};
use custody_schemas::record::{self, Decoded};
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::ends::Ends;
use super::kept::{Held, Kept};
use super::{Shared, Unheard};
use crate::engine::now;
use crate::ledger::Fold;

/// How long one read waits for something new.
const READ_WAIT: Duration = Duration::from_millis(100);
/// How long a thread rests after an error or while the memory is used up.
const REST: Duration = Duration::from_millis(200);
/// Entries and bytes of one read.
const READ_ENTRIES: usize = 4096;
const READ_BYTES: usize = 4 * 1024 * 1024;

/// A partition that is followed.
pub(super) struct Part {
    pub(super) partition: Partition,
    pub(super) ends: Ends,
    pub(super) held: Mutex<Held>,
    /// Told when rows are dropped.
    pub(super) freed: Condvar,
    pub(super) position: watch::Sender<u64>,
    /// The newest end that was heard of.
    pub(super) end: AtomicU64,
    /// When it was last read to an end that was asked for then, in µs since 1970; 0 before that.
    pub(super) sure_at: AtomicU64,
    /// When it was first asked, in µs since 1970.
    begun_at: u64,
}

impl Part {
    pub(super) fn new(journal: &Arc<dyn Journal>, partition: Partition, from: u64) -> Arc<Self> {
        Arc::new(Self {
            ends: Ends::of(Arc::clone(journal), partition.clone()),
            partition,
            held: Mutex::new(Held::from(from)),
            freed: Condvar::new(),
            position: watch::Sender::new(from),
            end: AtomicU64::new(from),
            sure_at: AtomicU64::new(0),
            begun_at: now().get(),
        })
    }

    /// Begins to read it from `from` on, on a thread of its own.
    pub(super) fn spawn(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        journal: &Arc<dyn Journal>,
        from: u64,
    ) -> Result<(), ReadError> {
        let (part, shared, journal) = (Arc::clone(self), Arc::clone(shared), Arc::clone(journal));
        let name = format!("tail {}", part.partition.name);
        let run = move || part.run(&shared, journal.as_ref(), from);
        let spawned = std::thread::Builder::new().name(name).spawn(run);
        spawned.map(drop).map_err(|source| ReadError::Io { path: "a new thread".into(), source })
    }

    /// Since when it does not say how far it goes, if it does not.
    pub(super) fn unheard(&self) -> Unheard {
        match self.sure_at.load(Ordering::Acquire) {
            0 => Unheard { since: self.begun_at, before: false },
            since => Unheard { since, before: true },
        }
    }

    /// Bodies stop at half of the memory, so that they never keep events from being seen.
    fn limit_bytes(&self, shared: &Shared) -> usize {
        match self.partition.topic {
            Topic::Bodies => shared.limit_bytes / 2,
            Topic::Events | Topic::Control => shared.limit_bytes,
        }
    }

    fn run(&self, shared: &Shared, journal: &dyn Journal, from: u64) {
        let Some(mut reader) = self.begin(shared, journal, from) else { return };
        while !shared.stops() {
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

    /// Tries until there is a reader, or the tail is gone.
    fn begin(
        &self,
        shared: &Shared,
        journal: &dyn Journal,
        mut from: u64,
    ) -> Option<Box<dyn Read>> {
        while !shared.stops() {
            match journal.reader(&self.partition, from) {
                Ok(reader) => {
                    self.add(shared, &[], reader.position());
                    return Some(reader);
                }
                Err(ReadError::Gone { wanted, first }) => {
                    shared.ledger.lock().skipped(first.saturating_sub(wanted));
                    from = first;
                }
                Err(error) => self.rest(false, Some(error.to_string())),
            }
        }
        None
    }

    /// Waits a moment, or until rows are dropped.
    fn rest(&self, full: bool, problem: Option<String>) {
        let mut held = self.held.lock();
        if let Some(problem) = problem.as_ref().filter(|p| held.problem.as_ref() != Some(*p)) {
            tracing::warn!(partition = self.partition.name, %problem, "the tail cannot read");
        }
        held.full = full;
        held.problem = problem;
        // Wakes whoever waits for a position that will not come.
        self.position.send_modify(|_| ());
        self.freed.wait_for(&mut held, REST);
    }

    /// Folds entries and keeps their rows. Most of the work is done before anything is locked, as
    /// if all records were new.
    fn add(&self, shared: &Shared, entries: &[Entry], position: u64) {
        let decoded: Vec<_> = entries.iter().map(decode).collect();
        let mut built = self.rows(entries, &decoded, &[]);
        let mut ledger = shared.ledger.lock();
        let folds: Vec<_> = entries
            .iter()
            .zip(&decoded)
            .map(|(entry, decoded)| {
                decoded.as_ref().map_or(Fold::New, |decoded| ledger.fold(decoded, &entry.value))
            })
            .collect();
        if folds.iter().any(|fold| *fold != Fold::New) {
            built = self.rows(entries, &decoded, &folds);
        }
        let mut held = self.held.lock();
        match built {
            Ok((kept, unreadable)) => {
                (0..unreadable).for_each(|_| ledger.undecodable());
                if let Some(kept) = kept {
                    shared.count(held.push(kept));
                }
            }
            Err(error) => {
                tracing::error!(partition = self.partition.name, %error, "rows do not fit");
                ledger.skipped(entries.len() as u64);
            }
        }
        held.full = false;
        held.problem = None;
        self.position.send_if_modified(|at| std::mem::replace(at, position) != position);
        drop((held, ledger));
    }

    /// The entries as rows, without duplicates, and how many checkpoints cannot be read.
    fn rows(
        &self,
        entries: &[Entry],
        decoded: &[Option<Decoded>],
        folds: &[Fold],
    ) -> Result<(Option<Kept>, usize), ArrowError> {
        let mut rows = match self.partition.topic {
            Topic::Events => Rows::events(),
            Topic::Bodies | Topic::Control => Rows::bodies(),
        };
        let mut unreadable = 0;
        for (i, (entry, decoded)) in entries.iter().zip(decoded).enumerate() {
            let arrival = Arrival {
                partition: &self.partition.name,
                offset: entry.offset,
                journaled_at: entry.journaled_at,
                stored_at: None,
            };
            match (entry.kind, decoded) {
                (EntryKind::Event, Some(decoded)) => {
                    let standing = match folds.get(i).unwrap_or(&Fold::New) {
                        Fold::New => Standing::Event,
                        Fold::Conflict => Standing::Conflict,
                        Fold::Duplicate => continue,
                    };
                    rows.record(&entry.value, decoded, standing, &arrival);
                }
                (EntryKind::Checkpoint, _) => {
                    unreadable += usize::from(!rows.checkpoint(&entry.value, &arrival));
                }
                (EntryKind::Chunk, _) => {
                    rows.chunk(&entry.header, &entry.value, &arrival);
                }
                (EntryKind::Event | EntryKind::Control, _) => {}
            }
        }
        let last = entries.last().map_or(0, |entry| entry.offset);
        let kept = if rows.is_empty() { None } else { Some(Kept::new(rows.finish()?, last)) };
        Ok((kept, unreadable))
    }
}

fn decode(entry: &Entry) -> Option<Decoded> {
    (entry.kind == EntryKind::Event).then(|| record::decode(&entry.value))
}
