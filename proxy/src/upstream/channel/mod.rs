//! A server that speaks over one two-way channel of messages, seen as a streamable HTTP server.
//!
//! The channel is the pipes of a process ([`child`]) or a connection of 2024-11-05 ([`sse`]). Each
//! session has a channel of its own, opened by its `initialize`; a principal without sessions (from
//! 2026-07-28 on) has one as well, and another one while an id that it uses again is in flight. So
//! a channel is never shared by two principals, and messages pass as they are.
//!
//! A POST is answered with JSON when the answer is the first thing that comes, else with an event
//! stream of everything up to the answer. A session that is unknown, or whose server has ended, is
//! answered with 404. The number of channels has a limit: the one that has been idle for longest
//! makes room for a new one.

mod child;
mod exchange;
mod session;
mod sse;
mod starts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use super::notes::Desk;
use super::peer::Peer;
use super::reach::Command;
use super::{Body, NoAnswer, Outgoing};
use crate::envelope::{Envelope, Look, Shape};
use crate::era::{SESSION_HEADER, is_modern};
use crate::identity::{Caller, PrincipalId};
use crate::metrics::{Programs, Running};
use crate::record::Cleared;
use crate::splice::Message;
use session::{Request, Session};
use starts::Starts;

pub(crate) use exchange::Exchange;

/// How long a channel must have been idle to make room for another.
const IDLE_ENOUGH: Duration = Duration::from_secs(5);
/// How many channels a principal without sessions has; then a request waits until its id is free.
const MAX_LOOSE: usize = 8;
/// How often a channel is looked after.
const LOOK: Duration = Duration::from_secs(10);
/// A server that ends earlier than this has failed to start.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a stop waits for servers to end.
const ENDING: Duration = Duration::from_secs(4);

/// What a channel is.
#[derive(Debug)]
pub(super) enum Kind {
    /// The pipes of a process.
    Child(Command, Programs),
    /// A connection of 2024-11-05.
    Sse(Arc<Peer>),
}

/// A server behind channels.
#[derive(Debug)]
pub(crate) struct Channels {
    shared: Arc<Shared>,
    response: Duration,
}

#[derive(Debug)]
struct Shared {
    kind: Kind,
    server: Arc<str>,
    desk: Desk,
    max_message_bytes: usize,
    idle: Duration,
    room: Arc<Semaphore>,
    rooms: u32,
    starts: Starts,
    table: Mutex<Table>,
    /// Held by whoever opens a channel that others may use.
    opening: tokio::sync::Mutex<()>,
}

/// The channels that are open.
#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<String, Arc<Session>>,
    /// Of principals without sessions.
    loose: Vec<Arc<Session>>,
}

impl Channels {
    /// The server `name`, none of whose channels is open yet.
    pub(super) fn new(name: &str, kind: Kind, desk: Desk, limits: Bounds) -> Self {
        let (rooms, idle) = match &kind {
            Kind::Child(command, _) => (command.max_processes, command.idle),
            Kind::Sse(_) => (MAX_CONNECTIONS, IDLE_CONNECTION),
        };
        let rooms = u32::try_from(rooms).unwrap_or(u32::MAX);
        let shared = Shared {
            kind,
            server: Arc::from(name),
            desk,
            max_message_bytes: limits.max_message_bytes,
            idle,
            room: Arc::new(Semaphore::new(rooms as usize)),
            rooms,
            starts: Starts::default(),
            table: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared), response: limits.response }
    }

    /// Answers a request whose opening is durable.
    pub(super) async fn send(
        &self,
        _cleared: Cleared,
        outgoing: Outgoing,
    ) -> Result<Response<Body>, NoAnswer> {
        let answering = self.shared.answer(outgoing);
        timeout(self.response, answering).await.unwrap_or(Err(NoAnswer::TimedOut))
    }

    /// The message as it can go there: for a process in one line, which takes a space for each line
    /// break between two tokens. There is none inside of one, since it is JSON.
    pub(super) fn fit(&self, bytes: Bytes) -> Message {
        match &self.shared.kind {
            Kind::Sse(_) => bytes.into(),
            Kind::Child(..) => {
                let breaks = memchr::memchr2_iter(b'\n', b'\r', &bytes);
                let changes = breaks.map(|at| (at..at + 1, " ".to_owned())).collect();
                Message::spliced(bytes.clone(), changes).unwrap_or_else(|_| bytes.into())
            }
        }
    }

    /// Ends all channels.
    pub(super) async fn close(&self) {
        let open: Vec<_> = {
            let table = self.shared.table();
            table.sessions.values().chain(&table.loose).map(Arc::clone).collect()
        };
        for session in open {
            session.stop.cancel();
        }
        if timeout(ENDING, self.shared.room.acquire_many(self.shared.rooms)).await.is_err() {
            tracing::warn!(server = %self.shared.server, "a server did not end in time");
        }
    }
}

