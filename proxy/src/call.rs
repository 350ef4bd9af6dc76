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
use http::{HeaderMap, HeaderValue, Method, Response, header};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tracing::Instrument as _;

use crate::Served;
use crate::answer::{self, Examined, discard, read_whole, respond, unacceptable, within};
use crate::config::Limits;
use crate::envelope::Envelope;
use crate::era::{self, Era, SESSION_HEADER, Spoken};
use crate::errors::Failure;
use crate::headers::{noted_down, noted_up};
use crate::identity::Caller;
use crate::inspect::{self, is_housekeeping};
use crate::payload::Payload;
use crate::record::{Cleared, Facts, Relayed, Way, new_call};
use crate::session::{self, Foreign, Session};
use crate::spans;
use crate::splice::Message;
use crate::stream;
use crate::upstream::{Body, NoAnswer, Outgoing, headers_down};
use crate::visit::{Judged, Stop, Visit};

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
}

/// What a call asked: what is needed to know its answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The raw token of the request's id.
    pub(crate) id: String,
    /// The era that the client speaks.
    pub(crate) era: Era,
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
pub(crate) async fn post(visit: Visit, mut body: Incoming) -> Response<Payload> {
    let Ok(caller) = visit.proxy.authority.check(&visit.headers) else {
        return visit.turn_away(Failure::Unauthenticated);
    };
    let bytes = match visit.read_body(&mut body).await {
        Ok(bytes) => bytes,
        Err(stop) => {
            if stop.failure == Failure::TooLarge {
                // Clients that write all before they read would not see the answer otherwise.
                Box::pin(discard(body, 4 * visit.proxy.max_message_bytes, DISCARD)).await;
            }
            return visit.refuse(visit.denial(&caller, stop, &Envelope::default(), None)).await;
        }
    };
    match visit.judge(&caller, &bytes) {
        Judged::Refused(denial) => visit.refuse(denial).await,
        Judged::Call(exchange, asked, facts) => exchange.call(asked, facts, bytes).await,
        Judged::Other(exchange, facts) => {
            Box::pin(exchange.pass(Method::POST, None, facts, bytes)).await
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
    let admitted = admitted.and_then(|served| visit.enter(&caller, served, &nothing));
    let exchange = match admitted {
        Ok(exchange) => exchange,
        Err(stop) => return visit.refuse(visit.denial(&caller, stop, &nothing, None)).await,
    };
    let protocol = visit.headers.get(era::PROTOCOL_HEADER).and_then(|value| value.to_str().ok());
    let spoken = Spoken { era: Era::Legacy, protocol: protocol.unwrap_or_default().to_owned() };
    let facts = Facts { phi: false, ..exchange.facts(&nothing, &spoken, b"") };
    let ended = (method == Method::DELETE).then_some(visit.session).flatten();
    let response = exchange.pass(method, Some(name), facts, Bytes::new()).await;
    if let Some(session) = ended
        && response.status().is_success()
    {
        visit.proxy.sessions.end(session);
    }
    response
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
        let state = envelope.state.as_deref().map(|state| PrevCall {
            call: None,
            state: Some(Digits(Sha256::digest(state.as_bytes()).into())),
        });
        let what = self.visit.what(envelope, Some(spoken.protocol.clone()));
        Facts {
            headers: noted_up(&self.visit.headers, &what),
            who: self.visit.seen.who(&self.caller.who, &self.visit.headers, self.claimed.as_ref()),
            what: Arc::new(what),
            prev: state,
            leaving_cancels: spoken.era == Era::Modern,
            phi: !is_housekeeping(envelope.method())
                && server.rules.phi(tool).unwrap_or(server.phi),
            found: inspect::sent(&server.rules, envelope, bytes),
        }
    }

    /// A request: recorded, forwarded, answered.
    async fn call(&self, asked: Asked, facts: Facts, bytes: Bytes) -> Response<Payload> {
        let recorder = &self.visit.proxy.recorder;
        let permit = recorder.policy().decide(&self.caller);
        let id = new_call();
        let message = self.served.upstream.fit(bytes);
        let bytes = message.bytes.clone();
        let Ok((call, cleared)) = recorder.open(permit, id, facts, message).await else {
            return asked.failure(Failure::AuditUnavailable, Some(id));
        };
        let asking = spans::ask(call.span(), &self.served.server.name);
        match self.send(cleared, Method::POST, bytes).instrument(asking).await {
            Ok(answer) => answer::deliver(self, &asked, call, answer).await,
            Err(why) => answer::no_answer(&asked, call, why).await,
        }
    }

    /// Anything else: recorded, forwarded, and what comes back recorded and passed on.
    async fn pass(
        &self,
        method: Method,
        http: Option<&'static str>,
        facts: Facts,
        bytes: Bytes,
    ) -> Response<Payload> {
        let recorder = &self.visit.proxy.recorder;
        let relayed = |way, bytes| {
            let (facts, edits) = (facts.clone(), Edits::default());
            Relayed { way, call: None, http, facts, bytes, edits }
        };
        let Message { arrived, bytes, edits } = self.served.upstream.fit(bytes);
        let up = Relayed { edits, ..relayed(Way::Up, Some(arrived)) };
        let Ok(cleared) = recorder.relay(up).await else {
            return error(Failure::AuditUnavailable, None, None, None);
        };
        let (head, mut body) = match self.send(cleared, method, bytes).await {
            Ok(answer) => answer.into_parts(),
            Err(why) => return error(answer::failure_of(why).0, None, None, None),
        };
        if let Some(failure) = unacceptable(head.status, &head.headers) {
            return error(failure, None, None, None);
        }
        let media = crate::upstream::media_type(&head.headers);
        if head.status.is_success() && media == "text/event-stream" {
            let facts = Facts { headers: noted_down(&head.headers), ..facts };
            let body = stream::of_server(self, facts, body);
            return respond(head.status, headers_down(&head.headers), body);
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
        respond(head.status, headers_down(&head.headers), Payload::whole(bytes))
    }

    async fn send(
        &self,
        cleared: Cleared,
        method: Method,
        bytes: Bytes,
    ) -> Result<Response<Body>, NoAnswer> {
        let started = Instant::now();
        let outgoing = Outgoing::new(method, &self.caller, &self.visit.headers, bytes);
        let answer = self.served.upstream.send(cleared, outgoing).await;
        self.visit.proxy.watched.metrics.answered(&self.served.server.name, started);
        answer
    }

    /// Binds the session that an answer gives out to the caller, and returns its hash.
    pub(crate) fn bind_session(&self, headers: &HeaderMap) -> Result<Option<Hash>, Foreign> {
        let Some(id) = headers.get(SESSION_HEADER) else { return Ok(None) };
        let session = Session { principal: self.caller.principal, claimed: self.claimed.clone() };
        let hash = session::hash(&self.visit.server, id.as_bytes());
        self.visit.proxy.sessions.bind(hash, session).map(|()| Some(hash))
    }
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
