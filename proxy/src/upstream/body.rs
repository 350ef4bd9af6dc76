//! The body of an upstream's answer, whichever way it came.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::channel::Exchange;

/// The upstream broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server broke off its answer")]
pub(crate) struct Broken;

/// A body.
#[derive(Debug)]
pub(crate) enum Body {
    /// From a connection.
    Http(Incoming),
    /// Messages of a channel, framed as events.
    Messages(Exchange),
    /// All at once; nothing when it has been taken.
    Whole(Option<Bytes>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Http(body) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map_err(|_| Broken)))
            }
            Self::Messages(messages) => {
                let event = ready!(Pin::new(messages).poll_next(context));
                Poll::Ready(event.map(|event| event.map(Frame::data)))
            }
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Messages(_) => false,
            Self::Whole(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Messages(_) => SizeHint::default(),
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
        }
    }
}
