//! The engine: pins one version of each table, adds the tail behind it, and answers.
//!
//! # Life of a question
//! 1. A place among the questions that run at a time; without one the asker is told to come back.
//! 2. `query.requested` is durable.
//! 3. The tail catches up with what was durable when the question came. Then one version V of each
//!    table is pinned, and with it how far each journal partition is stored at V; the rows are the
//!    files of V and those of the tail from there on. Nothing is missing, nothing is double.
//! 4. Statement and parameters are parsed and planned over these tables, on threads of their own, so that a
//!    greedy question keeps neither the proxy nor another question waiting.
//! 5. Batches go out one by one under a deadline and a row limit. When the asker leaves, the plan
//!    is dropped. `query.ended` says how it went.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::datatypes::SchemaRef;
use custody_journal::{Journal, Partition, ReadError, Topic, Writer};
use custody_lake::{Lake, LakeError, Snapshot, Table};
use custody_schemas::id::{Micros, Uint};
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::access::Asker;
use crate::answer::{Answer, Work};
use crate::audit;
use crate::catalog::Tables;
use crate::completeness::{Completeness, Ledger, ListedWriter};
use crate::describe;
use crate::error::QueryError;
use crate::files::scan_files;
use crate::metrics::{self, Metrics, Page};
use crate::session::{SessionLimits, Sessions, store_url};
use crate::size;
use crate::statement::Params;
use crate::table::PinnedTable;
use crate::tail::{Offsets, Tail, Taken};

/// How long a question waits for the tail to catch up.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long a question waits for a place.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(5);
/// How often the tail drops what the lake holds.
const TRIM_EVERY: Duration = Duration::from_secs(5);
/// How often a pin is tried; each failure means that the lake has moved on meanwhile.
const PINS: usize = 5;

/// Tells which writers the keyring lists, at any time.
pub type Writers = Arc<dyn Fn() -> Vec<ListedWriter> + Send + Sync>;

/// How the engine works.
#[derive(Clone)]
pub struct EngineOptions {
    /// The first part of the app ids in the lake, `file` for a file journal.
    pub cluster: String,
    /// The epoch in the app ids.
    pub epoch: u32,
    /// Where operators spill to.
    pub spill_dir: PathBuf,
    /// Temporary disk for all questions together, in bytes.
    pub spill_bytes: u64,
    /// Memory for one question, in bytes.
    pub memory_bytes: usize,
    /// The most that the tail may take, in bytes.
    pub tail_bytes: usize,
    /// Questions at a time.
    pub concurrency: usize,
    /// Threads of one question.
    pub threads: usize,
    /// The most rows of one answer.
    pub max_rows: u64,
    /// The most time for one answer.
    pub deadline: Duration,
    /// The zone whose days reports mean by a date.
    pub time_zone: jiff::tz::TimeZone,
    /// The writers that the keyring lists.
    pub writers: Writers,
    /// Where what is counted is shown.
    pub page: Page,
}

impl std::fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineOptions")
            .field("cluster", &self.cluster)
            .field("deadline", &self.deadline)
            .field("time_zone", &self.time_zone)
            .finish_non_exhaustive()
    }
}

impl EngineOptions {
    /// The usual options, spilling to `spill_dir`.
    #[must_use]
    pub fn new(spill_dir: impl Into<PathBuf>) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            cluster: "file".to_owned(),
            epoch: 1,
            spill_dir: spill_dir.into(),
            spill_bytes: 8 << 30,
            memory_bytes: 512 << 20,
            tail_bytes: Tail::LIMIT_BYTES,
            concurrency: 4,
            threads,
            max_rows: 1_000_000,
            deadline: Duration::from_secs(60),
            time_zone: jiff::tz::TimeZone::UTC,
            writers: Arc::new(Vec::new),
            page: Page::default(),
        }
    }

    fn app_id(&self, partition: &Partition) -> String {
        format!("{}/{}@{}/{}", self.cluster, partition.topic.name(), self.epoch, partition.name)
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The statement.
    pub sql: String,
    /// Its parameters.
    pub params: Params,
    /// What the audit calls this kind of question: `sql`, `report/phi-access` …
    pub method: String,
}

impl Question {
    /// A question in SQL.
    #[must_use]
    pub fn sql(sql: impl Into<String>, params: Params) -> Self {
        Self { sql: sql.into(), params, method: "sql".to_owned() }
    }

