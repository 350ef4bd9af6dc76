//! One client's use of a channel: which message belongs to which request.
//!
//! A channel belongs to one session, or to one principal where there are no sessions, so nothing on
//! it can reach anybody else. A request whose id is in flight waits until that id is free: ids are
//! never changed. The id of a request that its client has left stays taken until the server has
//! answered it, so that a late answer cannot be taken for that to another request. A message that names a request (its answer, its progress, its subscription) goes
//! to that request; any other goes to the oldest request in flight, else to the client's own
//! stream, else it waits for one. What nobody takes is noted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::exchange::{Exchange, Message};
use crate::envelope::{Envelope, Look, Shape, same_id};
use crate::identity::PrincipalId;
use crate::upstream::NoAnswer;
use crate::upstream::notes::{Notes, Said};

/// How many messages wait for a client in one stream.
const MAX_IN_STREAM: usize = 16;
/// How many messages wait for a stream to be opened, and how long they may be together.
const MAX_WAITING: usize = 256;
const MAX_WAITING_BYTES: usize = 1 << 20;
/// How many lines wait to be written.
pub(super) const MAX_LINES: usize = 16;
/// How many requests may stay unanswered after their clients have left.
const MAX_LEFT: usize = 64;
/// How long a request waits for an id whose last user has left without an answer.
const GRACE: Duration = Duration::from_secs(5);
/// How long a client may take no message before its stream is given up.
const STALLED: Duration = Duration::from_secs(30);

/// What a message names beside its id.
#[derive(Debug, Default, Deserialize)]
struct Names<'m> {
    #[serde(borrow, default, rename = "progressToken")]
    progress: Option<&'m RawValue>,
    #[serde(borrow, default, rename = "requestId")]
    request: Option<&'m RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<Meta<'m>>,
}

#[derive(Debug, Default, Deserialize)]
struct Meta<'m> {
    #[serde(borrow, default, rename = "progressToken")]
    progress: Option<&'m RawValue>,
    #[serde(borrow, default, rename = "io.modelcontextprotocol/subscriptionId")]
    subscription: Option<&'m RawValue>,
}

fn names<'m>(message: &Envelope<'m>) -> Names<'m> {
    message.params.and_then(|params| serde_json::from_str(params).ok()).unwrap_or_default()
}

/// A request of a client.
#[derive(Debug)]
pub(super) struct Request {
    /// The raw token of its id.
    id: String,
    /// The raw token of its progress token.
    progress: Option<String>,
    /// Leaving it cancels it.
    leaving_cancels: bool,
    bytes: Bytes,
}

impl Request {
    /// The request that `message`, read from `bytes`, is.
    pub(super) fn new(message: &Envelope<'_>, leaving_cancels: bool, bytes: Bytes) -> Self {
        let progress = names(message).meta.and_then(|meta| meta.progress);
        Self {
            id: message.id.unwrap_or("null").to_owned(),
            progress: progress.map(|token| token.get().to_owned()),
            leaving_cancels,
            bytes,
        }
    }
}

/// A channel in use.
#[derive(Debug)]
pub(super) struct Session {
    /// Whose it is.
    pub(super) principal: PrincipalId,
    /// Ends the channel.
    pub(super) stop: CancellationToken,
    pub(super) notes: Notes,
    lines: mpsc::Sender<Bytes>,
    state: Mutex<State>,
    /// A request has left.
    freed: Notify,
}

#[derive(Debug)]
struct State {
    in_flight: Vec<InFlight>,
    numbers: u64,
    stream: Option<mpsc::Sender<Message>>,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    used_at: Instant,
    /// It has answered something.
    works: bool,
    closed: bool,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    id: String,
    progress: Option<String>,
    to: mpsc::Sender<Message>,
    /// The client has left; nobody waits for the answer.
    left: bool,
}

/// Whether a request has its place.
enum Entering {
    Entered(Turn, mpsc::Receiver<Message>),
    /// Its id is in flight.
    Taken,
    /// Its id was left without an answer.
    Left,
}

/// Where a message goes.
enum Place {
    Request { number: u64, to: mpsc::Sender<Message>, last: bool },
    Stream(mpsc::Sender<Message>),
    Wait,
    Nowhere,
}

