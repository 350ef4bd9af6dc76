//! The ways to a server: each takes an HTTP request and gives an HTTP answer.
//!
//! [`Upstream::send`] spends a [`Cleared`], so that nothing can be sent that was not judged and
//! recorded. The bytes of an [`Outgoing`] go as they are. Of the headers only those that MCP and
//! tracing need are carried over, in either direction: never the client's credentials, never the
//! upstream's address. Every wait has a limit.

mod body;
mod http;

use ::http::{HeaderMap, Method, Response, header};
use bytes::Bytes;

use crate::config::{Limits, Server};
use crate::headers;
use crate::record::Cleared;

pub(crate) use body::Body;
pub use http::TlsError;

use http::Http;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// No connection: the request was not delivered.
    Unreachable,
    /// The connection broke.
    Broken,
    /// It took too long.
    TimedOut,
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
}

impl Outgoing {
    /// The client's message with those of its headers that may pass.
    pub(crate) fn new(method: Method, from: &HeaderMap, bytes: Bytes) -> Self {
        let mut headers = HeaderMap::with_capacity(16);
        for (name, value) in headers::up(from) {
            headers.append(name.clone(), value.clone());
        }
        Self { method, headers, bytes }
    }
}

/// The way to one server.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// Streamable HTTP.
    Http(Http),
}

impl Upstream {
    /// The way to `server`.
    pub(crate) fn new(server: &Server, limits: &Limits) -> Result<Self, TlsError> {
        Http::new(server, limits).map(Self::Http)
    }

    /// Sends a request whose opening is durable.
    pub(crate) async fn send(
        &self,
        cleared: Cleared,
        outgoing: Outgoing,
    ) -> Result<Response<Body>, NoAnswer> {
        match self {
            Self::Http(http) => http.send(cleared, outgoing).await,
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
