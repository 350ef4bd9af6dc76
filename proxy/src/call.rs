//! One request to `/servers/{name}/mcp`, from its head to its answer: the straight line.
//!
//! Authenticate, read the body, read its envelope, hold headers against body, find the session,
//! decide, record, forward, answer. Whatever stops a request on the way is recorded as
//! `call.denied` before the client hears of it, and nothing of it reaches the server.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use custody_schemas::event::{ClientClaimed, PrevCall, What, Who};
use custody_schemas::id::{Bytes as Digits, CallId, Hash};
use custody_schemas::words::Activity;
use http::{HeaderMap, HeaderValue, Method, Response, header};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use crate::answer::{self, Examined, Unread, discard, read_whole, respond, unacceptable, within};
use crate::config::Limits;
use crate::envelope::{Envelope, EnvelopeError, Look, Shape};
use crate::era::{self, Era, SESSION_HEADER, Spoken};
use crate::errors::Failure;
use crate::identity::{Caller, Seen};
use crate::inspect::{self, Found, is_housekeeping};
use crate::payload::Payload;
use crate::record::{Cleared, Facts, Relayed, Way, new_call};
use crate::session::{self, Foreign, Session};
use crate::stream;
use crate::upstream::headers_down;
use crate::{Proxy, Served};

/// From how many bytes on a message is inspected on a thread of its own.
const HEAVY_BYTES: usize = 256 << 10;

/// How long the rest of a body that is too long is read away.
const DISCARD: Duration = Duration::from_secs(5);

/// A request as it came through the door.
pub(crate) struct Visit {
    pub(crate) proxy: Arc<Proxy>,
    /// Who came on this connection before.
    pub(crate) seen: Arc<Seen>,
    pub(crate) headers: HeaderMap,
    /// The server's name in the path.
    pub(crate) server: String,
    /// That server, if there is one.
    pub(crate) served: Option<Arc<Served>>,
    /// The hash of the session that the client names.
    session: Option<Hash>,
}

/// A request that may go to its server, once it is recorded.
pub(crate) struct Exchange<'v> {
    pub(crate) visit: &'v Visit,
    pub(crate) served: &'v Arc<Served>,
    caller: Caller,
    claimed: Option<ClientClaimed>,
}

/// What a call asked: what is needed to know its answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The raw token of the request's id.
    pub(crate) id: String,
    /// The era that the client speaks.
    pub(crate) era: Era,
    tool: Option<String>,
}

/// Why a request goes no further.
pub(crate) struct Stop {
    failure: Failure,
    note: Option<Cow<'static, str>>,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self { failure, note: None }
    }
}

