//! Health, readiness and metrics of a process that serves nothing else.
//!
//! `/healthz` answers as long as the process does, `/readyz` says what keeps it from working,
//! `/metrics` shows what it counts. None of them names a person, a patient or a tool.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::accepting;

/// What a process counts, shown on every `/metrics` of it.
pub type Page = Arc<Mutex<Registry>>;
/// What keeps a part from working, if something does.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    page: Page,
    ready: Ready,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let handler = move |request: Request<Incoming>| {
        let response = respond(request.uri().path(), &page, &ready);
        async move { response }
    };
    accepting::serve(listener, handler, stop).await;
    Ok(())
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
