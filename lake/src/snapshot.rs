//! A table at one version: what a query reads, and what a commit is checked against.
//!
//! A snapshot never changes. It names the table's files with their days, their statistics and our
//! tags, and answers how far each journal partition is stored at exactly this version. Looking
//! that up replays the log, a request for each version since its last checkpoint, so it is done
//! once for a partition: the next snapshot begins with what this one knew and reads only the
//! versions between the two.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate};
use deltalake_core::kernel::EagerSnapshot;
use deltalake_core::logstore::LogStoreRef;
use deltalake_core::{DeltaTableError, kernel::LogicalFileView};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::columns::{Column, EVENT_DATE, Type};

/// A bound of a column in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd)]
pub enum Bound {
    /// Of a number.
    Int(i64),
    /// Of a moment, in microseconds; at most a millisecond wider than the values.
    Moment(i64),
    /// Of a text.
    Text(String),
}

/// One file of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFile {
    /// Where it lies, from the table's folder.
    pub path: Path,
    /// Its length in bytes.
    pub size: u64,
    /// Its rows, when its statistics say.
    pub rows: Option<u64>,
    /// Its day, in days since 1970.
    pub event_date: Option<i32>,
    /// Smallest and largest value of the columns that have statistics and a value in this file.
    pub ranges: BTreeMap<String, (Bound, Bound)>,
    /// How many rows have no value, for columns with statistics.
    pub nulls: BTreeMap<String, u64>,
    /// What our writers say of it, see [`tags`](crate::tags).
    pub tags: BTreeMap<String, String>,
}

/// Positions by app id, as far as somebody has asked: `None` where nothing is stored.
pub(crate) type Positions = HashMap<String, Option<u64>>;

/// How many versions between two snapshots are read rather than the log replayed.
const VERSIONS_READ: u64 = 64;
/// How many of them at once.
const READ_AT_ONCE: usize = 8;
/// How long that may take; the log is replayed then.
const READ_FOR: Duration = Duration::from_secs(10);

/// A table at one version.
pub struct Snapshot {
    pub(crate) state: EagerSnapshot,
    log_store: LogStoreRef,
    schema: SchemaRef,
    files: Vec<Arc<DataFile>>,
    txns: Mutex<Positions>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("version", &self.version())
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

impl Snapshot {
    /// `before`, when given, lends what it already knows of files that are still there.
    pub(crate) fn new(
        state: EagerSnapshot,
        log_store: LogStoreRef,
        schema: SchemaRef,
        columns: &[Column],
        before: Option<&Self>,
        positions: Positions,
    ) -> Result<Self, DeltaTableError> {
        let known: HashMap<&str, &Arc<DataFile>> =
            before.iter().flat_map(|s| &s.files).map(|file| (file.path.as_ref(), file)).collect();
        let log = state.try_log_data()?;
        let files = log.iter().map(|view| {
            let path = view.object_store_path();
            known.get(path.as_ref()).map_or_else(
                || Arc::new(data_file(&view, path.clone(), columns)),
                |file| Arc::clone(file),
            )
        });
        let mut files: Vec<_> = files.collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { state, log_store, schema, files, txns: Mutex::new(positions) })
    }

