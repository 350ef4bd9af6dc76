//! The way to the server: one address, one key, connections that are kept.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context as Waking, Poll};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use custody_proxy::reach::{Address, Tls};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// How long an answer may take to begin: longer than any limit of a proxy.
const BEGIN: Duration = Duration::from_secs(3_600);
/// The waits between attempts to reach a server that is not there.
const AGAIN_MS: [u64; 6] = [100, 300, 1_000, 2_000, 3_000, 4_000];

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server cannot be reached: nothing was sent.
    NotDelivered,
    /// The connection broke, or nothing came.
    Broken,
}

/// Reads an address that can be asked.
pub fn address(text: &str) -> Result<Uri, String> {
    let url = text.parse::<Uri>().ok();
    let web =
        |url: &Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some();
    url.filter(web).ok_or_else(|| "write http://host[:port]/path or https://…".to_owned())
}

/// The way to one server.
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Signalling>,
    url: Uri,
    key: Option<HeaderValue>,
}

impl Http {
    /// The way to `url`, with `key` as the credential.
    pub fn new(url: Uri, key: Option<&str>, ca: Option<PathBuf>) -> anyhow::Result<Self> {
        let key = key.map(|key| HeaderValue::from_str(&format!("Bearer {key}"))).transpose();
        let mut key = key.context("the key has characters that a header cannot hold")?;
        key.iter_mut().for_each(|key| key.set_sensitive(true));
        let address = Address { tls: Tls { ca, client: None }, ..Address::new(url.clone()) };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(custody_proxy::tls_towards("connect", &address)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector);
        Ok(Self { client, url, key })
    }

    /// Sends a request until it is delivered, or for about ten seconds; says so on `taken` when it
    /// is on its way.
    pub async fn send(
        &self,
        method: &Method,
        headers: &HeaderMap,
        bytes: &Bytes,
        mut taken: Option<oneshot::Sender<()>>,
    ) -> Result<Response<Incoming>, Fault> {
        let mut waits = AGAIN_MS.iter();
        loop {
            let body = Signalling { bytes: Some(bytes.clone()), taken: taken.take() };
            let request = self.request(method, headers, body);
            match timeout(BEGIN, self.client.request(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) if error.is_connect() => {
                    let Some(wait_ms) = waits.next() else { return Err(Fault::NotDelivered) };
                    tokio::time::sleep(Duration::from_millis(*wait_ms)).await;
                }
                Ok(Err(_)) | Err(_) => return Err(Fault::Broken),
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: Signalling,
    ) -> Request<Signalling> {
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = self.url.clone();
        let to = request.headers_mut();
        to.clone_from(headers);
        let agent = concat!("custody-connect/", env!("CARGO_PKG_VERSION"));
        to.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        if let Some(key) = &self.key {
            to.insert(header::AUTHORIZATION, key.clone());
        }
        request
    }
}

/// A body that says when it has been taken to be sent.
struct Signalling {
    bytes: Option<Bytes>,
    taken: Option<oneshot::Sender<()>>,
}

impl Body for Signalling {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Waking<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.taken = None;
        Poll::Ready(self.bytes.take().filter(|b| !b.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
