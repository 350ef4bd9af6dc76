//! Rows in memory: a few batches in the order of their offsets.

use std::collections::VecDeque;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;

/// Neighbouring batches are joined until they have this many rows.
const JOIN_ROWS: usize = 4096;

/// One batch.
pub(super) struct Kept {
    rows: RecordBatch,
    pub(super) last: u64,
    pub(super) bytes: usize,
}

/// The rows of one partition.
pub(super) struct Held {
    batches: VecDeque<Kept>,
    /// Every row at or above it that has been read is here.
    pub(super) floor: u64,
    pub(super) full: bool,
    pub(super) problem: Option<String>,
}

/// How many bytes came and went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub(super) more: usize,
    pub(super) less: usize,
}

impl Held {
    pub(super) const fn from(floor: u64) -> Self {
        Self { batches: VecDeque::new(), floor, full: false, problem: None }
    }

    /// The rows with an offset from `from` on and below `below`.
    pub(super) fn between(
        &self,
        from: u64,
        below: u64,
    ) -> impl Iterator<Item = RecordBatch> + use<'_> {
        self.batches.iter().filter_map(move |kept| kept.between(from, below))
    }

    /// Keeps a batch, unless the lake is known to hold all of it.
    pub(super) fn push(&mut self, kept: Kept) -> Change {
        let mut change = Change::default();
        if kept.last < self.floor {
            return change;
        }
        change.more += kept.bytes;
        self.batches.push_back(kept);
        while let Some(joined) = self.last_two_joined() {
            for _ in 0..2 {
                change.less += self.batches.pop_back().map_or(0, |kept| kept.bytes);
            }
            change.more += joined.bytes;
            self.batches.push_back(joined);
        }
        change
    }

    /// Drops the batches below `floor`.
    pub(super) fn trim(&mut self, floor: u64) -> Change {
        self.floor = self.floor.max(floor);
        let mut change = Change::default();
        while self.batches.front().is_some_and(|kept| kept.last < floor) {
            change.less += self.batches.pop_front().map_or(0, |kept| kept.bytes);
        }
        change
    }

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
        Some(Kept::new(rows, last.last))
    }
}

impl Kept {
    pub(super) fn new(rows: RecordBatch, last: u64) -> Self {
        let bytes = rows.get_array_memory_size();
        Self { rows, last, bytes }
    }

    /// Offsets ascend.
    fn between(&self, from: u64, below: u64) -> Option<RecordBatch> {
        if self.last < from {
            return None;
        }
        let offsets = self.rows.column_by_name("journal_offset")?;
        let offsets = offsets.as_primitive_opt::<Int64Type>()?.values();
        let place = |offset: u64| {
            let offset = i64::try_from(offset).unwrap_or(i64::MAX);
            offsets.partition_point(|at| *at < offset)
        };
        let (first, after) = (place(from), place(below));
        (after > first).then(|| self.rows.slice(first, after - first))
    }
}
