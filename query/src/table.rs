//! One table as one question sees it: the Parquet files of a pinned version and, behind them, the
//! rows of the tail that this version does not hold yet.
//!
//! The list of files is explicit, so that nothing is listed, cached or refreshed between the pin
//! and the last row. Each file brings its partition value and its statistics; a file whose
//! statistics contradict the filter is not opened.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;
use object_store::path::Path;

/// The column that the tables are partitioned by.
pub(crate) const PARTITION_COLUMN: &str = "event_date";

/// Columns of which an equality selects few rows: with one of them in its filter, a scan decodes
/// the filter's columns first and the others only where it holds.
const SELECTIVE: [&str; 8] =
    ["call", "body", "stream", "user_subject", "agent_id", "session", "trace", "seq"];

/// One Parquet file of a pinned version.
#[derive(Clone, Debug)]
pub(crate) struct ScanFile {
    /// Where it is, from the root of its table's store.
    pub(crate) path: Path,
    /// Its length in bytes.
    pub(crate) bytes: u64,
    /// The value of the partition column, in days since 1970-01-01.
    pub(crate) date: Option<i32>,
    /// Statistics of the columns that the file itself has, in the order of the file's schema.
    pub(crate) statistics: Arc<Statistics>,
}

/// A table at one version, and the tail behind it.
pub(crate) struct PinnedTable {
    columns: TableSchema,
    store: ObjectStoreUrl,
    files: Vec<ScanFile>,
    tail: Vec<RecordBatch>,
}

/// The order in which questions see a table's columns: those of its files, then the partition's.
#[must_use]
pub(crate) fn table_schema(schema: &Schema) -> TableSchema {
    let in_files: Vec<FieldRef> =
        schema.fields().iter().filter(|f| f.name() != PARTITION_COLUMN).cloned().collect();
    let date = Arc::new(Field::new(PARTITION_COLUMN, DataType::Date32, true));
    TableSchema::builder(Arc::new(Schema::new(in_files)))
        .with_table_partition_cols(vec![date])
        .build()
}

impl PinnedTable {
    /// The table with the columns of `schema` (the partition column may stand anywhere in it),
    /// the `files` of the pinned version in `store`, and the rows beyond them.
    ///
    /// # Errors
    /// When a batch of the tail lacks a column.
    pub(crate) fn new(
        schema: &Schema,
        store: ObjectStoreUrl,
        files: Vec<ScanFile>,
        tail: &[RecordBatch],
    ) -> Result<Self, DataFusionError> {
        let columns = table_schema(schema);
        let tail = tail.iter().map(|batch| reorder(batch, columns.table_schema()));
        let tail = tail.collect::<Result<_, _>>()?;
        Ok(Self { columns, store, files, tail })
    }

    fn scan_files(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let runtime = state.runtime_env();
        let store = runtime.object_store(&self.store)?;
        let cache = runtime.cache_manager.get_file_metadata_cache();
        let mut source = ParquetSource::new(self.columns.clone())
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(
                store, cache,
            )))
            .with_metadata_size_hint(FOOTER_BYTES);
        if filters.iter().any(selects_few) {
            source = source.with_pushdown_filters(true).with_reorder_filters(true);
        }
        let files = self.files.iter().map(ScanFile::partitioned).collect();
        let groups = FileGroup::new(files).split_files(state.config().target_partitions());
        let config = FileScanConfigBuilder::new(self.store.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(self.statistics_of_files())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// Only the number of rows, which decides which side of a join is kept in memory.
    fn statistics_of_files(&self) -> Statistics {
        let mut all = Statistics::new_unknown(self.columns.table_schema());
        all.num_rows = self
            .files
            .iter()
            .fold(Precision::Exact(0), |sum, file| sum.add(&file.statistics.num_rows))
            .to_inexact();
        all
    }

    fn scan_tail(
        &self,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let schema = Arc::clone(self.columns.table_schema());
        let memory = MemorySourceConfig::try_new(
            std::slice::from_ref(&self.tail),
            schema,
            projection.cloned(),
        )?
        .with_limit(limit);
        Ok(DataSourceExec::from_data_source(memory))
    }
}

impl ScanFile {
    fn partitioned(&self) -> PartitionedFile {
        // Not by its text, which would be escaped once more.
        let mut file = PartitionedFile::new(String::new(), self.bytes);
        file.object_meta.location = self.path.clone();
        file.with_partition_values(vec![ScalarValue::Date32(self.date)])
            .with_statistics(Arc::clone(&self.statistics))
    }
}

/// The batch with its columns in the order of `schema`, found by name.
fn reorder(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    let by_name = |field: &FieldRef| {
        batch.column_by_name(field.name()).cloned().ok_or_else(|| {
            DataFusionError::Internal(format!("the tail has no column {}", field.name()))
        })
    };
    let columns = schema.fields().iter().map(by_name).collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// How much of a file's end is asked for at first: its footer and its indexes, in one request.
const FOOTER_BYTES: usize = 64 * 1024;

/// Kinds of which there are few beside all others.
const RARE_KINDS: [&str; 3] = ["stream.opened", "stream.closed", "subjects.listed"];

/// Whether the filter selects few rows: it compares a selective column with one value, asks for a
/// rare kind, or for a flag.
fn selects_few(filter: &Expr) -> bool {
    let Expr::BinaryExpr(compared) = filter else { return false };
    let is = |e: &Expr, column: &str| matches!(e, Expr::Column(c) if c.name == column);
    let rare = |e: &Expr| {
        matches!(e, Expr::Literal(ScalarValue::Utf8(Some(kind)), _)
            if RARE_KINDS.contains(&kind.as_str()))
    };
    let flag = |e: &Expr| matches!(e, Expr::BinaryExpr(b) if b.op == Operator::BitwiseAnd && is(&b.left, "flags"));
    let of_kind = is(&compared.left, "kind") && rare(&compared.right);
    (compared.op == Operator::Eq && of_kind)
        || (compared.op == Operator::NotEq && flag(&compared.left))
        || selects_one(filter)
}

fn selects_one(filter: &Expr) -> bool {
    let named = |e: &Expr| matches!(e, Expr::Column(c) if SELECTIVE.contains(&c.name.as_str()));
    let fixed = |e: &Expr| matches!(e, Expr::Literal(..));
    matches!(filter, Expr::BinaryExpr(b) if b.op == Operator::Eq
        && (named(&b.left) && fixed(&b.right) || fixed(&b.left) && named(&b.right)))
}

#[async_trait]
impl TableProvider for PinnedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.columns.table_schema())
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let mut parts = Vec::with_capacity(2);
        if !self.files.is_empty() {
            parts.push(self.scan_files(state, projection, filters, limit)?);
        }
        if !self.tail.is_empty() {
            parts.push(self.scan_tail(projection, limit)?);
        }
        match parts.len() {
            0 => {
                let schema = self.columns.table_schema();
                let schema = match projection {
                    Some(indices) => Arc::new(schema.project(indices)?),
                    None => Arc::clone(schema),
                };
                Ok(Arc::new(EmptyExec::new(schema)))
            }
            1 => Ok(parts.remove(0)),
            _ => UnionExec::try_new(parts),
        }
    }
}

impl fmt::Debug for PinnedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: usize = self.tail.iter().map(RecordBatch::num_rows).sum();
        write!(f, "PinnedTable({} files, {rows} rows in the tail)", self.files.len())
    }
}
