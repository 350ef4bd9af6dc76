//! Puts calls on the record: openings, endings, refusals, relayed messages.
//!
//! It promises G1 and G2: [`Recorder::open`] returns only when the opening is durable, and what it
//! returns is the only thing that [`crate::upstream`] takes; [`Call::end`] returns `Ok` only when
//! the ending is durable.

mod call;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use custody_journal::writer::AppendError;
use custody_journal::{Needs, OutBody, Part, Slot, Writer};
use custody_schemas::edits::Edits;
use custody_schemas::event::{Data, Decision, Draft, PrevCall, Subject, What, Who};
use custody_schemas::id::{CallId, Uint};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::split_subjects;
use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::Server;
use crate::errors::Failure;
use crate::inspect::{self, Found};
use crate::metrics::{Metrics, Step};
use crate::policy::Policy;
use crate::tools::Observed;
use crate::upstream::Note;

pub(crate) use call::{Call, Ending};

/// For how many `subjects.listed` there is room at most: the most people that are kept by name, as
/// identifiers usually are. For more there is room as for endings that are longer than thought.
const LISTINGS: u64 = 64;
/// What a call sets aside for itself; for what is longer, room is set aside in common.
const OWN: Needs = Needs { ending_bytes: 256 << 10, listings: 1 };

/// The request whose answer is a stream that stands open for as long as the client listens.
pub(crate) const LISTEN: &str = "subscriptions/listen";
/// The longest ending of such a call: it says that the stream is over, and clients have many open.
pub(crate) const LISTEN_ENDING: usize = 64 << 10;
/// How many events that are no calls are recorded at a time.
const MAX_BESIDE: usize = 256;
/// How many definitions of tools are recorded at a time.
const OBSERVED_AT_ONCE: usize = 64;
/// How many other servers with a tool of the same name are named.
const MAX_ALSO_ON: usize = 16;

/// It could not be recorded in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unrecorded;

/// The right to send one request: its record is durable. Only recording gives it.
#[derive(Debug)]
pub(crate) struct Cleared(());

impl Cleared {
    /// The right to send the same request again if it was not processed.
    pub(crate) fn once_more(&self) -> Self {
        Self(())
    }
}

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
    /// Whether the proxy sends it on its own behalf.
    pub(crate) by_proxy: bool,
    /// The client's call that it is part of.
    pub(crate) within: Option<CallId>,
}

/// Which way a relayed message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
    /// From the server to this proxy, which asked on its own behalf.
    Kept,
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
    /// Its bytes, as they arrived.
    pub(crate) bytes: Option<Bytes>,
    /// What was changed in them before they went on.
    pub(crate) edits: Edits,
}

/// Writes the records of a proxy.
pub(crate) struct Recorder {
    writer: Writer,
    wait: Duration,
    most: Needs,
    policy: Policy,
    metrics: Metrics,
    stopping: AtomicBool,
    /// Turns of events that are no calls, so that a flood of them waits and crowds nobody out.
    turns: Semaphore,
}

impl Recorder {
    /// A recorder that waits at most `wait`, for calls with answers of at most `ending_bytes`.
    pub(crate) fn new(
        writer: Writer,
        wait: Duration,
        ending_bytes: u64,
        policy: Policy,
        metrics: Metrics,
    ) -> Arc<Self> {
        let (stopping, turns) = (AtomicBool::new(false), Semaphore::new(MAX_BESIDE));
        let most = Needs { ending_bytes, listings: LISTINGS };
        Arc::new(Self { writer, wait, most, policy, metrics, stopping, turns })
    }

