//! A server on the network, with its connections.
//!
//! No connection is ever used for two principals: whatever a server, or something before it, ties
//! to a connection stays with the one who opened it. Redirects are not followed. A server that
//! answers 401 to an access token is asked once more with a new one, since it has refused the first
//! request unread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::NoAnswer;
use super::oauth::Tokens;
use super::reach::Address;
use super::tls::{self, TlsError};
use crate::identity::PrincipalId;

/// How long an unused connection is kept: less than the five seconds after which common servers
/// close theirs, so that a call is not sent into a closing connection.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// How many unused connections are kept for one principal.
const MAX_IDLE: usize = 256;
/// For how many principals connections are kept.
const MAX_PRINCIPALS: usize = 1024;

/// A client with connections of its own.
pub(super) type Connections = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A server on the network.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Where it listens.
    pub(super) url: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    connector: HttpsConnector<HttpConnector>,
    connections: Mutex<HashMap<PrincipalId, Arc<Connections>>>,
    tokens: Option<Tokens>,
    response: Duration,
}

impl Peer {
    /// The server `name`; `connect` and `response` are how long those may take.
    pub(super) fn new(
        name: &str,
        address: &Address,
        connect: Duration,
        response: Duration,
    ) -> Result<Self, TlsError> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::config(name, address)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let tokens = address.oauth.clone().map(|oauth| {
            let wait = connect + Duration::from_secs(10);
            Tokens::new(name, oauth, client(&connector), wait)
        });
        Ok(Self {
            url: address.url.clone(),
            headers: address.headers.clone(),
            connector,
            connections: Mutex::default(),
            tokens,
            response,
        })
    }

    /// Sends a request, and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        principal: PrincipalId,
        method: Method,
        url: &Uri,
        headers: &HeaderMap,
        bytes: Bytes,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let connections = self.connections(principal);
        let asking = async {
            let token = self.token().await?;
            let request = self.request(&method, url, headers, &bytes, token.as_ref());
            let answer = ask(&connections, request).await?;
            let Some((tokens, refused)) = self.tokens.as_ref().zip(token) else {
                return Ok(answer);
            };
            if answer.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            tokens.forget(&refused);
            let token = self.token().await?;
            ask(&connections, self.request(&method, url, headers, &bytes, token.as_ref())).await
        };
        timeout(self.response, asking).await.unwrap_or(Err(NoAnswer::TimedOut))
    }

    async fn token(&self) -> Result<Option<HeaderValue>, NoAnswer> {
        match &self.tokens {
            None => Ok(None),
            Some(tokens) => tokens.get().await.map(Some).ok_or(NoAnswer::Unreachable),
        }
    }

    fn request(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        bytes: &Bytes,
        token: Option<&HeaderValue>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(bytes.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = url.clone();
        let to = request.headers_mut();
        to.clone_from(headers);
        to.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (name, value) in &self.headers {
            to.insert(name.clone(), value.clone());
        }
        if let Some(token) = token {
            to.insert(header::AUTHORIZATION, token.clone());
        }
        request
    }

    /// The connections that are used for `principal`.
    fn connections(&self, principal: PrincipalId) -> Arc<Connections> {
        let mut all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_PRINCIPALS && !all.contains_key(&principal) {
            // those in use go on until they have their answers
            all.clear();
        }
        let own = all.entry(principal).or_insert_with(|| Arc::new(client(&self.connector)));
        Arc::clone(own)
    }
}

fn client(connector: &HttpsConnector<HttpConnector>) -> Connections {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .build(connector.clone())
}

async fn ask(
    connections: &Connections,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, NoAnswer> {
    match connections.request(request).await {
        Ok(response) => Ok(response),
        Err(error) if error.is_connect() => Err(NoAnswer::Unreachable),
        Err(_) => Err(NoAnswer::Broken),
    }
}
