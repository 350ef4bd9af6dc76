//! MCP servers made for a test: they answer what the test says and remember what they got.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// What a server has to say on its own stream: a request with the id 1.
const ASKS: &[u8] = b"data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"roots/list\"}\n\n";

/// How a server answers every message. On its own stream, which it gives to a GET, it asks the
/// client for one thing.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// These bytes, as `application/json`.
    Answer(Bytes),
    /// A result that holds the request's `params`.
    Echo,
    /// These bytes after a while.
    Late(Duration, Bytes),
    /// Nothing, ever.
    Hang,
    /// It closes the connection with a reset.
    Reset,
    /// Bytes that are not HTTP.
    Garbage,
}

/// A running server; it ends with the value.
pub struct Upstream {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Bytes>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// Starts one on a loopback port of the system's choice.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(behaviour: Behaviour) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(accept(listener, behaviour, received.clone()));
        Ok(Self { address, received, task })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// The bodies of the requests so far.
    #[must_use]
    pub fn received(&self) -> Vec<Bytes> {
        self.received.lock().map(|list| list.clone()).unwrap_or_default()
    }
}

async fn accept(listener: TcpListener, behaviour: Behaviour, received: Arc<Mutex<Vec<Bytes>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, behaviour.clone(), received.clone()));
    }
}

async fn connection(mut stream: TcpStream, behaviour: Behaviour, received: Arc<Mutex<Vec<Bytes>>>) {
    match behaviour {
        Behaviour::Reset => {
            drop(stream.set_zero_linger());
        }
        Behaviour::Garbage => {
            drop(stream.write_all(b"\x00\x01 this is not HTTP\r\n\r\n").await);
        }
        Behaviour::Answer(_) | Behaviour::Echo | Behaviour::Late(..) | Behaviour::Hang => {
            let service = service_fn(move |request: Request<Incoming>| {
                answer(request, behaviour.clone(), received.clone())
            });
            let serving = hyper::server::conn::http1::Builder::new();
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    behaviour: Behaviour,
    received: Arc<Mutex<Vec<Bytes>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == hyper::Method::GET {
        let mut stream = Response::new(Full::new(Bytes::from_static(ASKS)));
        let events = hyper::header::HeaderValue::from_static("text/event-stream");
        stream.headers_mut().insert(hyper::header::CONTENT_TYPE, events);
        return Ok(stream);
    }
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    if let Ok(mut list) = received.lock() {
        list.push(body.clone());
    }
    let bytes = match behaviour {
        Behaviour::Answer(bytes) => bytes,
        Behaviour::Late(wait, bytes) => {
            tokio::time::sleep(wait).await;
            bytes
        }
        Behaviour::Hang => std::future::pending().await,
        Behaviour::Echo | Behaviour::Reset | Behaviour::Garbage => echo(&body),
    };
    let mut response = Response::new(Full::new(bytes));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    Ok(response)
}

/// `params` of the request as the result of an answer to it.
fn echo(request: &[u8]) -> Bytes {
    let request: serde_json::Value = serde_json::from_slice(request).unwrap_or_default();
    let answer =
        serde_json::json!({"jsonrpc": "2.0", "id": request["id"], "result": request["params"]});
    answer.to_string().into()
}
