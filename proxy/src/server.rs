//! The listening edge: connections, heads of requests, paths.
//!
//! Every connection has a limit on its head's size and on the time it takes, there is a limit on
//! connections, and nothing that a client does can end the server. On a stop it takes no new
//! connection, lets calls in flight finish for a while, and then cuts them off, which ends them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Proxy;
use crate::answer::respond;
use crate::call::{self, error};
use crate::errors::Failure;
use crate::federation;
use crate::identity::Seen;
use crate::payload::Payload;
use crate::stall::Stall;
use crate::visit::Visit;

/// The longest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown`, then drains.
pub(crate) async fn serve(listener: TcpListener, proxy: Arc<Proxy>, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < proxy.limits.connections;
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, peer)) => {
                    let (proxy, shutdown) = (Arc::clone(&proxy), shutdown.clone());
                    connections.spawn(connection(stream, peer, proxy, shutdown));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(proxy.limits.drain, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting off calls that are still open");
    }
    proxy.recorder.stop();
    connections.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    proxy: Arc<Proxy>,
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    proxy.watched.metrics.connected();
    let (head, stall) = (proxy.limits.head, proxy.limits.stall);
    let seen = Arc::new(Seen::new(peer));
    let service = service_fn(|request| {
        let (proxy, seen) = (Arc::clone(&proxy), Arc::clone(&seen));
        handle(proxy, seen, request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(Stall::new(stream, stall)), service);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
    proxy.watched.metrics.left();
}

/// Where a path leads.
enum Place<'p> {
    Server(&'p str),
    /// All servers at once.
    Common,
    Healthz,
    Readyz,
    Metrics,
    Nowhere,
}

fn place(path: &str) -> Place<'_> {
    match path {
        "/mcp" => Place::Common,
        "/healthz" => Place::Healthz,
        "/readyz" => Place::Readyz,
        "/metrics" => Place::Metrics,
        _ => {
            let name = path.strip_prefix("/servers/").and_then(|rest| rest.strip_suffix("/mcp"));
            match name {
                Some(name) if !name.is_empty() && !name.contains('/') => Place::Server(name),
                _ => Place::Nowhere,
            }
        }
    }
}

async fn handle(
    proxy: Arc<Proxy>,
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<Payload>, Infallible> {
    let (head, body) = request.into_parts();
    let admitted = proxy.gate.admits(&head.uri, &head.headers);
    Ok(match place(head.uri.path()) {
        Place::Server(name) => {
            let visit = Visit::new(proxy, seen, head.headers, name);
            if !admitted {
                return Ok(visit.turn_away(Failure::ForeignOrigin));
            }
            match head.method {
                Method::POST => call::post(visit, body).await,
                Method::GET => Box::pin(call::bare(visit, Method::GET, "GET")).await,
                Method::DELETE => Box::pin(call::bare(visit, Method::DELETE, "DELETE")).await,
                _ => error(Failure::MethodNotAllowed, None, None, None),
            }
        }
        Place::Common => {
            let visit = Visit::new(proxy, seen, head.headers, federation::ROUTE);
            if !admitted {
                return Ok(visit.turn_away(Failure::ForeignOrigin));
            }
            match head.method {
                Method::POST => Box::pin(federation::post(visit, body)).await,
                Method::GET => Box::pin(federation::bare(visit, Method::GET, "GET")).await,
                Method::DELETE => Box::pin(federation::bare(visit, Method::DELETE, "DELETE")).await,
                _ => error(Failure::MethodNotAllowed, None, None, None),
            }
        }
        _ if !admitted => error(Failure::ForeignOrigin, None, None, None),
        Place::Healthz => text(StatusCode::OK, "ok\n"),
        Place::Readyz => match proxy.recorder.ready().and_then(|()| (proxy.watched.ready)()) {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => {
                let why = format!("calls cannot be recorded: {why}\n");
                text(StatusCode::SERVICE_UNAVAILABLE, why)
            }
        },
        Place::Metrics => {
            proxy.watched.metrics.sessions(proxy.sessions.count());
            let (media, page) = proxy.watched.text();
            typed(StatusCode::OK, media, page)
        }
        Place::Nowhere => error(Failure::NotFound, None, None, None),
    })
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Payload> {
    typed(status, "text/plain; charset=utf-8", text)
}

fn typed(status: StatusCode, media: &'static str, text: impl Into<Bytes>) -> Response<Payload> {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    respond(status, headers, Payload::whole(text.into()))
}
