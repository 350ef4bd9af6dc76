//! One request to `/servers/{name}/mcp`, from its head to its answer: the straight line.
//!
//! Authenticate, read the body, read its envelope, hold headers against body, find the session,
//! decide, record, forward, answer. Whatever stops a caller's request on the way is recorded as
//! `call.denied` before the client hears of it, and nothing of it reaches the server. Requests of
//! strangers are only counted, see [`crate::refusals`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_schemas::edits::Edits;
use custody_schemas::event::{ClientClaimed, PrevCall};
use custody_schemas::id::{Bytes as Digits, CallId, Hash};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tracing::Instrument as _;

use crate::Served;
use crate::answer::{self, Examined, discard, read_whole, respond, unacceptable, within};
use crate::config::Limits;
use crate::envelope::{Envelope, Shape};
use crate::era::{self, Era, SESSION_HEADER, Spoken};
use crate::errors::Failure;
use crate::headers::{noted_down, noted_up};
use crate::identity::Caller;
use crate::inspect::{self, is_housekeeping};
use crate::leg::{self, Errand, Heard};
use crate::links::Token;
use crate::payload::Payload;
use crate::record::{Cleared, Facts, Relayed, Way, new_call};
use crate::session::{Foreign, Opened, Session};
use crate::spans;
use crate::splice::Message;
use crate::stream;
use crate::traffic::Lane;
use crate::upstream::{Body, NoAnswer, Outgoing, headers_down};
use crate::visit::{Beside, Judged, Stop, Visit};

/// From how many bytes on a message is inspected on a thread of its own.
const HEAVY_BYTES: usize = 256 << 10;

/// How long the rest of a body that is too long is read away.
const DISCARD: Duration = Duration::from_secs(5);

/// A request that may go to its server, once it is recorded.
pub(crate) struct Exchange<'v> {
    pub(crate) visit: &'v Visit,
    pub(crate) served: &'v Arc<Served>,
    pub(crate) caller: Caller,
    pub(crate) claimed: Option<ClientClaimed>,
    /// The caller's session, if it names one.
    pub(crate) session: Option<Arc<Session>>,
}

/// How the server answered.
struct Answer {
    response: Response<Body>,
    /// In a session that was opened anew for it.
    renewed: bool,
}

/// What a call asked: what is needed to know its answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The raw token of the request's id.
    pub(crate) id: String,
    /// The era that the client speaks.
    pub(crate) era: Era,
    /// Whether it asks for descriptions, such as a list of tools, and not for data.
    pub(crate) definitions: bool,
    pub(crate) tool: Option<String>,
}

impl Asked {
    /// The tool or prompt that was named.
    pub(crate) fn tool(&self) -> Option<&str> {
        self.tool.as_deref()
    }

    /// An error of our own as the answer.
    pub(crate) fn failure(&self, failure: Failure, call: Option<CallId>) -> Response<Payload> {
        error(failure, Some(&self.id), call, None)
    }
}

/// An error of our own as a response.
pub(crate) fn error(
    failure: Failure,
    id: Option<&str>,
    call: Option<CallId>,
    note: Option<&str>,
) -> Response<Payload> {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if failure == Failure::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if failure == Failure::MethodNotAllowed {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
    }
    respond(failure.status(), headers, Payload::whole(failure.body(id, call, note)))
}

/// Answers a POST.
pub(crate) async fn post(visit: Visit, body: Incoming) -> Response<Payload> {
    match receive(&visit, body).await {
        Ok((caller, bytes)) => forward(&visit, &caller, bytes.into()).await,
        Err(refused) => *refused,
    }
}

/// Who sends what; the answer to whoever may not, or not this.
pub(crate) async fn receive(
    visit: &Visit,
    mut body: Incoming,
) -> Result<(Caller, Bytes), Box<Response<Payload>>> {
    let Ok(caller) = visit.proxy.authority.check(&visit.headers) else {
        return Err(Box::new(visit.turn_away(Failure::Unauthenticated)));
    };
    match visit.read_body(&mut body).await {
        Ok(bytes) => Ok((caller, bytes)),
        Err(stop) => {
            if stop.failure == Failure::TooLarge {
                // Clients that write all before they read would not see the answer otherwise.
                Box::pin(discard(body, 4 * visit.proxy.max_message_bytes, DISCARD)).await;
            }
            let denial = visit.denial(&caller, stop, &Envelope::default(), None);
            Err(Box::new(visit.refuse(denial).await))
        }
    }
}

/// Judges a message, and sends it on its way.
pub(crate) async fn forward(visit: &Visit, caller: &Caller, message: Message) -> Response<Payload> {
    match apart(message.bytes.len(), || visit.judge(caller, &message.bytes)) {
        Judged::Refused(denial) => visit.refuse(denial).await,
        Judged::Call(exchange, asked, facts) => exchange.call(asked, facts, message).await,
        Judged::Other(exchange, facts, beside) => {
            let passed = Passed { method: Method::POST, http: None, beside };
            Box::pin(exchange.pass(passed, facts, message)).await
        }
    }
}

