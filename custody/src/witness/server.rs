//! The witness's answers.
//!
//! One submission at a time is judged and written down, so that of two that come at once the second
//! is judged by what the first has left. Nobody has to sign in: what counts is the log's signature
//! on what is submitted.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use custody_schemas::seal::witness::{
    Judgement, Logs, MAX_BYTES, PATH, SIZE_TYPE, Submission, judge,
};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::store::Store;
use crate::serve::accepting;

/// How long a submission may take to arrive.
const ARRIVES: Duration = Duration::from_secs(10);
const PLAIN: &str = "text/plain; charset=utf-8";

/// A witness at work.
pub(super) struct Server {
    logs: Logs,
    store: Mutex<Store>,
}

/// Answers until `stop`.
pub(super) async fn serve(listener: TcpListener, server: Arc<Server>, stop: CancellationToken) {
    let handler = move |request| {
        let server = Arc::clone(&server);
        async move { server.answer(request).await }
    };
    accepting::serve(listener, handler, stop).await;
}

impl Server {
    pub(super) fn new(logs: Logs, store: Store) -> Self {
        Self { logs, store: Mutex::new(store) }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        if path == PATH {
            if request.method() != Method::POST {
                return response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "POST a checkpoint\n");
            }
            let body = Limited::new(request.into_body(), MAX_BYTES).collect();
            return match tokio::time::timeout(ARRIVES, body).await {
                Ok(Ok(body)) => self.submitted(body.to_bytes()).await,
                Ok(Err(_)) => response(StatusCode::PAYLOAD_TOO_LARGE, PLAIN, "it is too long\n"),
                Err(_) => response(StatusCode::REQUEST_TIMEOUT, PLAIN, "it did not arrive\n"),
            };
        }
        match path.as_str() {
            "healthz" => response(StatusCode::OK, PLAIN, "ok\n"),
            "" => response(StatusCode::OK, PLAIN, self.about()),
            _ => response(StatusCode::NOT_FOUND, PLAIN, format!("there is /{PATH} and /healthz\n")),
        }
    }

    async fn submitted(self: Arc<Self>, body: Bytes) -> Response<Full<Bytes>> {
        let judged = tokio::task::spawn_blocking(move || self.judge(&body)).await;
        judged.unwrap_or_else(|_| {
            response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "the witness has failed\n")
        })
    }

    /// Judges a submission by what was cosigned last, and writes down what is cosigned, at once.
    fn judge(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = |origin: &str| store.latest(origin).map(|(head, _)| head);
        let judgement = judge(body, &self.logs, latest);
        let status = StatusCode::from_u16(judgement.status()).unwrap_or(StatusCode::BAD_REQUEST);
        match judgement {
            Judgement::Cosign { checkpoint, text } => {
                let note = Submission::decode(body).map(|submission| submission.note);
                let written = store.cosign(&checkpoint, &text, &note.unwrap_or_default(), now());
                match written {
                    Ok(line) => response(status, PLAIN, line),
                    Err(error) => {
                        tracing::error!(%error, "a checkpoint cannot be kept, so it is not cosigned");
                        let text = "the witness cannot write\n";
                        response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
                    }
                }
            }
            Judgement::Fork(size) => {
                tracing::error!(size, "a log shows a second history; what it showed is kept");
                if let Err(error) = store.keep_fork(body) {
                    tracing::error!(%error, "it could not be kept");
                }
                response(status, SIZE_TYPE, format!("{size}\n"))
            }
            Judgement::Conflict(size) => response(status, SIZE_TYPE, format!("{size}\n")),
            Judgement::Malformed => response(status, PLAIN, "this is no submission\n"),
            Judgement::UnknownLog => response(status, PLAIN, "this log is not known here\n"),
            Judgement::NotSigned => response(status, PLAIN, "no key of the log has signed it\n"),
            Judgement::NotGrown => {
                tracing::warn!("a log shows what has not grown out of what it showed before");
                response(status, PLAIN, "it has not grown out of what was cosigned last\n")
            }
        }
    }

    /// Who this is, and what it has cosigned last.
    fn about(&self) -> String {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!("witness {}\n", store.cosigner().vkey());
        for origin in self.logs.keys() {
            let line = match store.latest(origin) {
                Some(((size, root), at)) => format!("log {origin} {size} {root} {at}"),
                None => format!("log {origin} nothing yet"),
            };
            // Writing to a String cannot fail.
            writeln!(text, "{line}").unwrap_or_default();
        }
        text
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn response(
    status: StatusCode,
    kind: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
