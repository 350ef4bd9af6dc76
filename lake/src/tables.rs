//! The lake's two tables: made when they are absent, refused when they are not ours.
//!
//! A table says in its properties which format it has and which deployment it belongs to. A newer
//! format is never read or written, not even when it appears while we run; two deployments never
//! share a lake, because positions of one would be taken for positions of the other.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use deltalake_core::kernel::StructType;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::logstore::{LogStoreRef, ObjectStoreRef, StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::SaveMode;
use deltalake_core::{DeltaTable, DeltaTableError};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::Mutex;
use url::Url;

use crate::columns::{BODIES, Column, EVENT_DATE, EVENTS, bodies_schema, events_schema};
use crate::files::{Encoded, NewFile};
use crate::place::Place;
use crate::probe::{self, Unfit};
use crate::snapshot::{Positions, Snapshot};
use crate::storage::Storage;
use crate::tiles::Seals;
use crate::trouble;

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
    #[error(
        "lake url {url:?}: {problem}; use a folder (\"file:./custody-data/lake\") or a bucket (\"s3://bucket/prefix\", \"az://container/prefix\", \"gs://bucket/prefix\")"
    )]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The settings of the store say nothing that can be used.
    #[error("[lake.storage]: {problem}")]
    Storage {
        /// What is wrong with them.
        problem: String,
    },
    /// The store cannot keep two writers apart.
    #[error(
        "lake {lake}: the store {problem}, so two writers would overwrite each other: use one that refuses to create what is there (conditional writes, If-None-Match), or turn that on"
    )]
    Unfit {
        /// Where it lies.
        lake: String,
        /// What it did.
        problem: String,
    },
    /// The store does not serve us, for a reason that we understand.
    #[error("lake {lake}: {problem}; {advice}")]
    Unreachable {
        /// Where it lies.
        lake: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// There is no table yet, and we may not make one.
    #[error("lake {lake} has no table {table} yet: start custody ingest, which makes it")]
    Absent {
        /// Where it lies.
        lake: String,
        /// The table.
        table: &'static str,
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
            | Self::Storage { .. }
            | Self::Unfit { .. }
            | Self::Url { .. } => true,
            Self::Unreachable { .. } | Self::Absent { .. } | Self::Delta(_) | Self::Store(_) => {
                false
            }
        }
    }
}

/// What opening a lake needs to know.
#[derive(Clone, Debug)]
pub struct LakeOptions {
    /// Name of the deployment.
    pub deployment: String,
    /// Settings of a store on other machines; empty for a folder.
    pub storage: Storage,
    /// For those who only ask: makes no table, asks the store for no write, so that credentials
    /// which may read are enough.
    pub read_only: bool,
    /// The store to use instead of the one that the address names; its paths are those of the
    /// whole file system or bucket.
    pub store: Option<ObjectStoreRef>,
}

impl LakeOptions {
    /// A lake of this deployment, with what the environment says about the store.
    #[must_use]
    pub fn new(deployment: &str) -> Self {
        Self {
            deployment: deployment.to_owned(),
            storage: Storage::default(),
            read_only: false,
            store: None,
        }
    }
}

/// The two tables of a deployment.
#[derive(Clone, Debug)]
pub struct Lake {
    events: Arc<Table>,
    bodies: Arc<Table>,
    seals: Seals,
}

impl Lake {
    /// Opens the lake at `url`, making it when it is not there: `file:./folder`, `file:///folder`
    /// or a plain path, `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`. A
    /// store on other machines is first asked whether it can keep two writers apart.
    ///
    /// # Errors
    /// [`LakeError`]; each says what to do. Takes at most about two minutes.
    pub async fn open(url: &str, options: &LakeOptions) -> Result<Self, LakeError> {
        let mut place = Place::parse(url)?;
        let store = match &options.store {
            Some(store) => Arc::clone(store),
            None => place.connect(&options.storage)?,
        };
        let place = Arc::new(place);
        if place.is_remote() && !options.read_only {
            fit(&place, store.as_ref()).await?;
        }
        let opening = Opening { place: &place, store: &store, options };
        let events = Table::open(&opening, "events", EVENTS, events_schema());
        let events = Arc::new(events.await.map_err(|e| trouble::explained(&place, e))?);
        let bodies = Table::open(&opening, "bodies", BODIES, bodies_schema());
        let bodies = Arc::new(bodies.await.map_err(|e| trouble::explained(&place, e))?);
        let seals = seals(&place, &store)?;
        Ok(Self { events, bodies, seals })
    }

    /// The seals of the lake at `url`, whose tables are not looked at.
    ///
    /// # Errors
    /// When the address or the settings of its store say nothing that can be opened.
    pub fn seals_at(url: &str, storage: &Storage) -> Result<Seals, LakeError> {
        let mut place = Place::parse(url)?;
        let store = place.connect(storage)?;
        seals(&place, &store)
    }

