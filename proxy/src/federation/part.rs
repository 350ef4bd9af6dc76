//! One server's part of a stream that stands open.
//!
//! It is opened again when it breaks off, after half a second at first and a minute at last, and goes on
//! where it was if the server's events have ids. A server that says that it has no such stream is not
//! asked again.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use custody_schemas::id::CallId;
use futures::stream::{Stream, StreamExt as _, unfold};
use http::{HeaderValue, Method, Response};
use serde_json::Value;

use super::common::Common;
use super::marks::unmark_event;
use super::membership::Member;
use super::{LAST_EVENT, toward};
use crate::call;
use crate::envelope::{Envelope, Look};
use crate::payload::{Payload, Pieces};
use crate::splice::Message;
use crate::sse::{Frame, Framer};

/// What says on which notifications a server agrees.
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
/// The pause before a stream is opened again: the first one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long a stream must have stood for its end to be a surprise.
const LASTING: Duration = Duration::from_secs(5);
/// What the id of an event begins with that says how far each server's part has come.
const ALL: char = '*';
/// The longest such id.
const MAX_ID: usize = 4 << 10;

/// What is heard of a server.
#[derive(Debug)]
pub(super) enum Heard {
    /// Its stream is open. If the client asked for certain notifications, those that it agrees on.
    Open(Value),
    /// It could not be opened, for now. Said once.
    Away,
    /// There is no such stream, and nothing more will be heard.
    Never,
    /// An event for the client.
    Event(Bytes),
}

/// How far each server's part of one stream has come, by the servers' ids of events.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<BTreeMap<String, String>>);

impl Places {
    /// As a client brings them back.
    pub(super) fn read(id: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(id.strip_prefix(ALL)?).ok()?;
        serde_json::from_slice(&bytes).ok().map(|places| Self(Mutex::new(places)))
    }

    fn of(&self, server: &str) -> Option<HeaderValue> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.get(server).and_then(|id| HeaderValue::from_str(id).ok())
    }

    fn forget(&self, server: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(server);
    }

    /// Notes an event; the id that says how far all have come with it.
    fn pass(&self, server: &str, id: &str) -> Option<Vec<u8>> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.insert(server.to_owned(), id.to_owned());
        let text = serde_json::to_vec(&*places).ok()?;
        let id = format!("{ALL}{}", URL_SAFE_NO_PAD.encode(text));
        (id.len() <= MAX_ID).then(|| id.into_bytes())
    }
}

/// What is asked of a server.
pub(super) enum Ask {
    /// Its own stream; how far all parts of it have come.
    Own(Arc<Places>),
    /// Certain notifications, with this request, as part of this call.
    Listen(Message, CallId),
}

/// One server's part.
struct Part {
    common: Arc<Common>,
    member: Member,
    ask: Ask,
    pieces: Option<Pieces>,
    framer: Framer,
    heard: VecDeque<Heard>,
    opened_at: Option<Instant>,
    pause: Duration,
    /// It has been open.
    was_open: bool,
    /// It was said that it is away.
    is_away: bool,
    over: bool,
}

/// What is heard, until it is over for good.
pub(super) type Hearing = Pin<Box<dyn Stream<Item = Heard> + Send>>;

/// The part of `member`.
pub(super) fn of(common: Arc<Common>, member: Member, ask: Ask) -> Hearing {
    let framer = framer(&common);
    let part = Part {
        common,
        member,
        ask,
        pieces: None,
        framer,
        heard: VecDeque::new(),
        opened_at: None,
        pause: Duration::ZERO,
        was_open: false,
        is_away: false,
        over: false,
    };
    let heard = unfold(part, |mut part| async move { Some((part.next().await?, part)) });
    Box::pin(heard)
}

fn framer(common: &Common) -> Framer {
    Framer::new(common.visit.proxy.max_message_bytes + 4096)
}

/// What came of opening a stream.
enum Opening {
    Open(Pieces),
    /// Not now.
    Away,
    /// Not at all.
    Never,
}

impl Opening {
    fn of(response: Response<Payload>) -> Self {
        let (head, body) = response.into_parts();
        match body {
            Payload::Pieces(pieces) if head.status.is_success() => Self::Open(pieces),
            _ if head.status.is_server_error() => Self::Away,
            Payload::Pieces(_) | Payload::Whole(_) => Self::Never,
        }
    }
}

