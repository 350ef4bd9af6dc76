//! What ingest is doing, for metrics and for people who ask.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// How one partition stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionStatus {
    /// `{cluster}/{topic}@{epoch}/{partition}`.
    pub app_id: String,
    /// Everything before this offset is in the table.
    pub stored_to: u64,
    /// Everything before this offset has been read.
    pub read_to: u64,
    /// What has been counted since start.
    pub counts: Counts,
    /// Commits since start.
    pub commits: u64,
    /// When the last commit landed.
    pub committed_at: Option<SystemTime>,
    /// Why nothing moves at present, if so.
    pub problem: Option<String>,
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

/// A status that is read while it changes.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<PartitionStatus>);

impl Shared {
    pub(crate) fn new(app_id: &str) -> Self {
        let app_id = app_id.to_owned();
        Self(Mutex::new(PartitionStatus { app_id, ..PartitionStatus::default() }))
    }

    pub(crate) fn get(&self) -> PartitionStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut PartitionStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
