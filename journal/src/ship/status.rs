//! How shipping is going: for metrics, readiness and whoever asks why nothing arrives.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use custody_schemas::id::Micros;
use parking_lot::Mutex;

use super::marks::Mark;
use crate::file::Shelves;
use crate::file::shelf::Shelf;
use crate::kafka::link::Link;

/// How shipping is going, over all spools of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShipStatus {
    /// Entries in the spools that Kafka has not acknowledged.
    pub unshipped_entries: u64,
    /// About how many bytes they have.
    pub unshipped_bytes: u64,
    /// When the oldest of them was written; none when there is none, or none was looked at yet.
    pub oldest_unshipped_at: Option<Micros>,
    /// Entries acknowledged since start, those sent again counted again.
    pub acknowledged_entries: u64,
    /// Their bytes.
    pub acknowledged_bytes: u64,
    /// How often it was begun again at the last mark.
    pub retries: u64,
    /// Entries that somebody removed from a spool before they were shipped.
    pub lost_entries: u64,
    /// Whether the last that was heard of Kafka is good; `false` before anything was.
    pub connected: bool,
    /// What is wrong at the moment, and what to do.
    pub problem: Option<String>,
}

/// What one spool's threads tell.
#[derive(Debug)]
pub(crate) struct Tally {
    main: Arc<Shelf>,
    bulk: Arc<Shelf>,
    /// Whether the spool's writer runs in this process.
    live: bool,
    pub(crate) link: Arc<Link>,
    mark: Mutex<Mark>,
    /// When the windows under way were written, oldest first.
    under_way: Mutex<VecDeque<Micros>>,
    entries: AtomicU64,
    bytes: AtomicU64,
    retries: AtomicU64,
    lost: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Tally {
    /// The tally of a spool shipped up to `mark`.
    pub(crate) fn new(spool: &Shelves, mark: Mark, live: bool) -> Self {
        Self {
            main: Arc::clone(spool.main()),
            bulk: Arc::clone(spool.bulk()),
            live,
            link: Arc::default(),
            mark: Mutex::new(mark),
            under_way: Mutex::default(),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            problem: Mutex::new(None),
        }
    }

    /// Up to where everything is acknowledged.
    pub(crate) fn mark(&self) -> Mark {
        *self.mark.lock()
    }

    /// Whether everything is.
    pub(crate) fn is_done(&self) -> bool {
        self.mark().main >= self.main.end_offset()
    }

    /// Notes that a window written at `at` is under way; the `first` of an attempt forgets those
    /// of the attempt before.
    pub(crate) fn took(&self, at: Micros, first: bool) {
        let mut under_way = self.under_way.lock();
        if first {
            under_way.clear();
        }
        under_way.push_back(at);
    }

    /// Notes that the oldest window under way is acknowledged, and everything below `mark`.
    pub(crate) fn acknowledged(&self, mark: Mark, entries: u64, bytes: u64) {
        *self.mark.lock() = mark;
        self.under_way.lock().pop_front();
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        *self.problem.lock() = None;
    }

    /// Notes that it has to be begun again, and why.
    pub(crate) fn failed(&self, problem: &str) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        *self.problem.lock() = Some(problem.to_owned());
    }

    /// Notes entries that are not there any more.
    pub(crate) fn lost(&self, entries: u64) {
        self.lost.fetch_add(entries, Ordering::Relaxed);
    }

    /// Adds itself to `status`.
    pub(crate) fn add_to(&self, status: &mut ShipStatus) {
        let mark = self.mark();
        let left = |shelf: &Shelf, from: u64| shelf.end_offset().saturating_sub(from);
        let unshipped = left(&self.main, mark.main) + left(&self.bulk, mark.bulk);
        status.unshipped_entries += unshipped;
        status.unshipped_bytes += self.main.bytes_from(mark.main) + self.bulk.bytes_from(mark.bulk);
        if unshipped > 0 {
            let oldest = self.under_way.lock().front().copied();
            status.oldest_unshipped_at = match (status.oldest_unshipped_at, oldest) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        status.acknowledged_entries += self.entries.load(Ordering::Relaxed);
        status.acknowledged_bytes += self.bytes.load(Ordering::Relaxed);
        status.retries += self.retries.load(Ordering::Relaxed);
        status.lost_entries += self.lost.load(Ordering::Relaxed);
        status.connected |= self.live && self.link.is_up();
        if status.problem.is_none() {
            // what the connection says is newer and more telling than why an attempt ended
            status.problem = self.link.problem().or_else(|| self.problem.lock().clone());
        }
    }
}
