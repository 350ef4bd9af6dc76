//! The session at a server behind one of ours: opened anew when the server has forgotten it, and
//! closed when ours is.
//!
//! A server that restarts, or forgets its sessions, answers 404. It has not processed what it was
//! sent, so the client's own `initialize` is sent once more and then what it did not process. The
//! proxy does so on its own behalf, for one request at a time, and each step is on the record
//! like anybody's call. What a server knew beside the session (subscriptions, a level of logging)
//! is not told again.
//!
//! A server that was not there when a session for all servers was opened joins it in the same way.
//!
//! A session of ours that is forgotten or pushed out is ended at its servers, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_schemas::edits::Edits;
use custody_schemas::event::{What, Who};
use custody_schemas::words::Status;
use futures::stream::{StreamExt, iter};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use crate::answer::{self, Unread, failure_of, read_whole, within};
use crate::call::Asked;
use crate::envelope::{Envelope, Look};
use crate::era::{Era, PROTOCOL_HEADER, SESSION_HEADER};
use crate::inspect::Found;
use crate::record::{Call, Cleared, Ending, Facts, Relayed, Way, new_call};
use crate::session::{Leg, Opened, Session};
use crate::sse::Framer;
use crate::upstream::{Body, Outgoing, media_type};
use crate::{Proxy, Served};

/// What a client says when it has been let in.
const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
/// How long a refusal may be that is read to see whether it is about the session.
const MAX_REFUSAL: usize = 16 << 10;
/// How long that may take, and the ending of a session.
const WAIT: Duration = Duration::from_secs(5);
/// How long to wait at least before looking for sessions to end again.
const PAUSE: Duration = Duration::from_millis(100);
/// How many messages may come before the answer to `initialize`.
const MAX_BEFORE: usize = 64;
/// How many sessions are ended at their servers at a time.
const CLOSE_AT_ONCE: usize = 8;

/// The session could not be opened anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// An answer, and whether it says that the server does not know the session.
pub(crate) enum Heard {
    /// It is an answer.
    Answer(Response<Body>),
    /// The server does not know the session, and has not processed the request.
    Forgotten(Response<Body>),
}

/// Looks whether a server says that it does not know the session of a request: with 404, as it
/// should, or, as servers also do, with 400 and an error that is about no request but the session.
pub(crate) async fn heard(answer: Response<Body>) -> Heard {
    match answer.status() {
        StatusCode::NOT_FOUND => Heard::Forgotten(answer),
        StatusCode::BAD_REQUEST if is_short(answer.body()) => {
            let (head, mut body) = answer.into_parts();
            let bytes = within(WAIT, read_whole(&mut body, MAX_REFUSAL)).await.unwrap_or_default();
            let about = is_about_the_session(&bytes);
            let answer = Response::from_parts(head, Body::Whole(Some(bytes)));
            if about { Heard::Forgotten(answer) } else { Heard::Answer(answer) }
        }
        _ => Heard::Answer(answer),
    }
}

fn is_short(body: &Body) -> bool {
    body.size_hint().upper().is_some_and(|bytes| bytes <= MAX_REFUSAL as u64)
}

/// An error that names the session.
fn is_about_the_session(bytes: &[u8]) -> bool {
    let message = Envelope::read(bytes, Look::Policy).ok();
    let error = message.and_then(|message| message.error.map(str::to_ascii_lowercase));
    error.is_some_and(|error| error.contains("session"))
}

/// A server's answer to a request of the proxy's own.
struct Answered {
    /// The id of the session that it opens.
    session: Option<HeaderValue>,
    bytes: Bytes,
}

impl Outgoing {
    fn within(&mut self, session: Option<&HeaderValue>, protocol: &HeaderValue) {
        if let Some(session) = session {
            self.headers.insert(SESSION_HEADER, session.clone());
        }
        self.headers.insert(PROTOCOL_HEADER, protocol.clone());
    }
}

/// Opens the session at a server anew. Holds everything that it needs, so that it comes to its end
/// when the client does not wait for it.
#[derive(Clone)]
pub(crate) struct Errand {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) served: Arc<Served>,
    pub(crate) session: Arc<Session>,
    /// Who sent what the server did not process.
    pub(crate) who: Arc<Who>,
    /// The revision that the client speaks in this session, if it said so.
    pub(crate) protocol: Option<HeaderValue>,
}

impl Errand {
    /// Opens a session in place of `stale`, unless somebody else has just done so.
    pub(crate) async fn run(self, leg: Arc<Leg>, stale: Arc<Opened>) -> Result<Arc<Opened>, Gone> {
        let began = Instant::now();
        let turn = timeout(self.proxy.limits.response, leg.renewing.lock()).await;
        let mut turn = turn.map_err(|_| Gone)?;
        let now = leg.now();
        if !Arc::ptr_eq(&now, &stale) {
            return Ok(now);
        }
        if turn.failed_at.is_some_and(|at| at >= began) {
            return Err(Gone);
        }
        let opened = self.open(&stale).await;
        if opened.is_err() {
            turn.failed_at = Some(Instant::now());
        }
        opened.map(|()| leg.now())
    }

