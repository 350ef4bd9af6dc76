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
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::audit::Asked;
use crate::completeness::Completeness;
use crate::engine::{Engine, Question};
use crate::error::QueryError;
use crate::statement;

/// How much longer the asker's end waits than the work itself: a plan that does not yield cannot
/// end itself.
const GRACE: Duration = Duration::from_secs(2);

/// What is known before the first row.
pub(crate) struct Begin {
    schema: SchemaRef,
    completeness: Completeness,
}

type Begun = Result<Begin, QueryError>;
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
    task: JoinHandle<()>,
    deadline: Instant,
    allowed: Duration,
    ahead: Option<Row>,
    over: bool,
}

impl Answer {
    pub(crate) async fn begin(
        call: CallId,
        begun: oneshot::Receiver<Begun>,
        rows: mpsc::Receiver<Row>,
        task: JoinHandle<()>,
        deadline: Instant,
        allowed: Duration,
    ) -> Result<Self, QueryError> {
        let deadline = deadline + GRACE;
        let guard = AbortOnDrop(Some(task));
        let begin = match timeout_at(deadline, begun).await {
            Ok(Ok(begin)) => begin?,
            Ok(Err(_)) => return Err(broken()),
            Err(_) => return Err(QueryError::TimedOut(allowed)),
        };
        let task = guard.disarm().ok_or_else(broken)?;
        let Begin { schema, completeness } = begin;
        Ok(Self {
            call,
            schema,
            completeness,
            rows,
            task,
            deadline,
            allowed,
            ahead: None,
            over: false,
        })
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
        match timeout_at(self.deadline, &mut self.task).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(broken()),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct AbortOnDrop(Option<JoinHandle<()>>);

impl AbortOnDrop {
    fn disarm(mut self) -> Option<JoinHandle<()>> {
        self.0.take()
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
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
    pub(crate) stop: CancellationToken,
    pub(crate) begin: Option<oneshot::Sender<Begun>>,
    pub(crate) rows: mpsc::Sender<Row>,
}

impl Work {
    /// Answers, tells the asker how that went, and records it.
    pub(crate) async fn run(mut self) {
        let deadline = self.deadline;
        let stop = self.stop.clone();
        let rows = self.rows.clone();
        let allowed = self.engine.options.deadline;
        let outcome = tokio::select! {
            outcome = self.answer() => outcome,
            () = stop.cancelled() => Err(QueryError::Cancelled),
            () = rows.closed() => Err(QueryError::Cancelled),
            () = tokio::time::sleep_until(deadline) => Err(QueryError::TimedOut(allowed)),
        };
        let Self { asked, begin, rows, .. } = self;
        asked.end(outcome.as_ref().err());
        let Err(error) = outcome else { return };
        match begin {
            // Nobody there to be told is no fault.
            Some(begin) => drop(begin.send(Err(error))),
            None => drop(rows.send(Err(error)).await),
        }
    }

    async fn answer(&mut self) -> Result<(), QueryError> {
        let statement = statement::parse(&self.question.sql)?;
        let pin = self.engine.pin().await?;
        let session = self.engine.session(pin.tables)?;
        let plan = statement::plan(&session.state(), statement, &self.question.params).await?;
        let stream = session.execute_logical_plan(plan).await?.execute_stream().await?;
        let begin = Begin { schema: stream.schema(), completeness: pin.completeness };
        let asker = self.begin.take();
        if asker.is_none_or(|asker| asker.send(Ok(begin)).is_err()) {
            return Err(QueryError::Cancelled);
        }
        self.send(stream).await
    }

    async fn send(&mut self, mut stream: SendableRecordBatchStream) -> Result<(), QueryError> {
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
            self.rows.send(Ok(batch)).await.map_err(|_| QueryError::Cancelled)?;
        }
        Ok(())
    }
}
