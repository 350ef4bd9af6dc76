//! A table's files up to a cut: those wholly below it, those across it, and none beyond.
//!
//! A cut is in offsets, which rows carry and files tell the bounds of. So it does not matter how the
//! rows lie in files: rewritten or not, the same rows are below.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use custody_journal::Topic;
use custody_lake::tags::Spans;
use custody_lake::{Bound, DataFile, Snapshot};
use custody_schemas::id::StreamId;
use datafusion::catalog::TableProvider;
use datafusion::common::DataFusionError;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};

use crate::files::scan_files;
use crate::session::store_url;
use crate::table::{PinnedTable, ScanFile};
use crate::tail::Offsets;

const PARTITION: &str = "journal_partition";
const OFFSET: &str = "journal_offset";

/// The end of each partition of one topic.
pub(crate) struct Below {
    by_app_id: BTreeMap<String, u64>,
    by_name: BTreeMap<String, u64>,
}

impl Below {
    /// The ends of a topic's partitions, whose app ids `app_id` tells.
    pub(crate) fn of(
        topic: Topic,
        ends: &Offsets,
        app_id: impl Fn(&custody_journal::Partition) -> String,
    ) -> Self {
        let of_topic = || ends.iter().filter(move |(partition, _)| partition.topic == topic);
        Self {
            by_app_id: of_topic().map(|(partition, end)| (app_id(partition), *end)).collect(),
            by_name: of_topic().map(|(partition, end)| (partition.name.clone(), *end)).collect(),
        }
    }

    fn place(&self, file: &DataFile) -> Place {
        let Some(app_id) = file.partition() else { return Place::Across };
        // Another journal's, or of an earlier epoch: that was over before.
        let Some(end) = self.by_app_id.get(app_id) else { return Place::Whole };
        let end = i64::try_from(*end).unwrap_or(i64::MAX);
        match file.ranges.get(OFFSET) {
            Some((_, Bound::Int(last))) if *last < end => Place::Whole,
            Some((Bound::Int(first), _)) if *first >= end => Place::Beyond,
            _ => Place::Across,
        }
    }

    /// Whether a row is below.
    fn holds(&self) -> Expr {
        let names = self.by_name.keys().map(|name| lit(name.as_str())).collect();
        let elsewhere = col(PARTITION).in_list(names, true);
        self.by_name.iter().fold(elsewhere, |any, (name, end)| {
            let end = lit(i64::try_from(*end).unwrap_or(i64::MAX));
            any.or(col(PARTITION).eq(lit(name.as_str())).and(col(OFFSET).lt(end)))
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Whole,
    Across,
    Beyond,
}

/// The records that tags tell of, and a table of the rows of which they do not.
pub(crate) type Records = (Vec<(StreamId, Spans)>, Option<Arc<dyn TableProvider>>);

/// The files of a snapshot up to a cut, or all of them.
pub(crate) struct Slice<'a> {
    name: &'static str,
    schema: &'a Schema,
    below: Option<&'a Below>,
    whole: Vec<ScanFile>,
    across: Vec<ScanFile>,
    /// Whole files whose tags do not tell which records they hold.
    untold: Vec<ScanFile>,
    /// The records of all other whole files.
    told: Vec<(StreamId, Spans)>,
}

impl<'a> Slice<'a> {
    pub(crate) fn of(
        name: &'static str,
        snapshot: &Snapshot,
        schema: &'a Schema,
        below: Option<&'a Below>,
    ) -> Self {
        let place = |file: &DataFile| below.map_or(Place::Whole, |below| below.place(file));
        let places: Vec<_> = snapshot.files().iter().map(|file| place(file)).collect();
        // Tags speak of a whole batch, which may lie in several files.
        let cut = snapshot.files().iter().zip(&places).filter(|(_, place)| **place != Place::Whole);
        let cut: Vec<_> = cut.filter_map(|(file, _)| file.streams()).collect();
        let mut slice = Self {
            name,
            schema,
            below,
            whole: Vec::new(),
            across: Vec::new(),
            untold: Vec::new(),
            told: Vec::new(),
        };
        let scans = scan_files(snapshot, schema);
        for ((file, place), scan) in snapshot.files().iter().zip(places).zip(scans) {
            match place {
                Place::Beyond => {}
                Place::Across => slice.across.push(scan),
                Place::Whole => {
                    match file.streams().filter(|streams| !cut.contains(streams)) {
                        Some(streams) => slice.told.extend(streams),
                        None => slice.untold.push(scan.clone()),
                    }
                    slice.whole.push(scan);
                }
            }
        }
        slice
    }

    /// The table, with the rows of the tail behind it.
    pub(crate) fn table(
        &self,
        tail: &[RecordBatch],
    ) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        self.provider(self.whole.clone(), tail)
    }

    /// The records that tags tell of, and the rows of which they do not, when there are any.
    pub(crate) fn records(self, tail: &[RecordBatch]) -> Result<Records, DataFusionError> {
        if self.untold.is_empty() && self.across.is_empty() && tail.is_empty() {
            return Ok((self.told, None));
        }
        let untold = self.provider(self.untold.clone(), tail)?;
        Ok((self.told, Some(untold)))
    }

    fn provider(
        &self,
        whole: Vec<ScanFile>,
        tail: &[RecordBatch],
    ) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let pinned = |files, tail: &[RecordBatch]| {
            PinnedTable::new(self.schema, store_url(self.name)?, files, tail).map(Arc::new)
        };
        let whole = pinned(whole, tail)?;
        let Some(below) = self.below.filter(|_| !self.across.is_empty()) else {
            return Ok(whole);
        };
        let scan = |table| LogicalPlanBuilder::scan(self.name, provider_as_source(table), None);
        let across = scan(pinned(self.across.clone(), &[])?)?.filter(below.holds())?.build()?;
        let plan = scan(whole)?.union(across)?.build()?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }
}