    /// What is recorded of it.
    pub(crate) fn body(&self) -> Vec<u8> {
        let body = serde_json::json!({ "sql": self.sql, "params": self.params });
        body.to_string().into_bytes()
    }
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The lake cannot be read.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] ReadError),
    /// The engine's own parts.
    #[error("the query engine cannot start: {0}")]
    Engine(#[from] DataFusionError),
    /// What the lake holds cannot be summed up.
    #[error("the lake's events cannot be summed up: {0}")]
    Sum(#[from] QueryError),
    /// Threads or folders.
    #[error("the query engine cannot start: {0}")]
    Io(#[from] std::io::Error),
}

/// Answers questions over the lake and the journal.
pub struct Engine {
    pub(crate) options: EngineOptions,
    lake: Lake,
    tail: Tail,
    partitions: Vec<Partition>,
    sessions: Sessions,
    writer: Writer,
    metrics: Metrics,
    gate: Arc<Semaphore>,
    stop: CancellationToken,
}

/// One version of each table, the tail behind it, and what that is worth.
pub(crate) struct Pin {
    pub(crate) tables: Tables,
    pub(crate) completeness: Completeness,
}

impl Engine {
    /// Sums up what the lake holds, then follows the journal from there. Call it within a Tokio
    /// runtime that lives as long as the engine.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        lake: Lake,
        journal: Arc<dyn Journal>,
        writer: Writer,
        options: EngineOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let events = lake.events().snapshot().await?;
        let bodies = lake.bodies().snapshot().await?;
        let stores = BTreeMap::from([("events", events.store()), ("bodies", bodies.store())]);
        let sessions = Sessions::new(
            stores,
            SessionLimits {
                memory_bytes: options.memory_bytes,
                spill_bytes: options.spill_bytes,
                spill_dir: options.spill_dir.clone(),
                parallelism: options.threads,
                metadata_cache_bytes: 256 << 20,
            },
        )?;
        let partitions: Vec<_> =
            journal.partitions()?.into_iter().filter(|p| p.topic != Topic::Control).collect();
        let starts = starts(&options, &partitions, &events, &bodies).await?;
        let stored = tables(&events, &bodies, &Taken::default(), None)?;
        let ledger = crate::stored::ledger(&sessions, stored, &events).await?;
        let tail = Tail::follow(journal.as_ref(), &starts, ledger, options.tail_bytes)?;
        let gate = Arc::new(Semaphore::new(options.concurrency.max(1)));
        let metrics = Metrics::register(&options.page);
        let engine = Arc::new(Self {
            options,
            lake,
            tail,
            partitions,
            sessions,
            writer,
            metrics,
            gate,
            stop: CancellationToken::new(),
        });
        metrics::watch(&engine.options.page, &engine);
        engine.spawn_trimming();
        Ok(engine)
    }

    /// Answers a question, or says why not. The answer's rows follow as they are computed.
    ///
    /// # Errors
    /// [`QueryError`]; whatever goes wrong before the first row.
    pub async fn ask(
        self: &Arc<Self>,
        asker: &Asker,
        question: Question,
    ) -> Result<Answer, QueryError> {
        let place = Arc::clone(&self.gate).acquire_owned();
        let place = tokio::time::timeout(WAIT_FOR_PLACE, place).await;
        let Ok(Ok(place)) = place else {
            return Err(
                self.refused(&question, QueryError::Busy { limit: self.options.concurrency })
            );
        };
        let deadline = Instant::now() + self.options.deadline;
        let asked =
            timeout_at(deadline, audit::ask(&self.writer, &self.metrics, asker, &question)).await;
        let late = |_| QueryError::Audit("the journal did not record it in time".to_owned());
        let asked = asked.map_err(late).flatten();
        let asked = asked.map_err(|error| self.refused(&question, error))?;
        let prepared = timeout_at(deadline, self.prepare(&question)).await;
        let prepared = prepared.unwrap_or(Err(QueryError::TimedOut(self.options.deadline)));
        match prepared {
            Ok(pin) => {
                let work = Work { engine: Arc::clone(self), asked, question, deadline, place };
                Answer::begin(work, pin).await
            }
            Err(error) => {
                asked.end(Some(&error));
                Err(error)
            }
        }
    }

    /// Counts a question that is not taken on.
    fn refused(&self, question: &Question, error: QueryError) -> QueryError {
        self.metrics.refused(&question.method, &error);
        error
    }

    /// What is counted.
    pub(crate) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn prepare(&self, question: &Question) -> Result<Pin, QueryError> {
        size::check(&question.sql)?;
        self.pin().await
    }

    /// Threads of their own for one question: whatever it does, the others are not kept waiting, and
    /// it has stack for the deepest plan that [`size::check`] lets through.
    pub(crate) fn threads(&self) -> Result<Runtime, QueryError> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.options.threads.max(1))
            .thread_name("query")
            .thread_stack_size(size::STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| QueryError::Unavailable(format!("no threads: {error}")))
    }

    /// What everything is recorded with.
    pub(crate) fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Cancelled when the engine stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// What an answer given now would say of itself.
    ///
    /// # Errors
    /// When lake or journal cannot be read.
    pub async fn completeness(&self) -> Result<Completeness, QueryError> {
        Ok(self.pin().await?.completeness)
    }

    /// The zone whose days reports mean by a date.
    #[must_use]
    pub const fn time_zone(&self) -> &jiff::tz::TimeZone {
        &self.options.time_zone
    }

    /// Whether questions can be answered; what is wrong otherwise.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn ready(&self) -> Result<(), String> {
        let problem = self.writer.status().problem.or_else(|| self.tail.problem());
        problem.map_or(Ok(()), Err)
    }

    /// Bytes that the tail holds, and questions that run.
    pub(crate) fn load(&self) -> (usize, usize) {
        let running = self.options.concurrency.saturating_sub(self.gate.available_permits());
        (self.tail.bytes(), running)
    }

    /// Ends every question; no new one is answered.
    pub fn close(&self) {
        self.stop.cancel();
        self.gate.close();
    }

    pub(crate) fn session(&self, tables: Tables) -> Result<SessionContext, DataFusionError> {
        self.sessions.open(tables)
    }

    /// Pins the newest versions, with the tail as it is durable now.
    pub(crate) async fn pin(&self) -> Result<Pin, QueryError> {
        // What is judged is what was there when the question came, or less.
        let asked_at = now();
        self.tail.catch_up(CATCH_UP).await;
        for _ in 0..PINS {
            let (events, bodies) = self.snapshots().await?;
            let starts = starts(&self.options, &self.partitions, &events, &bodies).await;
            let starts = starts.map_err(|e| QueryError::Unavailable(e.to_string()))?;
            let unreadable = |e: ReadError| QueryError::Unavailable(e.to_string());
            let writers = (self.options.writers)();
            let judge = |ledger: &Ledger| ledger.judge(&writers, asked_at, 0);
            let taken = self.tail.take_with(&starts, judge).map_err(unreadable)?;
            let Some((taken, mut completeness)) = taken else { continue };
            completeness.behind += taken.behind;
            completeness.bodies_behind += taken.bodies_behind;
            let tables = tables(&events, &bodies, &taken, Some(&completeness))?;
            return Ok(Pin { tables, completeness });
        }
        Err(QueryError::Unavailable("the lake moves on faster than it can be pinned".to_owned()))
    }

    async fn snapshots(&self) -> Result<(Arc<Snapshot>, Arc<Snapshot>), QueryError> {
        let of = async |table: &Table| {
            table.snapshot().await.map_err(|e| QueryError::Unavailable(e.to_string()))
        };
        Ok((of(self.lake.events()).await?, of(self.lake.bodies()).await?))
    }

    /// Drops from the tail what the lake held one round before, for as long as the engine lives.
    fn spawn_trimming(self: &Arc<Self>) {
        let engine = Arc::downgrade(self);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let mut before = Offsets::new();
            while stop.run_until_cancelled(tokio::time::sleep(TRIM_EVERY)).await.is_some() {
                let Some(engine) = engine.upgrade() else { return };
                engine.tail.trim(&before);
                let Ok((events, bodies)) = engine.snapshots().await else { continue };
                let held = starts(&engine.options, &engine.partitions, &events, &bodies).await;
                before = held.unwrap_or(before);
            }
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How far each partition is stored at these versions.
async fn starts(
    options: &EngineOptions,
    partitions: &[Partition],
    events: &Snapshot,
    bodies: &Snapshot,
) -> Result<Offsets, LakeError> {
    let mut starts = Offsets::new();
    for partition in partitions {
        let snapshot = if partition.topic == Topic::Events { events } else { bodies };
        if let Some(next) = snapshot.txn(&options.app_id(partition)).await? {
            starts.insert(partition.clone(), next);
        }
    }
    Ok(starts)
}

/// The tables of a question.
fn tables(
    events: &Snapshot,
    bodies: &Snapshot,
    taken: &Taken,
    completeness: Option<&Completeness>,
) -> Result<Tables, DataFusionError> {
    let table = |name: &str, snapshot: &Snapshot, tail: &[_]| {
        let schema: SchemaRef = snapshot.schema();
        let files = scan_files(snapshot, &schema);
        PinnedTable::new(&schema, store_url(name)?, files, tail)
    };
    let mut tables = Tables::new();
    tables.insert("events", Arc::new(table("events", events, &taken.events)?));
    tables.insert("bodies", Arc::new(table("bodies", bodies, &taken.bodies)?));
    tables.insert("columns", describe::columns()?);
    if let Some(completeness) = completeness {
        tables.insert("completeness", describe::completeness(completeness)?);
    }
    Ok(tables)
}

/// The clock.
pub(crate) fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uint::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
