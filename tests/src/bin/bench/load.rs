//! Closed-loop load: n connections, each sends the next call when the last one is answered.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What a run gave.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Answered calls per second.
    pub calls_per_s: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// Number of calls.
    pub calls: usize,
}

/// Where to send what.
#[derive(Clone, Debug)]
pub struct Target {
    /// Port on loopback.
    pub port: u16,
    /// Path.
    pub path: String,
}

/// Sends `request` over `connections` for `duration` and checks that every answer is 200.
pub async fn run(
    target: &Target,
    request: &Bytes,
    connections: usize,
    duration: Duration,
) -> anyhow::Result<Figures> {
    let started = Instant::now();
    let until = started + duration;
    let mut running = Vec::new();
    for _ in 0..connections {
        running.push(tokio::spawn(connection(target.clone(), request.clone(), until)));
    }
    let mut latencies = Vec::new();
    for connection in running {
        latencies.extend(connection.await??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let calls = latencies.len();
    if calls == 0 {
        bail!("no call was answered");
    }
    let percentile = |percent: usize| latencies[(calls - 1) * percent / 100].as_secs_f64() * 1e6;
    Ok(Figures {
        calls_per_s: calls as f64 / elapsed,
        p50_us: percentile(50),
        p99_us: percentile(99),
        calls,
    })
}

async fn connection(target: Target, body: Bytes, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let stream = TcpStream::connect(("127.0.0.1", target.port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let request = Request::post(target.path.as_str())
            .header("host", format!("127.0.0.1:{}", target.port))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2025-11-25")
            .body(Full::new(body.clone()))?;
        let begun = Instant::now();
        sender.ready().await.context("the connection was closed")?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        latencies.push(begun.elapsed());
        if !status.is_success() {
            bail!("answered {status}: {}", String::from_utf8_lossy(&answer));
        }
    }
    drop(sender);
    driver.abort();
    Ok(latencies)
}
