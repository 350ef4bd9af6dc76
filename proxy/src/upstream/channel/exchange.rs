//! What a client receives from a channel: the messages up to the answer to its request, or the
//! messages that belong to no request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::session::Turn;
use crate::upstream::body::Broken;

/// A message from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Others follow.
    More(Bytes),
    /// The answer.
    Last(Bytes),
    /// None any more: the client has cancelled the request. The answer may come all the same.
    Cancelled,
}

/// Messages as they come, framed as events.
#[derive(Debug)]
pub(crate) struct Exchange {
    first: Option<Message>,
    rest: mpsc::Receiver<Message>,
    /// The request's place among those in flight; nothing in a stream that belongs to none.
    turn: Option<Turn>,
    cancelled: bool,
    ended: bool,
}

impl Exchange {
    /// The messages up to the answer to a request.
    pub(super) fn of_request(rest: mpsc::Receiver<Message>, turn: Turn) -> Self {
        Self { first: None, rest, turn: Some(turn), cancelled: false, ended: false }
    }

    /// The messages that belong to no request.
    pub(super) fn of_nobody(rest: mpsc::Receiver<Message>) -> Self {
        Self { first: None, rest, turn: None, cancelled: false, ended: false }
    }

    /// Waits for the first message: the answer if that is it.
    pub(super) async fn first(&mut self) -> Result<Option<Bytes>, Broken> {
        match self.rest.recv().await {
            None => Err(Broken),
            Some(Message::Last(bytes)) => {
                self.end();
                Ok(Some(bytes))
            }
            Some(more) => {
                self.first = Some(more);
                Ok(None)
            }
        }
    }

    /// The next event.
    pub(crate) fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let next = match self.first.take() {
                Some(first) => Some(first),
                None => ready!(self.rest.poll_recv(context)),
            };
            return Poll::Ready(match next {
                Some(Message::More(bytes)) => Some(Ok(event(&bytes))),
                Some(Message::Last(bytes)) => {
                    self.end();
                    Some(Ok(event(&bytes)))
                }
                Some(Message::Cancelled) => {
                    self.cancelled = true;
                    continue;
                }
                None => {
                    self.ended = true;
                    let broken = self.turn.is_some() && !self.cancelled;
                    broken.then_some(Err(Broken))
                }
            });
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(turn) = &mut self.turn {
            turn.answered();
        }
    }
}

/// A message as an event, with a field for each of its lines.
fn event(message: &Bytes) -> Bytes {
    let mut event = BytesMut::with_capacity(message.len() + 24);
    event.put_slice(b"event: message\n");
    for line in message.split(|&b| b == b'\n') {
        event.put_slice(b"data: ");
        event.put_slice(line);
        event.put_slice(b"\n");
    }
    event.put_slice(b"\n");
    event.freeze()
}
