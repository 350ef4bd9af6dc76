//! Streamable HTTP to one server.
//!
//! The message goes as it came. Redirects are not followed.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::{Body, NoAnswer, Outgoing};
use crate::config::{Limits, Server};
use crate::record::Cleared;

/// How long an unused connection is kept: less than the five seconds after which common servers
/// close theirs, so that a call is not sent into a closing connection.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// The trust store of this machine cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS for server {server:?}: {reason}; install the system's CA certificates")]
pub struct TlsError {
    server: String,
    reason: String,
}

/// One server, with its own connections.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    response: Duration,
}

impl Http {
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
        outgoing: Outgoing,
    ) -> Result<Response<Body>, NoAnswer> {
        match timeout(self.response, self.client.request(self.request(outgoing))).await {
            Ok(Ok(response)) => Ok(response.map(Body::Http)),
            Ok(Err(error)) if error.is_connect() => Err(NoAnswer::Unreachable),
            Ok(Err(_)) => Err(NoAnswer::Broken),
            Err(_) => Err(NoAnswer::TimedOut),
        }
    }

    fn request(&self, outgoing: Outgoing) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(outgoing.bytes));
        *request.method_mut() = outgoing.method;
        *request.uri_mut() = self.url.clone();
        let mut headers = outgoing.headers;
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        *request.headers_mut() = headers;
        request
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
