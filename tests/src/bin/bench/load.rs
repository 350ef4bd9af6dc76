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

impl Target {
    /// From a URL on loopback.
    ///
    /// # Errors
    /// When it names no port.
    pub fn of(url: &str) -> anyhow::Result<Self> {
        let url: hyper::Uri = url.parse()?;
        let port = url.port_u16().context("a URL without a port")?;
        Ok(Self { port, path: url.path().to_owned() })
    }
}

impl Figures {
    /// This and what ran beside it, as one; percentiles are the worse of both.
    #[must_use]
    pub fn beside(&self, other: &Self) -> Self {
        Self {
            calls_per_s: self.calls_per_s + other.calls_per_s,
            p50_us: self.p50_us.max(other.p50_us),
            p99_us: self.p99_us.max(other.p99_us),
            calls: self.calls + other.calls,
        }
    }

    /// From the time that each call took.
    fn of(mut latencies: Vec<Duration>, elapsed: Duration) -> anyhow::Result<Self> {
        latencies.sort_unstable();
        let calls = latencies.len();
        if calls == 0 {
            bail!("no call was answered");
        }
        let percentile =
            |percent: usize| latencies[(calls - 1) * percent / 100].as_secs_f64() * 1e6;
        Ok(Self {
            calls_per_s: calls as f64 / elapsed.as_secs_f64(),
            p50_us: percentile(50),
            p99_us: percentile(99),
            calls,
        })
    }
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
    Figures::of(latencies, started.elapsed())
}

/// Connections to each target in [`paced`].
const PACED: u32 = 32;

/// Sends `request` to all `targets` together `rate` times a second for `duration`, whether answers
/// come in time or not, as far as the connections go round.
pub async fn paced(
    targets: &[Target],
    request: &Bytes,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<Figures> {
    let started = Instant::now();
    let until = started + duration;
    let connections = PACED * u32::try_from(targets.len())?;
    let every = Duration::from_secs(1) * connections / rate.max(1);
    let mut running = Vec::new();
    for (n, target) in (0..connections).zip(targets.iter().cycle()) {
        let (target, request) = (target.clone(), request.clone());
        let first = started + every * n / connections;
        running.push(tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(first.into(), every);
            let mut open = Open::new(&target).await?;
            let mut latencies = Vec::new();
            while Instant::now() < until {
                ticks.tick().await;
                latencies.push(open.call(&target, &request).await?);
            }
            anyhow::Ok(latencies)
        }));
    }
    let mut latencies = Vec::new();
    for connection in running {
        latencies.extend(connection.await??);
    }
    Figures::of(latencies, started.elapsed())
}

async fn connection(target: Target, body: Bytes, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut open = Open::new(&target).await?;
    let mut latencies = Vec::new();
    while Instant::now() < until {
        latencies.push(open.call(&target, &body).await?);
    }
    Ok(latencies)
}

/// An open connection.
struct Open {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Open {
    async fn new(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", target.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, driver: tokio::spawn(connection) })
    }

    /// One call, and how long it took.
    async fn call(&mut self, target: &Target, body: &Bytes) -> anyhow::Result<Duration> {
        let request = Request::post(target.path.as_str())
            .header("host", format!("127.0.0.1:{}", target.port))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2025-11-25")
            .body(Full::new(body.clone()))?;
        let begun = Instant::now();
        self.sender.ready().await.context("the connection was closed")?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        let took = begun.elapsed();
        if !status.is_success() {
            bail!("answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(took)
    }
}
