//! The tail: what the journal holds and the lake does not yet, as rows in memory.
//!
//! One thread follows each partition and reads it from where the lake stood at start to its end,
//! without ever skipping: every entry is folded into the [`Ledger`] once, and its row is kept until
//! the lake holds it. A question takes the rows from the offset at which its pinned version ends.
//!
//! Promises: at most [`Tail::LIMIT_BYTES`] of rows; when they are reached reading stops until the lake
//! catches up, and [`Taken::behind`] says how many entries a question cannot see. A record that was
//! sent twice is kept once. An entry is folded and its row kept in one step, and a question takes rows
//! and judgement in one step, so that it never claims what it does not hold. Rows are dropped only
//! below what the lake was seen to hold. Nothing waits for the medium while anything is locked, and
//! nobody waits for it longer than they said; where it does not answer, [`Taken::unheard`] says
//! since when.

mod ends;
mod kept;
mod part;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use custody_journal::{Journal, Partition, ReadError, Topic};
use custody_schemas::id::Micros;
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::time::{Instant, timeout_at};

use crate::ledger::Ledger;
use kept::Change;
use part::Part;

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
    /// Up to where pinned versions and rows together go.
    pub(crate) reached: Offsets,
    /// Whether some partition did not say how far it goes.
    pub(crate) unheard: Option<Unheard>,
}

/// A journal, or a part of one, that does not say how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unheard {
    /// Since when, in µs since 1970: the last time that it was read to its end, or the beginning.
    pub(crate) since: u64,
    /// Whether it was heard before.
    pub(crate) before: bool,
}

/// Follows every partition of a journal.
pub(crate) struct Tail {
    journal: Arc<dyn Journal>,
    parts: RwLock<Vec<Arc<Part>>>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Held while events are folded and kept, and while rows are taken. Locked before `Part::held`.
    ledger: Mutex<Ledger>,
    bytes: AtomicUsize,
    limit_bytes: usize,
    stop: AtomicBool,
}

impl Shared {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn count(&self, change: Change) {
        self.bytes.fetch_add(change.more, Ordering::AcqRel);
        self.bytes.fetch_sub(change.less, Ordering::AcqRel);
    }
}

impl Tail {
    /// The most that the rows may take.
    pub(crate) const LIMIT_BYTES: usize = 256 * 1024 * 1024;

    /// A tail that follows nothing yet.
    pub(crate) fn new(journal: Arc<dyn Journal>, ledger: Ledger, limit_bytes: usize) -> Self {
        let shared = Arc::new(Shared {
            ledger: Mutex::new(ledger),
            bytes: AtomicUsize::new(0),
            limit_bytes,
            stop: AtomicBool::new(false),
        });
        Self { journal, parts: RwLock::default(), shared }
    }

    /// Follows those of `partitions` that it does not follow yet, from the offsets at which the
    /// lake stands.
    ///
    /// # Errors
    /// When there can be no thread for one.
    pub(crate) fn follow(
        &self,
        partitions: &[Partition],
        starts: &Offsets,
    ) -> Result<(), ReadError> {
        let mut parts = self.parts.write();
        for partition in partitions {
            let known = parts.iter().any(|part| part.partition == *partition);
            if known || partition.topic == Topic::Control {
                continue;
            }
            let from = starts.get(partition).copied().unwrap_or(0);
            let part = Part::new(&self.journal, partition.clone(), from);
            part.spawn(&self.shared, &self.journal, from)?;
            parts.push(part);
        }
        Ok(())
    }

