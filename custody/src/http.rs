//! A small HTTP client, for the commands that ask the query service and for the demo's agents.

use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The longest answer that is read into memory.
const MAX_ANSWER_BYTES: usize = 1 << 30;

/// A client with pooled connections.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    wait: Duration,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Http {
    /// A client that waits at most `wait` for each answer.
    pub fn new(wait: Duration) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), wait }
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&'static str, String)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let request = request(method, url, headers, body.into())?;
        let asking = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = whole(body).await?;
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        self.within(url, asking).await
    }

    /// The same, writing the body of a good answer into a file instead.
    pub async fn fetch(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        file: &mut File,
    ) -> anyhow::Result<Answer> {
        let request = request(Method::GET, url, headers, Bytes::new())?;
        let asking = async {
            let (head, mut body) = self.client.request(request).await?.into_parts();
            if !head.status.is_success() {
                let body = whole(body).await?;
                return Ok(Answer { status: head.status, headers: head.headers, body });
            }
            while let Some(frame) = body.frame().await {
                if let Ok(bytes) = frame.context("the answer broke off")?.into_data() {
                    file.write_all(&bytes)?;
                }
            }
            Ok(Answer { status: head.status, headers: head.headers, body: Bytes::new() })
        };
        self.within(url, asking).await
    }

    async fn within(
        &self,
        url: &str,
        asking: impl Future<Output = anyhow::Result<Answer>>,
    ) -> anyhow::Result<Answer> {
        match tokio::time::timeout(self.wait, asking).await {
            Ok(answer) => answer.with_context(|| format!("{url} cannot be reached")),
            Err(_) => bail!("{url} gave no answer within {} s", self.wait.as_secs()),
        }
    }
}

fn request(
    method: Method,
    url: &str,
    headers: &[(&'static str, String)],
    body: Bytes,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        let value = HeaderValue::from_str(value)
            .with_context(|| format!("the header {name} has a value that HTTP forbids"))?;
        request = request.header(HeaderName::from_static(name), value);
    }
    Ok(request.body(Full::new(body))?)
}

async fn whole(body: Incoming) -> anyhow::Result<Bytes> {
    match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => bail!("the answer broke off: {error}"),
    }
}
