//! What the files of `events` hold, read back for sealing: the leaf of each stored record and the
//! bytes of each checkpoint's message.
//!
//! A leaf is computed from what is stored: the hash of the record's bytes, and the facts beside it
//! from their columns. Whatever was changed in one of them is another leaf than the signed one.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use custody_schemas::id::{StreamId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, decode, hash};
use custody_schemas::seal::Leaf;
use object_store::ObjectStoreExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

use crate::identities::ReadBackError;
use crate::snapshot::{DataFile, Snapshot};

/// The columns that are read.
const COLUMNS: [&str; 9] =
    ["entry", "stream", "seq", "at", "kind", "flags", "record", "raw", "journal_offset"];

/// Those of them that hold records.
const RECORDS: [&str; 5] = ["stream", "seq", "kind", "record", "raw"];

/// One stored row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// Its offset in the journal.
    pub offset: u64,
    /// What it is.
    pub entry: StoredEntry,
}

/// What a stored row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredEntry {
    /// A record with an identity.
    Record {
        /// Its stream.
        stream: StreamId,
        /// Its index there.
        seq: u64,
        /// The leaf that it makes.
        leaf: Leaf,
        /// Whether another record was stored under its identity before.
        conflict: bool,
    },
    /// The message of a checkpoint.
    Checkpoint(Vec<u8>),
    /// Anything else.
    Other,
}

/// A stored record, whatever is said of it.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// The stream that its column names.
    pub stream: &'a str,
    /// The index that its column names.
    pub seq: u64,
    /// The kind that its column names.
    pub kind: &'a str,
    /// The record.
    pub bytes: &'a [u8],
}

impl Stored<'_> {
    /// Its identity by its columns.
    #[must_use]
    pub fn identity(&self) -> Option<(StreamId, u64)> {
        Some((self.stream.parse().ok()?, self.seq))
    }
}

impl Snapshot {
    /// Shows every record with an identity in one of the files of `events`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn records_back(
        &self,
        file: &DataFile,
        mut show: impl FnMut(Stored<'_>),
    ) -> Result<(), ReadBackError> {
        let wrong = |source| ReadBackError::new(&file.path, source);
        let bytes = async { self.store().get(&file.path).await?.bytes().await }.await;
        let bytes = bytes.map_err(|e| wrong(ParquetError::External(Box::new(e))))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(wrong)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), RECORDS);
        for batch in builder.with_projection(mask).build().map_err(wrong)? {
            records(&batch.map_err(|e| wrong(e.into()))?, &mut show);
        }
        Ok(())
    }

    /// The rows of one of the files of `events`, in their order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn rows_back(&self, file: &DataFile) -> Result<Vec<StoredRow>, ReadBackError> {
        let wrong = |source| ReadBackError::new(&file.path, source);
        let bytes = async { self.store().get(&file.path).await?.bytes().await }.await;
        let bytes = bytes.map_err(|e| wrong(ParquetError::External(Box::new(e))))?;
        let read = tokio::task::spawn_blocking(move || read(bytes)).await;
        read.map_err(|e| wrong(ParquetError::External(Box::new(e))))?.map_err(wrong)
    }
}

fn records(batch: &RecordBatch, show: &mut impl FnMut(Stored<'_>)) {
    let text = |name: &str| batch.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
    let raw = batch.column_by_name("raw").and_then(|c| c.as_binary_opt::<i32>());
    let seq = batch.column_by_name("seq").and_then(|c| c.as_primitive_opt::<Int64Type>());
    let (Some(stream), Some(kind), Some(record), Some(raw), Some(seq)) =
        (text("stream"), text("kind"), text("record"), raw, seq)
    else {
        return;
    };
    for row in (0..batch.num_rows()).filter(|row| seq.is_valid(*row)) {
        let whole = record.is_valid(row);
        let bytes = if whole { record.value(row).as_bytes() } else { raw.value(row) };
        let seq = u64::try_from(seq.value(row)).unwrap_or(0);
        show(Stored { stream: stream.value(row), seq, kind: kind.value(row), bytes });
    }
}

fn read(bytes: Bytes) -> Result<Vec<StoredRow>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), COLUMNS);
    let (mut names, mut rows) = (Names::default(), Vec::new());
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let read = batch_rows(&batch, &mut names, &mut rows);
        read.ok_or_else(|| ParquetError::General("a column is missing".to_owned()))?;
    }
    Ok(rows)
}

/// What texts have been read as.
#[derive(Default)]
struct Names {
    streams: HashMap<String, Option<StreamId>>,
    kinds: HashMap<String, u16>,
}

impl Names {
    fn stream(&mut self, text: &str) -> Option<StreamId> {
        if let Some(known) = self.streams.get(text) {
            return known.clone();
        }
        let stream: Option<StreamId> = text.parse().ok();
        self.streams.insert(text.to_owned(), stream.clone());
        stream
    }

    /// The number of a kind; 0 where this version does not know it.
    fn code(&mut self, text: &str) -> u16 {
        if let Some(known) = self.kinds.get(text) {
            return *known;
        }
        let code = Kind::from(text.to_owned()).code();
        self.kinds.insert(text.to_owned(), code);
        code
    }
}

fn batch_rows(batch: &RecordBatch, names: &mut Names, rows: &mut Vec<StoredRow>) -> Option<()> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let int = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<Int64Type>();
    let raw = batch.column_by_name("raw")?.as_binary_opt::<i32>()?;
    let at = batch.column_by_name("at")?.as_primitive_opt::<TimestampMicrosecondType>()?;
    let (entry, stream, kind, record) =
        (text("entry")?, text("stream")?, text("kind")?, text("record")?);
    let (seq, flags, offset) = (int("seq")?, int("flags")?, int("journal_offset")?);
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    for row in 0..batch.num_rows() {
        let bytes =
            if record.is_valid(row) { record.value(row).as_bytes() } else { raw.value(row) };
        let found = match entry.value(row) {
            "checkpoint" => StoredEntry::Checkpoint(raw.value(row).to_vec()),
            kept @ ("event" | "conflict") if seq.is_valid(row) => {
                let facts = Facts {
                    at: number(at.value(row)),
                    code: names.code(kind.value(row)),
                    flags: u16::try_from(flags.value(row)).unwrap_or(u16::MAX),
                };
                match names.stream(stream.value(row)) {
                    Some(stream) => StoredEntry::Record {
                        stream,
                        seq: number(seq.value(row)),
                        leaf: facts.leaf(bytes),
                        conflict: kept == "conflict",
                    },
                    None => StoredEntry::Other,
                }
            }
            _ => StoredEntry::Other,
        };
        rows.push(StoredRow { offset: number(offset.value(row)), entry: found });
    }
    Some(())
}

/// What a leaf holds beside the hash.
struct Facts {
    at: u64,
    code: u16,
    flags: u16,
}

impl Facts {
    fn leaf(&self, bytes: &[u8]) -> Leaf {
        // The number of a kind that this version does not know stands in the record only.
        let code = if self.code == 0 { code_in(bytes) } else { self.code };
        Leaf::new(hash(bytes), Uint::new(self.at), code, self.flags)
    }
}

fn code_in(bytes: &[u8]) -> u16 {
    match decode(bytes) {
        Decoded::Event(event) => event.code,
        Decoded::Identified { identity, .. } => identity.code,
        Decoded::Undecodable { .. } => 0,
    }
}