impl Part {
    async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Some(heard);
            }
            if self.over {
                return None;
            }
            let Some(pieces) = &mut self.pieces else {
                match self.open().await {
                    Opening::Open(pieces) => self.opened(pieces),
                    Opening::Away => self.lose(),
                    Opening::Never => self.give_up(),
                }
                continue;
            };
            match pieces.next().await {
                Some(Ok(piece)) => self.take(&piece),
                Some(Err(_)) | None => self.lose(),
            }
        }
    }

    fn give_up(&mut self) {
        (self.over, self.pieces) = (true, None);
        self.heard.push_back(Heard::Never);
    }

    fn opened(&mut self, pieces: Pieces) {
        self.pieces = Some(pieces);
        self.opened_at = Some(Instant::now());
        if matches!(self.ask, Ask::Own(_)) {
            self.was_open = true;
            self.heard.push_back(Heard::Open(Value::Null));
        }
    }

    /// It has broken off, or could not be opened.
    fn lose(&mut self) {
        if !self.was_open && !self.is_away {
            self.is_away = true;
            self.heard.push_back(Heard::Away);
        }
        (self.pieces, self.framer) = (None, framer(&self.common));
        let stood = self.opened_at.take().is_some_and(|at| at.elapsed() >= LASTING);
        self.pause = match self.pause {
            _ if stood => PAUSES.0,
            pause if pause.is_zero() => PAUSES.0,
            pause => (pause * 2).min(PAUSES.1),
        };
    }

    async fn open(&mut self) -> Opening {
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
            if !self.is_wanted() {
                return Opening::Never;
            }
        }
        let common = &self.common;
        let server = &self.member.server;
        match &self.ask {
            Ask::Listen(message, within) => {
                let there = toward(&common.visit, &self.member, Some(*within), None);
                let asking = call::forward(&there, &common.caller, message.clone());
                Opening::of(Box::pin(asking).await)
            }
            Ask::Own(places) => {
                let mut there = toward(&common.visit, &self.member, None, None);
                let last = places.of(server);
                let resumes = last.is_some();
                if let Some(last) = last {
                    there.headers.insert(LAST_EVENT, last);
                }
                let asking = call::bare(there, Method::GET, "GET");
                let opening = Opening::of(Box::pin(asking).await);
                match opening {
                    Opening::Never if resumes => {
                        // what was to be resumed is gone
                        places.forget(server);
                        Opening::Away
                    }
                    Opening::Open(_) | Opening::Away | Opening::Never => opening,
                }
            }
        }
    }

    /// Whether the session goes on, and the server has part in it.
    fn is_wanted(&self) -> bool {
        let Some(session) = &self.common.session else { return true };
        let (sessions, principal) = (&self.common.visit.proxy.sessions, session.caller.principal);
        let goes_on = sessions.get(session.hash, &session.route, principal).is_ok();
        goes_on && session.membership.get().is_some_and(|all| all.has(&self.member.server))
    }

    /// Takes in what has come.
    fn take(&mut self, piece: &[u8]) {
        self.framer.push(piece);
        while self.pieces.is_some() {
            match self.framer.frame() {
                Ok(Some(frame)) => self.read(&frame),
                Ok(None) => return,
                Err(_) => self.lose(),
            }
        }
    }

    fn read(&mut self, frame: &Frame) {
        let data = frame.data.as_ref().filter(|data| !data.is_empty());
        let event = match (&self.ask, data) {
            (Ask::Own(places), _) => own(frame, &self.member.server, places),
            (Ask::Listen(..), None) => Bytes::new(),
            (Ask::Listen(..), Some(data)) => match says(data) {
                Says::Agreed(notifications) => {
                    self.was_open = true;
                    self.heard.push_back(Heard::Open(notifications));
                    Bytes::new()
                }
                Says::Over if self.was_open => {
                    self.lose();
                    Bytes::new()
                }
                Says::Over => {
                    self.give_up();
                    Bytes::new()
                }
                Says::Event => frame.carrying(None, |_| None),
            },
        };
        if !event.is_empty() {
            self.heard.push_back(Heard::Event(event));
        }
    }
}

/// An event of a server's own stream, with an id that says how far all have come.
fn own(frame: &Frame, server: &str, places: &Places) -> Bytes {
    let id = frame.id().and_then(|id| unmark_event(std::str::from_utf8(id).ok()?));
    let id = id.and_then(|(_, id)| places.pass(server, id.to_str().ok()?));
    frame.carrying(None, |_| id.clone())
}

/// What a message in the stream of a client that listens says.
enum Says {
    Agreed(Value),
    /// The stream is over.
    Over,
    Event,
}

fn says(data: &Bytes) -> Says {
    let message = Envelope::read(data, Look::Policy).unwrap_or_default();
    if message.method() == ACKNOWLEDGED {
        let params = message.params.and_then(|params| serde_json::from_str::<Value>(params).ok());
        return Says::Agreed(
            params.map(|mut params| params["notifications"].take()).unwrap_or_default(),
        );
    }
    match message.method {
        Some(_) => Says::Event,
        None => Says::Over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_event_says_how_far_each_server_has_come() {
        let places = Places::default();
        places.pass("ehr", "7").unwrap();
        let id = String::from_utf8(places.pass("lab", "x/1").unwrap()).unwrap();
        let read = Places::read(&id).unwrap();
        assert_eq!(read.of("ehr").unwrap(), "7");
        assert_eq!(read.of("lab").unwrap(), "x/1");
        assert!(read.of("pacs").is_none());
        assert!(places.pass("ehr", &"x".repeat(MAX_ID)).is_none(), "too long to be brought back");
        for foreign in ["", "7", "ehr/7", "*", "*!!", "*e30x"] {
            assert!(Places::read(foreign).is_none(), "{foreign}");
        }
    }
}
