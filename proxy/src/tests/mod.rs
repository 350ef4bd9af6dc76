//! The proxy between a client and an upstream of ours, with a real journal: what arrives, what is
//! recorded, in which order.

mod edge;
mod federation;
mod fidelity;
mod fuzz;
mod guarantees;
mod hostile;
mod mistakes;
mod quiet;
mod stdio;
mod streams;
mod together;
mod tools;
mod upstreams;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use custody_journal::{EntryKind, Journal, Partition, Topic, Writer, WriterOptions};
use custody_schemas::body::ChunkHeader;
use custody_schemas::event::{BodyRef, Event};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, decode};
use custody_schemas::seal::key::Signer;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::payload::Payload;
use crate::{Config, Server, Watched, run};

/// A request as an upstream saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    headers: HeaderMap,
    body: Bytes,
}

type Answering = Pin<Box<dyn Future<Output = Response<Payload>> + Send>>;

/// An MCP server that answers as a test wants.
struct Upstream {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Payload>> + Send + 'static,
    {
        let answer: Arc<dyn Fn(Seen) -> Answering + Send + Sync> =
            Arc::new(move |seen| Box::pin(answer(seen)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let seen = Seen { method: head.method, headers: head.headers, body };
                        log.lock().unwrap().push(seen.clone());
                        Ok::<_, hyper::Error>(answer(seen).await)
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { addr, seen }
    }

    /// Answers everything with `body` as JSON.
    async fn with_json(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self::start(move |_| {
            let body = body.clone();
            async move { json(body) }
        })
        .await
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Payload> {
    let builder = Response::builder().status(status).header("content-type", content_type);
    builder.body(Payload::whole(body.into())).unwrap()
}

fn json(body: impl Into<Bytes>) -> Response<Payload> {
    answer(200, "application/json", body)
}

/// A proxy in front of one upstream called `ehr`.
struct Bench {
    addr: SocketAddr,
    writer: Writer,
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn options(dir: &std::path::Path) -> WriterOptions {
    WriterOptions { segment_bytes: 4 << 20, sync: false, ..WriterOptions::new(dir, "edge-1") }
}

impl Bench {
    async fn start(upstream: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        Self::with(upstream, |_| {}, change).await
    }

    async fn with(
        upstream: SocketAddr,
        journal: impl FnOnce(&mut WriterOptions),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::all_of(upstream, Watched::default(), journal, change).await
    }

    async fn watched(upstream: SocketAddr, watched: Watched) -> Self {
        Self::all_of(upstream, watched, |_| {}, |_| {}).await
    }

    async fn all_of(
        upstream: SocketAddr,
        watched: Watched,
        journal: impl FnOnce(&mut WriterOptions),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path());
        journal(&mut options);
        let (signer, _) = Signer::from_seed("edge-1", &[7; 32]).unwrap();
        let (writer, _) = Writer::open(options, signer).unwrap();
        let url = format!("http://{upstream}/secret/mcp").parse().unwrap();
        // the build machine is slow and shared: nothing here may depend on a second
        let mut config = Config {
            servers: vec![Server::new("ehr", url)],
            audit_wait: Duration::from_secs(20),
            ..Config::default()
        };
        config.limits.drain = Duration::from_millis(100);
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (for_run, token) = (writer.clone(), shutdown.clone());
        let task = tokio::spawn(async move {
            run(listener, config, for_run, watched, token).await.unwrap();
        });
        Self { addr, writer, dir, shutdown, task }
    }

    /// Sends `body` to the server `ehr`.
    async fn post(&self, body: impl Into<Bytes>) -> Reply {
        self.send(Method::POST, "/servers/ehr/mcp", &[], body).await
    }

    /// Opens a session, for which the upstream must give out an id; ours.
    async fn open_session(&self, headers: &[(&str, &str)]) -> String {
        let reply = self.send(Method::POST, "/servers/ehr/mcp", headers, INITIALIZE).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.headers["mcp-session-id"].to_str().unwrap().to_owned()
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        self.exchange(method, path, headers, body).await.collect().await
    }

    /// Sends a request and gives the reply while its body is still coming.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Coming {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        for (name, value) in [("host", "localhost"), ("content-type", "application/json")] {
            if !headers.iter().any(|(given, _)| *given == name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        Coming { status: head.status, headers: head.headers, body, connection, _sender: sender }
    }

    /// Waits until `/metrics` has this line.
    async fn shows(&self, line: &str) {
        let asking = async {
            loop {
                let page = self.send(Method::GET, "/metrics", &[], "").await.body;
                if String::from_utf8_lossy(&page).lines().any(|other| other == line) {
                    return;
                }
            }
        };
        let shown = tokio::time::timeout(Duration::from_secs(30), asking).await;
        shown.unwrap_or_else(|_| panic!("/metrics never has {line}"));
    }

    fn spool(&self) -> PathBuf {
        self.dir.path().join("edge-1")
    }

    /// Waits until the journal satisfies `wanted`, and gives its events.
    async fn events_when(&self, wanted: impl Fn(&[Event]) -> bool) -> Vec<Event> {
        let mut ends = self.writer.subscribe();
        loop {
            ends.mark_unchanged();
            let events = self.events();
            if wanted(&events) {
                return events;
            }
            let moved = tokio::time::timeout(Duration::from_secs(30), ends.changed()).await;
            moved.unwrap_or_else(|_| panic!("only {:#?}", self.events())).unwrap();
        }
    }

    /// Waits for `count` endings, and gives the events about calls.
    async fn after_endings(&self, count: usize) -> Vec<Event> {
        let ended = |events: &[Event]| of_kind(events, &Kind::CallEnded).len() >= count;
        self.events_when(ended).await
    }

    /// The events that are durable, without those of the stream itself.
    fn events(&self) -> Vec<Event> {
        let entries = self.entries(Topic::Events, "edge-1");
        let events = entries.into_iter().filter(|(kind, ..)| *kind == EntryKind::Event);
        let events = events.map(|(_, _, value)| match decode(&value) {
            Decoded::Event(event) => *event,
            problem @ (Decoded::Identified { .. } | Decoded::Undecodable { .. }) => {
                panic!("{problem:?}")
            }
        });
        let own = |event: &Event| !event.kind.as_str().starts_with("stream.");
        events.filter(own).collect()
    }

    /// The bytes of a body.
    fn body(&self, reference: Option<&BodyRef>) -> Bytes {
        let reference = reference.expect("the event has this body");
        let mut chunks = HashMap::new();
        for lane in ["edge-1", "edge-1.bulk"] {
            for (_, header, value) in self.entries(Topic::Bodies, lane) {
                let header = ChunkHeader::decode(&header).unwrap();
                if header.body == reference.body {
                    chunks.insert(u64::from(header.index), value);
                }
            }
        }
        (0..reference.chunks.get()).flat_map(|i| chunks[&i].to_vec()).collect()
    }

    fn entries(&self, topic: Topic, name: &str) -> Vec<(EntryKind, Bytes, Bytes)> {
        let partition = Partition { topic, name: name.to_owned() };
        let Ok(mut reader) = self.writer.journal().reader(&partition, 0) else { return Vec::new() };
        let mut all = Vec::new();
        loop {
            let entries = reader.read(10_000, 64 << 20, Duration::ZERO).unwrap();
            if entries.is_empty() {
                return all;
            }
            all.extend(entries.into_iter().map(|entry| (entry.kind, entry.header, entry.value)));
        }
    }
}

fn of_kind<'e>(events: &'e [Event], kind: &Kind) -> Vec<&'e Event> {
    events.iter().filter(|event| event.kind == *kind).collect()
}

fn ending(events: &[Event]) -> &Event {
    let endings = of_kind(events, &Kind::CallEnded);
    assert_eq!(endings.len(), 1, "{events:#?}");
    endings[0]
}

fn status(events: &[Event]) -> &str {
    ending(events).outcome.as_ref().unwrap().status.as_str()
}

/// A reply whose body is still coming.
struct Coming {
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    connection: JoinHandle<hyper::Result<()>>,
    _sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl Coming {
    /// The next piece of the body; nothing at its end or when it breaks off.
    async fn piece(&mut self) -> Option<Bytes> {
        let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame()).await.unwrap();
        frame?.ok()?.into_data().ok()
    }

    async fn collect(mut self) -> Reply {
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await {
            body.extend_from_slice(&piece);
        }
        Reply { status: self.status.as_u16(), headers: self.headers, body: body.into() }
    }

    /// Closes the connection.
    fn leave(self) {
        self.connection.abort();
    }
}

/// A whole reply.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// HTTP status and JSON-RPC code of an error.
    fn error(&self) -> (u16, i64) {
        (self.status, self.json()["error"]["code"].as_i64().unwrap_or_else(|| panic!("{self:?}")))
    }
}

/// What opens a session.
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","clientInfo":{"name":"cli","version":"3"}}}"#;
/// Its answer.
const INITIALIZED: &str =
    r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{}}}"#;

/// The answer to [`INITIALIZE`] with a session of the upstream's.
fn in_session(id: &str) -> Response<Payload> {
    let mut response = json(INITIALIZED);
    response.headers_mut().insert("mcp-session-id", id.parse().unwrap());
    response
}

/// A call of the tool `x`.
const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":1.0}}}"#;
/// Its answer.
const ANSWER: &str =
    r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"hi"}]}}"#;
