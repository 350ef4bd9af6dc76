//! The least that a proxy can do: bytes in, the same bytes out, over pooled connections. It is
//! the limit against which ours is measured.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Where it listens and where it sends to.
#[derive(clap::Args)]
pub struct Options {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
    /// Port of the upstream on loopback.
    #[arg(long)]
    upstream: u16,
}

/// Serves until it is killed.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
    let upstream = format!("http://127.0.0.1:{}/mcp", options.upstream);
    let upstream: hyper::Uri = upstream.parse()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (client, upstream) = (client.clone(), upstream.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (client, upstream) = (client.clone(), upstream.clone());
                async move { Ok::<_, Infallible>(forward(client, upstream, request).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new();
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

type Pool = Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>;

async fn forward(
    client: Pool,
    upstream: hyper::Uri,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let bad_gateway = || {
        let mut response = Response::new(Full::new(Bytes::new()));
        *response.status_mut() = hyper::StatusCode::BAD_GATEWAY;
        response
    };
    let (mut head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return bad_gateway() };
    head.uri = upstream;
    head.headers.remove(hyper::header::HOST);
    let request = Request::from_parts(head, Full::new(body.to_bytes()));
    let Ok(response) = client.request(request).await else { return bad_gateway() };
    let (head, body) = response.into_parts();
    let Ok(body) = body.collect().await else { return bad_gateway() };
    Response::from_parts(head, Full::new(body.to_bytes()))
}