    async fn open(&self, stale: &Opened) -> Result<(), Gone> {
        let answer = self.ask(&stale.initialize, None).await?;
        let protocol = agreed(&answer.bytes).ok_or(Gone)?;
        let id = answer.session.ok_or(Gone)?;
        if self.protocol.as_ref().is_some_and(|spoken| *spoken != protocol) {
            return Err(Gone); // the client would go on in a revision that is not agreed on
        }
        self.say_initialized(Some(&id), &protocol).await?;
        self.bind(id, &stale.initialize)
    }

    fn bind(&self, id: HeaderValue, initialize: &Bytes) -> Result<(), Gone> {
        let opened = Opened::new(id, Some(initialize));
        let bound = self.proxy.sessions.bind(&self.session, &self.served.server.name, opened);
        bound.map_err(|_| Gone)
    }

    /// Opens a session at a server that comes later than others, and tells it the client's `level` of
    /// logging if it can log; the server's answer to `initialize`.
    pub(crate) async fn join(
        &self,
        initialize: &Bytes,
        level: impl FnOnce(&Bytes) -> Option<Bytes>,
    ) -> Result<Bytes, Gone> {
        let answer = self.ask(initialize, None).await?;
        let protocol = agreed(&answer.bytes).ok_or(Gone)?;
        self.say_initialized(answer.session.as_ref(), &protocol).await?;
        if let Some(level) = level(&answer.bytes)
            && self.ask(&level, Some((answer.session.as_ref(), &protocol))).await.is_err()
        {
            tracing::debug!("a server that joined did not take the level of logging");
        }
        if let Some(id) = answer.session {
            self.bind(id, initialize)?;
        }
        Ok(answer.bytes)
    }

    /// Sends a request that the client has sent before, in the session that `within` names with its
    /// revision; an answer that is no error.
    async fn ask(
        &self,
        bytes: &Bytes,
        within: Option<(Option<&HeaderValue>, &HeaderValue)>,
    ) -> Result<Answered, Gone> {
        let envelope = Envelope::read(bytes, Look::Policy).map_err(|_| Gone)?;
        let asked = Asked {
            id: envelope.id.unwrap_or("null").to_owned(),
            era: Era::Legacy,
            definitions: true,
            tool: None,
        };
        let recorder = &self.proxy.recorder;
        let permit = recorder.policy().decide(&self.session.caller);
        let mut facts = self.facts(envelope.method());
        Arc::make_mut(&mut facts.what).rpc_id = Some(asked.id.clone());
        let message = self.served.upstream.fit(bytes.clone());
        let mut outgoing = self.outgoing(Method::POST, message.bytes.clone());
        if let Some((session, protocol)) = within {
            outgoing.within(session, protocol);
        }
        let opening = recorder.open(permit, new_call(), facts, message).await;
        let (call, cleared) = opening.map_err(|_| Gone)?;
        let answer = match self.served.upstream.send(cleared, outgoing).await {
            Ok(answer) => answer,
            Err(why) => return end(call, failure_of(why).1, None).await,
        };
        let (head, mut body) = answer.into_parts();
        let http = Some(head.status.as_u16());
        let session = head.headers.get(SESSION_HEADER).cloned();
        if !head.status.is_success() {
            return end(call, Status::HttpError, http).await;
        }
        let read = timeout(self.proxy.limits.response, async {
            match media_type(&head.headers) {
                "text/event-stream" => self.answer_in_stream(&mut body, &asked).await,
                _ => read_whole(&mut body, self.proxy.max_message_bytes).await,
            }
        });
        let bytes = match read.await.unwrap_or(Err(Unread::TimedOut)) {
            Ok(bytes) => bytes,
            Err(unread) => return end(call, unread.failure().1, http).await,
        };
        let examined = answer::examine(&self.served.server.rules, Some(&asked), &bytes);
        let Some(outcome) = examined.answer else {
            return end(call, Status::HttpError, http).await;
        };
        let is_ok = outcome.status == Status::Ok;
        let ending = Ending { http_status: http, response: Some(bytes.clone()), ..outcome };
        call.end(ending).await.map_err(|_| Gone)?;
        if is_ok { Ok(Answered { session, bytes }) } else { Err(Gone) }
    }

    /// The answer in an event stream. What comes before it is recorded and goes no further.
    async fn answer_in_stream(&self, body: &mut Body, asked: &Asked) -> Result<Bytes, Unread> {
        let mut framer = Framer::new(self.proxy.max_message_bytes + 4096);
        let mut before = 0;
        loop {
            while let Some(frame) = framer.frame().map_err(|_| Unread::TooLong)? {
                let Some(data) = frame.data.filter(|data| !data.is_empty()) else { continue };
                let examined = answer::examine(&self.served.server.rules, Some(asked), &data);
                if examined.answer.is_some() {
                    return Ok(data);
                }
                before += 1;
                let mut facts = self.facts(examined.method.as_deref().unwrap_or_default());
                facts.found = examined.found;
                let kept = self.relay(Way::Kept, None, facts, Some(data)).await;
                if kept.is_err() || before > MAX_BEFORE {
                    return Err(Unread::Broken);
                }
            }
            let frame = body.frame().await.ok_or(Unread::Broken)?.map_err(|_| Unread::Broken)?;
            if let Ok(data) = frame.into_data() {
                framer.push(&data);
            }
        }
    }

