//! An answer on its way: the work behind it, and the end that the asker holds.
//!
//! Promises: the deadline is on the rows, not only on the plan; an answer that cannot be finished
//! ends with an error, never just early; when the asker drops its end, the work stops.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use custody_schemas::id::CallId;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::audit::Asked;
use crate::catalog::Tables;
use crate::completeness::Completeness;
use crate::engine::{Engine, Pin, Question};
use crate::error::QueryError;
use crate::statement;

/// How much longer the asker's end waits than the work itself: a plan that does not yield cannot
/// end itself.
const GRACE: Duration = Duration::from_secs(2);

/// What is known before the first row.
type Begun = Result<SchemaRef, QueryError>;
type Row = Result<RecordBatch, QueryError>;

/// The asker's end of an answer.
pub struct Answer {
    /// The question's call in the audit.
    pub call: CallId,
    /// The columns.
    pub schema: SchemaRef,
    /// What the answer holds and what it cannot show.
    pub completeness: Completeness,
    rows: mpsc::Receiver<Row>,
    threads: Threads,
    deadline: Instant,
    allowed: Duration,
    ahead: Option<Row>,
    over: bool,
}

impl Answer {
    /// Begins the work, and returns when its columns are known.
    pub(crate) async fn begin(work: Work, pin: Pin) -> Result<Self, QueryError> {
        let Pin { tables, completeness } = pin;
        let call = work.asked.call();
        let allowed = work.engine.options.deadline;
        let deadline = work.deadline + GRACE;
        let (begin, begun) = oneshot::channel();
        let (sender, rows) = mpsc::channel(2);
        let runtime = match work.engine.threads() {
            Ok(runtime) => runtime,
            Err(error) => {
                work.asked.end(Some(&error));
                return Err(error);
            }
        };
        let task = runtime.spawn(work.run(tables, begin, sender));
        let threads = Threads { runtime: Some(runtime), task };
        let schema = match timeout_at(deadline, begun).await {
            Ok(Ok(begun)) => begun?,
            Ok(Err(_)) => return Err(broken()),
            Err(_) => return Err(QueryError::TimedOut(allowed)),
        };
        let (ahead, over) = (None, false);
        Ok(Self { call, schema, completeness, rows, threads, deadline, allowed, ahead, over })
    }

    /// Waits until the first batch is there, so that an error before it can still be told by
    /// status. The batch is not lost.
    ///
    /// # Errors
    /// What went wrong before the first row.
    pub async fn first(&mut self) -> Result<(), QueryError> {
        match self.next().await {
            Some(Err(error)) => Err(error),
            Some(Ok(batch)) => {
                self.ahead = Some(Ok(batch));
                self.over = false;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The next batch; `None` after the last. After an error there is nothing.
    pub async fn next(&mut self) -> Option<Row> {
        if let Some(row) = self.ahead.take() {
            return Some(row);
        }
        if self.over {
            return None;
        }
        let next = match timeout_at(self.deadline, self.rows.recv()).await {
            Ok(next) => next,
            Err(_) => Some(Err(QueryError::TimedOut(self.allowed))),
        };
        let next = match next {
            None => self.finish().await.err().map(Err),
            some => some,
        };
        self.over = !matches!(next, Some(Ok(_)));
        next
    }

    /// A channel that closes is the end only if the work ended in order.
    async fn finish(&mut self) -> Result<(), QueryError> {
        match timeout_at(self.deadline, &mut self.threads.task).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(broken()),
        }
    }
}

/// The threads of one question. When this goes, its work ends at the next point where it yields,
/// and the threads with it; nobody waits for that.
struct Threads {
    runtime: Option<Runtime>,
    task: JoinHandle<()>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn broken() -> QueryError {
    QueryError::Internal("the work on this question broke off".to_owned())
}

/// The work behind an answer.
pub(crate) struct Work {
    pub(crate) engine: Arc<Engine>,
    pub(crate) asked: Asked,
    pub(crate) question: Question,
    pub(crate) deadline: Instant,
    /// Its place among the questions that run; free when the work has really ended.
    pub(crate) place: OwnedSemaphorePermit,
}

impl Work {
    /// Answers, tells the asker how that went, and records it.
    async fn run(
        mut self,
        tables: Tables,
        begin: oneshot::Sender<Begun>,
        rows: mpsc::Sender<Row>,
    ) {
        let stop = self.engine.stopping();
        let allowed = self.engine.options.deadline;
        let deadline = self.deadline;
        let mut begin = Some(begin);
        let outcome = tokio::select! {
            outcome = self.answer(tables, &mut begin, &rows) => outcome,
            () = stop.cancelled() => Err(QueryError::Cancelled),
            () = rows.closed() => Err(QueryError::Cancelled),
            () = tokio::time::sleep_until(deadline) => Err(QueryError::TimedOut(allowed)),
        };
        let Self { asked, place, .. } = self;
        asked.end(outcome.as_ref().err());
        drop(place);
        let Err(error) = outcome else { return };
        match begin {
            // Nobody there to be told is no fault.
            Some(begin) => drop(begin.send(Err(error))),
            None => drop(rows.send(Err(error)).await),
        }
    }

    async fn answer(
        &mut self,
        tables: Tables,
        begin: &mut Option<oneshot::Sender<Begun>>,
        rows: &mpsc::Sender<Row>,
    ) -> Result<(), QueryError> {
        // Nothing of the statement ever leaves these threads, whose stacks it fits.
        let statement = statement::parse(&self.question.sql)?;
        let session = self.engine.session(tables)?;
        let plan = statement::plan(&session.state(), statement, &self.question.params).await?;
        let stream = session.execute_logical_plan(plan).await?.execute_stream().await?;
        let asker = begin.take();
        if asker.is_none_or(|asker| asker.send(Ok(stream.schema())).is_err()) {
            return Err(QueryError::Cancelled);
        }
        self.send(stream, rows).await
    }

    async fn send(
        &mut self,
        mut stream: SendableRecordBatchStream,
        rows: &mpsc::Sender<Row>,
    ) -> Result<(), QueryError> {
        let limit = self.engine.options.max_rows;
        let mut sent = 0;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            sent += batch.num_rows() as u64;
            if sent > limit {
                return Err(QueryError::TooManyRows { limit });
            }
            self.asked.count(batch.num_rows());
            rows.send(Ok(batch)).await.map_err(|_| QueryError::Cancelled)?;
        }
        Ok(())
    }
}
