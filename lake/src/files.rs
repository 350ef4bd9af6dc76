//! Parquet files: what a batch becomes before it is committed.
//!
//! One [`FileSet`] holds the open files of one batch, one per `event_date`. Rows are encoded as
//! they come, so that a batch takes about as much memory as its files have bytes. How a column
//! lies in a file follows from its [`Layout`]; the statistics that a commit carries are those of
//! the finished file itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Date32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use chrono::{DateTime, Days, NaiveDate, SecondsFormat};
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use crate::columns::{Column, EVENT_DATE, Layout, Type};

/// Rows of one row group at most; a file from ingest has one.
const ROW_GROUP_ROWS: usize = 256 * 1024;
/// Bytes of one page before compression: large, because records resemble each other.
const PAGE_BYTES: usize = 1024 * 1024;
/// Statistics hold texts up to this length; longer ones as bounds.
const STATS_TEXT_BYTES: usize = 128;
/// Share of Bloom filter look-ups that may be wrong.
const BLOOM_WRONG: f64 = 0.01;
/// Distinct values that a Bloom filter begins with; it is folded down when the file has fewer.
const BLOOM_VALUES: u64 = 128 * 1024;

/// Rows cannot become a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The columns are not those of the table.
    #[error("a batch does not fit its table: {0}")]
    Arrow(#[from] ArrowError),
    /// The encoder failed.
    #[error("a Parquet file cannot be encoded: {0}")]
    Parquet(#[from] ParquetError),
}

/// A finished file that is not yet stored.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its content.
    pub bytes: Bytes,
    /// What a commit will say of it.
    pub file: NewFile,
}

/// A file that a commit may add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Where it lies, from the table's folder.
    pub path: Path,
    /// Its length in bytes.
    pub size: u64,
    /// Its rows.
    pub rows: u64,
    /// Its day, `YYYY-MM-DD`.
    pub event_date: String,
    /// Delta's statistics, as JSON.
    pub stats: String,
    /// What we say of it beside that, see [`tags`](crate::tags).
    pub tags: BTreeMap<String, String>,
}

/// The open files of one batch.
pub struct FileSet {
    columns: &'static [Column],
    schema: SchemaRef,
    properties: WriterProperties,
    open: BTreeMap<i32, ArrowWriter<Vec<u8>>>,
    rows: u64,
}

impl std::fmt::Debug for FileSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSet").field("rows", &self.rows).field("size", &self.size()).finish()
    }
}

