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
        headers: HeaderMap,
        bytes: Bytes,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let connections = self.connections(principal);
        let request = self.request(method, url, headers, bytes);
        let asking = async {
            match &self.tokens {
                None => ask(&connections, request).await,
                Some(tokens) => Box::pin(ask_with_token(&connections, tokens, request)).await,
            }
        };
        timeout(self.response, asking).await.unwrap_or(Err(NoAnswer::TimedOut))
    }

    fn request(
        &self,
        method: Method,
        url: &Uri,
        headers: HeaderMap,
        bytes: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(bytes));
        *request.method_mut() = method;
        *request.uri_mut() = url.clone();
        let to = request.headers_mut();
        *to = headers;
        to.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (name, value) in &self.headers {
            to.insert(name.clone(), value.clone());
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

/// Asks with an access token, and once more with a new one if the first is refused.
async fn ask_with_token(
    connections: &Connections,
    tokens: &Tokens,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, NoAnswer> {
    let token = tokens.get().await.ok_or(NoAnswer::Unreachable)?;
    request.headers_mut().insert(header::AUTHORIZATION, token.clone());
    let answer = ask(connections, request.clone()).await?;
    if answer.status() != StatusCode::UNAUTHORIZED {
        return Ok(answer);
    }
    tokens.forget(&token);
    let token = tokens.get().await.ok_or(NoAnswer::Unreachable)?;
    request.headers_mut().insert(header::AUTHORIZATION, token);
    ask(connections, request).await
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