    /// The table's version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.state.version()
    }

    /// The table's columns, `event_date` included; files do not have that one.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The files at this version, ordered by path.
    #[must_use]
    pub fn files(&self) -> &[Arc<DataFile>] {
        &self.files
    }

    /// The store in which the files' paths are names.
    #[must_use]
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.log_store.object_store(None)
    }

    /// The offset up to which the partition with this app id is stored at this version; `None`
    /// when nothing of it is.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn txn(&self, app_id: &str) -> Result<Option<u64>, DeltaTableError> {
        let mut txns = self.txns.lock().await;
        if let Some(known) = txns.get(app_id) {
            return Ok(*known);
        }
        let found = self.state.transaction_version(&self.log_store, app_id).await?;
        let found = found.map(|version| u64::try_from(version).unwrap_or(0));
        txns.insert(app_id.to_owned(), found);
        Ok(found)
    }

    /// The positions known here, as they stand at a later `version`; none when that is not known.
    pub(crate) async fn positions_at(&self, version: u64) -> Positions {
        let known = self.txns.lock().await.clone();
        let between = self.version() + 1..version.saturating_add(1);
        if known.is_empty() || version.saturating_sub(self.version()) > VERSIONS_READ {
            return Positions::new();
        }
        let commits = futures::stream::iter(between)
            .map(|version| self.log_store.read_commit_entry(version))
            .buffered(READ_AT_ONCE)
            .try_fold(Some(known), async |known, commit| {
                Ok(known.zip(commit).map(|(known, commit)| advanced(known, &commit)))
            });
        match tokio::time::timeout(READ_FOR, commits).await {
            Ok(Ok(Some(positions))) => positions,
            Ok(Ok(None) | Err(_)) | Err(_) => Positions::new(),
        }
    }

    #[cfg(test)]
    pub(crate) async fn known_positions(&self) -> Positions {
        self.txns.lock().await.clone()
    }
}

/// The positions after a commit with this content.
fn advanced(mut positions: Positions, commit: &[u8]) -> Positions {
    #[derive(Deserialize)]
    struct Action {
        txn: Option<Txn>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Txn {
        app_id: String,
        version: i64,
    }
    for line in commit.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice::<Action>(line) {
            Ok(Action { txn: Some(txn) }) => {
                let version = u64::try_from(txn.version).unwrap_or(0);
                positions.insert(txn.app_id, Some(version));
            }
            Ok(Action { txn: None }) => {}
            // Whoever asks next finds out what is wrong with it.
            Err(_) => return Positions::new(),
        }
    }
    positions
}

fn data_file(view: &LogicalFileView, path: Path, columns: &[Column]) -> DataFile {
    let stats: Value =
        view.stats().and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    let mut ranges = BTreeMap::new();
    let mut nulls = BTreeMap::new();
    for column in columns.iter().filter(|c| c.stats) {
        let of = |group: &str| stats.get(group).and_then(|values| values.get(column.name));
        let bounds = (of("minValues"), of("maxValues"));
        if let (Some(min), Some(max)) = bounds
            && let (Some(min), Some(max)) = (bound(column.kind, min), bound(column.kind, max))
        {
            ranges.insert(column.name.to_owned(), (min, max));
        }
        if let Some(count) = of("nullCount").and_then(Value::as_u64) {
            nulls.insert(column.name.to_owned(), count);
        }
    }
    let day = view.partition_values_map().remove(EVENT_DATE).flatten();
    DataFile {
        path,
        size: u64::try_from(view.size()).unwrap_or(0),
        rows: stats.get("numRecords").and_then(Value::as_u64),
        event_date: day.as_deref().and_then(days),
        ranges,
        nulls,
        tags: tags(view),
    }
}

/// The tags of the file's add action.
fn tags(view: &LogicalFileView) -> BTreeMap<String, String> {
    #[expect(deprecated, reason = "the only public way to a file's tags in this version")]
    let tags = view.add_action().tags;
    tags.unwrap_or_default().into_iter().filter_map(|(k, v)| v.map(|v| (k, v))).collect()
}

/// `YYYY-MM-DD` in days since 1970.
fn days(text: &str) -> Option<i32> {
    let date: NaiveDate = text.parse().ok()?;
    i32::try_from(date.signed_duration_since(NaiveDate::default()).num_days()).ok()
}

fn bound(kind: Type, value: &Value) -> Option<Bound> {
    match kind {
        Type::Int => value.as_i64().map(Bound::Int),
        Type::Text => value.as_str().map(|text| Bound::Text(text.to_owned())),
        Type::Moment => {
            let at = DateTime::parse_from_rfc3339(value.as_str()?).ok()?;
            Some(Bound::Moment(at.timestamp_micros()))
        }
        Type::Date | Type::Flag | Type::Bytes | Type::Texts | Type::Subjects => None,
    }
}