/// What all channels of a server keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) max_message_bytes: usize,
    pub(super) response: Duration,
}

/// How many connections of 2024-11-05 may be open to a server.
const MAX_CONNECTIONS: usize = 1024;
/// After how long without use one is closed.
const IDLE_CONNECTION: Duration = Duration::from_secs(1800);

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self: &Arc<Self>, outgoing: Outgoing) -> Result<Response<Body>, NoAnswer> {
        let session = self.named(&outgoing);
        match (&outgoing.method, session) {
            (&Method::POST, session) => self.post(session, outgoing).await,
            (_, Named::None) => Ok(refusal(StatusCode::METHOD_NOT_ALLOWED)),
            (_, Named::Unknown) => Ok(refusal(StatusCode::NOT_FOUND)),
            (&Method::GET, Named::Session(session)) => {
                Ok(stream(HeaderMap::new(), session.listen()))
            }
            (&Method::DELETE, Named::Session(session)) => {
                session.close();
                self.forget(&session);
                Ok(empty(StatusCode::OK))
            }
            _ => Ok(refusal(StatusCode::METHOD_NOT_ALLOWED)),
        }
    }

    fn named(&self, outgoing: &Outgoing) -> Named {
        let Some(id) = outgoing.headers.get(SESSION_HEADER) else { return Named::None };
        let table = self.table();
        let session = id.to_str().ok().and_then(|id| table.sessions.get(id));
        match session {
            Some(session)
                if session.principal == outgoing.caller.principal && !session.is_closed() =>
            {
                Named::Session(Arc::clone(session))
            }
            _ => Named::Unknown,
        }
    }

    async fn post(
        self: &Arc<Self>,
        named: Named,
        outgoing: Outgoing,
    ) -> Result<Response<Body>, NoAnswer> {
        let bytes = outgoing.bytes.clone();
        let Ok(message) = Envelope::read(&bytes, Look::Policy) else {
            return Ok(refusal(StatusCode::BAD_REQUEST));
        };
        let modern = message.meta_protocol.as_deref().is_some_and(is_modern);
        let is_request = message.shape() == Shape::Request;
        let session = match named {
            Named::Unknown => return Ok(refusal(StatusCode::NOT_FOUND)),
            Named::Session(session) => session,
            Named::None if modern => {
                self.loose(&outgoing.caller, message.id.unwrap_or("null")).await?
            }
            Named::None if is_request && message.method() == "initialize" => {
                let request = Request::new(&message, false, bytes.clone());
                return self.initialize(&outgoing.caller, request).await;
            }
            Named::None => return Ok(refusal(StatusCode::BAD_REQUEST)),
        };
        if !is_request {
            session.write(bytes.clone()).await?;
            if message.method() == "notifications/cancelled" {
                session.cancelled(&message);
            }
            return Ok(empty(StatusCode::ACCEPTED));
        }
        let exchange = session.ask(Request::new(&message, modern, bytes.clone())).await?;
        answer(HeaderMap::new(), exchange).await
    }

    /// Opens a channel and sends the first request of a session on it.
    async fn initialize(
        self: &Arc<Self>,
        caller: &Caller,
        request: Request,
    ) -> Result<Response<Body>, NoAnswer> {
        let session = self.open(caller).await?;
        let ends = EndsUnlessKept(Some(Arc::clone(&session)));
        let id = hex::encode(rand::random::<[u8; 16]>());
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&id).map_err(|_| NoAnswer::Broken)?;
        headers.insert(SESSION_HEADER, value);
        let exchange = session.ask(request).await?;
        self.table().sessions.insert(id, Arc::clone(&session));
        let answered = answer(headers, exchange).await;
        match &answered {
            Ok(_) if !session.is_closed() => ends.keep(),
            Ok(_) | Err(_) => self.forget(&session),
        }
        answered
    }

    /// A channel of `caller` on which no request with this id is in flight.
    async fn loose(self: &Arc<Self>, caller: &Caller, id: &str) -> Result<Arc<Session>, NoAnswer> {
        let _turn = self.opening.lock().await; // or all that come at once would open one
        if let Some(session) = self.own(caller.principal, id) {
            return Ok(session);
        }
        let session = self.open(caller).await?;
        self.table().loose.push(Arc::clone(&session));
        Ok(session)
    }

    /// The channel that a principal without sessions uses for this id, unless it gets another.
    fn own(&self, principal: PrincipalId, id: &str) -> Option<Arc<Session>> {
        let table = self.table();
        let is_own =
            |session: &&Arc<Session>| session.principal == principal && !session.is_closed();
        let mut own = table.loose.iter().filter(is_own);
        let oldest = own.clone().next().filter(|_| own.clone().count() >= MAX_LOOSE);
        own.find(|session| session.is_free(id)).or(oldest).map(Arc::clone)
    }

    /// Opens a channel.
    async fn open(self: &Arc<Self>, caller: &Caller) -> Result<Arc<Session>, NoAnswer> {
        let turn = self.starts.turn(Instant::now()).map_err(|_| NoAnswer::Unreachable)?;
        tokio::time::sleep_until(turn).await;
        let permit = self.room().await?;
        let notes = self.desk.notes(&self.server, &caller.who);
        let (session, lines) = Session::new(caller.principal, notes);
        let run = match &self.kind {
            Kind::Child(command, counts) => {
                let child = child::start(command).map_err(|error| self.cannot_start(&error))?;
                Run::Child(child, counts.started())
            }
            Kind::Sse(peer) => Run::Sse(Arc::clone(peer), caller.principal),
        };
        tokio::spawn(Arc::clone(self).look_after(run, Arc::clone(&session), lines, permit));
        Ok(session)
    }

    fn cannot_start(&self, error: &std::io::Error) -> NoAnswer {
        let wait_s = self.starts.failed(Instant::now()).as_secs_f32();
        self.count_failure();
        tracing::warn!(server = %self.server, %error, wait_s, "a server cannot be started");
        NoAnswer::Unreachable
    }

    /// Room for one more channel; the one that has been idle for longest makes it.
    async fn room(&self) -> Result<OwnedSemaphorePermit, NoAnswer> {
        if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
            return Ok(permit);
        }
        let idle = {
            let table = self.table();
            let open = table.sessions.values().chain(&table.loose);
            let idle = open.filter(|session| session.is_idle(IDLE_ENOUGH));
            idle.min_by_key(|session| session.used_at()).map(Arc::clone)
        };
        let Some(idle) = idle else {
            tracing::warn!(server = %self.server, "a server has no room for another session");
            return Err(NoAnswer::Unreachable);
        };
        idle.stop.cancel();
        let room = timeout(ENDING, Arc::clone(&self.room).acquire_owned()).await;
        room.ok().and_then(Result::ok).ok_or(NoAnswer::Unreachable)
    }

    /// Runs a channel to its end.
    async fn look_after(
        self: Arc<Self>,
        run: Run,
        session: Arc<Session>,
        lines: mpsc::Receiver<Bytes>,
        permit: OwnedSemaphorePermit,
    ) {
        let began = Instant::now();
        let limits = (self.max_message_bytes, self.idle);
        let ended = match run {
            Run::Child(child, _running) => {
                child::run(child, &session, lines, limits, &self.starts).await
            }
            Run::Sse(peer, principal) => {
                sse::run(&peer, principal, &session, lines, limits, &self.starts).await
            }
        };
        session.close();
        self.forget(&session);
        if ended == Ended::ByItself {
            self.count_failure();
        }
        match ended {
            Ended::AsWished => {}
            Ended::ByItself if began.elapsed() < SETTLED => {
                let wait_s = self.starts.failed(Instant::now()).as_secs_f32();
                tracing::warn!(server = %self.server, wait_s, "a server ended right after its start");
            }
            Ended::ByItself => tracing::warn!(server = %self.server, "a server ended"),
        }
        drop(permit);
    }

    fn count_failure(&self) {
        if let Kind::Child(_, counts) = &self.kind {
            counts.failed();
        }
    }

    fn forget(&self, session: &Arc<Session>) {
        let mut table = self.table();
        table.sessions.retain(|_, other| !Arc::ptr_eq(other, session));
        table.loose.retain(|other| !Arc::ptr_eq(other, session));
    }
}

