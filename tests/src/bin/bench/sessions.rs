//! An MCP server of 2025-11-25 with sessions, as a process of its own: it gives each client a session,
//! keeps a stream open for whoever asks for one, and answers a call as the call says.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::{iter, once, pending, unfold};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Where it listens.
#[derive(clap::Args)]
pub struct Options {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
    /// Seconds between two messages in a stream that stands open.
    #[arg(long, default_value_t = 30)]
    every: u64,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;
type Reply = Response<StreamBody<Pieces>>;

/// The sessions that are open.
type Sessions = Arc<Mutex<HashSet<HeaderValue>>>;

const SESSION: &str = "mcp-session-id";
const NOTE: &str = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"still here"}}"#;
const PROGRESS: &str = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":1}}"#;
const ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"done"}],"isError":false}}"#;
const WELCOME: &str = r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"sessions","version":"1"}}}"#;

/// Serves until it is killed.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    let sessions = Sessions::default();
    let every = Duration::from_secs(options.every);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sessions = Arc::clone(&sessions);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let sessions = Arc::clone(&sessions);
                async move { Ok::<_, Infallible>(answer(request, &sessions, every).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new();
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(request: Request<Incoming>, sessions: &Sessions, every: Duration) -> Reply {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let message: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    if message["method"] == "initialize" {
        let id = hex(rand::random());
        let mut reply = json(WELCOME);
        if let Ok(id) = HeaderValue::from_str(&id) {
            reply.headers_mut().insert(SESSION, id.clone());
            sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        return reply;
    }
    let mut open = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(id) = head.headers.get(SESSION).filter(|id| open.contains(*id)) else {
        return status(StatusCode::NOT_FOUND);
    };
    match head.method {
        Method::DELETE => {
            open.remove(id);
            status(StatusCode::OK)
        }
        Method::GET => events(Box::pin(unfold(true, move |first| async move {
            if !first {
                tokio::time::sleep(every).await;
            }
            Some((event(NOTE), false))
        }))),
        _ if message.get("id").is_none() => status(StatusCode::ACCEPTED),
        _ => match message["params"]["arguments"]["how"].as_str() {
            Some("stream") => {
                events(Box::pin(iter([PROGRESS, PROGRESS, PROGRESS, ANSWER].map(event))))
            }
            Some("never") => {
                let silence = futures::StreamExt::chain(once(async { event(PROGRESS) }), pending());
                events(Box::pin(silence))
            }
            _ => json(ANSWER),
        },
    }
}

fn event(message: &str) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(Bytes::from(format!("data: {message}\n\n"))))
}

fn events(pieces: Pieces) -> Reply {
    typed(StreamBody::new(pieces), "text/event-stream")
}

fn json(text: &'static str) -> Reply {
    let piece = once(async move { Ok(Frame::data(Bytes::from_static(text.as_bytes()))) });
    typed(StreamBody::new(Box::pin(piece)), "application/json")
}

fn typed(body: StreamBody<Pieces>, media: &'static str) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    reply
}

fn status(status: StatusCode) -> Reply {
    let mut reply = typed(StreamBody::new(Box::pin(iter([]))), "text/plain");
    *reply.status_mut() = status;
    reply
}

fn hex(bits: u128) -> String {
    format!("{bits:032x}")
}
