//! Puts calls on the record: openings, endings, refusals, relayed messages.
//!
//! It promises G1 and G2: [`Recorder::open`] returns only when the opening is durable, and what it
//! returns is the only thing that [`crate::upstream`] takes; [`Call::end`] returns `Ok` only when
//! the ending is durable. A [`Call`] holds the queue place and the room that its ending will use,
//! so that even dropping it ends it, with what is known at that moment: also the people that an
//! event has no room for. Those in the request are listed before it is forwarded, those in the
//! answer before the ending, nobody twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use custody_journal::writer::AppendError;
use custody_journal::{Appending, OutBody, Part, Slot, Writer};
use custody_schemas::event::{Data, Decision, Draft, Outcome, PrevCall, Subject, What, Who};
use custody_schemas::id::{CallId, Hash, Uint};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::split_subjects;
use custody_schemas::words::Status;
use tokio::time::{timeout, timeout_at};
use tracing::{Instrument as _, Span};

use crate::errors::Failure;
use crate::inspect::{self, Found};
use crate::metrics::{Metrics, Step};
use crate::policy::{Permit, Policy};
use crate::spans;

/// For how many `subjects.listed` a call sets room aside: the most people that are kept by name,
/// as identifiers usually are. For more there is room as for endings that are longer than thought.
const LISTINGS: u64 = 64;

/// It could not be recorded in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unrecorded;

/// The right to send one request: its record is durable. Only recording gives it.
#[derive(Debug)]
pub(crate) struct Cleared(());

/// Who called what, and what is known of the data: the part that opening and ending share.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Who called.
    pub(crate) who: Arc<Who>,
    /// What was called.
    pub(crate) what: Arc<What>,
    /// The earlier call that it continues.
    pub(crate) prev: Option<PrevCall>,
    /// Whether leaving is how the client cancels, as it is from 2026-07-28 on.
    pub(crate) leaving_cancels: bool,
    /// Whether it carries protected data by configuration.
    pub(crate) phi: bool,
    /// What was found so far.
    pub(crate) found: Found,
    /// Headers that pass and stand nowhere else in the record: those of the message itself, so
    /// the ending has others than the opening.
    pub(crate) headers: Option<Json>,
}

/// Which way a relayed message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// A message beside calls: a notification, a server's request, an answer to one, an HTTP request
/// without a body.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// Which way it goes.
    pub(crate) way: Way,
    /// The call in whose stream it passes.
    pub(crate) call: Option<CallId>,
    /// The HTTP method, if it is no plain POST.
    pub(crate) http: Option<&'static str>,
    /// Who and what.
    pub(crate) facts: Facts,
    /// Its bytes.
    pub(crate) bytes: Option<Bytes>,
}

/// Writes the records of a proxy.
pub(crate) struct Recorder {
    writer: Writer,
    wait: Duration,
    ending_bytes: u64,
    policy: Policy,
    metrics: Metrics,
    stopping: AtomicBool,
}

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
    /// The answer's bytes.
    pub(crate) response: Option<Bytes>,
}

impl Ending {
    /// An ending without an answer.
    pub(crate) fn without_answer(status: Status, code: Option<i64>) -> Self {
        let code = code.map(|code| code.to_string());
        Self { status, http_status: None, code, result_type: None, response: None }
    }
}

impl Recorder {
    /// A recorder that waits at most `wait` and sets `ending_bytes` of room aside for each call.
    pub(crate) fn new(
        writer: Writer,
        wait: Duration,
        ending_bytes: u64,
        policy: Policy,
        metrics: Metrics,
    ) -> Arc<Self> {
        let stopping = AtomicBool::new(false);
        Arc::new(Self { writer, wait, ending_bytes, policy, metrics, stopping })
    }

