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

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use custody_journal::writer::AppendError;
use custody_journal::{Journal, ReadError, Writer};
use custody_lake::LakeError;
use custody_schemas::id::{Micros, Uint};
use datafusion::common::DataFusionError;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::access::Asker;
use crate::answer::{Answer, Work};
use crate::audit::{self, Asked};
use crate::completeness::{Completeness, ListedWriter};
use crate::cut::Cut;
use crate::error::QueryError;
use crate::metrics::{self, Metrics, Page};
use crate::pin::Pin;
use crate::size;
use crate::sources::Sources;
use crate::start::{Source, Start};
use crate::statement::Params;
use crate::tail::Tail;

/// How long a question waits for a place.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(5);
/// How long a question waits for the engine to have started.
const WAIT_FOR_START: Duration = Duration::from_secs(5);
/// How long opening waits, so that a small lake is ready when it returns.
const WAIT_AT_OPEN: Duration = Duration::from_secs(2);

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

    /// The journal whose offsets a cut names.
    fn journal(&self) -> String {
        format!("{}@{}", self.cluster, self.epoch)
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
    /// The cut at which it is asked, as an answer gave it; now when absent.
    pub cut: Option<String>,
}

impl Question {
    /// A question in SQL.
    #[must_use]
    pub fn sql(sql: impl Into<String>, params: Params) -> Self {
        Self { sql: sql.into(), params, method: "sql".to_owned(), cut: None }
    }

    /// What is recorded of it.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = serde_json::json!({ "sql": self.sql, "params": self.params });
        if let Some(cut) = &self.cut {
            body["cut"] = cut.as_str().into();
        }
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
    start: Start,
    writer: Writer,
    metrics: Metrics,
    gate: Arc<Semaphore>,
    stop: CancellationToken,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Whether it can answer.
    pub ready: bool,
    /// Questions that run.
    pub running: usize,
    /// Bytes of rows that only the journal holds yet.
    pub tail_bytes: usize,
    /// Entries that are durable, as far as was heard, and in no answer yet.
    pub tail_behind: u64,
}

impl Engine {
    /// Begins to sum up what the lake holds and then to follow the journal from there; a small lake
    /// is ready when this returns, and of a large one [`ready`](Self::ready) tells. Call it within a
    /// Tokio runtime that lives as long as the engine.
    ///
    /// # Errors
    /// When there is no folder to spill to. Whatever else is in the way is tried again until it is
    /// not, and told by [`ready`](Self::ready) and to whoever asks.
    pub async fn open(
        lake: impl Into<Source>,
        journal: Arc<dyn Journal>,
        writer: Writer,
        options: EngineOptions,
    ) -> Result<Arc<Self>, OpenError> {
        std::fs::create_dir_all(&options.spill_dir)?;
        let gate = Arc::new(Semaphore::new(options.concurrency.max(1)));
        let stop = CancellationToken::new();
        let start = Start::begin(lake.into(), journal, options.clone(), stop.child_token());
        let metrics = Metrics::register(&options.page);
        let engine = Arc::new(Self { options, start, writer, metrics, gate, stop });
        metrics::watch(&engine.options.page, &engine);
        if let Err(stage) = engine.start.within(WAIT_AT_OPEN).await {
            tracing::info!(stage, "listening before questions can be answered");
        }
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
        self.pin(question.cut.as_deref()).await
    }

    /// Pins the newest versions, with the tail as it is durable now, or what is below a cut.
    async fn pin(&self, cut: Option<&str>) -> Result<Pin, QueryError> {
        let journal = self.options.journal();
        let cut = cut.map(|text| Cut::parse(text, &journal)).transpose()?;
        let sources = self.sources().await?;
        let writers = (self.options.writers)();
        match cut {
            None => sources.pin(&writers, journal).await,
            Some(cut) => sources.pin_at(&cut, &writers).await,
        }
    }

    /// What answers are made of, when that is known soon.
    pub(crate) async fn sources(&self) -> Result<Arc<Sources>, QueryError> {
        self.start.within(WAIT_FOR_START).await.map_err(QueryError::Starting)
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
        Ok(self.pin(None).await?.completeness)
    }

    /// What an answer given at a cut would say of itself.
    ///
    /// # Errors
    /// As [`completeness`](Self::completeness), and when the cut is none or not reached.
    pub async fn completeness_at(&self, cut: &str) -> Result<Completeness, QueryError> {
        Ok(self.pin(Some(cut)).await?.completeness)
    }

    /// The zone whose days reports mean by a date.
    #[must_use]
    pub const fn time_zone(&self) -> &jiff::tz::TimeZone {
        &self.options.time_zone
    }

    /// Records that `asker` asks for something that is no statement, as [`ask`](Self::ask) does.
    pub(crate) async fn record(
        &self,
        asker: &Asker,
        question: &Question,
    ) -> Result<Asked, QueryError> {
        audit::ask(&self.writer, &self.metrics, asker, question).await
    }

    /// Whether questions can be recorded and answered with all that is durable; what is wrong
    /// otherwise.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn ready(&self) -> Result<(), String> {
        if self.gate.is_closed() {
            return Err("the service is stopping".to_owned());
        }
        let sources = self.start.now()?;
        // Many questions at a time are no fault of the recorder's.
        let refused = self.writer.slot(0).err();
        let refused = refused.filter(|error| !matches!(error, AppendError::Busy { .. }));
        let problem = self.writer.status().problem.or_else(|| Some(refused?.to_string()));
        problem.or_else(|| sources.problem()).map_or(Ok(()), Err)
    }

    /// How busy it is.
    #[must_use]
    pub fn load(&self) -> Load {
        let running = self.options.concurrency.saturating_sub(self.gate.available_permits());
        let sources = self.start.now().ok();
        let tail = sources.as_ref().map(|sources| (sources.tail.bytes(), sources.tail.behind()));
        let (tail_bytes, tail_behind) = tail.unwrap_or_default();
        Load { ready: self.ready().is_ok(), running, tail_bytes, tail_behind }
    }

    /// Ends every question; no new one is answered.
    pub fn close(&self) {
        self.stop.cancel();
        self.gate.close();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The clock.
pub(crate) fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uint::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
