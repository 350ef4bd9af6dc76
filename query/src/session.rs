//! The DataFusion session of a question: what it may use, and how much of it.
//!
//! Promises: no statement can write, read a file or URL, or change a setting; one question uses
//! at most its share of memory and spills the rest to a temporary folder of bounded size; the
//! only object store is the lake's, and only the pinned files in it have a name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::{ObjectStoreRegistry, ObjectStoreUrl};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::ObjectStore;

use crate::at_least_one::AtLeastOne;
use crate::bounded;
use crate::catalog::{CATALOG, Names, OneCatalog, SCHEMA, Tables};
use crate::cooperate::Cooperate;
use crate::json_text::JsonText;

/// The scheme under which plans name the stores of the lake's tables.
const SCHEME: &str = "custody-lake";

/// Functions that tell of files; nobody needs them here.
const LEFT_OUT: [&str; 2] = ["input_file_name", "file_row_index"];

/// The stores of the lake's tables, by table.
pub(crate) type Stores = BTreeMap<&'static str, Arc<dyn ObjectStore>>;

/// How much one question may use.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Memory for one question, in bytes.
    pub memory_bytes: usize,
    /// Temporary disk for all questions together, in bytes.
    pub spill_bytes: u64,
    /// Where operators spill to.
    pub spill_dir: PathBuf,
    /// Threads that one question may keep busy.
    pub parallelism: usize,
    /// Memory for footers and indexes of Parquet files, in bytes.
    pub metadata_cache_bytes: usize,
}

/// Makes sessions.
pub(crate) struct Sessions {
    template: SessionState,
    runtime: RuntimeEnv,
    limits: SessionLimits,
}

impl Sessions {
    /// Sessions over the files in `stores`.
    ///
    /// # Errors
    /// When the folder for temporary files cannot be made.
    pub(crate) fn new(stores: Stores, limits: SessionLimits) -> Result<Self, DataFusionError> {
        std::fs::create_dir_all(&limits.spill_dir)?;
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![limits.spill_dir.clone()]))
            .with_max_temp_directory_size(limits.spill_bytes);
        let runtime = RuntimeEnvBuilder::new()
            .with_object_store_registry(Arc::new(OnlyLake(stores)))
            .with_disk_manager_builder(disk)
            .with_metadata_cache_limit(limits.metadata_cache_bytes)
            .build()?;
        let template = template(&limits);
        Ok(Self { template, runtime, limits })
    }

    /// A session for one question over `tables`.
    ///
    /// # Errors
    /// When the runtime cannot be put together.
    pub(crate) fn open(&self, tables: Tables) -> Result<SessionContext, DataFusionError> {
        const TOP: NonZeroUsize = NonZeroUsize::MIN;
        let pool = FairSpillPool::new(self.limits.memory_bytes);
        let runtime = RuntimeEnvBuilder::from_runtime_env(&self.runtime)
            .with_memory_pool(Arc::new(TrackConsumersPool::new(pool, TOP)))
            .build_arc()?;
        let names = Names::new(tables);
        let state = SessionStateBuilder::new_from_existing(self.template.clone())
            .with_runtime_env(runtime)
            .with_catalog_list(Arc::new(OneCatalog(Arc::clone(&names))))
            .build();
        let context = SessionContext::new_with_state(state);
        names.planned_by(context.state_weak_ref());
        Ok(context)
    }
}

fn template(limits: &SessionLimits) -> SessionState {
    let mut config = SessionConfig::new()
        .with_target_partitions(limits.parallelism.max(1))
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    let options = config.options_mut();
    options.execution.time_zone = Some("UTC".to_owned());
    options.execution.parquet.bloom_filter_on_read = true;
    options.execution.parquet.enable_page_index = true;
    options.execution.parquet.pruning = true;
    options.catalog.location = None;
    options.catalog.format = None;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_file_formats(Vec::new())
        .with_table_factories(HashMap::new())
        .with_physical_optimizer_rule(Arc::new(Cooperate))
        .build();
    only_reading(state)
}

/// The functions that may be called: none that reads anything but its arguments, and those that
/// multiply their arguments' size only within a limit.
fn only_reading(state: SessionState) -> SessionState {
    let scalar = state.scalar_functions().values();
    let scalar = scalar.filter(|f| !LEFT_OUT.contains(&f.name()));
    let scalar = scalar.map(|f| bounded::guard(Arc::clone(f)));
    let mut seen = HashSet::new();
    let mut scalar: Vec<_> = scalar.filter(|f| seen.insert(f.name().to_owned())).collect();
    scalar.push(Arc::new(ScalarUDF::new_from_impl(AtLeastOne::new())));
    scalar.push(Arc::new(ScalarUDF::new_from_impl(JsonText::new())));
    let series = ["generate_series", "range"];
    let tables = state.table_functions();
    let tables = tables.iter().filter(|(name, _)| series.contains(&name.as_str()));
    let tables = tables.map(|(name, f)| (name.clone(), Arc::clone(f))).collect();
    SessionStateBuilder::new_from_existing(state)
        .with_scalar_functions(scalar)
        .with_table_functions(tables)
        .build()
}

/// The address of a table's store in plans.
///
/// # Errors
/// Never for the names of the lake's tables.
pub(crate) fn store_url(table: &str) -> Result<ObjectStoreUrl, DataFusionError> {
    ObjectStoreUrl::parse(format!("{SCHEME}://{table}"))
}

/// Knows the stores of the lake's tables and no other, whatever a URL says.
#[derive(Debug)]
struct OnlyLake(Stores);

impl ObjectStoreRegistry for OnlyLake {
    fn register_store(
        &self,
        _url: &url::Url,
        _store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &url::Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        let table = url.host_str().filter(|_| url.scheme() == SCHEME);
        let store = table.and_then(|table| self.0.get(table));
        store.cloned().ok_or_else(|| {
            DataFusionError::Plan("only the tables of the lake can be read".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> SessionState {
        template(&SessionLimits {
            memory_bytes: 1 << 20,
            spill_bytes: 1 << 20,
            spill_dir: std::env::temp_dir(),
            parallelism: 2,
            metadata_cache_bytes: 1 << 20,
        })
    }

    #[test]
    fn the_only_table_functions_are_two_that_count() {
        let mut names: Vec<_> = state().table_functions().keys().cloned().collect();
        names.sort();
        assert_eq!(names, ["generate_series", "range"]);
    }

    #[test]
    fn every_scalar_function_is_one_that_somebody_looked_at() {
        let mut names: Vec<_> = state().scalar_functions().keys().cloned().collect();
        names.sort();
        let known: Vec<_> = include_str!("functions.txt").lines().map(str::to_owned).collect();
        let new: Vec<_> = names.iter().filter(|name| !known.contains(name)).collect();
        assert!(
            new.is_empty(),
            "new functions {new:?}: those that read only their arguments go into functions.txt, \
             others out of the session"
        );
    }

    #[test]
    fn no_file_format_and_no_table_factory_is_known() {
        assert!(state().table_factories().is_empty());
        for format in ["parquet", "csv", "json", "arrow"] {
            assert!(state().get_file_format_factory(format).is_none(), "{format} is known");
        }
    }
}