    /// The policies in force.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a call could be recorded now; what is wrong otherwise.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match self.writer.status().problem {
            Some(problem) => Err(problem),
            None => self.slot().map(drop).map_err(|error| error.to_string()),
        }
    }

    fn slot(&self) -> Result<Slot, AppendError> {
        self.writer.slot_with_listings(self.ending_bytes, LISTINGS)
    }

    /// From now on a call that is dropped was cut off by us.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Records that a call is about to be forwarded.
    pub(crate) async fn open(
        self: &Arc<Self>,
        permit: Permit,
        call: CallId,
        facts: Facts,
        request: Bytes,
    ) -> Result<(Call, Cleared), Unrecorded> {
        let mut slot = self.slot().map_err(|error| {
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
        let opening = slot.open(draft, vec![OutBody { part: Part::Request, bytes: request }]);
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

    /// Records that a call was refused.
    pub(crate) async fn deny(
        &self,
        failure: Failure,
        facts: &Facts,
        request: Option<Bytes>,
    ) -> Result<CallId, Unrecorded> {
        let call = new_call();
        let decision = self.policy.denial(failure);
        let mut draft = facts.draft(Kind::CallDenied, Some(call), Some(&decision));
        draft.data = facts.data_with_first_subjects();
        self.metrics.refused(failure);
        let denied = self.append(draft, body(Part::Request, request)).await;
        denied.inspect_err(|Unrecorded| self.metrics.unavailable()).map(|()| call)
    }

    /// Records how often strangers were turned away.
    pub(crate) async fn refused(&self, counted: Vec<Draft>) {
        for draft in counted {
            let count = draft.detail.get("count").cloned();
            if self.append(draft, Vec::new()).await.is_err() {
                tracing::error!(?count, "refused strangers could not be recorded");
            }
        }
    }

    /// Records a message beside calls, which may then go on.
    pub(crate) async fn relay(&self, relayed: Relayed) -> Result<Cleared, Unrecorded> {
        let facts = &relayed.facts;
        let mut draft = facts.draft(Kind::MessageRelayed, relayed.call, None);
        draft.data = facts.data_with_first_subjects();
        draft = draft.with(
            "direction",
            match relayed.way {
                Way::Up => "to_server",
                Way::Down => "to_client",
            },
        );
        if let Some(http) = relayed.http {
            draft = draft.with("http_method", http);
        }
        self.metrics.relayed();
        let passed = self.append(draft, body(Part::Request, relayed.bytes)).await;
        let passed = passed.inspect_err(|Unrecorded| match relayed.way {
            Way::Up => self.metrics.unavailable(),
            Way::Down => self.metrics.unrecorded(),
        });
        passed.map(|()| Cleared(()))
    }

    async fn append(&self, draft: Draft, bodies: Vec<OutBody>) -> Result<(), Unrecorded> {
        let kind = draft.kind.clone();
        let started = Instant::now();
        let appended = timeout(self.wait, self.writer.append(draft, bodies)).await;
        self.metrics.waited(Step::Other, started);
        match appended {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, %kind, "an event could not be recorded");
                Err(Unrecorded)
            }
            Err(_) => {
                tracing::warn!(%kind, "an event was not recorded in time");
                Err(Unrecorded)
            }
        }
    }
}

/// A new call's id. Its random bits come from this thread's generator: no system call.
pub(crate) fn new_call() -> CallId {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let random: [u8; 10] = rand::random();
    CallId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

fn body(part: Part, bytes: Option<Bytes>) -> Vec<OutBody> {
    bytes
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| OutBody { part, bytes })
        .into_iter()
        .collect()
}

impl Facts {
    fn draft(&self, kind: Kind, call: Option<CallId>, decision: Option<&Arc<Decision>>) -> Draft {
        let kind_of_message = kind != Kind::SubjectsListed;
        let mut draft = Draft::new(kind);
        draft.call = call;
        draft.who = Some(Arc::clone(&self.who));
        draft.what = Some(Arc::clone(&self.what));
        draft.decision = decision.map(Arc::clone);
        draft.prev_call = self.prev.clone();
        if let Some(headers) = &self.headers
            && kind_of_message
        {
            draft = draft.with("headers", headers.clone());
        }
        draft
    }

    /// The data of an event that has no `subjects.listed` beside it.
    fn data_with_first_subjects(&self) -> Data {
        let mut data = inspect::data(self.phi, &self.found);
        data.subjects = split_subjects(self.found.clone().into_subjects()).0;
        data
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
    let count = parts.len() as u64;
    let listed = (1u64..).zip(parts).map(|(part, subjects)| {
        let mut draft = facts.draft(Kind::SubjectsListed, Some(call), None);
        draft.data = Data { subjects, ..inspect::data(true, &Found::none()) };
        draft.data.subject_status = None;
        slot.list(draft.with("part", part).with("parts", count))
    });
    listed.collect()
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

    /// Notes whether the answer that will be recorded is not all that the server sent.
    pub(crate) fn note_partial(&mut self, partial: bool) {
        self.0.partial = partial;
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
    async fn end(&mut self, mut ending: Ending) -> Result<(), Unrecorded> {
        let Some(mut slot) = self.slot.take() else { return Err(Unrecorded) };
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
        let ended = slot.end(draft, body(Part::Response, ending.response));
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
        } else if self.facts.leaving_cancels {
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
