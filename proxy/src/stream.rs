//! An event stream on its way to a client: each message recorded, then its bytes passed on.
//!
//! The fields of an event (`event`, `id`, `retry`, `data`) go on exactly as they came; comments
//! and unknown fields, which are on no record, are left out. Messages that arrive together are recorded together.
//! The answer to the call is its ending; when it cannot be recorded, the last thing in the stream
//! is an error that says so. Comment lines keep a silent stream open.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use custody_schemas::event::What;
use custody_schemas::id::CallId;
use custody_schemas::words::Status;
use futures::future::join_all;
use futures::stream::unfold;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use crate::answer::{Examined, Handed};
use crate::call::{Asked, Exchange, examine};
use crate::era::Era;
use crate::errors::Failure;
use crate::identity::PrincipalId;
use crate::inspect::is_housekeeping;
use crate::payload::{BrokenOff, Payload};
use crate::record::{Call, Ending, Facts, LISTEN, LISTEN_ENDING, Relayed, Way};
use crate::revise::Reviser;
use crate::splice::Message;
use crate::sse::{Frame, Framer};
use crate::tools::Unshown;
use crate::traffic::Lane;
use crate::upstream::Body;
use crate::{Proxy, Served};

/// How many messages are recorded together.
const MAX_AT_ONCE: usize = 32;
/// What keeps a silent stream open.
pub(crate) const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// The stream that answers a call.
pub(crate) fn of_call(exchange: &Exchange<'_>, asked: &Asked, call: Call, body: Body) -> Payload {
    let facts = Facts { headers: None, ..call.facts().clone() };
    let id = call.id();
    start(exchange, facts, body, Some((asked.clone(), id, call)))
}

/// The stream of a server's own messages.
pub(crate) fn of_server(exchange: &Exchange<'_>, facts: Facts, body: Body) -> Payload {
    start(exchange, facts, body, None)
}

fn start(
    exchange: &Exchange<'_>,
    facts: Facts,
    body: Body,
    call: Option<(Asked, CallId, Call)>,
) -> Payload {
    let (asked, call_id, call) = match call {
        Some((asked, id, call)) => (Some(asked), Some(id), Some(call)),
        None => (None, None, None),
    };
    let standing = call.is_none() || facts.method() == LISTEN;
    let streaming = Streaming {
        proxy: Arc::clone(&exchange.visit.proxy),
        served: Arc::clone(exchange.served),
        framer: Framer::new(exchange.max_message_bytes() + 4096),
        body: Some(body),
        facts,
        asked,
        call_id,
        call,
        heard_at: Instant::now(),
        principal: exchange.caller.principal,
        reviser: Reviser::of(exchange),
        lane: exchange.lane(),
        standing,
        resumes: exchange.resumes(),
        answered: false,
        finished: false,
    };
    let pieces = unfold(streaming, |mut streaming| async move {
        let piece = streaming.next().await?;
        Some((piece, streaming))
    });
    Payload::Pieces(Box::pin(pieces))
}

struct Streaming {
    proxy: Arc<Proxy>,
    served: Arc<Served>,
    framer: Framer,
    /// Nothing once it has ended.
    body: Option<Body>,
    facts: Facts,
    asked: Option<Asked>,
    call_id: Option<CallId>,
    /// The call, until it has its answer.
    call: Option<Call>,
    heard_at: Instant,
    principal: PrincipalId,
    reviser: Reviser,
    /// What is open between the client and the server.
    lane: Lane,
    /// It stands open for whatever may come, so silence is no fault.
    standing: bool,
    /// It is the rest of another stream.
    resumes: bool,
    /// The client has the answer to its call.
    answered: bool,
    finished: bool,
}

/// What came from the upstream.
enum Heard {
    Frames(Vec<Frame>),
    Silence,
    End,
    Broken,
    TooLong,
    TimedOut,
    /// The client has cancelled the call and waits no longer.
    GivenUp,
}

type Piece = Result<Bytes, BrokenOff>;

impl Streaming {
    async fn next(&mut self) -> Option<Piece> {
        if self.finished {
            return None;
        }
        match self.hear().await {
            Heard::Frames(frames) => Some(self.pass(frames).await),
            Heard::Silence => Some(Ok(Bytes::from_static(KEEP_ALIVE))),
            Heard::End => self.end().await,
            Heard::Broken => Some(self.fail(Failure::UpstreamBroken, Status::Unknown).await),
            Heard::TooLong => Some(self.fail(Failure::AnswerTooLarge, Status::TooLarge).await),
            Heard::TimedOut => Some(self.fail(Failure::UpstreamTimeout, Status::Timeout).await),
            Heard::GivenUp => self.give_up().await,
        }
    }

