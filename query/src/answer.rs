//! An answer on its way: the work behind it, and the end that the asker holds.
//!
//! Promises: the deadline is on the rows, not only on the plan; an answer that cannot be finished
//! ends with an error, never just early; when the asker drops its end, the work stops; an asker who
//! reads slowly or not at all keeps neither threads nor memory of the work beyond the deadline.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use custody_schemas::id::CallId;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::audit::Asked;
use crate::catalog::Tables;
use crate::completeness::Completeness;
use crate::engine::{Engine, Question};
use crate::error::QueryError;
use crate::pin::Pin;
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
        let threads = Threads::until(deadline, runtime, task);
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
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(error))) => Err(error),
            Ok(Err(_)) | Err(_) if Instant::now() >= self.deadline => {
                Err(QueryError::TimedOut(self.allowed))
            }
            Ok(Err(_)) | Err(_) => Err(broken()),
        }
    }
}

/// The threads of one question. When this goes, or the time is over, its work ends at the next
/// point where it yields, and the threads with it; nobody waits for that.
struct Threads {
    runtime: Arc<Mutex<Option<Runtime>>>,
    /// Gives the error that the asker has not been told.
    task: JoinHandle<Option<QueryError>>,
    /// Ends the threads when the time is over, whatever the asker does.
    watch: JoinHandle<()>,
}

impl Threads {
    fn until(deadline: Instant, runtime: Runtime, task: JoinHandle<Option<QueryError>>) -> Self {
        let runtime = Arc::new(Mutex::new(Some(runtime)));
        let watched = Arc::clone(&runtime);
        let watch = tokio::spawn(async move {
            tokio::time::sleep_until(deadline).await;
            end(&watched);
        });
        Self { runtime, task, watch }
    }
}

fn end(runtime: &Mutex<Option<Runtime>>) {
    if let Some(runtime) = runtime.lock().take() {
        runtime.shutdown_background();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.watch.abort();
        self.task.abort();
        end(&self.runtime);
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
    /// Answers, tells the asker how that went, and records it. Gives back an error for which there
    /// was no room among the rows.
    async fn run(
        mut self,
        tables: Tables,
        begin: oneshot::Sender<Begun>,
        rows: mpsc::Sender<Row>,
    ) -> Option<QueryError> {
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
        let error = outcome.err()?;
        // Nobody there to be told is no fault.
        match begin {
            Some(begin) => begin.send(Err(error)).err()?.err(),
            None => match rows.try_send(Err(error)) {
                Ok(()) => None,
                Err(TrySendError::Full(row) | TrySendError::Closed(row)) => row.err(),
            },
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
        let session = self.engine.sources().await?.sessions.open(tables)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Params;
    use crate::access::Asker;
    use crate::testing::Deployment;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_asker_who_does_not_read_keeps_no_threads_beyond_the_deadline_and_is_told() {
        let deployment = Deployment::new().await;
        let mut options = deployment.options();
        options.deadline = Duration::from_secs(1);
        let engine = deployment.engine_with(options).await;
        let endless = Question::sql("SELECT value FROM range(0, 1000000000000)", Params::None);
        let mut answer = engine.ask(&Asker::anonymous(), endless).await.unwrap();
        answer.first().await.unwrap();
        let gone = async {
            while answer.threads.runtime.lock().is_some() || Arc::strong_count(&engine) > 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let within = Duration::from_secs(20);
        tokio::time::timeout(within, gone).await.expect("the threads end by themselves");
        let mut last = None;
        while let Some(row) = answer.next().await {
            last = row.err();
        }
        assert!(matches!(last, Some(QueryError::TimedOut(_))), "{last:?}");
    }
}