/// The session that a request names.
enum Named {
    None,
    Unknown,
    Session(Arc<Session>),
}

/// What is to be run.
enum Run {
    Child(tokio::process::Child, Running),
    Sse(Arc<Peer>, PrincipalId),
}

/// Why a channel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// We ended it.
    AsWished,
    /// The server did.
    ByItself,
}

/// Ends a channel whose session never came to be.
struct EndsUnlessKept(Option<Arc<Session>>);

impl EndsUnlessKept {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for EndsUnlessKept {
    fn drop(&mut self) {
        if let Some(session) = &self.0 {
            session.stop.cancel();
        }
    }
}

/// Becomes ready when nobody has used the channel for `idle`.
async fn unused(session: &Session, idle: Duration, starts: &Starts) {
    let mut looks = tokio::time::interval_at(Instant::now() + LOOK.min(idle), LOOK.min(idle));
    loop {
        looks.tick().await;
        if session.works() {
            starts.worked();
        }
        if session.is_idle(idle) {
            return;
        }
    }
}

/// Answers with what comes first.
async fn answer(headers: HeaderMap, mut exchange: Exchange) -> Result<Response<Body>, NoAnswer> {
    match exchange.first().await {
        Ok(Some(bytes)) => Ok(response(StatusCode::OK, headers, Some("application/json"), bytes)),
        Ok(None) => Ok(stream(headers, exchange)),
        Err(_) => Err(NoAnswer::Broken),
    }
}

fn stream(headers: HeaderMap, exchange: Exchange) -> Response<Body> {
    let bytes = Bytes::new();
    let stream = response(StatusCode::OK, headers, Some("text/event-stream"), bytes);
    stream.map(|_| Body::Messages(exchange))
}

fn empty(status: StatusCode) -> Response<Body> {
    response(status, HeaderMap::new(), None, Bytes::new())
}

fn refusal(status: StatusCode) -> Response<Body> {
    let (code, text) = match status {
        StatusCode::NOT_FOUND => (-32001, "Session not found"),
        StatusCode::METHOD_NOT_ALLOWED => (-32000, "Method not allowed"),
        _ => (-32600, "Bad Request: Mcp-Session-Id is missing"),
    };
    let body =
        format!(r#"{{"jsonrpc":"2.0","id":null,"error":{{"code":{code},"message":"{text}"}}}}"#);
    response(status, HeaderMap::new(), Some("application/json"), body.into())
}

fn response(
    status: StatusCode,
    mut headers: HeaderMap,
    media: Option<&'static str>,
    bytes: Bytes,
) -> Response<Body> {
    if let Some(media) = media {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    }
    let mut response = Response::new(Body::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