impl Session {
    /// A session whose lines are written by whoever holds the receiver.
    pub(super) fn new(principal: PrincipalId, notes: Notes) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (lines, written) = mpsc::channel(MAX_LINES);
        let state = State {
            in_flight: Vec::new(),
            numbers: 0,
            stream: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            used_at: Instant::now(),
            works: false,
            closed: false,
        };
        let session = Self {
            principal,
            stop: CancellationToken::new(),
            notes,
            lines,
            state: Mutex::new(state),
            freed: Notify::new(),
        };
        (Arc::new(session), written)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, when no other with its id is in flight.
    pub(super) async fn ask(self: &Arc<Self>, request: Request) -> Result<Exchange, NoAnswer> {
        let (turn, answers) = loop {
            let freed = self.freed.notified();
            match self.enter(&request)? {
                Entering::Entered(turn, answers) => break (turn, answers),
                Entering::Taken => freed.await,
                Entering::Left => {
                    if timeout(GRACE, freed).await.is_err() {
                        self.close(); // which ends what was left, too
                    }
                }
            }
        };
        self.write(request.bytes).await?;
        Ok(Exchange::of_request(answers, turn))
    }

    /// Takes a place for the request, if its id is free.
    fn enter(self: &Arc<Self>, request: &Request) -> Result<Entering, NoAnswer> {
        let mut state = self.state();
        if state.closed {
            return Err(NoAnswer::Unreachable);
        }
        if let Some(other) = state.with_id(&request.id) {
            return Ok(if other.left { Entering::Left } else { Entering::Taken });
        }
        let (to, answers) = mpsc::channel(MAX_IN_STREAM);
        state.numbers += 1;
        state.used_at = Instant::now();
        let number = state.numbers;
        let (id, progress) = (request.id.clone(), request.progress.clone());
        state.in_flight.push(InFlight { number, id: id.clone(), progress, to, left: false });
        let cancel = request.leaving_cancels.then_some(id);
        Ok(Entering::Entered(Turn { session: Arc::clone(self), number, cancel }, answers))
    }

    /// Whether a request with this id would not wait.
    pub(super) fn is_free(&self, id: &str) -> bool {
        let state = self.state();
        !state.closed && state.with_id(id).is_none()
    }

    /// Writes a line.
    pub(super) async fn write(&self, bytes: Bytes) -> Result<(), NoAnswer> {
        self.state().used_at = Instant::now();
        self.lines.send(bytes).await.map_err(|_| NoAnswer::Unreachable)
    }

    /// Notes that the client has told the server to cancel one of its requests: whoever waits
    /// for the answer need not be told when none comes.
    pub(super) fn cancelled(&self, message: &Envelope<'_>) {
        let Some(id) = names(message).request else { return };
        let state = self.state();
        if let Some(other) = state.with_id(id.get()).filter(|other| !other.left) {
            // a stream that is full has begun
            drop(other.to.try_send(Message::Cancelled));
        }
    }

    /// The stream for messages that belong to no request; one that was open ends.
    pub(super) fn listen(&self) -> Exchange {
        let (to, messages) = mpsc::channel(MAX_WAITING + MAX_IN_STREAM);
        let mut state = self.state();
        state.used_at = Instant::now();
        state.waiting_bytes = 0;
        for bytes in std::mem::take(&mut state.waiting) {
            if to.try_send(Message::More(bytes)).is_err() {
                break; // there is room for all that may wait
            }
        }
        if !state.closed {
            state.stream = Some(to);
        }
        Exchange::of_nobody(messages)
    }

    /// Whether nothing has happened for `idle` and nothing is open.
    pub(super) fn is_idle(&self, idle: Duration) -> bool {
        let state = self.state();
        let listens = state.stream.as_ref().is_some_and(|stream| !stream.is_closed());
        state.in_flight.iter().all(|other| other.left)
            && !listens
            && state.used_at.elapsed() >= idle
    }

    /// When it was last used.
    pub(super) fn used_at(&self) -> Instant {
        self.state().used_at
    }

    /// Whether it has ever answered.
    pub(super) fn works(&self) -> bool {
        self.state().works
    }

    /// Takes in a line of the server.
    pub(super) async fn hear(&self, bytes: Bytes) {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let Some(place) = self.place(&bytes) else {
            return self.notes.take(Said::Garbage, bytes);
        };
        match place {
            Place::Request { to, last: true, .. } => {
                self.give(&to, Message::Last(bytes)).await;
            }
            Place::Request { number, to, last: false } => {
                if !self.give(&to, Message::More(bytes)).await {
                    self.abandon(number);
                }
            }
            Place::Stream(to) => {
                if !self.give(&to, Message::More(bytes)).await {
                    self.state().stream = None;
                }
            }
            Place::Wait => self.wait_for_stream(bytes),
            Place::Nowhere => self.notes.take(Said::Undelivered, bytes),
        }
    }

    /// Whether the client took the message.
    async fn give(&self, to: &mpsc::Sender<Message>, message: Message) -> bool {
        let bytes = match &message {
            Message::More(bytes) | Message::Last(bytes) => bytes.clone(),
            Message::Cancelled => Bytes::new(),
        };
        let given = matches!(timeout(STALLED, to.send(message)).await, Ok(Ok(())));
        if !given {
            self.notes.take(Said::Undelivered, bytes);
        }
        given
    }

