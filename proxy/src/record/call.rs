//! A call from its opening to its ending.
//!
//! A [`Call`] holds the queue place and the room that its ending will use, so that even dropping it
//! ends it, with what is known at that moment: also the people that an event has no room for. Those
//! in the request are listed before it is forwarded, those in the answer before the ending, nobody
//! twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use custody_journal::writer::AppendError;
use custody_journal::{Appending, Part, Slot};
use custody_schemas::edits::Edits;
use custody_schemas::event::{Decision, Draft, Outcome, Subject};
use custody_schemas::id::{CallId, Hash, Uint};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::split_subjects;
use custody_schemas::words::Status;
use tokio::time::{timeout, timeout_at};
use tracing::{Instrument as _, Span};

use super::{Cleared, Facts, Recorder, Unrecorded, bodies, count};
use crate::inspect::{self, Found};
use crate::metrics::Step;
use crate::policy::Permit;
use crate::spans;
use crate::splice::Message;
use crate::traffic::{Flight, Lane};

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ending {
    /// In one word.
    pub(crate) status: Status,
    /// The upstream's HTTP status.
    pub(crate) http_status: Option<u16>,
    /// The raw token of the error's code.
    pub(crate) code: Option<String>,
    /// `resultType`
    pub(crate) result_type: Option<String>,
    /// The answer's bytes, as the server sent them.
    pub(crate) response: Option<Bytes>,
    /// What was changed in them before they went to the client.
    pub(crate) edits: Edits,
}

impl Ending {
    /// An ending without an answer.
    pub(crate) fn without_answer(status: Status, code: Option<i64>) -> Self {
        let code = code.map(|code| code.to_string());
        let (response, edits) = (None, Edits::default());
        Self { status, http_status: None, code, result_type: None, response, edits }
    }
}

impl Recorder {
    /// Records that a call is about to be forwarded.
    pub(crate) async fn open(
        self: &Arc<Self>,
        permit: Permit,
        call: CallId,
        facts: Facts,
        request: impl Into<Message>,
    ) -> Result<(Call, Cleared), Unrecorded> {
        let request = request.into();
        let mut slot = self.slot(facts.method()).map_err(|error| {
            self.metrics.unavailable();
            tracing::warn!(%error, "a call cannot be recorded; it is refused");
            Unrecorded
        })?;
        let decision = Arc::clone(permit.decision());
        let mut draft = facts.draft(Kind::CallRequested, Some(call), Some(&decision));
        draft.data = inspect::data(facts.phi, &facts.found);
        let (first, parts) = split_subjects(facts.found.clone().into_subjects());
        let told = Told { first: first.len(), all: facts.found.named() };
        draft.data.subjects = first;
        draft.bodies.edit_count = count(&request.edits);
        let bodies = bodies(Part::Request, Some(request.arrived), &request.edits);
        let opening = slot.open(draft, bodies);
        let listed = list(&mut slot, call, &facts, parts);
        let mut call = Box::new(Open {
            span: spans::call(call, &facts),
            slot: Some(slot),
            id: call,
            facts,
            told,
            decision,
            started: Instant::now(),
            sent: false,
            media: None,
            partial: false,
            absent: Vec::new(),
            renewed: false,
            flight: None,
            recorder: Arc::clone(self),
        });
        self.metrics.opened();
        // From here on, whatever happens to this future, dropping `call` ends it.
        let durable = async {
            opening.await?;
            all(listed).await
        };
        let durable = durable.instrument(spans::record_opening(&call.span));
        let recorded = timeout(self.wait, durable).await;
        self.metrics.waited(Step::Opening, call.started);
        match recorded {
            Ok(Ok(())) => {
                call.sent = true;
                call.facts.headers = None;
                return Ok((Call(call), Cleared(())));
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, call = %call.id, "a call could not be recorded; it is refused");
            }
            Err(_) => {
                tracing::warn!(call = %call.id, "a call was not recorded in time; it is refused");
            }
        }
        self.metrics.unavailable();
        Err(Unrecorded)
    }
}

/// How many of the people of a call its opening names, and how many are on the record with it.
#[derive(Clone, Copy, Debug)]
struct Told {
    first: usize,
    all: usize,
}

/// Hands over the people that an opening or ending has no room for.
fn list(slot: &mut Slot, call: CallId, facts: &Facts, parts: Vec<Vec<Subject>>) -> Vec<Appending> {
    facts.listings(Some(call), parts).map(|draft| slot.list(draft)).collect()
}

/// Waits until all of these are durable.
async fn all(appending: Vec<Appending>) -> Result<(), AppendError> {
    for appending in appending {
        appending.await?;
    }
    Ok(())
}

/// A call whose opening has been handed over and whose ending has not.
///
/// Boxed, because it moves through every future on the way to the answer.
pub(crate) struct Call(Box<Open>);

struct Open {
    /// What a trace shows of the call.
    span: Span,
    slot: Option<Slot>,
    id: CallId,
    facts: Facts,
    told: Told,
    decision: Arc<Decision>,
    started: Instant,
    sent: bool,
    /// The answer's media type, if it is worth a note.
    media: Option<String>,
    /// The answer on record is not all of it.
    partial: bool,
    /// Whose part of a common answer is missing.
    absent: Vec<String>,
    /// The server's session was opened anew, and the request sent once more.
    renewed: bool,
    /// By what the client can cancel it.
    flight: Option<Flight>,
    recorder: Arc<Recorder>,
}

impl Call {
    /// Its id.
    pub(crate) fn id(&self) -> CallId {
        self.0.id
    }

    /// What a trace shows of it.
    pub(crate) fn span(&self) -> &Span {
        &self.0.span
    }

