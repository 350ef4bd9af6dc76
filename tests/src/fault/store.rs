//! An HTTP proxy before an object store: requests and answers pass unchanged, or meet a fault.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::services::Store;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is refused with 503 and does nothing.
    Busy,
    /// The connection breaks before it arrives.
    Reset,
    /// It is done, and the connection breaks before its answer.
    Lost,
    /// It is done, and answered with 500.
    FailedAfterSuccess,
    /// It is done later.
    Late(Duration),
}

const FAULTS: [Fault; 5] = [
    Fault::Busy,
    Fault::Reset,
    Fault::Lost,
    Fault::FailedAfterSuccess,
    Fault::Late(Duration::from_millis(700)),
];

/// How often faults come, and those that came.
struct Weather {
    random: StdRng,
    /// Of a thousand requests so many meet a fault.
    faults: u32,
    seen: BTreeMap<Fault, u64>,
}

impl Weather {
    fn draw(&mut self) -> Option<Fault> {
        if self.random.random_range(0..1000) >= self.faults {
            return None;
        }
        let fault = FAULTS[self.random.random_range(0..FAULTS.len())];
        *self.seen.entry(fault).or_default() += 1;
        Some(fault)
    }
}

/// A proxy. It ends with the value.
pub struct StoreProxy {
    address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    silent: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for StoreProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StoreProxy {
    /// A proxy before `store` that lets everything pass for now.
    ///
    /// # Errors
    /// When there is no port, or the store's endpoint is no URL.
    pub async fn start(store: &Store, seed: u64) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let random = StdRng::seed_from_u64(seed);
        let weather = Weather { random, faults: 0, seen: BTreeMap::new() };
        let weather = Arc::new(Mutex::new(weather));
        let silent = watch::Sender::new(false);
        let endpoint: Uri = store.endpoint.parse()?;
        let upstream = Upstream {
            authority: endpoint.authority().cloned().unwrap_or(Authority::from_static("0:0")),
            client: Client::builder(TokioExecutor::new()).build_http(),
            weather: Arc::clone(&weather),
            silent: silent.subscribe(),
        };
        let task = tokio::spawn(accept(listener, upstream));
        Ok(Self { address, weather, silent, task })
    }

    /// The store as clients are to see it.
    #[must_use]
    pub fn seen_through(&self, store: &Store) -> Store {
        Store { endpoint: format!("http://{}", self.address), ..store.clone() }
    }

    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a thousand requests so many meet a fault from now on.
    pub fn set_faults(&self, of_a_thousand: u32) {
        self.weather().faults = of_a_thousand;
    }

    /// Whether nothing is answered; requests that came meanwhile are lost when that ends.
    pub fn set_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    /// How many requests met which fault.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<Fault, u64> {
        self.weather().seen.clone()
    }
}

#[derive(Clone)]
struct Upstream {
    authority: Authority,
    client: Client<HttpConnector, Full<Bytes>>,
    weather: Arc<Mutex<Weather>>,
    silent: watch::Receiver<bool>,
}

async fn accept(listener: TcpListener, upstream: Upstream) {
    while let Ok((stream, _)) = listener.accept().await {
        let upstream = upstream.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| upstream.clone().answer(request));
            let serving = hyper::server::conn::http1::Builder::new();
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// Breaks the connection.
fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "injected")
}

fn failed(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

impl Upstream {
    async fn answer(mut self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        if *self.silent.borrow() {
            drop(self.silent.wait_for(|silent| !*silent).await);
            return Err(broken());
        }
        let fault = self.weather.lock().unwrap_or_else(PoisonError::into_inner).draw();
        match fault {
            Some(Fault::Busy) => return Ok(failed(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
            Some(Fault::Reset) => return Err(broken()),
            Some(Fault::Late(time)) => tokio::time::sleep(time).await,
            Some(Fault::Lost | Fault::FailedAfterSuccess) | None => {}
        }
        let answer = self.forward(request).await?;
        match fault {
            Some(Fault::Lost) => Err(broken()),
            Some(Fault::FailedAfterSuccess) => {
                Ok(failed(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"))
            }
            Some(Fault::Busy | Fault::Reset | Fault::Late(_)) | None => Ok(answer),
        }
    }

    /// The request as it is: its `Host` is part of what is signed.
    async fn forward(&self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let mut uri = head.uri.into_parts();
        (uri.scheme, uri.authority) = (Some(Scheme::HTTP), Some(self.authority.clone()));
        head.uri = Uri::from_parts(uri).map_err(io::Error::other)?;
        let request = Request::from_parts(head, Full::new(body));
        let answer = self.client.request(request).await.map_err(io::Error::other)?;
        let (mut head, body) = answer.into_parts();
        head.headers.remove(TRANSFER_ENCODING);
        head.headers.remove(CONNECTION);
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)))
    }
}