    async fn say_initialized(
        &self,
        session: Option<&HeaderValue>,
        protocol: &HeaderValue,
    ) -> Result<(), Gone> {
        let bytes = Bytes::from_static(INITIALIZED);
        let facts = self.facts("notifications/initialized");
        let cleared = self.relay(Way::Up, None, facts, Some(bytes.clone())).await?;
        let mut outgoing = self.outgoing(Method::POST, bytes);
        outgoing.within(session, protocol);
        let answer = self.served.upstream.send(cleared, outgoing).await.map_err(|_| Gone)?;
        if answer.status().is_success() { Ok(()) } else { Err(Gone) }
    }

    /// Ends the session at its server.
    async fn close(&self, opened: &Opened) -> Result<(), Gone> {
        let cleared = self.relay(Way::Up, Some("DELETE"), self.facts(""), None).await?;
        let mut outgoing = self.outgoing(Method::DELETE, Bytes::new());
        outgoing.headers.insert(SESSION_HEADER, opened.id.clone());
        let sent = timeout(WAIT, self.served.upstream.send(cleared, outgoing)).await;
        sent.map_err(|_| Gone)?.map(drop).map_err(|_| Gone)
    }

    async fn relay(
        &self,
        way: Way,
        http: Option<&'static str>,
        facts: Facts,
        bytes: Option<Bytes>,
    ) -> Result<Cleared, Gone> {
        let edits = Edits::default();
        let relayed = Relayed { way, call: None, http, facts, bytes, edits };
        self.proxy.recorder.relay(relayed).await.map_err(|_| Gone)
    }

    fn outgoing(&self, method: Method, bytes: Bytes) -> Outgoing {
        let mut headers = HeaderMap::new();
        if method == Method::POST {
            let json = HeaderValue::from_static("application/json");
            let both = HeaderValue::from_static("application/json, text/event-stream");
            headers.insert(header::CONTENT_TYPE, json);
            headers.insert(header::ACCEPT, both);
        }
        Outgoing { method, headers, bytes, caller: self.session.caller.clone() }
    }

    fn facts(&self, method: &str) -> Facts {
        let server = &self.served.server;
        let protocol = self.protocol.as_ref().and_then(|value| value.to_str().ok());
        let what = What {
            method: Some(method.to_owned()).filter(|method| !method.is_empty()),
            protocol: protocol.map(str::to_owned),
            recipient: server.recipient.clone(),
            server: Some(server.name.clone()),
            session: Some(self.session.hash),
            transport: Some("streamable-http".to_owned()),
            ..What::default()
        };
        Facts {
            who: Arc::clone(&self.who),
            what: Arc::new(what),
            prev: None,
            leaving_cancels: false,
            phi: false,
            found: Found::none(),
            headers: None,
            by_proxy: true,
            within: None,
        }
    }
}

/// Ends a call of the proxy's own that came to nothing.
async fn end<T>(call: Call, status: Status, http_status: Option<u16>) -> Result<T, Gone> {
    let ending = Ending { http_status, ..Ending::without_answer(status, None) };
    if call.end(ending).await.is_err() {
        tracing::warn!("the next run will end a call of the proxy's own");
    }
    Err(Gone)
}

/// The revision that an answer to `initialize` agrees on.
fn agreed(bytes: &[u8]) -> Option<HeaderValue> {
    let message = Envelope::read(bytes, Look::Policy).ok()?;
    HeaderValue::from_str(message.protocol.as_deref()?).ok()
}

/// Ends sessions that were forgotten at their servers, as long as the proxy runs.
pub(crate) async fn close_forgotten(proxy: Arc<Proxy>) {
    let pause = WAIT.min(proxy.limits.session_idle).max(PAUSE);
    loop {
        tokio::time::sleep(pause).await;
        let (sessions, untold) = proxy.sessions.leaving();
        proxy.watched.metrics.sessions(proxy.sessions.count());
        if untold > 0 {
            tracing::warn!(untold, "sessions were forgotten that their servers still keep");
        }
        let legs = sessions.iter().flat_map(|session| {
            session.legs().into_iter().map(move |leg| (Arc::clone(session), leg))
        });
        let close = |(session, leg): (Arc<Session>, Arc<Leg>)| {
            let proxy = Arc::clone(&proxy);
            async move {
                let Some(served) = proxy.servers.get(&leg.server).map(Arc::clone) else { return };
                let who = Arc::clone(&session.caller.who);
                let closing = Errand { proxy, served, session, who, protocol: None };
                if closing.close(&leg.now()).await.is_err() {
                    tracing::debug!("a session could not be ended at its server");
                }
            }
        };
        iter(legs).for_each_concurrent(CLOSE_AT_ONCE, close).await;
    }
}
