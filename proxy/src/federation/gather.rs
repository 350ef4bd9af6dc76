//! The answer of one of several servers, taken out of what would have gone to the client.
//!
//! What a server says before its answer goes on to the client at once, so that a request of the server's
//! is answered while the others' answers are still to come.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::envelope::{Envelope, Look, Shape, same_id};
use crate::payload::{Payload, Pieces};
use crate::sse::Framer;

/// How long a server may take with its part of a common answer, if it says nothing meanwhile.
pub(crate) const WAIT: Duration = Duration::from_secs(30);
/// How many messages may come before it.
pub(super) const MAX_BEFORE: usize = 64;
/// How long a stream may stand that has said all.
const LEAVE: Duration = Duration::from_millis(200);
/// The error that says that a server does not know a method.
const METHOD_NOT_FOUND: &str = "-32601";

/// What a server answered.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Its answer, if it gave one.
    pub(crate) answer: Option<Bytes>,
    /// With which status.
    pub(crate) status: StatusCode,
}

impl Gathered {
    /// Whether it answered that it does not know the method.
    pub(crate) fn knows_no_such_method(&self) -> bool {
        self.read().is_some_and(|answer| answer.code == Some(METHOD_NOT_FOUND))
    }

    /// Its answer, if that is an error of its own to the request with this id.
    pub(crate) fn error(&self, id: &str) -> Option<(StatusCode, Bytes)> {
        let answers = self.read().is_some_and(|answer| {
            answer.error.is_some() && answer.id.is_some_and(|own| same_id(own, id))
        });
        // an outage is nothing that it says
        let says = answers && !self.status.is_server_error();
        self.answer.clone().filter(|_| says).map(|answer| (self.status, answer))
    }

    fn read(&self) -> Option<Envelope<'_>> {
        Envelope::read(self.answer.as_deref()?, Look::Policy).ok()
    }
}

/// How what comes before an answer reaches the client, and how long an answer is waited for.
#[derive(Clone)]
pub(crate) struct Patience {
    /// The events for the client.
    pub(crate) tell: mpsc::Sender<Bytes>,
    /// The longest message.
    pub(crate) max_message_bytes: usize,
    /// How long a server may wait for what it has asked the client.
    pub(crate) asked: Duration,
}

/// Waits for the answer to the request with this id, a raw token.
pub(crate) async fn gather(
    asking: impl Future<Output = Response<Payload>>,
    id: &str,
    patience: &Patience,
) -> Gathered {
    let until = Instant::now() + WAIT;
    let Ok(response) = timeout_at(until, asking).await else {
        tracing::debug!("a server took too long with its part of a common answer");
        return Gathered::default();
    };
    let (head, body) = response.into_parts();
    let answer = match body {
        Payload::Whole(bytes) => bytes,
        Payload::Pieces(mut pieces) => {
            let answer = in_stream(&mut pieces, id, until, patience).await;
            // its connection can be used again when its stream has ended
            let rest = async { while let Some(Ok(_)) = pieces.next().await {} };
            drop(timeout(LEAVE, rest).await);
            answer
        }
    };
    Gathered { answer, status: head.status }
}

/// The answer in an event stream, if it comes.
async fn in_stream(
    pieces: &mut Pieces,
    id: &str,
    mut until: Instant,
    patience: &Patience,
) -> Option<Bytes> {
    let mut framer = Framer::new(patience.max_message_bytes + 4096);
    let mut before = 0;
    loop {
        while let Ok(Some(frame)) = framer.frame() {
            let Some(data) = frame.data.clone().filter(|data| !data.is_empty()) else { continue };
            let message = Envelope::read(&data, Look::Policy).unwrap_or_default();
            let answers = message.result.is_some() || message.error.is_some();
            if answers && same_id(message.id.unwrap_or("null"), id) {
                return Some(data);
            }
            before += 1;
            let asks = message.shape() == Shape::Request;
            // nobody takes up one server's part of a common answer
            let event = frame.carrying(None, |_| None);
            let told = timeout_at(until, patience.tell.send(event)).await;
            if before > MAX_BEFORE || !matches!(told, Ok(Ok(()))) {
                return None;
            }
            until = Instant::now() + if asks { patience.asked } else { WAIT };
        }
        match timeout_at(until, pieces.next()).await {
            Ok(Some(Ok(piece))) => framer.push(&piece),
            Ok(_) | Err(_) => return None,
        }
    }
}