    /// The policies in force.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a call could be recorded now; what is wrong otherwise.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match self.writer.status().problem {
            Some(problem) => Err(problem),
            None => self.slot("").map(drop).map_err(|error| error.to_string()),
        }
    }

    fn slot(&self, method: &str) -> Result<Slot, AppendError> {
        match method {
            LISTEN => self.writer.slot(LISTEN_ENDING as u64),
            _ => {
                let ending_bytes = OWN.ending_bytes.min(self.most.ending_bytes);
                self.writer.slot_with_share(Needs { ending_bytes, ..OWN }, self.most)
            }
        }
    }

    /// From now on a call that is dropped was cut off by us.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
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
        let bodies = bodies(Part::Request, request, &Edits::default());
        let denied = self.append(draft, bodies).await;
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

    /// Records a message beside calls, which may then go on. The people that it has no room for
    /// are listed before it; those of a call's message are listed with the call.
    pub(crate) async fn relay(&self, relayed: Relayed) -> Result<Cleared, Unrecorded> {
        let facts = &relayed.facts;
        let mut draft = facts.draft(Kind::MessageRelayed, relayed.call, None);
        let (first, parts) = split_subjects(facts.found.clone().into_subjects());
        draft.data = Data { subjects: first, ..inspect::data(facts.phi, &facts.found) };
        if relayed.call.is_none() && !parts.is_empty() {
            let listed = facts.listings(None, parts).map(|draft| self.append(draft, Vec::new()));
            join_all(listed).await.into_iter().collect::<Result<(), _>>()?;
        }
        draft = draft.with(
            "direction",
            match relayed.way {
                Way::Up => "to_server",
                Way::Down => "to_client",
                Way::Kept => "to_proxy",
            },
        );
        if let Some(http) = relayed.http {
            draft = draft.with("http_method", http);
        }
        draft.bodies.edit_count = count(&relayed.edits);
        self.metrics.relayed();
        let bodies = bodies(Part::Request, relayed.bytes, &relayed.edits);
        let passed = self.append(draft, bodies).await;
        let passed = passed.inspect_err(|Unrecorded| match relayed.way {
            Way::Up => self.metrics.unavailable(),
            Way::Down | Way::Kept => self.metrics.unrecorded(),
        });
        passed.map(|()| Cleared(()))
    }

    /// Records what a server said beside messages. What cannot be recorded is lost, and our log says
    /// how much that is.
    pub(crate) async fn note(&self, server: &Server, note: Note) {
        let mut found = Found::none();
        found.note_incomplete();
        let what = What {
            recipient: server.recipient.clone(),
            server: Some(server.name.clone()),
            ..What::default()
        };
        let facts = Facts {
            who: note.who,
            what: Arc::new(what),
            prev: None,
            leaving_cancels: false,
            phi: server.phi,
            found,
            headers: None,
            by_proxy: false,
            within: None,
        };
        let mut draft = facts.draft(Kind::MessageRelayed, None, None);
        draft.data = facts.data_with_first_subjects();
        draft = draft.with("direction", "to_proxy").with("said", note.said.word());
        if note.lost > 0 {
            draft = draft.with("lost_bytes", note.lost);
        }
        let length = note.bytes.len();
        if self
            .append(draft, bodies(Part::Request, Some(note.bytes), &Edits::default()))
            .await
            .is_err()
        {
            tracing::warn!(server = %server.name, length, "what a server said is not on the record");
        }
    }

    /// Records definitions of tools that were not seen before, in an answer to `call`.
    pub(crate) async fn observed(
        &self,
        call: CallId,
        facts: &Facts,
        observed: &[Observed],
        answer: &Bytes,
    ) -> Result<(), Unrecorded> {
        for some in observed.chunks(OBSERVED_AT_ONCE) {
            let appends = some.iter().map(|observed| {
                let definition = answer.slice(observed.range.clone());
                let bodies = bodies(Part::Request, Some(definition), &Edits::default());
                self.append(facts.observed(call, observed), bodies)
            });
            join_all(appends).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    async fn append(&self, draft: Draft, bodies: Vec<OutBody>) -> Result<(), Unrecorded> {
        let kind = draft.kind.clone();
        let started = Instant::now();
        let appending = async {
            let _turn = self.turns.acquire().await.map_err(|_| AppendError::Closed)?;
            self.writer.append(draft, bodies).await
        };
        let appended = timeout(self.wait, appending).await;
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

/// A message's bytes as they arrived, and what was changed in them.
fn bodies(part: Part, bytes: Option<Bytes>, edits: &Edits) -> Vec<OutBody> {
    let bytes = bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| OutBody { part, bytes });
    let edits = (!edits.is_empty()).then(|| OutBody { part: Part::Edits, bytes: edits.encode() });
    bytes.into_iter().chain(edits).collect()
}

fn count(edits: &Edits) -> Option<Uint> {
    (!edits.is_empty()).then(|| Uint::new(edits.len() as u64))
}

impl Facts {
    /// What another message on the same way has in common with this one.
    pub(crate) fn around(&self) -> What {
        let around = &self.what;
        What {
            protocol: around.protocol.clone(),
            recipient: around.recipient.clone(),
            server: around.server.clone(),
            session: around.session,
            transport: around.transport.clone(),
            ..What::default()
        }
    }

    /// The method, or the empty string.
    pub(crate) fn method(&self) -> &str {
        self.what.method.as_deref().unwrap_or_default()
    }

    fn draft(&self, kind: Kind, call: Option<CallId>, decision: Option<&Arc<Decision>>) -> Draft {
        let kind_of_message = kind != Kind::SubjectsListed;
        let mut draft = Draft::new(kind);
        draft.call = call;
        draft.who = Some(Arc::clone(&self.who));
        draft.what = Some(Arc::clone(&self.what));
        draft.decision = decision.map(Arc::clone);
        draft.prev_call = self.prev.clone();
        if kind_of_message {
            if let Some(headers) = &self.headers {
                draft = draft.with("headers", headers.clone());
            }
            let unexamined = inspect::unexamined(self.phi, &self.found);
            if !unexamined.is_empty() {
                draft = draft.with("not_examined", unexamined);
            }
        }
        if self.by_proxy {
            draft = draft.with("by", "proxy");
        }
        if let Some(call) = self.within {
            draft = draft.with("within", call.to_string());
        }
        draft
    }

    /// What is said of a definition that was not seen before.
    fn observed(&self, call: CallId, observed: &Observed) -> Draft {
        let change = if observed.previous.is_some() { "changed" } else { "first" };
        let mut draft = Draft::new(Kind::ToolsObserved).with("change", change);
        if let Some(previous) = observed.previous {
            draft = draft.with("previous", previous.to_string());
        }
        if !observed.also_on.is_empty() {
            let some: Vec<_> = observed.also_on.iter().take(MAX_ALSO_ON).cloned().collect();
            draft = draft.with("also_on", some);
        }
        if observed.is_unapproved {
            draft = draft.with("unapproved", true);
        }
        draft.call = Some(call);
        draft.who = Some(Arc::clone(&self.who));
        draft.what = Some(Arc::new(What {
            tool: Some(observed.tool.clone()),
            tool_definition: Some(observed.hash),
            method: self.what.method.clone(),
            ..self.around()
        }));
        draft
    }

    /// The events that list people apart.
    fn listings(
        &self,
        call: Option<CallId>,
        parts: Vec<Vec<Subject>>,
    ) -> impl Iterator<Item = Draft> {
        let count = parts.len() as u64;
        (1u64..).zip(parts).map(move |(part, subjects)| {
            let mut draft = self.draft(Kind::SubjectsListed, call, None);
            draft.data = Data { subjects, ..inspect::data(true, &Found::none()) };
            draft.data.subject_status = None;
            draft.with("part", part).with("parts", count)
        })
    }

    /// The data of an event that has no `subjects.listed` beside it.
    fn data_with_first_subjects(&self) -> Data {
        let mut data = inspect::data(self.phi, &self.found);
        data.subjects = split_subjects(self.found.clone().into_subjects()).0;
        data
    }
}
