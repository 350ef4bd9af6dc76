//! The ways to a server: each takes an HTTP request and gives an HTTP answer.
//!
//! [`Upstream::send`] spends a [`Cleared`], so that nothing can be sent that was not judged and
//! recorded. The bytes of an [`Outgoing`] go as they are. Of the headers only those that MCP and
//! tracing need are carried over, in either direction: never the client's credentials, never the
//! upstream's address. Every wait has a limit.

mod body;
mod channel;
mod http;
mod notes;
mod oauth;
mod peer;
pub mod reach;
mod tls;

use ::http::{HeaderMap, Method, Response, header};
use bytes::Bytes;

use std::sync::Arc;

use crate::config::{Limits, Server};
use crate::headers;
use crate::identity::Caller;
use crate::metrics::Metrics;
use crate::record::Cleared;
use crate::splice::Message;

pub(crate) use body::Body;
pub(crate) use notes::{Desk, Heard, Note};
pub use tls::{TlsError, config as tls_towards};

use channel::{Bounds, Channels, Kind};
use http::Http;
use peer::Peer;
use reach::{Address, Reach};

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// No connection: the request was not delivered.
    Unreachable,
    /// The connection broke.
    Broken,
    /// It took too long.
    TimedOut,
    /// The server has forgotten the session and opened no other: nothing was processed.
    SessionLost,
    /// The client has cancelled the request.
    Cancelled,
}

/// A request as it goes to a server.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// POST, GET or DELETE.
    pub(crate) method: Method,
    /// Only headers that may pass.
    pub(crate) headers: HeaderMap,
    /// The message.
    pub(crate) bytes: Bytes,
    /// For whom it is sent.
    pub(crate) caller: Caller,
}

impl Outgoing {
    /// The client's message with those of its headers that may pass.
    pub(crate) fn new(method: Method, caller: &Caller, from: &HeaderMap, bytes: Bytes) -> Self {
        let mut headers = HeaderMap::with_capacity(16);
        for (name, value) in headers::up(from) {
            headers.append(name.clone(), value.clone());
        }
        Self { method, headers, bytes, caller: caller.clone() }
    }
}

/// The way to one server.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// Streamable HTTP.
    Http(Box<Http>),
    /// The pipes of a process, or connections of 2024-11-05.
    Channels(Channels),
}

impl Upstream {
    /// The way to `server`, which may say things beside messages.
    pub(crate) fn new(
        server: &Server,
        max_message_bytes: usize,
        limits: &Limits,
        desk: &Desk,
        metrics: &Metrics,
    ) -> Result<Self, TlsError> {
        let response = server.response.unwrap_or(limits.response);
        let peer = |address: &Address| Peer::new(&server.name, address, limits.connect, response);
        let bounds = Bounds { max_message_bytes, response };
        let channels = |kind| Channels::new(&server.name, kind, desk.clone(), bounds);
        Ok(match &server.reach {
            Reach::Http(address) => {
                let counts = metrics.breaker(&server.name);
                Self::Http(Box::new(Http::new(
                    &server.name,
                    peer(address)?,
                    address.breaker,
                    counts,
                )))
            }
            Reach::LegacySse(address) => {
                Self::Channels(channels(Kind::Sse(Arc::new(peer(address)?))))
            }
            Reach::Stdio(command) => {
                let counts = metrics.programs(&server.name);
                Self::Channels(channels(Kind::Child(command.clone(), counts)))
            }
        })
    }

    /// The message as it can go there.
    pub(crate) fn fit(&self, bytes: Bytes) -> Message {
        match self {
            Self::Http(_) => bytes.into(),
            Self::Channels(channels) => channels.fit(bytes),
        }
    }

    /// Sends a request whose opening is durable.
    pub(crate) async fn send(
        &self,
        cleared: Cleared,
        outgoing: Outgoing,
    ) -> Result<Response<Body>, NoAnswer> {
        match self {
            Self::Http(http) => http.send(cleared, outgoing).await,
            Self::Channels(channels) => channels.send(cleared, outgoing).await,
        }
    }

    /// Ends what is open.
    pub(crate) async fn close(&self) {
        match self {
            Self::Http(_) => {}
            Self::Channels(channels) => channels.close().await,
        }
    }
}

/// The headers of an answer that a client may see.
pub(crate) fn headers_down(from: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    for (name, value) in headers::down(from) {
        headers.append(name.clone(), value.clone());
    }
    headers
}

/// The media type of an answer, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}
