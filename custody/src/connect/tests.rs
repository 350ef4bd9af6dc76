//! A bridge before servers that lose sessions, break off streams and see what is sent to them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::bridge::Bridge;
use super::http::Http;
use super::message::Message;

type Answer = Response<BoxBody<Bytes, Infallible>>;

#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    headers: HeaderMap,
    body: String,
}

/// A server that gives these answers, one after the other.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Server {
    async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let (seen, answers) =
            (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(Mutex::new(answers.into())));
        let server = Self { url, seen: Arc::clone(&seen), answers: Arc::clone(&answers) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let body = String::from_utf8(body.to_vec()).unwrap();
                        let (method, headers) = (head.method, head.headers);
                        seen.lock().unwrap().push(Seen { method, headers, body });
                        let next = answers.lock().unwrap().pop_front();
                        Ok::<_, hyper::Error>(next.unwrap_or_else(|| answer(405, "text/plain", "")))
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        server
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn bridge(&self) -> (Arc<Bridge>, mpsc::Receiver<Bytes>) {
        let (out, lines) = mpsc::channel(64);
        let http = Http::new(self.url.parse().unwrap(), Some("k-synthetic"), None).unwrap();
        (Arc::new(Bridge::new(http, out, 1 << 20)), lines)
    }
}

fn answer(status: u16, media: &str, body: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).boxed();
    Response::builder().status(status).header("content-type", media).body(body).unwrap()
}

fn welcome(session: &str) -> Answer {
    let body = r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25"}}"#;
    let mut welcome = answer(200, "application/json", body);
    welcome.headers_mut().insert("mcp-session-id", session.parse().unwrap());
    welcome
}

fn read(text: &str) -> Message {
    Message::read(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}"#;
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;
const DONE: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

async fn next(lines: &mut mpsc::Receiver<Bytes>) -> String {
    let line = tokio::time::timeout(Duration::from_secs(20), lines.recv()).await.unwrap().unwrap();
    String::from_utf8(line.to_vec()).unwrap()
}

#[tokio::test]
async fn a_session_that_was_lost_is_opened_anew_and_what_was_not_processed_is_sent_again() {
    let lost = answer(404, "application/json", "{}");
    let server = Server::start(vec![
        welcome("first"),
        lost,
        welcome("second"),
        answer(202, "text/plain", ""),
        answer(200, "application/json", DONE),
    ]);
    let server = server.await;
    let (bridge, mut lines) = server.bridge();
    bridge.call(read(INITIALIZE), None).await;
    assert!(next(&mut lines).await.contains("2025-11-25"));
    bridge.call(read(CALL), None).await;
    assert_eq!(next(&mut lines).await, DONE, "the second welcome stays here");
    let sessions: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| {
            let session =
                seen.headers.get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
            (session, seen.body.clone())
        })
        .collect();
    let said = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let in_session = |id: &str, body: &str| (Some(id.to_owned()), body.to_owned());
    assert_eq!(
        sessions,
        [
            (None, INITIALIZE.to_owned()),
            in_session("first", CALL),
            (None, INITIALIZE.to_owned()),
            in_session("second", said),
            in_session("second", CALL),
        ]
    );
    assert_eq!(server.seen()[4].headers["mcp-protocol-version"], "2025-11-25");
    assert_eq!(server.seen()[4].headers["authorization"], "Bearer k-synthetic");
}

#[tokio::test]
async fn a_stream_that_ends_before_its_answer_is_got_again_from_its_last_event() {
    let first =
        "id: e1\nretry: 5\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\"}\n\n";
    let rest = format!("id: e2\ndata: {DONE}\n\n");
    let server = Server::start(vec![
        welcome("s"),
        answer(200, "text/event-stream", first),
        answer(200, "text/event-stream", &rest),
    ]);
    let server = server.await;
    let (bridge, mut lines) = server.bridge();
    bridge.call(read(INITIALIZE), None).await;
    bridge.call(read(CALL), None).await;
    next(&mut lines).await;
    assert!(next(&mut lines).await.contains("notifications/message"));
    assert_eq!(next(&mut lines).await, DONE);
    let again = &server.seen()[2];
    assert_eq!(
        (&again.method, again.headers["last-event-id"].to_str().unwrap()),
        (&Method::GET, "e1")
    );
}

#[tokio::test]
async fn a_call_of_2026_07_28_repeats_its_body_in_headers_and_is_cancelled_by_leaving() {
    let (held, silence) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let stream = Response::builder()
        .header("content-type", "text/event-stream")
        .body(StreamBody::new(silence).boxed())
        .unwrap();
    let server = Server::start(vec![stream]).await;
    let (bridge, mut lines) = server.bridge();
    let call = read(
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"søk","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
    );
    let (at_work, id) = (Arc::clone(&bridge), call.id.clone());
    let (on_its_way, taken) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move { at_work.call(call, Some(on_its_way)).await });
    bridge.note_call(id, task.abort_handle());
    drop(taken.await);
    while server.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    bridge.tell(read(cancel)).await;
    assert!(task.await.unwrap_err().is_cancelled());
    let seen = server.seen();
    assert_eq!(seen.len(), 1, "nothing but the call was sent");
    let header = |name: &str| seen[0].headers[name].to_str().unwrap();
    assert_eq!(header("mcp-protocol-version"), "2026-07-28");
    assert_eq!((header("mcp-method"), header("mcp-name")), ("tools/call", "=?base64?c8O4aw==?="));
    assert!(lines.try_recv().is_err(), "what was cancelled is not answered");
    drop(held);
}

#[tokio::test]
async fn every_request_is_answered_whatever_the_server_does() {
    let refused = r#"{"jsonrpc":"2.0","id":null,"error":{"code":47005,"message":"no"}}"#;
    let server = Server::start(vec![
        answer(401, "application/json", refused),
        answer(500, "text/html", "<h1>"),
        answer(200, "text/event-stream", ": nothing\n\n"),
        answer(202, "text/plain", ""),
    ]);
    let server = server.await;
    let (bridge, mut lines) = server.bridge();
    for code in ["47005", "-32000", "-32000", "-32000"] {
        bridge.call(read(CALL), None).await;
        let line: serde_json::Value = serde_json::from_str(&next(&mut lines).await).unwrap();
        assert_eq!(
            (line["id"].to_string(), line["error"]["code"].to_string()),
            ("1".into(), code.into())
        );
    }
    assert!(server.answers.lock().unwrap().is_empty());
}