    /// Waits for at least one whole event.
    async fn hear(&mut self) -> Heard {
        let (idle, grace) = (self.proxy.limits.stream_idle, self.proxy.limits.cancelled);
        loop {
            let mut frames = Vec::new();
            while frames.len() < MAX_AT_ONCE {
                match self.framer.frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(_) if frames.is_empty() => return Heard::TooLong,
                    Err(_) => break,
                }
            }
            if !frames.is_empty() {
                return Heard::Frames(frames);
            }
            let Some(body) = &mut self.body else { return Heard::End };
            let flight = self.call.as_ref().and_then(Call::flight);
            let given_up = flight.map(|flight| flight.given_up(grace));
            let coming = timeout(self.proxy.limits.keep_alive, body.frame());
            let came = match given_up {
                None => coming.await,
                Some(given_up) => tokio::select! {
                    came = coming => came,
                    () = given_up => return Heard::GivenUp,
                },
            };
            match came {
                Ok(Some(Ok(frame))) => {
                    self.heard_at = Instant::now();
                    if let Ok(data) = frame.into_data() {
                        self.framer.push(&data);
                    }
                }
                Ok(Some(Err(_))) => return Heard::Broken,
                Ok(None) => self.body = None,
                Err(_) if !self.standing && self.heard_at.elapsed() > idle => {
                    return Heard::TimedOut;
                }
                Err(_) => return Heard::Silence,
            }
        }
    }

    /// Records the messages of these frames, then gives their bytes.
    async fn pass(&mut self, frames: Vec<Frame>) -> Piece {
        let mut due = Due::default();
        let mut out = Vec::with_capacity(frames.len());
        for frame in &frames {
            let Some(data) = frame.data.as_ref().filter(|data| !data.is_empty()) else {
                out.push(self.reviser.event(frame, None));
                continue;
            };
            match self.take(data, &mut due).await {
                Ok(message) => out.push(self.reviser.event(frame, Some(&message))),
                Err(Failure::AnswerTooLarge) => {
                    return self.fail(Failure::AnswerTooLarge, Status::TooLarge).await;
                }
                Err(failure) => return self.fail(failure, Status::HttpError).await,
            }
        }
        let recorder = Arc::clone(&self.proxy.recorder);
        let relayed = due.relayed.into_iter().map(|relayed| recorder.relay(relayed));
        let recorded = join_all(relayed).await;
        let parked = due.parked.into_iter().map(|(call, ending)| call.end(ending));
        let answered = join_all(parked).await;
        if recorded.iter().any(Result::is_err) || answered.iter().any(Result::is_err) {
            return self.fail(Failure::AuditOutcomeUnrecorded, Status::AuditFailed).await;
        }
        if let Some(ending) = due.ending
            && let Some(call) = self.call.take()
        {
            let id = call.id();
            if call.end(Ending { http_status: Some(200), ..ending }).await.is_err() {
                return self.fail(Failure::AuditOutcomeUnrecorded, Status::AuditFailed).await;
            }
            let server = &self.served.server.name;
            due.handed.note(&self.proxy.links, self.principal, server, id);
            self.answered = true;
        }
        let bytes = joined(out);
        // the upstream has said that it is there; so do we
        Ok(if bytes.is_empty() { Bytes::from_static(KEEP_ALIVE) } else { bytes })
    }

    /// Takes in one message: what is to be recorded of it is due, and what the client is to have
    /// is returned.
    async fn take(&mut self, data: &Bytes, due: &mut Due) -> Result<Message, Failure> {
        let mut examined = examine(&self.served, self.asked.as_ref(), data.clone()).await;
        if let Some((asked, mut call)) = self.parked(&examined) {
            examined = examine(&self.served, Some(&asked), data.clone()).await;
            call.absorb(examined.found.clone());
            if let Some(answer) = examined.answer.take() {
                let message = self.revise(&call, data).await?;
                due.parked.push((call, answered(answer, &message)));
                return Ok(message);
            }
        }
        let answers = self.call.is_some() && examined.answer.is_some();
        if answers && self.standing && data.len() > LISTEN_ENDING {
            return Err(Failure::AnswerTooLarge);
        }
        if let Some(call) = &mut self.call
            && (answers || !self.standing)
        {
            // what comes in a stream that stands open is on the record message by message
            call.absorb(examined.found.clone());
        }
        if due.ending.is_none()
            && let (Some(call), Some(answer)) = (&self.call, examined.answer.take())
        {
            let message = self.revise(call, data).await?;
            due.handed = examined.handed;
            due.ending = Some(answered(answer, &message));
            return Ok(message);
        }
        if self.is_foreign(&examined) {
            return Err(Failure::UpstreamInvalid);
        }
        let message = match examined.method {
            Some(_) => self.reviser.own(data).map_err(Unshown::failure)?,
            None => data.clone().into(),
        };
        due.relayed.push(self.relayed(examined, message.clone()));
        Ok(message)
    }

    /// What the client is to have of the answer to `call`.
    async fn revise(&self, call: &Call, data: &Bytes) -> Result<Message, Failure> {
        let revised = self.reviser.answer(call.id(), call.facts(), data).await;
        revised.map_err(Unshown::failure)
    }

    /// The call that waits for this message, if it is an answer in a stream without a call.
    fn parked(&self, examined: &Examined) -> Option<(Asked, Call)> {
        if self.asked.is_some() || examined.method.is_some() {
            return None;
        }
        let what = &self.facts.what;
        self.proxy.parked.take(what.session, what.server.as_deref(), examined.id.as_deref()?)
    }

    /// Whether a message answers a call that is open, but not in this stream. A client would take
    /// it for the answer to that call, which then had two.
    fn is_foreign(&self, examined: &Examined) -> bool {
        if examined.several || (examined.answers && self.asked.is_some()) {
            return true;
        }
        if !examined.answers {
            return false;
        }
        !self.resumes && examined.id.as_deref().is_some_and(|id| self.lane.is_open(id))
    }

    /// A message beside the call's answer.
    fn relayed(&self, examined: Examined, message: Message) -> Relayed {
        let Examined { found, method, id, answers, .. } = examined;
        let call = match id.as_deref() {
            // the call lost its stream, so it has ended; this is what it was waiting for
            Some(id) if answers => self.lane.unanswered(id),
            Some(id) if method.is_some() => {
                self.lane.ask(&self.reviser.id(id), self.call_id);
                self.call_id
            }
            _ => self.call_id,
        };
        let carries_data = method.as_deref().is_none_or(|method| !is_housekeeping(method));
        let server = &self.served.server;
        let tool = self.asked.as_ref().and_then(Asked::tool);
        let phi = carries_data && server.rules.phi(tool).unwrap_or(server.phi);
        let what = What { method, rpc_id: id, ..self.facts.around() };
        let facts = Facts { what: Arc::new(what), prev: None, phi, found, ..self.facts.clone() };
        let (bytes, edits) = (Some(message.arrived), message.edits);
        Relayed { way: Way::Down, call, http: None, facts, bytes, edits }
    }

    /// The upstream has said all.
    async fn end(&mut self) -> Option<Piece> {
        if let Some(rest) = self.framer.rest() {
            return Some(self.pass(vec![rest]).await);
        }
        self.finished = true;
        let call = self.call.take()?;
        if call.is_cancelled() {
            self.call = Some(call);
            return self.give_up().await;
        }
        let modern = self.asked.as_ref().is_some_and(|asked| asked.era == Era::Modern);
        if modern {
            self.call = Some(call);
            return Some(self.fail(Failure::UpstreamBroken, Status::Unknown).await);
        }
        // A legacy client may ask for the rest of the stream with a GET.
        if let Some(asked) = self.asked.clone() {
            let limits = &self.proxy.limits;
            let patience = (limits.response, limits.cancelled);
            self.proxy.parked.park(self.facts.what.session, asked, call, patience).await;
        }
        None
    }

    /// Ends a call that its client has cancelled, and the stream, for nobody waits for more.
    async fn give_up(&mut self) -> Option<Piece> {
        self.finished = true;
        self.body = None;
        let ending = Ending::without_answer(Status::Cancelled, Some(Failure::Cancelled.code()));
        match self.call.take()?.end(ending).await {
            Ok(()) => None,
            Err(_) => Some(Err(BrokenOff)),
        }
    }

    /// Ends call and stream with an error as the last message.
    async fn fail(&mut self, failure: Failure, status: Status) -> Piece {
        self.finished = true;
        self.body = None;
        let mut failure = failure;
        if let Some(call) = self.call.take() {
            let ending = Ending::without_answer(status, Some(failure.code()));
            if call.end(ending).await.is_err() {
                failure = Failure::AuditOutcomeUnrecorded;
            }
        }
        let Some(asked) = self.asked.as_ref().filter(|_| !self.answered) else {
            return Err(BrokenOff);
        };
        let body = failure.body(Some(&asked.id), self.call_id, None);
        let mut message = BytesMut::with_capacity(body.len() + 32);
        message.extend_from_slice(b"event: message\ndata: ");
        message.extend_from_slice(&body);
        message.extend_from_slice(b"\n\n");
        Ok(message.freeze())
    }
}

/// What is to be recorded before some messages may pass.
#[derive(Default)]
struct Due {
    relayed: Vec<Relayed>,
    parked: Vec<(Call, Ending)>,
    ending: Option<Ending>,
    handed: Handed,
}

/// The ending of a call by this answer.
fn answered(answer: Ending, message: &Message) -> Ending {
    let (response, edits) = (Some(message.arrived.clone()), message.edits.clone());
    Ending { response, edits, ..answer }
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.pop().unwrap_or_default();
    }
    let length = pieces.iter().map(Bytes::len).sum();
    let mut bytes = BytesMut::with_capacity(length);
    for piece in pieces {
        bytes.extend_from_slice(&piece);
    }
    bytes.freeze()
}