impl Stop {
    fn because(failure: Failure, note: impl Into<Cow<'static, str>>) -> Self {
        Self { failure, note: Some(note.into()) }
    }
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
        return visit.refuse(visit.stranger(Failure::Unauthenticated)).await;
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
        return visit.refuse(visit.stranger(Failure::Unauthenticated)).await;
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

/// What becomes of a message.
enum Judged<'v> {
    /// It goes no further.
    Refused(Denial),
    /// It is a request.
    Call(Exchange<'v>, Asked, Facts),
    /// It is a notification, or an answer to a server's request.
    Other(Exchange<'v>, Facts),
}

/// A refusal, ready to be recorded and given.
pub(crate) struct Denial {
    stop: Stop,
    facts: Facts,
    id: Option<String>,
    request: Option<Bytes>,
}

fn not_a_message(wrong: EnvelopeError) -> Stop {
    let failure = match wrong {
        EnvelopeError::Json(_) => Failure::NotJson,
        EnvelopeError::Batch | EnvelopeError::NotObject | EnvelopeError::Type(_) => {
            Failure::Invalid
        }
    };
    Stop::because(failure, wrong.to_string())
}

impl Visit {
    /// A request for the server called `server`.
    pub(crate) fn new(
        proxy: Arc<Proxy>,
        seen: Arc<Seen>,
        headers: HeaderMap,
        server: &str,
    ) -> Self {
        let session = headers.get(SESSION_HEADER);
        let session = session.map(|id| session::hash(server, id.as_bytes()));
        let served = proxy.servers.get(server).map(Arc::clone);
        Self { proxy, seen, headers, server: server.to_owned(), served, session }
    }

    /// Twins matter everywhere in what goes to a server with protected data.
    fn look(&self) -> Look {
        match &self.served {
            Some(served) if !served.server.phi => Look::Policy,
            _ => Look::Everywhere,
        }
    }

    async fn read_body(&self, body: &mut Incoming) -> Result<Bytes, Stop> {
        let declared = crate::upstream::media_type(&self.headers);
        if !declared.eq_ignore_ascii_case("application/json")
            || self.headers.contains_key(header::CONTENT_ENCODING)
        {
            return Err(Failure::UnsupportedMediaType.into());
        }
        let reading = read_whole(body, self.proxy.max_message_bytes);
        let read = within(self.proxy.limits.body, reading).await;
        read.map_err(|unread| match unread {
            Unread::TooLong => Failure::TooLarge.into(),
            Unread::TimedOut => Failure::BodyTimeout.into(),
            Unread::Broken => Stop::because(Failure::Invalid, "the body broke off"),
        })
    }

    /// Reads a message and decides what becomes of it.
    fn judge(&self, caller: &Caller, bytes: &Bytes) -> Judged<'_> {
        let envelope = match Envelope::read(bytes, self.look()) {
            Ok(envelope) => envelope,
            Err(wrong) => {
                let stop = not_a_message(wrong);
                let nothing = Envelope::default();
                return Judged::Refused(self.denial(caller, stop, &nothing, Some(bytes)));
            }
        };
        let (exchange, spoken) = match self.admit(caller, &envelope) {
            Ok(admitted) => admitted,
            Err(stop) => {
                return Judged::Refused(self.denial(caller, stop, &envelope, Some(bytes)));
            }
        };
        let facts = exchange.facts(&envelope, &spoken, bytes);
        if envelope.shape() != Shape::Request {
            return Judged::Other(exchange, facts);
        }
        let asked = Asked {
            id: envelope.id.unwrap_or("null").to_owned(),
            era: spoken.era,
            tool: envelope.name.as_deref().map(str::to_owned),
        };
        Judged::Call(exchange, asked, facts)
    }

    /// Everything that a message must be before policy is asked.
    fn admit<'v>(
        &'v self,
        caller: &Caller,
        envelope: &Envelope<'_>,
    ) -> Result<(Exchange<'v>, Spoken), Stop> {
        let served = self.served.as_ref().ok_or(Failure::UnknownServer)?;
        if let Some(key) = &envelope.twin {
            let key: String = key.chars().take(64).collect();
            return Err(Stop::because(Failure::TwinKeys, format!("{key:?}")));
        }
        match envelope.shape() {
            Shape::Request | Shape::Response => {}
            Shape::Notification if envelope.method().starts_with("notifications/") => {}
            Shape::Notification => {
                return Err(Stop::because(Failure::Invalid, "a request needs an id"));
            }
            Shape::Unclear => {
                return Err(Stop::because(
                    Failure::Invalid,
                    "a message is either a method with params or an id with a result or error",
                ));
            }
        }
        let spoken = era::check(&self.headers, envelope)
            .map_err(|note| Stop::because(Failure::HeaderMismatch, note))?;
        if spoken.era == Era::Modern && !envelope.version_2 {
            return Err(Stop::because(Failure::Invalid, "jsonrpc must be \"2.0\""));
        }
        Ok((self.enter(caller, served, envelope)?, spoken))
    }

