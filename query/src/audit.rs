//! The audit of the audit: every question is a call.
//!
//! `query.requested`, with the statement and its parameters as a body, is durable before anything
//! is answered; without it there is no answer. Whatever happens then, `query.ended` follows: from
//! [`Asked::end`], or as `unknown` from the drop of the slot.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use custody_journal::{OutBody, Part, Slot, Writer};
use custody_schemas::event::{Decision, Draft, Outcome, What, Who};
use custody_schemas::id::{CallId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::words::{Activity, Effect, Status};

use crate::access::Asker;
use crate::engine::Question;
use crate::error::QueryError;
use crate::metrics::Metrics;

/// A question that is recorded as asked.
#[derive(Debug)]
pub(crate) struct Asked {
    slot: Option<Slot>,
    call: CallId,
    who: Arc<Who>,
    what: Arc<What>,
    decision: Arc<Decision>,
    metrics: Metrics,
    since: Instant,
    rows: u64,
}

/// Records that `asker` asks `question`, and returns once that is durable.
///
/// # Errors
/// [`QueryError::Audit`]; then nothing may be answered.
pub(crate) async fn ask(
    writer: &Writer,
    metrics: &Metrics,
    asker: &Asker,
    question: &Question,
) -> Result<Asked, QueryError> {
    let method = question.method.clone();
    open(writer, metrics, asker, (method, Activity::R), question.body()).await
}

/// Records that `asker` asks for something that is no statement: `method` says what, `body` the rest.
///
/// # Errors
/// [`QueryError::Audit`]; then nothing may be done.
pub(crate) async fn open(
    writer: &Writer,
    metrics: &Metrics,
    asker: &Asker,
    (method, activity): (String, Activity),
    body: Vec<u8>,
) -> Result<Asked, QueryError> {
    let refused =
        |error: custody_journal::writer::AppendError| QueryError::Audit(error.to_string());
    let mut slot = writer.slot(0).map_err(refused)?;
    let call = CallId::from_uuid(uuid::Uuid::now_v7());
    let who = Arc::new(asker.who());
    let what = Arc::new(What {
        activity: Some(activity),
        method: Some(method),
        transport: Some("http".to_owned()),
        ..What::default()
    });
    let decision = Arc::new(Decision { effect: Effect::Allow, ..Decision::default() });
    let mut draft = Draft::new(Kind::QueryRequested);
    draft.call = Some(call);
    draft.who = Some(Arc::clone(&who));
    draft.what = Some(Arc::clone(&what));
    draft.decision = Some(Arc::clone(&decision));
    let body = OutBody { part: Part::Request, bytes: Bytes::from(body) };
    slot.open(draft, vec![body]).await.map_err(refused)?;
    let (slot, metrics, since) = (Some(slot), metrics.clone(), Instant::now());
    Ok(Asked { slot, call, who, what, decision, metrics, since, rows: 0 })
}

impl Asked {
    /// The question's call.
    pub(crate) const fn call(&self) -> CallId {
        self.call
    }

    /// Who asks.
    pub(crate) fn who(&self) -> Arc<Who> {
        Arc::clone(&self.who)
    }

    /// Counts rows that are about to be handed over.
    pub(crate) fn count(&mut self, rows: usize) {
        self.rows += rows as u64;
    }

    /// Records how it ended. Hands that over without waiting for it.
    pub(crate) fn end(mut self, error: Option<&QueryError>) {
        let Some(slot) = self.slot.take() else { return };
        let took = self.since.elapsed();
        let duration = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.metrics.ended(self.what.method.as_deref().unwrap_or_default(), error, took, self.rows);
        let mut draft = Draft::new(Kind::QueryEnded).with("rows", self.rows);
        draft.call = Some(self.call);
        draft.who = Some(Arc::clone(&self.who));
        draft.what = Some(Arc::clone(&self.what));
        draft.decision = Some(Arc::clone(&self.decision));
        draft.outcome = Some(Outcome {
            status: error.map_or(Status::Ok, status),
            code: error.map(|error| error.kind().to_owned()),
            duration_us: Some(Uint::new(duration)),
            http_status: error.map(|error| error.status().as_u16()),
            result_type: None,
        });
        // It is handed over when this returns; nobody waits for the disk here.
        drop(slot.end(draft, Vec::new()));
    }
}

impl Drop for Asked {
    /// Whoever dropped the question did not say how it ended: the asker has left.
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let left = Self {
                slot: Some(slot),
                call: self.call,
                who: Arc::clone(&self.who),
                what: Arc::clone(&self.what),
                decision: Arc::clone(&self.decision),
                metrics: self.metrics.clone(),
                since: self.since,
                rows: self.rows,
            };
            left.end(Some(&QueryError::Cancelled));
        }
    }
}

const fn status(error: &QueryError) -> Status {
    match error {
        QueryError::TimedOut(_) => Status::Timeout,
        QueryError::Cancelled => Status::Abandoned,
        QueryError::TooManyRows { .. } | QueryError::TooMuchMemory(_) | QueryError::Busy { .. } => {
            Status::TooLarge
        }
        QueryError::BadRequest(_)
        | QueryError::Statement(_)
        | QueryError::TooComplex { .. }
        | QueryError::ReadOnly(_)
        | QueryError::Unauthenticated(_)
        | QueryError::Forbidden { .. }
        | QueryError::Audit(_)
        | QueryError::Unavailable(_)
        | QueryError::Starting(_)
        | QueryError::NotYet(_)
        | QueryError::Internal(_) => Status::RpcError,
    }
}