    /// Who called what.
    pub(crate) fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Notes the session that the answer gives out, the answer's media type unless it is the
    /// usual one, and the headers that pass with it.
    pub(crate) fn note_head(&mut self, session: Option<Hash>, media: &str, headers: Option<Json>) {
        let open = &mut *self.0;
        open.facts.headers = headers;
        if session.is_some() && open.facts.what.session.is_none() {
            Arc::make_mut(&mut open.facts.what).session = session;
        }
        if media != "application/json" {
            open.media = Some(media.to_owned());
        }
    }

    /// Notes whose part of a common answer is missing.
    pub(crate) fn note_absent(&mut self, absent: Vec<String>) {
        self.0.absent = absent;
    }

    /// Notes whether the answer that will be recorded is not all that the server sent.
    pub(crate) fn note_partial(&mut self, partial: bool) {
        self.0.partial = partial;
    }

    /// Notes that the request was sent once more, in a new session of the server.
    pub(crate) fn note_renewed(&mut self) {
        self.0.renewed = true;
    }

    /// Lets the client cancel the call by the id of its request.
    pub(crate) fn enter(&mut self, lane: &Lane, id: &str) {
        self.0.flight = Some(lane.enter(id, self.0.id));
    }

    /// By what the client can cancel it.
    pub(crate) fn flight(&self) -> Option<&Flight> {
        self.0.flight.as_ref()
    }

    /// Whether the client has cancelled it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Adds what was found in a message of the call.
    pub(crate) fn absorb(&mut self, found: Found) {
        self.0.facts.found.absorb(found);
    }

    /// Records how the call ended; `Ok` means that it is durable.
    pub(crate) async fn end(self, ending: Ending) -> Result<(), Unrecorded> {
        let mut open = self.0;
        open.end(ending).await
    }
}

impl Open {
    fn is_cancelled(&self) -> bool {
        self.flight.as_ref().is_some_and(Flight::is_cancelled)
    }

    async fn end(&mut self, mut ending: Ending) -> Result<(), Unrecorded> {
        let Some(mut slot) = self.slot.take() else { return Err(Unrecorded) };
        if let Some(flight) = &mut self.flight
            && matches!(ending.status, Status::Ok | Status::ToolError | Status::RpcError)
        {
            flight.answered();
        }
        let (first, parts) = self.untold();
        let span = spans::record_ending(&self.span);
        let started = Instant::now();
        let deadline = tokio::time::Instant::from_std(started) + self.recorder.wait;
        let mut listed = Ok(());
        if !parts.is_empty() {
            let listing = list(&mut slot, self.id, &self.facts, parts);
            let recorded = timeout_at(deadline, all(listing).instrument(span.clone())).await;
            listed = recorded.map_err(|_| Unrecorded).and_then(|all| all.map_err(|_| Unrecorded));
        }
        if listed.is_err() {
            ending.status = Status::AuditFailed;
        }
        let mut draft = self.ending(&ending);
        draft.data.subjects = first;
        draft.bodies.edit_count = count(&ending.edits);
        let ended = slot.end(draft, bodies(Part::Response, ending.response, &ending.edits));
        self.recorder.metrics.ended(self.facts.what.server.as_deref(), &ending.status);
        let ended = timeout_at(deadline, ended.instrument(span)).await;
        self.recorder.metrics.waited(Step::Ending, started);
        let ended = match ended {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, call = %self.id, "an answer is withheld: its ending could not be recorded");
                Err(Unrecorded)
            }
            Err(_) => {
                tracing::warn!(call = %self.id, "an answer is withheld: its ending was not recorded in time");
                Err(Unrecorded)
            }
        };
        spans::ended(&self.span, &ending.status, ending.http_status);
        if listed.and(ended).is_err() {
            self.recorder.metrics.unrecorded();
            spans::unrecorded(&self.span);
        }
        listed.and(ended)
    }

    /// The people for the ending, those of the opening first, and those to be listed before it:
    /// all but those that were listed with the opening.
    fn untold(&self) -> (Vec<Subject>, Vec<Vec<Subject>>) {
        let mut subjects = self.facts.found.clone().into_subjects();
        subjects.drain(self.told.first..self.told.all);
        split_subjects(subjects)
    }

    fn ending(&self, ending: &Ending) -> Draft {
        let mut draft = self.facts.draft(Kind::CallEnded, Some(self.id), Some(&self.decision));
        let duration = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        draft.outcome = Some(Outcome {
            code: ending.code.clone(),
            duration_us: Some(Uint::new(duration)),
            http_status: ending.http_status,
            result_type: ending.result_type.clone(),
            status: ending.status.clone(),
        });
        draft.data = inspect::data(self.facts.phi, &self.facts.found);
        if self.partial {
            draft = draft.with("partial", true);
        }
        if !self.absent.is_empty() {
            draft = draft.with("absent", self.absent.clone());
        }
        if self.renewed {
            draft = draft.with("session_renewed", true);
        }
        match &self.media {
            Some(media) => draft.with("content_type", media.as_str()),
            None => draft,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        let status = if !self.sent {
            Status::NotForwarded
        } else if self.recorder.stopping.load(Ordering::Relaxed) {
            Status::Unknown
        } else if self.facts.leaving_cancels || self.is_cancelled() {
            Status::Cancelled
        } else {
            Status::Abandoned
        };
        spans::ended(&self.span, &status, None);
        let mut draft = self.ending(&Ending::without_answer(status.clone(), None));
        let (first, parts) = self.untold();
        draft.data.subjects = first;
        drop(list(&mut slot, self.id, &self.facts, parts));
        self.recorder.metrics.ended(self.facts.what.server.as_deref(), &status);
        drop(slot.end(draft, Vec::new()));
    }
}
