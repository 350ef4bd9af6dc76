//! A table that follows the journal: rows and position in one atomic step, and a query that adds
//! the tail.
//!
//! The table never loses anything. If the journal ever went back behind what the table has read,
//! or held something else there, that is found here.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dice::Dice;
use super::truth::Truth;
use crate::{Entry, Journal, Partition, Topic};

/// Rows by partition.
type Rows = BTreeMap<(Topic, String), Vec<Entry>>;

/// The stored rows, and how far each partition has been read.
#[derive(Default)]
pub(crate) struct Lake {
    rows: Rows,
    next: BTreeMap<(Topic, String), u64>,
}

impl Lake {
    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// What ingest does in one turn: reads on from the table's position, commits, releases.
    /// Errors of the disk end it; the next turn begins anew.
    pub(crate) fn carry(&mut self, journal: &dyn Journal, dice: &mut Dice) {
        let Ok(partitions) = journal.partitions() else { return };
        for partition in partitions {
            let most = usize::try_from(1 + dice.below(20)).unwrap();
            let Some((entries, end)) = self.read_on(journal, &partition, most) else { continue };
            let key = (partition.topic, partition.name.clone());
            self.rows.entry(key.clone()).or_default().extend(entries);
            self.next.insert(key, end);
            if dice.chance(700) {
                drop(journal.release(&partition, end));
            }
        }
    }

    fn read_on(
        &self,
        journal: &dyn Journal,
        partition: &Partition,
        most: usize,
    ) -> Option<(Vec<Entry>, u64)> {
        let key = (partition.topic, partition.name.clone());
        let next = self.next.get(&key).copied().unwrap_or(0);
        let mut reader = match journal.reader(partition, next) {
            Ok(reader) => reader,
            Err(error) => {
                passing(&error);
                return None;
            }
        };
        match reader.read(most, usize::MAX, Duration::ZERO) {
            Ok(entries) => Some((entries, reader.position())),
            Err(error) => {
                passing(&error);
                None
            }
        }
    }

    /// What a query answers: the table and the tail behind its position. `None` when the disk
    /// does not let it.
    pub(crate) fn query(&self, journal: &dyn Journal) -> Option<Rows> {
        let mut all = Self { rows: self.rows.clone(), next: self.next.clone() };
        for partition in journal.partitions().ok()? {
            let key = (partition.topic, partition.name.clone());
            let mut before = None;
            while before != all.next.get(&key).copied() || before.is_none() {
                before = all.next.get(&key).copied();
                let (tail, end) = all.read_on(journal, &partition, usize::MAX)?;
                all.rows.entry(key.clone()).or_default().extend(tail);
                all.next.insert(key.clone(), end);
            }
        }
        Some(all.rows)
    }

    /// Everything that there is has been stored.
    pub(crate) fn settle(&mut self, rows: Rows) {
        self.rows = rows;
    }

    /// Checks what a query answers now against what everybody was told.
    pub(crate) fn ask(&self, journal: &dyn Journal, truth: &Truth) {
        if let Some(rows) = self.query(journal) {
            truth.agrees(&rows);
        }
    }
}

/// Whether an error may come of a failing disk; a journal that lost or changed entries may not.
fn passing(error: &crate::ReadError) {
    assert!(matches!(error, crate::ReadError::Io { .. }), "the journal is damaged: {error}");
}
