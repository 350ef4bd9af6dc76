//! The lake's files as scans see them: what a commit says of each becomes its statistics.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use custody_lake::{Bound, DataFile, Snapshot};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};

use crate::table::{PARTITION_COLUMN, ScanFile};

/// The files of a snapshot of a table with these columns.
pub(crate) fn scan_files(snapshot: &Snapshot, schema: &Schema) -> Vec<ScanFile> {
    let in_files = schema.fields().iter().filter(|f| f.name() != PARTITION_COLUMN);
    let in_files: Vec<&Field> = in_files.map(AsRef::as_ref).collect();
    let index: HashMap<&str, usize> =
        in_files.iter().enumerate().map(|(i, field)| (field.name().as_str(), i)).collect();
    let scan = |file: &Arc<DataFile>| ScanFile {
        path: file.path.clone(),
        bytes: file.size,
        date: file.event_date,
        statistics: Arc::new(statistics(file, &in_files, &index)),
    };
    snapshot.files().iter().map(scan).collect()
}

fn statistics(file: &DataFile, columns: &[&Field], index: &HashMap<&str, usize>) -> Statistics {
    let mut all = vec![ColumnStatistics::new_unknown(); columns.len()];
    for (name, (min, max)) in &file.ranges {
        let Some(&i) = index.get(name.as_str()) else { continue };
        // A bound may be wider than the values. It is called exact because pruning looks at no
        // other; nothing else does, because the scan as a whole claims to know no bounds.
        all[i].min_value = scalar(min, columns[i]).map_or(Precision::Absent, Precision::Exact);
        all[i].max_value = scalar(max, columns[i]).map_or(Precision::Absent, Precision::Exact);
    }
    for (name, nulls) in &file.nulls {
        let Some(&i) = index.get(name.as_str()) else { continue };
        all[i].null_count = count(Some(*nulls));
    }
    Statistics {
        num_rows: count(file.rows),
        total_byte_size: Precision::Absent,
        column_statistics: all,
    }
}

fn count(n: Option<u64>) -> Precision<usize> {
    n.and_then(|n| usize::try_from(n).ok()).map_or(Precision::Absent, Precision::Exact)
}

fn scalar(bound: &Bound, column: &Field) -> Option<ScalarValue> {
    match (bound, column.data_type()) {
        (Bound::Int(n), DataType::Int64) => Some(ScalarValue::Int64(Some(*n))),
        (Bound::Moment(at), DataType::Timestamp(_, zone)) => {
            Some(ScalarValue::TimestampMicrosecond(Some(*at), zone.clone()))
        }
        (Bound::Text(text), DataType::Utf8) => Some(ScalarValue::Utf8(Some(text.clone()))),
        _ => None,
    }
}