impl FileSet {
    /// No files yet, for the table with these columns.
    #[must_use]
    pub fn new(columns: &'static [Column]) -> Self {
        let fields = columns.iter().filter(|c| c.name != EVENT_DATE);
        let fields: Vec<_> =
            fields.map(|c| arrow::datatypes::Field::new(c.name, c.kind.arrow(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let properties = properties(columns);
        Self { columns, schema, properties, open: BTreeMap::new(), rows: 0 }
    }

    /// Rows appended since the last [`finish`](Self::finish).
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// About how many bytes the files will have.
    #[must_use]
    pub fn size(&self) -> usize {
        self.open.values().map(|w| w.bytes_written() + w.in_progress_size()).sum()
    }

    /// Encodes a batch with the table's whole schema, each row into the file of its day.
    ///
    /// # Errors
    /// [`FileError`]; the set is then of no more use.
    pub fn append(&mut self, batch: &RecordBatch) -> Result<(), FileError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let index = batch.schema().index_of(EVENT_DATE)?;
        let days = batch.column(index).as_primitive::<Date32Type>().clone();
        let mut rest = batch.clone();
        rest.remove_column(index);
        let mut distinct: Vec<i32> = days.values().to_vec();
        distinct.dedup();
        distinct.sort_unstable();
        distinct.dedup();
        for day in &distinct {
            if distinct.len() == 1 {
                self.write(*day, &rest)?;
            } else {
                let here: BooleanArray = days.iter().map(|d| Some(d == Some(*day))).collect();
                self.write(*day, &filter_record_batch(&rest, &here)?)?;
            }
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn write(&mut self, day: i32, batch: &RecordBatch) -> Result<(), FileError> {
        if !self.open.contains_key(&day) {
            let options = ArrowWriterOptions::new()
                .with_properties(self.properties.clone())
                .with_skip_arrow_metadata(true);
            let schema = Arc::clone(&self.schema);
            self.open.insert(day, ArrowWriter::try_new_with_options(Vec::new(), schema, options)?);
        }
        if let Some(writer) = self.open.get_mut(&day) {
            writer.write(batch)?;
        }
        Ok(())
    }

    /// Finishes every open file; `name` becomes part of each name.
    ///
    /// # Errors
    /// [`FileError`]; the rows are then not in any file.
    pub fn finish(
        &mut self,
        name: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<Vec<Encoded>, FileError> {
        self.rows = 0;
        std::mem::take(&mut self.open)
            .into_iter()
            .map(|(day, writer)| self.close(day, writer, name, tags))
            .collect()
    }

    fn close(
        &self,
        day: i32,
        mut writer: ArrowWriter<Vec<u8>>,
        name: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<Encoded, FileError> {
        let metadata = writer.finish()?;
        let bytes = Bytes::from(std::mem::take(writer.inner_mut()));
        let event_date = date_text(day);
        let file_name = format!("{name}-{}.zstd.parquet", uuid::Uuid::new_v4().simple());
        let path = Path::from_iter([format!("{EVENT_DATE}={event_date}"), file_name]);
        let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0);
        let stats = stats(self.columns, &metadata, rows);
        let size = bytes.len() as u64;
        let file = NewFile { path, size, rows, event_date, stats, tags: tags.clone() };
        Ok(Encoded { bytes, file })
    }
}

/// A day, `YYYY-MM-DD`.
#[must_use]
pub fn date_text(day: i32) -> String {
    let days = Days::new(u64::try_from(day).unwrap_or(0));
    NaiveDate::default().checked_add_days(days).unwrap_or(NaiveDate::MAX).to_string()
}

fn properties(columns: &[Column]) -> WriterProperties {
    let zstd = ZstdLevel::try_new(3).unwrap_or_default();
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(zstd))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_statistics_truncate_length(Some(STATS_TEXT_BYTES))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_size_limit(PAGE_BYTES)
        .set_created_by(concat!("custody ", env!("CARGO_PKG_VERSION")).to_owned());
    for column in columns {
        if column.kind == Type::Subjects {
            builder = subjects(builder, column.name);
        } else {
            builder = layout(builder, leaf(column), column);
        }
    }
    // Records resemble each other so much that the quickest level makes the smaller files.
    let quick = ZstdLevel::try_new(1).unwrap_or_default();
    builder.set_column_compression(ColumnPath::from("record"), Compression::ZSTD(quick)).build()
}

/// The path of a column's values in a Parquet schema.
fn leaf(column: &Column) -> ColumnPath {
    let mut parts = vec![column.name.to_owned()];
    if column.kind == Type::Texts {
        parts.extend(["list".to_owned(), "element".to_owned()]);
    }
    ColumnPath::new(parts)
}

fn layout(
    mut builder: WriterPropertiesBuilder,
    path: ColumnPath,
    column: &Column,
) -> WriterPropertiesBuilder {
    let bloom = matches!(column.layout, Layout::Sought | Layout::Unique);
    let dictionary = matches!(column.layout, Layout::Words | Layout::Sought);
    if bloom {
        builder = builder
            .set_column_bloom_filter_enabled(path.clone(), true)
            .set_column_bloom_filter_fpp(path.clone(), BLOOM_WRONG)
            .set_column_bloom_filter_max_ndv(path.clone(), BLOOM_VALUES);
    }
    if column.stats {
        builder = builder.set_column_statistics_enabled(path.clone(), EnabledStatistics::Page);
    }
    let encoding = match (column.kind, column.layout) {
        (Type::Text | Type::Bytes, Layout::Unique | Layout::Plain) => {
            Some(Encoding::DELTA_LENGTH_BYTE_ARRAY)
        }
        (Type::Int | Type::Moment, Layout::Rising | Layout::Plain) => {
            Some(Encoding::DELTA_BINARY_PACKED)
        }
        _ => None,
    };
    if let Some(encoding) = encoding {
        builder = builder.set_column_encoding(path.clone(), encoding);
    }
    builder.set_column_dictionary_enabled(path, dictionary)
}

/// People look for the ids of data subjects.
fn subjects(builder: WriterPropertiesBuilder, name: &str) -> WriterPropertiesBuilder {
    let parts = [name, "list", "element", "id"].map(str::to_owned).to_vec();
    let id = ColumnPath::new(parts);
    builder
        .set_column_bloom_filter_enabled(id.clone(), true)
        .set_column_bloom_filter_fpp(id.clone(), BLOOM_WRONG)
        .set_column_bloom_filter_max_ndv(id, BLOOM_VALUES)
}

/// Delta's statistics of a finished file.
fn stats(columns: &[Column], metadata: &ParquetMetaData, rows: u64) -> String {
    let (mut min, mut max, mut nulls) = (Map::new(), Map::new(), Map::new());
    for column in columns.iter().filter(|c| c.stats) {
        let Some(bounds) = Bounds::of(column, metadata) else { continue };
        nulls.insert(column.name.to_owned(), json!(bounds.nulls));
        if let Some((low, high)) = bounds.range {
            min.insert(column.name.to_owned(), low);
            max.insert(column.name.to_owned(), high);
        }
    }
    json!({ "numRecords": rows, "minValues": min, "maxValues": max, "nullCount": nulls })
        .to_string()
}

/// Bounds of one column in one file.
struct Bounds {
    nulls: u64,
    range: Option<(Value, Value)>,
}

impl Bounds {
    /// `None` when a row group does not say.
    fn of(column: &Column, metadata: &ParquetMetaData) -> Option<Self> {
        let mut all = Self { nulls: 0, range: None };
        for group in metadata.row_groups() {
            let chunk = group.columns().iter().find(|c| *c.column_path() == leaf(column))?;
            let statistics = chunk.statistics()?;
            all.nulls += statistics.null_count_opt()?;
            let range = range(column.kind, statistics);
            all.range = match (all.range, range) {
                (Some((a, b)), Some((c, d))) => Some((smaller(a, c), larger(b, d))),
                (one, other) => one.or(other),
            };
        }
        Some(all)
    }
}

fn range(kind: Type, statistics: &Statistics) -> Option<(Value, Value)> {
    match (kind, statistics) {
        (Type::Text, Statistics::ByteArray(s)) => {
            let text = |b: &[u8]| std::str::from_utf8(b).ok().map(|t| json!(t));
            Some((text(s.min_opt()?.data())?, text(s.max_opt()?.data())?))
        }
        (Type::Int, Statistics::Int64(s)) => Some((json!(s.min_opt()?), json!(s.max_opt()?))),
        (Type::Moment, Statistics::Int64(s)) => {
            let (low, high) = (*s.min_opt()?, *s.max_opt()?);
            // Readers of Delta statistics know milliseconds: round outwards.
            Some((moment(low.div_euclid(1000))?, moment(-((-high).div_euclid(1000)))?))
        }
        _ => None,
    }
}

fn moment(ms: i64) -> Option<Value> {
    DateTime::from_timestamp_millis(ms)
        .map(|t| json!(t.to_rfc3339_opts(SecondsFormat::Millis, true)))
}

fn smaller(a: Value, b: Value) -> Value {
    if less(&b, &a) { b } else { a }
}

fn larger(a: Value, b: Value) -> Value {
    if less(&a, &b) { b } else { a }
}

fn less(a: &Value, b: &Value) -> bool {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a < b,
        _ => a.as_str() < b.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Rows;
    use crate::columns::{BODIES, EVENTS};
    use crate::rows::Arrival;
    use custody_schemas::id::Uint;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn rows(count: u64, day: u64) -> Rows {
        let mut rows = Rows::events();
        for offset in 0..count {
            let journaled_at = Uint::new(day * 86_400_000_000 + offset * 1_500);
            let arrival = Arrival { partition: "p", offset, journaled_at, stored_at: None };
            rows.undecodable(b"?", "no", &arrival);
        }
        rows
    }

    #[test]
    fn rows_of_two_days_become_two_files_with_their_own_statistics() {
        let mut set = FileSet::new(EVENTS);
        set.append(&rows(3, 20_000).finish().unwrap()).unwrap();
        let mut both = rows(2, 20_000);
        let later = Uint::new(20_001 * 86_400_000_000);
        both.undecodable(
            b"!",
            "no",
            &Arrival { partition: "p", offset: 9, journaled_at: later, stored_at: None },
        );
        set.append(&both.finish().unwrap()).unwrap();
        assert_eq!(set.rows(), 6);
        let files = set.finish("n", &BTreeMap::new()).unwrap();
        let told: Vec<_> =
            files.iter().map(|f| (f.file.event_date.as_str(), f.file.rows)).collect();
        assert_eq!(told, [("2024-10-04", 5), ("2024-10-05", 1)]);
        assert!(files[0].file.path.as_ref().starts_with("event_date=2024-10-04/n-"));
        let stats: Value = serde_json::from_str(&files[1].file.stats).unwrap();
        assert_eq!(stats["numRecords"], 1);
        assert_eq!(stats["minValues"]["journal_offset"], 9);
        assert_eq!(stats["maxValues"]["entry"], "undecodable");
        assert_eq!(stats["nullCount"]["stream"], 1);
        let read = ParquetRecordBatchReaderBuilder::try_new(files[0].bytes.clone()).unwrap();
        assert_eq!(read.build().unwrap().map(|b| b.unwrap().num_rows()).sum::<usize>(), 5);
    }

    #[test]
    fn moments_in_statistics_are_rounded_outwards() {
        let mut set = FileSet::new(BODIES);
        let mut rows = Rows::bodies();
        for (offset, us) in [(0, 1_001), (1, 2_001)] {
            let arrival =
                Arrival { partition: "p", offset, journaled_at: Uint::new(us), stored_at: None };
            rows.chunk(b"", b"x", &arrival);
        }
        set.append(&rows.finish().unwrap()).unwrap();
        let files = set.finish("n", &BTreeMap::new()).unwrap();
        let stats: Value = serde_json::from_str(&files[0].file.stats).unwrap();
        assert_eq!(stats["minValues"]["journaled_at"], "1970-01-01T00:00:00.001Z");
        assert_eq!(stats["maxValues"]["journaled_at"], "1970-01-01T00:00:00.003Z");
    }

    #[test]
    fn a_column_that_people_look_for_has_a_bloom_filter_and_a_small_file_a_small_one() {
        let mut set = FileSet::new(EVENTS);
        set.append(&rows(10, 20_000).finish().unwrap()).unwrap();
        let files = set.finish("n", &BTreeMap::new()).unwrap();
        let read = ParquetRecordBatchReaderBuilder::try_new(files[0].bytes.clone()).unwrap();
        let group = read.metadata().row_group(0).clone();
        let filtered: Vec<_> =
            group.columns().iter().filter(|c| c.bloom_filter_offset().is_some()).collect();
        let names: Vec<_> = filtered.iter().map(|c| c.column_path().string()).collect();
        assert_eq!(names, ["call", "user_subject", "agent_id", "subjects.list.element.id"]);
        assert!(files[0].bytes.len() < 32 * 1024, "{} bytes", files[0].bytes.len());
    }
}
