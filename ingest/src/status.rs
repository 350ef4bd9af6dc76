//! What ingest is doing, for metrics and for people who ask.
//!
//! Lags are told in entries and in seconds, against the table (what only the tail holds) and
//! against the reader (what nobody has looked at yet). They are never guessed: where the journal's
//! end is not known, there is no number.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use custody_journal::Partition;
use custody_schemas::id::Micros;

/// How one partition stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: Partition,
    /// `{cluster}/{topic}@{epoch}/{partition}`.
    pub app_id: String,
    /// Whether this worker carries it at present. What follows is only current if so.
    pub assigned: bool,
    /// Everything before this offset is in the table.
    pub stored_to: u64,
    /// Everything before this offset has been read.
    pub read_to: u64,
    /// Where the journal ended when it was last asked.
    pub end: Option<u64>,
    /// Age of the oldest entry that has been read and is not in the table, or of the newest one
    /// that has been read when more are waiting; none when neither is known.
    pub waiting: Option<Duration>,
    /// What has been counted since start.
    pub counts: Counts,
    /// How long commits took that landed, their files' way to the store included.
    pub commits: Durations,
    /// When the last commit landed.
    pub committed_at: Option<SystemTime>,
    /// How often a batch was dropped because somebody else had moved the partition on.
    pub fenced: u64,
    /// How often the store or the table was tried again.
    pub retries: u64,
    /// Why nothing moves at present, if so.
    pub problem: Option<String>,
}

impl PartitionStatus {
    /// How many offsets lie between the table and the journal's end.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        self.end.map(|end| end.saturating_sub(self.stored_to))
    }

    /// How many offsets nobody has read yet.
    #[must_use]
    pub fn unread(&self) -> Option<u64> {
        self.end.map(|end| end.saturating_sub(self.read_to))
    }
}

/// Numbers of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows stored, of any kind.
    pub rows: u64,
    /// Records resent and dropped.
    pub duplicates: u64,
    /// Records stored as conflicts: their identity was taken by a different one.
    pub conflicts: u64,
    /// Entries stored as bytes that nobody could read.
    pub undecodable: u64,
}

impl Counts {
    /// Adds other numbers to these.
    pub(crate) fn add(&mut self, more: Self) {
        self.rows += more.rows;
        self.duplicates += more.duplicates;
        self.conflicts += more.conflicts;
        self.undecodable += more.undecodable;
    }
}

/// Upper bounds in seconds of the classes of [`Durations`]; a last class has none.
pub const DURATION_BOUNDS: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many fell into each class, not cumulated.
    pub classes: [u64; DURATION_BOUNDS.len() + 1],
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl Durations {
    pub(crate) fn observe(&mut self, took: Duration) {
        let class = DURATION_BOUNDS.partition_point(|bound| *bound < took.as_secs_f64());
        self.classes[class] += 1;
        self.count += 1;
        self.sum += took;
    }
}

/// A status that is read while it changes.
#[derive(Debug)]
pub(crate) struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    status: PartitionStatus,
    /// Why the journal cannot be read at present.
    reading: Option<String>,
    /// Why nothing can be stored at present.
    storing: Option<String>,
    /// What is on its way to the table: where each run of entries ends, and when its first entry
    /// was journaled.
    under_way: VecDeque<(u64, Micros)>,
    /// When the newest entry was journaled that has been read.
    newest: Option<Micros>,
}

impl State {
    fn waiting(&self) -> Option<Duration> {
        let behind = self.status.lag().is_some_and(|lag| lag > 0);
        let oldest = self.under_way.front().map(|(_, at)| *at);
        let since = oldest.or(if behind { self.newest } else { None })?;
        let since = UNIX_EPOCH + Duration::from_micros(since.get());
        Some(SystemTime::now().duration_since(since).unwrap_or_default())
    }
}

impl Shared {
    pub(crate) fn new(app_id: &str, partition: &Partition) -> Self {
        let status = PartitionStatus {
            partition: partition.clone(),
            app_id: app_id.to_owned(),
            assigned: false,
            stored_to: 0,
            read_to: 0,
            end: None,
            waiting: None,
            counts: Counts::default(),
            commits: Durations::default(),
            committed_at: None,
            fenced: 0,
            retries: 0,
            problem: None,
        };
        let (reading, storing, newest) = (None, None, None);
        let under_way = VecDeque::new();
        Self(Mutex::new(State { status, reading, storing, under_way, newest }))
    }

    pub(crate) fn get(&self) -> PartitionStatus {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = state.reading.as_ref().or(state.storing.as_ref()).cloned();
        PartitionStatus { problem, waiting: state.waiting(), ..state.status.clone() }
    }

    fn state(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut PartitionStatus)) {
        self.state(|state| change(&mut state.status));
    }

    /// The partition goes on at `start`; nothing is on its way any more.
    pub(crate) fn assigned_at(&self, start: u64) {
        self.state(|state| {
            (state.status.stored_to, state.status.read_to) = (start, start);
            (state.reading, state.storing) = (None, None);
            state.newest = None;
            state.under_way.clear();
        });
    }

    pub(crate) fn reading(&self, problem: Option<String>) {
        self.state(|state| state.reading = problem);
    }

    pub(crate) fn storing(&self, problem: Option<String>) {
        self.state(|state| state.storing = problem);
    }

    /// Entries up to `read_to` are on their way, journaled between these moments.
    pub(crate) fn read(&self, read_to: u64, first: Option<Micros>, last: Option<Micros>) {
        self.state(|state| {
            state.status.read_to = read_to;
            state.under_way.extend(first.map(|at| (read_to, at)));
            state.newest = last.or(state.newest);
        });
    }

    /// A commit has landed that took the table to `end`.
    pub(crate) fn committed(&self, end: u64, counts: Counts, took: Duration) {
        self.state(|state| {
            let status = &mut state.status;
            status.stored_to = end;
            status.counts.add(counts);
            status.commits.observe(took);
            status.committed_at = Some(SystemTime::now());
            while state.under_way.front().is_some_and(|(to, _)| *to <= end) {
                state.under_way.pop_front();
            }
        });
    }
}