    /// The partitions that it follows.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.parts.read().iter().map(|part| part.partition.clone()).collect()
    }

    fn parts(&self) -> Vec<Arc<Part>> {
        self.parts.read().clone()
    }

    /// Waits, no longer than `within`, until everything is read that is durable at `moment`, which
    /// is now. Gives the ends of the partitions that said how far they go and are those that were
    /// read before.
    pub(crate) async fn catch_up(&self, moment: Micros, within: Duration) -> Offsets {
        let (begun, parts) = (Instant::now(), self.parts());
        let until = begun + within;
        let caught_up = parts.iter().map(async |part| {
            let end = timeout_at(until, part.ends.since(begun)).await.ok()?.ok()?;
            if end < *part.position.borrow() {
                // It was replaced, or has lost entries: then it tells nothing of ours.
                return None;
            }
            part.end.fetch_max(end, Ordering::AcqRel);
            if part.reach(end, until).await {
                part.sure_at.fetch_max(moment.get(), Ordering::AcqRel);
            }
            Some((part.partition.clone(), end))
        });
        join_all(caught_up).await.into_iter().flatten().collect()
    }

    /// Waits, no longer than `within`, until everything below `ends` is read.
    pub(crate) async fn reach(&self, ends: &Offsets, within: Duration) {
        let (until, parts) = (Instant::now() + within, self.parts());
        let reached = parts.iter().filter_map(|part| {
            let end = *ends.get(&part.partition)?;
            Some(part.reach(end, until))
        });
        join_all(reached).await;
    }

    /// The rows from `starts` on and, where `below` says so, below its offsets; what `judge` says of
    /// the ledger that goes with them. `ends` says what is behind. `None` when some of the rows have
    /// been dropped already, because the lake holds them in a later version: pin that one.
    pub(crate) fn take_with<T>(
        &self,
        starts: &Offsets,
        ends: &Offsets,
        below: Option<&Offsets>,
        judge: impl FnOnce(&Ledger) -> T,
    ) -> Option<(Taken, T)> {
        let mut taken = Taken::default();
        let parts = self.parts();
        let ledger = self.shared.ledger.lock();
        for part in &parts {
            let from = starts.get(&part.partition).copied().unwrap_or(0);
            let below = below.map(|below| below.get(&part.partition).copied().unwrap_or(0));
            part.take(from, below, ends.get(&part.partition).copied(), &mut taken)?;
        }
        Some((taken, judge(&ledger)))
    }

    /// Drops the rows below `starts`, which the lake holds.
    pub(crate) fn trim(&self, starts: &Offsets) {
        for part in self.parts() {
            let Some(&below) = starts.get(&part.partition) else { continue };
            self.shared.count(part.held.lock().trim(below));
            part.freed.notify_all();
        }
    }

    /// Bytes of the rows in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Acquire)
    }

    /// Whether much of the memory is used.
    pub(crate) fn is_short(&self) -> bool {
        self.bytes() > self.shared.limit_bytes / 2
    }

    /// Entries that are durable, as far as was heard, and not read yet.
    pub(crate) fn behind(&self) -> u64 {
        let parts = self.parts();
        let behind = parts
            .iter()
            .map(|part| part.end.load(Ordering::Acquire).saturating_sub(*part.position.borrow()));
        behind.sum()
    }

    /// What keeps a partition from being read, when something does.
    pub(crate) fn problem(&self) -> Option<String> {
        self.parts().iter().find_map(|part| part.held.lock().problem.clone())
    }
}

impl Unheard {
    /// What both say together.
    fn and(self, other: Self) -> Self {
        Self { since: self.since.min(other.since), before: self.before && other.before }
    }
}

impl Part {
    /// Waits until it is read up to `end`; whether that came before `until`. When there is no more
    /// memory nothing comes.
    async fn reach(&self, end: u64, until: Instant) -> bool {
        let mut position = self.position.subscribe();
        let reached = async {
            while *position.borrow_and_update() < end {
                if self.held.lock().full || position.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        timeout_at(until, reached).await.unwrap_or(false)
    }

    fn take(
        &self,
        from: u64,
        below: Option<u64>,
        end: Option<u64>,
        taken: &mut Taken,
    ) -> Option<()> {
        let below = below.unwrap_or(u64::MAX);
        let held = self.held.lock();
        if held.floor > from && below > from {
            return None;
        }
        let rows = held.between(from, below);
        match self.partition.topic {
            Topic::Events => taken.events.extend(rows),
            Topic::Bodies | Topic::Control => taken.bodies.extend(rows),
        }
        let reached = (*self.position.borrow()).max(from);
        drop(held);
        taken.reached.insert(self.partition.clone(), reached.min(below));
        let Some(end) = end else {
            let unheard = self.unheard();
            taken.unheard = Some(taken.unheard.map_or(unheard, |other| unheard.and(other)));
            return Some(());
        };
        let behind = end.saturating_sub(reached);
        match self.partition.topic {
            Topic::Events => taken.behind += behind,
            Topic::Bodies | Topic::Control => taken.bodies_behind += behind,
        }
        Some(())
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.parts().iter().for_each(|part| {
            part.freed.notify_all();
        });
    }
}
