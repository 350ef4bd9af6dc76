//! An MCP server that answers every request at once with the same result.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What it answers.
#[derive(clap::Args)]
pub struct Options {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
    /// Length of an answer in bytes.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
}

/// Serves until it is killed.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    serve(listener, options.bytes).await
}

/// Serves inside this process; the URL.
pub async fn start(bytes: usize) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/mcp", listener.local_addr()?);
    tokio::spawn(serve(listener, bytes));
    Ok(url)
}

async fn serve(listener: TcpListener, bytes: usize) -> anyhow::Result<()> {
    let head = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":""#;
    let tail = r#""}],"isError":false}}"#;
    let filler = "m".repeat(bytes.saturating_sub(head.len() + tail.len()));
    let answer = Bytes::from(format!("{head}{filler}{tail}"));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let drained = request.into_body().collect().await;
                    let status = if drained.is_ok() { 200 } else { 400 };
                    let mut response = Response::new(Full::new(answer));
                    *response.status_mut() =
                        hyper::StatusCode::from_u16(status).unwrap_or_default();
                    response.headers_mut().insert(
                        hyper::header::CONTENT_TYPE,
                        hyper::header::HeaderValue::from_static("application/json"),
                    );
                    Ok::<_, Infallible>(response)
                }
            });
            let serving = hyper::server::conn::http1::Builder::new();
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}
