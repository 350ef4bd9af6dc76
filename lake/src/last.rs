//! The newest entry of a journal partition that a table holds, with its bytes: ingest compares it
//! with what the journal has at that offset, so that a journal that was made anew and filled again
//! is not taken for the old one.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, Scalar};
use arrow::compute::kernels::cmp::eq;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowPredicate, ArrowPredicateFn, ArrowReaderOptions, RowFilter,
};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::identities::ReadBackError;
use crate::snapshot::{Bound, DataFile, Snapshot};

/// The column of offsets, and those that hold an entry's bytes, in either table.
const OFFSET: &str = "journal_offset";
const BYTES: [&str; 3] = ["record", "raw", "bytes"];

/// The newest entry of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastEntry {
    /// Its offset.
    pub offset: u64,
    /// Its bytes as the journal handed them over.
    pub bytes: Vec<u8>,
}

impl Snapshot {
    /// The newest entry of the partition with this app id; `None` when there is none, or when a
    /// program has rewritten the files without our tags. Reads one row of one file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn last_entry(&self, app_id: &str) -> Result<Option<LastEntry>, ReadBackError> {
        let of_partition = self.files().iter().filter(|file| file.partition() == Some(app_id));
        let newest = of_partition.filter_map(|file| Some((last_offset(file)?, file)));
        let Some((offset, file)) = newest.max_by_key(|(offset, _)| *offset) else {
            return Ok(None);
        };
        let read = self.read_at(file, offset).await;
        let found = read.map_err(|source| ReadBackError::new(&file.path, source))?;
        let offset = u64::try_from(offset).unwrap_or(0);
        Ok(found.map(|bytes| LastEntry { offset, bytes }))
    }

    async fn read_at(&self, file: &DataFile, offset: i64) -> Result<Option<Vec<u8>>, ParquetError> {
        let reader = Pieces { store: self.store(), path: file.path.clone(), size: file.size };
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await?;
        let offsets = ProjectionMask::columns(builder.parquet_schema(), [OFFSET]);
        let here = ArrowPredicateFn::new(offsets, move |batch: RecordBatch| {
            eq(batch.column(0), &Scalar::new(Int64Array::from(vec![offset])))
        });
        let bytes = ProjectionMask::columns(builder.parquet_schema(), BYTES);
        let filter: Vec<Box<dyn ArrowPredicate>> = vec![Box::new(here)];
        let rows =
            builder.with_projection(bytes).with_row_filter(RowFilter::new(filter)).build()?;
        let batches: Vec<_> = rows.try_collect().await?;
        Ok(batches.iter().find_map(bytes_of))
    }
}

/// A file of which only the pages that are needed are fetched.
struct Pieces {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
}

impl AsyncFileReader for Pieces {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let found = async move { self.store.get_range(&self.path, range).await };
        found.map(|found| found.map_err(|e| ParquetError::External(Box::new(e)))).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let size = self.size;
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        async move { reader.load_and_finish(self, size).await.map(Arc::new) }.boxed()
    }
}

fn last_offset(file: &Arc<DataFile>) -> Option<i64> {
    match file.ranges.get(OFFSET) {
        Some((_, Bound::Int(last))) => Some(*last),
        _ => None,
    }
}

/// The bytes of the first row.
fn bytes_of(batch: &RecordBatch) -> Option<Vec<u8>> {
    batch.columns().iter().find_map(value)
}

fn value(column: &ArrayRef) -> Option<Vec<u8>> {
    if column.is_empty() || column.is_null(0) {
        return None;
    }
    let text = column.as_string_opt::<i32>().map(|texts| texts.value(0).as_bytes());
    let value = text.or_else(|| column.as_binary_opt::<i32>().map(|bytes| bytes.value(0)));
    value.map(<[u8]>::to_vec)
}