    fn wait_for_stream(&self, bytes: Bytes) {
        let mut state = self.state();
        state.waiting_bytes += bytes.len();
        state.waiting.push_back(bytes);
        while state.waiting.len() > MAX_WAITING || state.waiting_bytes > MAX_WAITING_BYTES {
            let Some(oldest) = state.waiting.pop_front() else { break };
            state.waiting_bytes -= oldest.len();
            self.notes.take(Said::Undelivered, oldest);
        }
    }

    /// Where a message goes; nothing if it is none.
    fn place(&self, bytes: &[u8]) -> Option<Place> {
        let message = Envelope::read(bytes, Look::Policy).ok()?;
        let mut state = self.state();
        state.used_at = Instant::now();
        let id = message.id.unwrap_or("null");
        Some(match message.shape() {
            Shape::Response => {
                state.works = true;
                let only = state.in_flight.len() == 1 && id == "null";
                let at = state.in_flight.iter().position(|other| only || same_id(&other.id, id));
                match at.map(|at| state.in_flight.remove(at)) {
                    Some(InFlight { left: false, number, to, .. }) => {
                        Place::Request { number, to, last: true }
                    }
                    Some(InFlight { left: true, .. }) => {
                        self.freed.notify_waiters();
                        Place::Nowhere
                    }
                    None => Place::Nowhere,
                }
            }
            Shape::Request | Shape::Notification => state.place(&names(&message)),
            Shape::Unclear if message.error.is_some() && state.in_flight.len() == 1 => {
                match state.in_flight.pop() {
                    Some(InFlight { left: false, number, to, .. }) => {
                        Place::Request { number, to, last: true }
                    }
                    Some(_) | None => Place::Nowhere,
                }
            }
            Shape::Unclear => return None,
        })
    }

    /// Lets go of a request that has its answer.
    fn leave(&self, number: u64) {
        self.state().in_flight.retain(|other| other.number != number);
        self.freed.notify_waiters();
    }

    /// Lets go of a request that has none; whether there was one.
    fn abandon(&self, number: u64) -> bool {
        let mut state = self.state();
        let Some(left) = state.in_flight.iter_mut().find(|other| other.number == number) else {
            return false;
        };
        left.left = true;
        if state.in_flight.iter().filter(|other| other.left).count() > MAX_LEFT {
            self.stop.cancel(); // a server that does not answer is started anew
        }
        true
    }

    /// Says that the server is gone: everything in flight fails at once.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.in_flight.clear();
        state.stream = None;
        for bytes in std::mem::take(&mut state.waiting) {
            self.notes.take(Said::Undelivered, bytes);
        }
        drop(state);
        self.stop.cancel();
        self.freed.notify_waiters();
    }

    /// Whether the server is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

impl State {
    /// The request with this id.
    fn with_id(&self, id: &str) -> Option<&InFlight> {
        self.in_flight.iter().find(|other| same_id(&other.id, id))
    }

    /// Where a request or notification of the server goes.
    fn place(&self, names: &Names<'_>) -> Place {
        let meta = names.meta.as_ref();
        let token = names.progress.map(RawValue::get);
        let id = meta.and_then(|meta| meta.subscription).or(names.request).map(RawValue::get);
        let is_meant = |other: &&InFlight| {
            let progress = token.zip(other.progress.as_deref());
            progress.is_some_and(|(a, b)| same_id(a, b))
                || id.is_some_and(|id| same_id(id, &other.id))
        };
        let mut waiting = self.in_flight.iter().filter(|other| !other.left);
        let oldest = waiting.clone().next();
        let meant = waiting.find(is_meant).or(oldest);
        match (meant, &self.stream) {
            (Some(InFlight { number, to, .. }), _) => {
                Place::Request { number: *number, to: to.clone(), last: false }
            }
            (None, Some(stream)) => Place::Stream(stream.clone()),
            (None, None) => Place::Wait,
        }
    }
}

/// A request's place among those in flight. It is left when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    session: Arc<Session>,
    number: u64,
    /// The id to cancel when the client leaves before the answer.
    cancel: Option<String>,
}

impl Turn {
    /// The request has its answer.
    pub(super) fn answered(&mut self) {
        self.cancel = None;
        self.session.leave(self.number);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.session.abandon(self.number) {
            return;
        }
        let Some(id) = self.cancel.take() else { return };
        let line = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
        );
        let line = Bytes::from(line);
        if self.session.lines.try_send(line.clone()).is_ok() {
            self.session.notes.take(Said::Cancelled, line);
        }
    }
}
