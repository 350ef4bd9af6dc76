//! The identities of stored records, read back from files: for what tags do not say, and to tell a
//! resent record from a different one under the same name.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use custody_schemas::id::{Hash, StreamId};
use custody_schemas::record::hash;
use object_store::ObjectStoreExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

use crate::snapshot::{DataFile, Snapshot};

/// A file cannot be read back.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read back: {source}")]
pub struct ReadBackError {
    path: String,
    source: ParquetError,
}

impl ReadBackError {
    pub(crate) fn new(path: &object_store::path::Path, source: ParquetError) -> Self {
        Self { path: path.to_string(), source }
    }
}

/// The hash of each record that a file holds as an event.
pub type Identities = HashMap<(StreamId, u64), Hash>;

impl Snapshot {
    /// The identities in one of its files, with the hash of each record.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn identities(&self, file: &DataFile) -> Result<Identities, ReadBackError> {
        let wrong = |source| ReadBackError::new(&file.path, source);
        let bytes = async { self.store().get(&file.path).await?.bytes().await }.await;
        let bytes = bytes.map_err(|e| wrong(ParquetError::External(Box::new(e))))?;
        let read = tokio::task::spawn_blocking(move || read(bytes)).await;
        read.map_err(|e| wrong(ParquetError::External(Box::new(e))))?.map_err(wrong)
    }
}

impl Snapshot {
    /// Every row of one of its files, `event_date` left out: for tests and tools that need no
    /// engine. The file is read whole into memory.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn read(&self, file: &DataFile) -> Result<Vec<RecordBatch>, ReadBackError> {
        let wrong = |source| ReadBackError::new(&file.path, source);
        let bytes = async { self.store().get(&file.path).await?.bytes().await }.await;
        let bytes = bytes.map_err(|e| wrong(ParquetError::External(Box::new(e))))?;
        let rows = ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|b| b.build());
        let rows = rows.map_err(wrong)?.collect::<Result<Vec<_>, _>>();
        rows.map_err(|e| wrong(e.into()))
    }
}

fn read(bytes: Bytes) -> Result<Identities, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let columns = ["entry", "stream", "seq", "record", "raw"];
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns);
    let (mut names, mut found) = (HashMap::new(), Identities::new());
    for batch in builder.with_projection(mask).build()? {
        collect(&batch?, &mut names, &mut found);
    }
    Ok(found)
}

fn collect(
    batch: &RecordBatch,
    names: &mut HashMap<String, Option<StreamId>>,
    found: &mut Identities,
) {
    let text = |name: &str| batch.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
    let raw = batch.column_by_name("raw").and_then(|c| c.as_binary_opt::<i32>());
    let seq = batch.column_by_name("seq").and_then(|c| c.as_primitive_opt::<Int64Type>());
    let (Some(entry), Some(stream), Some(record)) = (text("entry"), text("stream"), text("record"))
    else {
        return;
    };
    let (Some(raw), Some(seq)) = (raw, seq) else { return };
    for row in 0..batch.num_rows() {
        if entry.value(row) != "event" || seq.is_null(row) {
            continue;
        }
        let name = stream.value(row);
        let known = names.entry(name.to_owned()).or_insert_with(|| name.parse().ok());
        let Some(stream) = known else { continue };
        let bytes =
            if record.is_valid(row) { record.value(row).as_bytes() } else { raw.value(row) };
        let seq = u64::try_from(seq.value(row)).unwrap_or(0);
        found.insert((stream.clone(), seq), hash(bytes));
    }
}