    /// What proves the tables: trees, checkpoints, keyrings.
    #[must_use]
    pub const fn seals(&self) -> &Seals {
        &self.seals
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

fn seals(place: &Place, store: &Arc<dyn ObjectStore>) -> Result<Seals, LakeError> {
    let folder = Path::from_url_path(place.root.path()).map_err(object_store::Error::from)?;
    Ok(Seals::new(Arc::new(PrefixStore::new(Arc::clone(store), folder.join("seal")))))
}

/// Whether the store can keep two writers apart.
async fn fit(place: &Place, store: &dyn ObjectStore) -> Result<(), LakeError> {
    let folder = Path::from_url_path(place.root.path()).map_err(object_store::Error::from)?;
    let unfit =
        |problem: &str| LakeError::Unfit { lake: place.to_string(), problem: problem.into() };
    probe::conditional_put(store, &folder).await.map_err(|error| match error {
        Unfit::Twice => unfit("created an object that was already there"),
        Unfit::Never(said) => unfit(&format!("knows no creation on condition ({said})")),
        Unfit::Unanswered(error) => trouble::explained(place, error.into()),
    })
}

/// What opening a table needs.
struct Opening<'a> {
    place: &'a Arc<Place>,
    store: &'a Arc<dyn ObjectStore>,
    options: &'a LakeOptions,
}

/// One Delta table.
pub struct Table {
    name: &'static str,
    columns: &'static [Column],
    schema: SchemaRef,
    deployment: String,
    place: Arc<Place>,
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
        opening: &Opening<'_>,
        name: &'static str,
        columns: &'static [Column],
        schema: SchemaRef,
    ) -> Result<Self, LakeError> {
        let Opening { place, store, options } = opening;
        let log_store = log_store(place, store, name)?;
        let state = State { table: DeltaTable::new(Arc::clone(&log_store)), snapshot: None };
        let table = Self {
            name,
            columns,
            schema,
            deployment: options.deployment.clone(),
            place: Arc::clone(place),
            log_store,
            state: Mutex::new(state),
        };
        if !table.exists().await? {
            if options.read_only {
                return Err(LakeError::Absent { lake: place.to_string(), table: name });
            }
            table.create().await?;
        }
        table.snapshot().await?;
        Ok(table)
    }

    async fn exists(&self) -> Result<bool, LakeError> {
        let asked = tokio::time::timeout(LOG_TIMEOUT, self.log_store.is_delta_table_location());
        Ok(asked.await.map_err(|_| log_not_read())??)
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
            Err(error) if self.exists().await? => {
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
        self.newest().await.map_err(|error| self.explained(error))
    }

    async fn newest(&self) -> Result<Arc<Snapshot>, LakeError> {
        let mut state = self.state.lock().await;
        let update = tokio::time::timeout(LOG_TIMEOUT, state.table.update_state());
        update.await.map_err(|_| log_not_read())??;
        let current = state.table.snapshot()?.snapshot().clone();
        if let Some(known) = &state.snapshot
            && known.version() == current.version()
        {
            return Ok(Arc::clone(known));
        }
        self.check(&current)?;
        let (log_store, schema) = (self.log_store(), Arc::clone(&self.schema));
        let before = state.snapshot.as_deref();
        let positions = match before {
            Some(before) => before.positions_at(current.version()).await,
            None => Positions::new(),
        };
        let next = Snapshot::new(current, log_store, schema, self.columns, before, positions)?;
        let next = Arc::new(next);
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
            let put = tokio::time::timeout(FILE_TIMEOUT, put).await;
            let put = put.unwrap_or_else(|_| Err(not_stored(file)));
            put.map_err(|error| self.explained(error.into()))?;
            files.push(file.clone());
        }
        Ok(files)
    }

    /// An error of the store with what it means here.
    pub(crate) fn explained(&self, error: LakeError) -> LakeError {
        trouble::explained(&self.place, error)
    }
}

/// The log of the table with this name. Every store keeps it alike: a version is created on
/// condition that it is not there.
fn log_store(
    place: &Place,
    store: &Arc<dyn ObjectStore>,
    name: &str,
) -> Result<LogStoreRef, LakeError> {
    let location = place
        .root
        .join(&format!("{name}/"))
        .map_err(|e| LakeError::Url { url: place.root.to_string(), problem: e.to_string() })?;
    let folder = Path::from_url_path(location.path()).map_err(object_store::Error::from)?;
    let prefixed = Arc::new(PrefixStore::new(Arc::clone(store), folder));
    Ok(default_logstore(prefixed, Arc::clone(store), &location, &StorageConfig::default()))
}

fn log_not_read() -> DeltaTableError {
    let seconds = LOG_TIMEOUT.as_secs();
    DeltaTableError::generic(format!("no answer within {seconds} s while its log was read"))
}

fn not_stored(file: &NewFile) -> object_store::Error {
    let seconds = FILE_TIMEOUT.as_secs();
    let source = format!("no answer within {seconds} s while {} was stored", file.path).into();
    object_store::Error::Generic { store: "lake", source }
}

fn missing_column(wanted: &Schema, found: &Schema) -> Option<String> {
    wanted
        .fields()
        .iter()
        .find(|w| found.field_with_name(w.name()).map_or(true, |f| f.data_type() != w.data_type()))
        .map(|column| column.name().clone())
}