    /// Finds the session, which must be the caller's own.
    fn enter<'v>(
        &'v self,
        caller: &Caller,
        served: &'v Arc<Served>,
        envelope: &Envelope<'_>,
    ) -> Result<Exchange<'v>, Stop> {
        if self.headers.get_all(SESSION_HEADER).iter().nth(1).is_some() {
            return Err(Stop::because(Failure::HeaderMismatch, "Mcp-Session-Id stands twice"));
        }
        let known = match self.session {
            None => None,
            Some(id) => match self.proxy.sessions.get(id, caller.principal) {
                Ok(session) => session.claimed.clone(),
                Err(Foreign) if caller.is_nobody() => None,
                Err(Foreign) => return Err(Failure::UnknownSession.into()),
            },
        };
        let owned = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let claimed = owned(&envelope.client.name)
            .map(|name| ClientClaimed { name, version: owned(&envelope.client.version) });
        Ok(Exchange { visit: self, served, caller: caller.clone(), claimed: claimed.or(known) })
    }

    /// The refusal of somebody who is not known, of whose request only the head was read.
    pub(crate) fn stranger(&self, failure: Failure) -> Denial {
        let nothing = Envelope::default();
        self.deny(&Arc::default(), failure.into(), &nothing, None)
    }

    /// The refusal of a caller's request.
    fn denial(
        &self,
        caller: &Caller,
        stop: Stop,
        envelope: &Envelope<'_>,
        request: Option<&Bytes>,
    ) -> Denial {
        self.deny(&caller.who, stop, envelope, request)
    }

    fn deny(
        &self,
        who: &Arc<Who>,
        stop: Stop,
        envelope: &Envelope<'_>,
        request: Option<&Bytes>,
    ) -> Denial {
        let protocol = era::check(&self.headers, envelope).map(|spoken| spoken.protocol).ok();
        let found = match (&self.served, request) {
            (Some(served), Some(bytes)) => inspect::sent(&served.server.rules, envelope, bytes),
            _ => Found::none(),
        };
        let facts = Facts {
            who: self.seen.who(who, &self.headers, None),
            what: Arc::new(self.what(envelope, protocol)),
            prev: None,
            leaving_cancels: false,
            phi: false,
            found,
        };
        let id = envelope.id.filter(|_| envelope.method.is_some()).map(str::to_owned);
        Denial { stop, facts, id, request: request.cloned() }
    }

    /// Records a refusal and gives it to the client. Boxed, for it is rare and large.
    pub(crate) fn refuse(
        &self,
        denial: Denial,
    ) -> Pin<Box<dyn Future<Output = Response<Payload>> + Send + '_>> {
        Box::pin(async move {
            let Denial { stop, facts, id, request } = denial;
            let id = id.as_deref();
            match self.proxy.recorder.deny(stop.failure, &facts, request).await {
                Ok(call) => error(stop.failure, id, Some(call), stop.note.as_deref()),
                Err(_) => error(Failure::AuditUnavailable, id, None, None),
            }
        })
    }

    /// What is called, in the words of a record.
    fn what(&self, envelope: &Envelope<'_>, protocol: Option<String>) -> What {
        let owned = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let method = envelope.method.as_deref();
        let name = |wanted: &str| owned(&envelope.name).filter(|_| method == Some(wanted));
        let served = self.served.as_deref().map(|served| &served.server);
        let rule = served.and_then(|server| server.rules.activity(envelope.name.as_deref()));
        let header = self.headers.get("traceparent").and_then(|value| value.to_str().ok());
        What {
            activity: rule.or_else(|| activity(method?)),
            method: owned(&envelope.method),
            prompt: name("prompts/get"),
            protocol: protocol.filter(|protocol| !protocol.is_empty()),
            recipient: served.and_then(|server| server.recipient.clone()),
            resource: owned(&envelope.uri),
            rpc_id: envelope.id.map(str::to_owned),
            server: Some(self.server.clone()),
            session: self.session,
            tool: name("tools/call"),
            tool_definition: None,
            trace: owned(&envelope.trace).or_else(|| header.map(str::to_owned)),
            transport: Some("streamable-http".to_owned()),
        }
    }
}

/// What a method does to data, where its name says so.
fn activity(method: &str) -> Option<Activity> {
    match method {
        "tools/call" => Some(Activity::E),
        "resources/read"
        | "resources/list"
        | "resources/subscribe"
        | "prompts/get"
        | "completion/complete"
        | "tasks/get"
        | "tasks/list"
        | "tasks/result" => Some(Activity::R),
        _ => None,
    }
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
    fn facts(&self, envelope: &Envelope<'_>, spoken: &Spoken, bytes: &[u8]) -> Facts {
        let server = &self.served.server;
        let tool = envelope.name.as_deref();
        let state = envelope.state.as_deref().map(|state| PrevCall {
            call: None,
            state: Some(Digits(Sha256::digest(state.as_bytes()).into())),
        });
        Facts {
            who: self.visit.seen.who(&self.caller.who, &self.visit.headers, self.claimed.as_ref()),
            what: Arc::new(self.visit.what(envelope, Some(spoken.protocol.clone()))),
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
        let Ok((call, cleared)) = recorder.open(permit, id, facts, bytes.clone()).await else {
            return asked.failure(Failure::AuditUnavailable, Some(id));
        };
        match self.send(cleared, Method::POST, bytes).await {
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
        let relayed = |way, bytes| Relayed { way, call: None, http, facts: facts.clone(), bytes };
        let Ok(cleared) = recorder.relay(relayed(Way::Up, Some(bytes.clone()))).await else {
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
            let answer =
                Relayed { facts: Facts { found, ..facts.clone() }, ..relayed(Way::Down, None) };
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
    ) -> Result<Response<Incoming>, crate::upstream::NoAnswer> {
        self.served.upstream.send(cleared, method, &self.visit.headers, bytes).await
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