/// Answers a GET (the server's own stream) or a DELETE (the end of a session).
pub(crate) async fn bare(visit: Visit, method: Method, name: &'static str) -> Response<Payload> {
    let Ok(caller) = visit.proxy.authority.check(&visit.headers) else {
        return visit.turn_away(Failure::Unauthenticated);
    };
    let nothing = Envelope::default();
    let admitted = visit.served.as_ref().ok_or(Stop::from(Failure::UnknownServer));
    let admitted = admitted.and_then(|served| visit.enter(&caller, served, &nothing, Era::Legacy));
    let exchange = match admitted {
        Ok(exchange) => exchange,
        Err(stop) => return visit.refuse(visit.denial(&caller, stop, &nothing, None)).await,
    };
    let protocol = visit.headers.get(era::PROTOCOL_HEADER).and_then(|value| value.to_str().ok());
    let spoken = Spoken { era: Era::Legacy, protocol: protocol.unwrap_or_default().to_owned() };
    let facts = Facts { phi: false, ..exchange.facts(&nothing, &spoken, b"") };
    let ends = method == Method::DELETE;
    let passed = Passed { method, http: Some(name), beside: Beside::default() };
    let response = exchange.pass(passed, facts, Bytes::new().into()).await;
    let gone = response.status().is_success() || response.status() == StatusCode::NOT_FOUND;
    if let Some(session) = &exchange.session
        && ends
        && gone
        && visit.view.is_none()
    {
        visit.proxy.sessions.end(session);
    }
    response
}

/// A message beside calls, on its way to the server.
struct Passed {
    method: Method,
    /// The HTTP method for the record, if it is no plain POST.
    http: Option<&'static str>,
    beside: Beside,
}

