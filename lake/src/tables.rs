//! The lake's two tables: made when they are absent, refused when they are not ours.
//!
//! A table says in its properties which format it has and which deployment it belongs to. A newer
//! format is never read or written, not even when it appears while we run; two deployments never
//! share a lake, because positions of one would be taken for positions of the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use deltalake_core::kernel::StructType;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::logstore::{LogStoreRef, ObjectStoreRef, StorageConfig, logstore_with};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::SaveMode;
use deltalake_core::{DeltaTable, DeltaTableError};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::Mutex;
use url::Url;

use crate::columns::{BODIES, Column, EVENT_DATE, EVENTS, bodies_schema, events_schema};
use crate::files::{Encoded, NewFile};
use crate::snapshot::Snapshot;
use crate::store::DurableFileSystem;

/// The format that this version reads and writes.
pub const FORMAT: u32 = 1;
/// The table property that says the format.
const FORMAT_PROPERTY: &str = "custody.format";
/// The table property that says whose table it is.
const DEPLOYMENT_PROPERTY: &str = "custody.deployment";

/// How long reading a table's log may take.
const LOG_TIMEOUT: Duration = Duration::from_secs(60);
/// How long storing one file may take.
const FILE_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a lake cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The address says nothing that can be opened.
    #[error("lake url {url:?}: {problem}; use a folder, for example \"file:./custody-data/lake\"")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A newer version has written it.
    #[error(
        "table {table} has format {found}, this version knows formats up to {FORMAT}: upgrade custody, or give this deployment a lake of its own"
    )]
    Newer {
        /// The table.
        table: String,
        /// Its format.
        found: String,
    },
    /// It belongs to somebody else.
    #[error(
        "table {table} belongs to deployment {found:?}, this one is called {wanted:?}: correct [deployment] name, or give this deployment a lake of its own"
    )]
    Foreign {
        /// The table.
        table: String,
        /// Whose it is.
        found: String,
        /// Who we are.
        wanted: String,
    },
    /// There is a Delta table, but Custody has not made it, or somebody has changed its columns.
    #[error("table {table} {problem}: point [lake] url at an empty folder or at a custody lake")]
    Unusable {
        /// The table.
        table: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The table's log cannot be read or written.
    #[error("the lake does not answer: {0}")]
    Delta(#[from] DeltaTableError),
    /// A file cannot be read or written.
    #[error("the lake's store does not answer: {0}")]
    Store(#[from] object_store::Error),
}

impl LakeError {
    /// Whether trying again cannot mend it.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::Unusable { .. }
            | Self::Url { .. } => true,
            Self::Delta(_) | Self::Store(_) => false,
        }
    }
}

/// What opening a lake needs to know.
#[derive(Clone, Debug)]
pub struct LakeOptions {
    /// Name of the deployment.
    pub deployment: String,
    /// The store to use instead of the durable local one; its paths are those of the file system.
    pub store: Option<ObjectStoreRef>,
}

impl LakeOptions {
    /// A local lake of this deployment.
    #[must_use]
    pub fn new(deployment: &str) -> Self {
        Self { deployment: deployment.to_owned(), store: None }
    }
}

/// The two tables of a deployment.
#[derive(Clone, Debug)]
pub struct Lake {
    events: Arc<Table>,
    bodies: Arc<Table>,
}

impl Lake {
    /// Opens the lake at `url` (`file:./folder`, `file:///folder` or a plain path), making it when
    /// it is not there.
    ///
    /// # Errors
    /// [`LakeError`]; each says what to do.
    pub async fn open(url: &str, options: &LakeOptions) -> Result<Self, LakeError> {
        let root = folder_url(url)?;
        let store = options.store.clone();
        let store = store.unwrap_or_else(|| Arc::new(DurableFileSystem::new()));
        let open = |name, columns, schema| {
            Table::open(&root, name, columns, schema, Arc::clone(&store), &options.deployment)
        };
        let events = Arc::new(open("events", EVENTS, events_schema()).await?);
        let bodies = Arc::new(open("bodies", BODIES, bodies_schema()).await?);
        Ok(Self { events, bodies })
    }

    /// Events, checkpoints and what could not be decoded.
    #[must_use]
    pub const fn events(&self) -> &Arc<Table> {
        &self.events
    }

    /// Chunks of bodies.
    #[must_use]
    pub const fn bodies(&self) -> &Arc<Table> {
        &self.bodies
    }
}

/// The URL of a local folder, ending with a slash.
fn folder_url(url: &str) -> Result<Url, LakeError> {
    let wrong = |problem: &str| LakeError::Url { url: url.to_owned(), problem: problem.to_owned() };
    let path = match url.split_once(':') {
        Some(("file", path)) => path.strip_prefix("//").unwrap_or(path),
        Some((scheme, _)) if scheme.len() > 1 => {
            return Err(wrong("only local folders can be opened by this version"));
        }
        Some(_) | None => url,
    };
    if path.is_empty() {
        return Err(wrong("it names no folder"));
    }
    let path = std::path::absolute(PathBuf::from(path)).map_err(|e| wrong(&e.to_string()))?;
    // `./x/../y` would be another name for the same table in its own log: one spelling only.
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    Url::from_directory_path(path).map_err(|()| wrong("it is no path"))
}

/// One Delta table.
pub struct Table {
    name: &'static str,
    columns: &'static [Column],
    schema: SchemaRef,
    deployment: String,
    log_store: LogStoreRef,
    state: Mutex<State>,
}

