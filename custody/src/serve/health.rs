//! Health, readiness and metrics of a process that serves nothing else.
//!
//! `/healthz` answers as long as the process does, `/readyz` says what keeps it from working,
//! `/metrics` shows what it counts. None of them names a person, a patient or a tool. Connections
//! and the time that a head may take are limited.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a process counts, shown on every `/metrics` of it.
pub type Page = Arc<Mutex<Registry>>;
/// What keeps a part from working, if something does.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Connections at a time.
const CONNECTIONS: usize = 64;
/// How long a head may take, on a kept connection too.
const HEAD: Duration = Duration::from_secs(10);
/// How long open connections may take to end.
const LEAVE: Duration = Duration::from_secs(1);
/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    page: Page,
    ready: Ready,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < CONNECTIONS;
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, _)) => {
                    let answering = answer(stream, Arc::clone(&page), Arc::clone(&ready), stop.clone());
                    connections.spawn(answering);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
    let left = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LEAVE, left).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

async fn answer(stream: TcpStream, page: Page, ready: Ready, stop: CancellationToken) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let response = respond(request.uri().path(), &page, &ready);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

fn respond(path: &str, page: &Page, ready: &Ready) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let (status, kind, text) = match path {
        "/healthz" => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => match ready() {
            Ok(()) => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
            Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, problem + "\n"),
        },
        "/metrics" => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, kind, shown(page))
        }
        _ => (StatusCode::NOT_FOUND, PLAIN, "there is /healthz, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The page in OpenMetrics text.
fn shown(page: &Page) -> String {
    let mut text = String::new();
    let page = page.lock().unwrap_or_else(PoisonError::into_inner);
    if encode(&mut text, &page).is_err() {
        text.clear(); // a string takes everything
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_what_keeps_it_from_working() {
        let page = Page::default();
        let ready: Ready = Arc::new(|| Err("Kafka does not answer".to_owned()));
        let status = |path, ready: &Ready| respond(path, &page, ready).status().as_u16();
        assert_eq!((status("/healthz", &ready), status("/readyz", &ready)), (200, 503));
        assert_eq!(status("/readyz", &(Arc::new(|| Ok(())) as Ready)), 200);
        assert_eq!((status("/metrics", &ready), status("/", &ready)), (200, 404));
        assert!(shown(&page).ends_with("# EOF\n"));
    }
}
