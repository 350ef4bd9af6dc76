//! Carries a request to one MCP server and brings back the head of its answer.
//!
//! It spends a [`Cleared`], so that nothing can be sent that was not judged and recorded. The body
//! goes as it came. Of the headers only those that MCP and tracing need are carried over, in
//! either direction: never the client's credentials, never the upstream's address. Redirects are
//! not followed. Every wait has a limit.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use crate::config::{Limits, Server};
use crate::headers;
use crate::record::Cleared;

/// How long an unused connection is kept: less than the five seconds after which common servers
/// close theirs, so that a call is not sent into a closing connection.
const POOL_IDLE: Duration = Duration::from_secs(4);

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

/// The trust store of this machine cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS for server {server:?}: {reason}; install the system's CA certificates")]
pub struct TlsError {
    server: String,
    reason: String,
}

/// One server, with its own connections.
pub(crate) struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    response: Duration,
}

impl Upstream {
    /// A client for `server`.
    pub(crate) fn new(server: &Server, limits: &Limits) -> Result<Self, TlsError> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(limits.connect));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls(server)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(256)
            .build(https);
        Ok(Self {
            client,
            url: server.url.clone(),
            headers: server.headers.clone(),
            response: limits.response,
        })
    }

    /// Sends a request whose opening is durable.
    pub(crate) async fn send(
        &self,
        _cleared: Cleared,
        method: Method,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.url.clone();
        self.write_headers(headers, request.headers_mut());
        match timeout(self.response, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(NoAnswer::Unreachable),
            Ok(Err(_)) => Err(NoAnswer::Broken),
            Err(_) => Err(NoAnswer::TimedOut),
        }
    }

    fn write_headers(&self, from: &HeaderMap, to: &mut HeaderMap) {
        for (name, value) in headers::up(from) {
            to.append(name.clone(), value.clone());
        }
        to.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (name, value) in &self.headers {
            to.insert(name.clone(), value.clone());
        }
    }
}

fn tls(server: &Server) -> Result<rustls::ClientConfig, TlsError> {
    let wrong = |reason: String| TlsError { server: server.name.clone(), reason };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    if server.url.scheme_str() != Some("https") {
        return Ok(builder
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth());
    }
    let roots = builder.with_native_roots().map_err(|error| wrong(error.to_string()))?;
    Ok(roots.with_no_client_auth())
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