/// What is known of the table's log.
struct State {
    table: DeltaTable,
    snapshot: Option<Arc<Snapshot>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Table {
    async fn open(
        root: &Url,
        name: &'static str,
        columns: &'static [Column],
        schema: SchemaRef,
        store: Arc<dyn ObjectStore>,
        deployment: &str,
    ) -> Result<Self, LakeError> {
        let location = root
            .join(&format!("{name}/"))
            .map_err(|e| LakeError::Url { url: root.to_string(), problem: e.to_string() })?;
        let log_store = logstore_with(store, &location, StorageConfig::default())?;
        let state = State { table: DeltaTable::new(Arc::clone(&log_store)), snapshot: None };
        let state = Mutex::new(state);
        let deployment = deployment.to_owned();
        let table = Self { name, columns, schema, deployment, log_store, state };
        if !table.log_store.is_delta_table_location().await? {
            table.create().await?;
        }
        table.snapshot().await?;
        Ok(table)
    }

    /// Makes the table; if another process makes it at the same time, its table is as good.
    async fn create(&self) -> Result<(), LakeError> {
        let fields: StructType =
            self.schema.as_ref().try_into_kernel().map_err(DeltaTableError::from)?;
        let stats: Vec<_> = self.columns.iter().filter(|c| c.stats).map(|c| c.name).collect();
        let append_only = if self.name == "events" { "true" } else { "false" };
        let made = CreateBuilder::new()
            .with_log_store(Arc::clone(&self.log_store))
            .with_table_name(self.name)
            .with_columns(fields.fields().cloned())
            .with_partition_columns([EVENT_DATE])
            .with_save_mode(SaveMode::ErrorIfExists)
            .with_raise_if_key_not_exists(false)
            // With a retry, a creation that lost the race would land as version 1 and replace the
            // winner's metadata.
            .with_commit_properties(CommitProperties::default().with_max_retries(0))
            .with_configuration([
                ("delta.appendOnly", Some(append_only)),
                ("delta.dataSkippingStatsColumns", Some(stats.join(",").as_str())),
                ("delta.logRetentionDuration", Some("interval 90 days")),
                ("delta.deletedFileRetentionDuration", Some("interval 7 days")),
                (FORMAT_PROPERTY, Some(FORMAT.to_string().as_str())),
                (DEPLOYMENT_PROPERTY, Some(self.deployment.as_str())),
            ])
            .await;
        match made {
            Ok(_) => Ok(()),
            Err(error) if self.log_store.is_delta_table_location().await? => {
                tracing::debug!(%error, table = self.name, "another process made the table");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The table's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its columns.
    #[must_use]
    pub const fn columns(&self) -> &'static [Column] {
        self.columns
    }

    /// Where it lies.
    #[must_use]
    pub fn url(&self) -> &Url {
        self.log_store.root_url()
    }

    pub(crate) fn log_store(&self) -> LogStoreRef {
        Arc::clone(&self.log_store)
    }

    /// The newest version.
    ///
    /// # Errors
    /// When the log cannot be read, or a newer version of Custody has taken the table over.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, LakeError> {
        let mut state = self.state.lock().await;
        let update = tokio::time::timeout(LOG_TIMEOUT, state.table.update_state());
        update
            .await
            .map_err(|_| DeltaTableError::generic("the log was not read within 60 s"))??;
        let current = state.table.snapshot()?.snapshot().clone();
        if let Some(known) = &state.snapshot
            && known.version() == current.version()
        {
            return Ok(Arc::clone(known));
        }
        self.check(&current)?;
        let (log_store, schema) = (self.log_store(), Arc::clone(&self.schema));
        let before = state.snapshot.as_deref();
        let next = Arc::new(Snapshot::new(current, log_store, schema, self.columns, before)?);
        state.snapshot = Some(Arc::clone(&next));
        Ok(next)
    }

    /// Whether we may use the table at this version.
    fn check(&self, current: &deltalake_core::kernel::EagerSnapshot) -> Result<(), LakeError> {
        let table = self.url().to_string();
        let properties = current.metadata().configuration();
        let Some(format) = properties.get(FORMAT_PROPERTY) else {
            let problem = "was not made by custody".to_owned();
            return Err(LakeError::Unusable { table, problem });
        };
        if format.parse::<u32>().map_or(true, |format| format > FORMAT) {
            return Err(LakeError::Newer { table, found: format.clone() });
        }
        let owner = properties.get(DEPLOYMENT_PROPERTY).cloned().unwrap_or_default();
        if owner != self.deployment {
            let wanted = self.deployment.clone();
            return Err(LakeError::Foreign { table, found: owner, wanted });
        }
        match missing_column(&self.schema, &current.arrow_schema()) {
            Some(column) => {
                let problem = format!("has no column {column} of the type that custody writes");
                Err(LakeError::Unusable { table, problem })
            }
            None => Ok(()),
        }
    }

    /// Stores finished files. They are durable when this returns, and part of nothing until a
    /// commit adds them.
    ///
    /// # Errors
    /// When the store does not take one; the same files may be stored again.
    pub async fn store(&self, encoded: &[Encoded]) -> Result<Vec<NewFile>, LakeError> {
        let store = self.log_store.object_store(None);
        let mut files = Vec::with_capacity(encoded.len());
        for Encoded { bytes, file } in encoded {
            let put = store.put(&file.path, PutPayload::from_bytes(bytes.clone()));
            tokio::time::timeout(FILE_TIMEOUT, put).await.map_err(|_| no_answer(file))??;
            files.push(file.clone());
        }
        Ok(files)
    }
}

fn no_answer(file: &NewFile) -> object_store::Error {
    let source = format!("{} was not stored within 120 s", file.path).into();
    object_store::Error::Generic { store: "lake", source }
}

fn missing_column(wanted: &Schema, found: &Schema) -> Option<String> {
    wanted
        .fields()
        .iter()
        .find(|w| found.field_with_name(w.name()).map_or(true, |f| f.data_type() != w.data_type()))
        .map(|column| column.name().clone())
}
