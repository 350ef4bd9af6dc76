//! An MCP server that answers every request at once with the same result.

use std::convert::Infallible;

use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What an answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// One JSON message.
    Json,
    /// The same message as the only event of a stream.
    Sse,
}

impl Form {
    /// As the command line has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Sse => "sse",
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Sse => "text/event-stream",
        }
    }
}

/// What it answers.
#[derive(clap::Args)]
pub struct Options {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
    /// Length of an answer in bytes.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
    /// What an answer looks like.
    #[arg(long, value_enum, default_value = "json")]
    form: Form,
}

/// An answer to the call with id 1.
fn answer(options: &Options) -> Bytes {
    let head = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":""#;
    let tail = r#""}],"isError":false}}"#;
    let filler = "m".repeat(options.bytes.saturating_sub(head.len() + tail.len()));
    match options.form {
        Form::Json => format!("{head}{filler}{tail}").into(),
        Form::Sse => format!("event: message\ndata: {head}{filler}{tail}\n\n").into(),
    }
}

/// Serves until it is killed.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    serve(listener, &options).await
}

/// Serves JSON inside this process; the URL.
pub async fn start(bytes: usize) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/mcp", listener.local_addr()?);
    let options = Options { port: 0, bytes, form: Form::Json };
    tokio::spawn(async move { serve(listener, &options).await });
    Ok(url)
}

async fn serve(listener: TcpListener, options: &Options) -> anyhow::Result<()> {
    let answer = answer(options);
    let media_type = hyper::header::HeaderValue::from_static(options.form.media_type());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (answer, media_type) = (answer.clone(), media_type.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (answer, media_type) = (answer.clone(), media_type.clone());
                async move {
                    let drained = request.into_body().collect().await;
                    let status = if drained.is_ok() { 200 } else { 400 };
                    let mut response = Response::new(Full::new(answer));
                    *response.status_mut() =
                        hyper::StatusCode::from_u16(status).unwrap_or_default();
                    response.headers_mut().insert(hyper::header::CONTENT_TYPE, media_type);
                    Ok::<_, Infallible>(response)
                }
            });
            let serving = hyper::server::conn::http1::Builder::new();
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}
