//! Whether the columns of a data file say what its records say, and the table's log what the file
//! does: a row that was changed beside its record, or hidden by false statistics, is found.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{concat_batches, kernels};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use custody_schemas::id::Uint;
use custody_schemas::record::decode;

use super::Verdict;
use crate::batch::Rows;
use crate::columns::{Column, Type};
use crate::rows::{Arrival, Standing};
use crate::snapshot::{Bound, DataFile};

/// The columns of one file.
pub(super) struct Stored {
    rows: RecordBatch,
}

impl Stored {
    pub(super) fn new(batches: &[RecordBatch]) -> Result<Option<Self>, ArrowError> {
        let Some(first) = batches.first() else { return Ok(None) };
        Ok(Some(Self { rows: concat_batches(&first.schema(), batches)? }))
    }

    pub(super) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    pub(super) fn text(&self, column: &str, row: usize) -> Option<&str> {
        let values = self.rows.column_by_name(column)?.as_string_opt::<i32>()?;
        values.is_valid(row).then(|| values.value(row))
    }

    pub(super) fn bytes(&self, column: &str, row: usize) -> Option<&[u8]> {
        let values = self.rows.column_by_name(column)?.as_binary_opt::<i32>()?;
        values.is_valid(row).then(|| values.value(row))
    }

    pub(super) fn int(&self, column: &str, row: usize) -> Option<u64> {
        let values = self.rows.column_by_name(column)?.as_primitive_opt::<Int64Type>()?;
        values.is_valid(row).then(|| u64::try_from(values.value(row)).ok())?
    }

    pub(super) fn moment(&self, column: &str, row: usize) -> Option<u64> {
        let values = self.rows.column_by_name(column)?;
        let values = values.as_primitive_opt::<TimestampMicrosecondType>()?;
        values.is_valid(row).then(|| u64::try_from(values.value(row)).ok())?
    }

    /// The bytes that the row's leaf commits to.
    pub(super) fn record(&self, row: usize) -> Option<&[u8]> {
        let text = self.text("record", row).map(str::as_bytes);
        text.or_else(|| self.bytes("raw", row))
    }

    /// Compares every column with what follows from the records.
    pub(super) fn compare(&self, file: &DataFile, verdict: &mut Verdict) -> Result<(), ArrowError> {
        let expected = self.expected()?;
        for (field, found) in self.rows.schema().fields().iter().zip(self.rows.columns()) {
            let Some(expected) = expected.column_by_name(field.name()) else { continue };
            if found.to_data() == expected.to_data() {
                continue;
            }
            let differs =
                |row: &usize| found.slice(*row, 1).to_data() != expected.slice(*row, 1).to_data();
            let mut rows = (0..self.len()).filter(differs);
            let Some(row) = rows.next() else { continue };
            let others = rows.count();
            let place = format!("{} row {row}", file.path);
            let problem = format!("column {} is not what its record says", field.name());
            let more =
                if others > 0 { format!(" (nor in {others} more rows)") } else { String::new() };
            verdict.find(place, problem + &more);
        }
        Ok(())
    }

    /// The rows as ingest would have made them.
    fn expected(&self) -> Result<RecordBatch, ArrowError> {
        let mut rows = Rows::events().with_room(self.len(), 0);
        for row in 0..self.len() {
            let arrival = Arrival {
                partition: self.text("journal_partition", row).unwrap_or_default(),
                offset: self.int("journal_offset", row).unwrap_or(0),
                journaled_at: Uint::new(self.moment("journaled_at", row).unwrap_or(0)),
                stored_at: self.moment("stored_at", row).map(Uint::new),
            };
            let bytes = self.record(row).unwrap_or_default();
            match self.text("entry", row) {
                Some("event") => rows.record(bytes, &decode(bytes), Standing::Event, &arrival),
                Some("conflict") => {
                    rows.record(bytes, &decode(bytes), Standing::Conflict, &arrival);
                }
                Some("checkpoint") => drop(rows.checkpoint(bytes, &arrival)),
                _ => {
                    let problem = self.text("problem", row).unwrap_or_default();
                    rows.undecodable(bytes, problem, &arrival);
                }
            }
        }
        rows.finish()
    }

    /// Compares what the table's log says of the file with its rows.
    pub(super) fn statistics(&self, columns: &[Column], file: &DataFile, verdict: &mut Verdict) {
        let place = || format!("{} in the table's log", file.path);
        if file.rows.is_some_and(|rows| rows != self.len() as u64) {
            verdict.find(place(), "the number of rows is wrong");
        }
        for column in columns.iter().filter(|column| column.stats) {
            let Some(values) = self.rows.column_by_name(column.name) else { continue };
            let nulls = file.nulls.get(column.name);
            if nulls.is_some_and(|nulls| *nulls != values.null_count() as u64) {
                verdict.find(place(), format!("the number of NULLs of {} is wrong", column.name));
            }
            let Some((low, high)) = file.ranges.get(column.name) else { continue };
            if !within(values, column.kind, low, high) {
                verdict.find(place(), format!("the bounds of {} are wrong", column.name));
            }
        }
    }
}

/// Whether every value lies between the bounds.
fn within(values: &ArrayRef, kind: Type, low: &Bound, high: &Bound) -> bool {
    use kernels::aggregate::{max, max_string, min, min_string};
    match (kind, low, high) {
        (Type::Int, Bound::Int(low), Bound::Int(high)) => {
            let values = values.as_primitive::<Int64Type>();
            min(values).is_none_or(|v| v >= *low) && max(values).is_none_or(|v| v <= *high)
        }
        (Type::Moment, Bound::Moment(low), Bound::Moment(high)) => {
            let values = values.as_primitive::<TimestampMicrosecondType>();
            min(values).is_none_or(|v| v >= *low) && max(values).is_none_or(|v| v <= *high)
        }
        (Type::Text, Bound::Text(low), Bound::Text(high)) => {
            let values = values.as_string::<i32>();
            min_string(values).is_none_or(|v| v >= low.as_str())
                && max_string(values).is_none_or(|v| v <= high.as_str())
        }
        _ => true,
    }
}