impl Exchange<'_> {
    /// The longest message.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.visit.proxy.max_message_bytes
    }

    /// How long things may take.
    pub(crate) fn limits(&self) -> &Limits {
        &self.visit.proxy.limits
    }

    /// Who, what and whose data, for a message of the client.
    pub(crate) fn facts(&self, envelope: &Envelope<'_>, spoken: &Spoken, bytes: &[u8]) -> Facts {
        let server = &self.served.server;
        let tool = envelope.name.as_deref();
        let what = self.visit.what(envelope, Some(spoken.protocol.clone()));
        Facts {
            headers: noted_up(&self.visit.headers, &what),
            who: self.visit.seen.who(&self.caller.who, &self.visit.headers, self.claimed.as_ref()),
            what: Arc::new(what),
            prev: self.continues(envelope),
            leaving_cancels: spoken.era == Era::Modern,
            phi: !is_housekeeping(envelope.method())
                && server.rules.phi(tool).unwrap_or(server.phi),
            found: inspect::sent(&server.rules, envelope, bytes),
            by_proxy: false,
            within: self.visit.within,
        }
    }

    /// The call that a request continues.
    fn continues(&self, envelope: &Envelope<'_>) -> Option<PrevCall> {
        let links = &self.visit.proxy.links;
        let find = |token| links.find(self.caller.principal, &self.served.server.name, token);
        if let Some(state) = envelope.state.as_deref() {
            let hash = Digits(Sha256::digest(state.as_bytes()).into());
            return Some(PrevCall { call: find(Token::State(state)), state: Some(hash) });
        }
        let task = envelope.task.as_deref()?;
        find(Token::Task(task)).map(|call| PrevCall { call: Some(call), state: None })
    }

    /// What a message that is no request is about. An answer must be to something that this very
    /// session, or caller without one, was asked.
    pub(crate) fn beside(&self, envelope: &Envelope<'_>) -> Result<Beside, Stop> {
        if envelope.shape() == Shape::Response {
            let id = envelope.id.unwrap_or("null");
            if id == "null" && envelope.error.is_some() {
                return Ok(Beside::default()); // it could not read something of the server's
            }
            let known = self.visit.view.as_ref().map(|view| view.token(id));
            let asked = self.lane().answer(known.as_deref().unwrap_or(id));
            let asked = asked.ok_or(Failure::NotAsked)?;
            return Ok(Beside {
                call: asked.call,
                answers: Some(known.unwrap_or_else(|| id.to_owned())),
            });
        }
        let cancels = envelope.cancels.filter(|_| envelope.method() == "notifications/cancelled");
        Ok(Beside { call: cancels.and_then(|id| self.lane().cancel(id)), answers: None })
    }

    /// What is open between this caller and the server.
    pub(crate) fn lane(&self) -> Lane {
        match &self.session {
            Some(session) => Lane::Session(Arc::clone(session)),
            None => self.visit.proxy.loose.of(self.caller.principal, &self.served.server.name),
        }
    }

    /// A request: recorded, forwarded, answered.
    async fn call(&self, asked: Asked, facts: Facts, message: Message) -> Response<Payload> {
        let recorder = &self.visit.proxy.recorder;
        let permit = recorder.policy().decide(&self.caller);
        let id = new_call();
        let message = message.and_then(|bytes| self.served.upstream.fit(bytes));
        let bytes = message.bytes.clone();
        let Ok((mut call, cleared)) = recorder.open(permit, id, facts, message).await else {
            return asked.failure(Failure::AuditUnavailable, Some(id));
        };
        if asked.era == Era::Legacy {
            call.enter(&self.lane(), &asked.id);
        }
        let span = spans::ask(call.span(), &self.served.server.name);
        let asking = self.ask(cleared, Method::POST, bytes.clone()).instrument(span);
        let grace = self.limits().cancelled;
        let answer = match call.flight().map(|flight| flight.given_up(grace)) {
            None => asking.await,
            Some(given_up) => tokio::select! {
                answer = asking => answer,
                () = given_up => Err(NoAnswer::Cancelled),
            },
        };
        match answer {
            Ok(Answer { response, renewed }) => {
                if renewed {
                    call.note_renewed();
                }
                answer::deliver(self, &asked, call, response, &bytes).await
            }
            Err(why) => answer::no_answer(&asked, call, why).await,
        }
    }

    /// Anything else: recorded, forwarded, and what comes back recorded and passed on.
    async fn pass(&self, passed: Passed, facts: Facts, message: Message) -> Response<Payload> {
        let recorder = &self.visit.proxy.recorder;
        let Passed { method, http, beside } = passed;
        let call = beside.call;
        let relayed = |way, bytes| {
            let (facts, edits) = (facts.clone(), Edits::default());
            Relayed { way, call, http, facts, bytes, edits }
        };
        let message = message.and_then(|bytes| self.served.upstream.fit(bytes));
        let Message { arrived, bytes, edits } = message;
        let up = Relayed { edits, ..relayed(Way::Up, Some(arrived)) };
        let Ok(cleared) = recorder.relay(up).await else {
            return error(Failure::AuditUnavailable, None, None, None);
        };
        let (head, mut body) = match self.ask(cleared, method, bytes).await {
            Ok(answer) => answer.response.into_parts(),
            Err(why) => {
                if let Some(id) = &beside.answers
                    && matches!(why, NoAnswer::Unreachable | NoAnswer::SessionLost)
                {
                    self.lane().ask(id, call); // it may be answered again
                }
                return error(answer::failure_of(why).0, None, None, None);
            }
        };
        if let Some(failure) = unacceptable(head.status, &head.headers) {
            return error(failure, None, None, None);
        }
        let media = crate::upstream::media_type(&head.headers);
        if head.status.is_success() && media == "text/event-stream" {
            let facts = Facts { headers: noted_down(&head.headers), ..facts };
            let body = stream::of_server(self, facts, body);
            return respond(head.status, self.down(&head.headers, None), body);
        }
        let reading = read_whole(&mut body, self.max_message_bytes());
        let bytes = match within(self.limits().answer, reading).await {
            Ok(bytes) => bytes,
            Err(unread) => return error(unread.failure().0, None, None, None),
        };
        if !bytes.is_empty() {
            let Examined { found, .. } = examine(self.served, None, bytes.clone()).await;
            let phi = facts.phi || self.served.server.phi;
            let headers = noted_down(&head.headers);
            let facts = Facts { found, phi, headers, ..facts.clone() };
            let answer = Relayed { facts, ..relayed(Way::Down, None) };
            let answer = Relayed { bytes: Some(bytes.clone()), ..answer };
            if recorder.relay(answer).await.is_err() {
                return error(Failure::AuditOutcomeUnrecorded, None, None, None);
            }
        }
        respond(head.status, self.down(&head.headers, None), Payload::whole(bytes))
    }

    /// Sends a request. If the server has forgotten the session, it is opened anew there, and what
    /// the server has not processed is sent once more.
    async fn ask(
        &self,
        cleared: Cleared,
        method: Method,
        bytes: Bytes,
    ) -> Result<Answer, NoAnswer> {
        let leg = self.session.as_ref().and_then(|s| Some((s, s.leg(&self.served.server.name)?)));
        let Some((session, leg)) = leg else {
            let response = self.send(cleared, None, method, bytes).await?;
            return Ok(Answer { response, renewed: false });
        };
        let (opened, again) = (leg.now(), cleared.once_more());
        let answer = self.send(cleared, Some(&opened), method.clone(), bytes.clone()).await?;
        let response = match leg::heard(answer).await {
            Heard::Answer(response) => return Ok(Answer { response, renewed: false }),
            // what is to be resumed, or ended, is gone with the session
            Heard::Forgotten(response) if method == Method::DELETE || self.resumes() => response,
            Heard::Forgotten(_) => {
                let renewal = self.errand(session).run(leg, opened);
                let Ok(Ok(opened)) = tokio::spawn(renewal).await else {
                    return Err(self.lose(session));
                };
                let response = self.send(again, Some(&opened), method, bytes).await?;
                return Ok(Answer { response, renewed: true });
            }
        };
        Ok(Answer { response, renewed: false })
    }

    /// Gives up the server's session: with it the client's, unless other servers have part in that.
    fn lose(&self, session: &Session) -> NoAnswer {
        let (sessions, server) = (&self.visit.proxy.sessions, &self.served.server.name);
        match session.membership.get() {
            None => {
                sessions.end(session);
                NoAnswer::SessionLost
            }
            Some(membership) => {
                membership.leave(server);
                sessions.part(session, server);
                NoAnswer::Unreachable
            }
        }
    }

    /// Whether the client asks for the rest of a stream.
    pub(crate) fn resumes(&self) -> bool {
        self.visit.headers.contains_key("last-event-id")
    }

    fn errand(&self, session: &Arc<Session>) -> Errand {
        let visit = self.visit;
        Errand {
            proxy: Arc::clone(&visit.proxy),
            served: Arc::clone(self.served),
            session: Arc::clone(session),
            who: visit.seen.who(&self.caller.who, &visit.headers, self.claimed.as_ref()),
            protocol: visit.headers.get(era::PROTOCOL_HEADER).cloned(),
        }
    }

    async fn send(
        &self,
        cleared: Cleared,
        session: Option<&Opened>,
        method: Method,
        bytes: Bytes,
    ) -> Result<Response<Body>, NoAnswer> {
        let started = Instant::now();
        let mut outgoing = Outgoing::new(method, &self.caller, &self.visit.headers, bytes);
        if let Some(session) = session {
            outgoing.headers.insert(SESSION_HEADER, session.id.clone());
        }
        let answer = self.served.upstream.send(cleared, outgoing).await;
        self.served.answers.came(started);
        answer
    }

    /// Puts a session of ours before the one that an answer gives out. Gives our id and its hash.
    /// `initialize` is the request, if it is one.
    pub(crate) fn bind_session(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        initialize: Option<&Bytes>,
    ) -> Result<Option<(HeaderValue, Hash)>, Foreign> {
        let Some(id) = headers.get(SESSION_HEADER).filter(|_| status.is_success()) else {
            return Ok(None);
        };
        let sessions = &self.visit.proxy.sessions;
        let server = &self.served.server.name;
        let known = self.session.as_ref().and_then(|session| session.leg(server));
        if known.is_some_and(|leg| leg.now().id == id) {
            return Ok(None);
        }
        let opened = Opened::new(id.clone(), initialize);
        if let Some(session) = &self.session {
            if initialize.is_none() {
                return Ok(None);
            }
            return sessions.bind(session, server, opened).map(|()| None);
        }
        let (ours, session) = sessions.open(&self.visit.route, &self.caller, self.claimed.clone());
        match sessions.bind(&session, server, opened) {
            Ok(()) => Ok(Some((ours, session.hash))),
            Err(Foreign) => {
                sessions.end(&session);
                Err(Foreign)
            }
        }
    }

    /// The headers of an answer that the client may see, with the id of its session: the one that
    /// was just opened for it, or its own where the server repeats the id.
    pub(crate) fn down(&self, from: &HeaderMap, issued: Option<HeaderValue>) -> HeaderMap {
        let mut headers = headers_down(from);
        let repeated = || {
            let repeats = self.session.is_some() && from.contains_key(SESSION_HEADER);
            self.visit.headers.get(SESSION_HEADER).filter(|_| repeats).cloned()
        };
        if let Some(id) = issued.or_else(repeated) {
            headers.insert(SESSION_HEADER, id);
        }
        headers
    }
}

/// Reads a request; a long one so that other calls of this thread go on elsewhere.
fn apart<T>(length: usize, read: impl FnOnce() -> T) -> T {
    let threads = Handle::current().runtime_flavor();
    if length < HEAVY_BYTES || threads == RuntimeFlavor::CurrentThread {
        return read();
    }
    block_in_place(read)
}

/// Reads an answer, on a thread of its own if it is long.
pub(crate) async fn examine(served: &Arc<Served>, asked: Option<&Asked>, bytes: Bytes) -> Examined {
    if bytes.len() < HEAVY_BYTES {
        return answer::examine(&served.server.rules, asked, &bytes);
    }
    let (served, asked) = (Arc::clone(served), asked.cloned());
    let work = move || answer::examine(&served.server.rules, asked.as_ref(), &bytes);
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Examined::nothing())
}
