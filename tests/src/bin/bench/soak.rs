//! Many idle sessions with open streams and a few busy agents, for a long time: whether anything
//! grows or stays behind in the proxy.
//!
//! The proxy is a process of its own, before a server with sessions that is another. Every sample
//! is read from outside: memory and descriptors from `/proc`, the rest from `/metrics`. It ends with
//! an error when something is left that should be gone.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt, iter};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::proxy::{Running, wait_for};

/// How long and how much.
#[derive(clap::Args)]
pub struct Options {
    /// Idle sessions, each with an open stream.
    #[arg(long, default_value_t = 1000)]
    sessions: usize,
    /// Busy agents, each opening session after session.
    #[arg(long, default_value_t = 50)]
    agents: usize,
    /// Calls a second of each agent.
    #[arg(long, default_value_t = 10)]
    rate: u64,
    /// Seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// First of two ports on loopback; 0 for two that are free.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

const PATH: &str = "/servers/stub/mcp";
const INITIALIZE: &[u8] = br#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"soak","version":"1"}}}"#;
const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const CANCEL: &[u8] =
    br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
/// How many sessions are opened or closed at a time.
const AT_ONCE: usize = 32;
/// How many calls an agent makes in one session.
const CALLS: usize = 30;
/// How many samples are printed.
const SAMPLES: u64 = 12;
/// What a settled process may hold beyond what it held before: pooled connections to the server.
const SPARE_DESCRIPTORS: usize = 20;

/// Runs it and prints a line for each sample.
#[expect(clippy::print_stdout, reason = "the table is the benchmark's result")]
pub async fn run(mut options: Options) -> anyhow::Result<()> {
    options.port = if options.port == 0 { free_ports()? } else { options.port };
    let data = tempfile::tempdir_in(".")?;
    let (_server, gateway) = start(&options, data.path())?;
    let port = options.port + 1;
    // what the first call allocates once is not the sessions'
    agent(port, options.rate, Instant::now() + Duration::from_secs(1)).await?;
    println!("| | s | RSS MiB | descriptors | sessions | calls in flight | calls |");
    println!("|---|---|---|---|---|---|---|");
    let began = Instant::now();
    let before = sample("nothing open", &gateway, port, began, 0).await?;
    let opening = iter((0..options.sessions).map(|_| Idle::open(port)));
    let idle: Vec<Idle> = opening.buffer_unordered(AT_ONCE).try_collect().await?;
    let open = sample("idle sessions", &gateway, port, began, 0).await?;
    let each = (open.rss_kib - before.rss_kib) / options.sessions.max(1) as f64;

    let until = began + Duration::from_secs(options.seconds);
    let agents: Vec<_> =
        (0..options.agents).map(|_| tokio::spawn(agent(port, options.rate, until))).collect();
    let mut busy = Vec::new();
    for n in 1..=SAMPLES {
        let wait = Duration::from_secs(options.seconds).mul_f64(n as f64 / SAMPLES as f64);
        tokio::time::sleep_until((began + wait).into()).await;
        busy.push(sample("busy", &gateway, port, began, 0).await?);
    }
    let mut calls = 0;
    for agent in agents {
        calls += agent.await??;
    }
    let counted = settled(&gateway, port, began, Rest { calls, ..Rest::of(open) }).await?;
    let closing = iter(idle.into_iter().map(|idle| idle.close(port)));
    closing.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let after = settled(&gateway, port, began, Rest { calls, ..Rest::of(before) }).await?;
    println!("\n{each:.1} KiB for an idle session with an open stream (RSS)");
    let (early, late) = (busy[busy.len() / 3].rss_kib, busy[busy.len() - 1].rss_kib);
    println!("RSS in the last two thirds: {:+.1} %", (late / early - 1.0) * 100.0);
    ensure!(counted.in_flight == 0 && after.in_flight == 0, "calls are left open: {after:?}");
    ensure!(counted.sessions == options.sessions, "sessions are left: {counted:?}");
    ensure!(after.sessions == 0, "sessions are left: {after:?}");
    let left = after.descriptors.saturating_sub(before.descriptors);
    ensure!(left <= SPARE_DESCRIPTORS, "{left} descriptors are left");
    Ok(())
}

/// Two ports in a row that nobody listens on.
fn free_ports() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if first < u16::MAX && TcpListener::bind(("127.0.0.1", first + 1)).is_ok() {
            return Ok(first);
        }
    }
    bail!("no free ports")
}

fn start(options: &Options, data: &Path) -> anyhow::Result<(Running, Running)> {
    let this = std::env::current_exe()?;
    let (server, gateway) = (options.port.to_string(), (options.port + 1).to_string());
    let running = Running::start(Command::new(&this).args(["sessions", "--port", &server]))?;
    let mut command = Command::new(&this);
    command.args(["gateway", "--port", &gateway, "--upstream", &server, "--audit", "local"]);
    let proxy = Running::start(command.arg("--data").arg(data.join("spool")))?;
    wait_for(options.port)?;
    wait_for(options.port + 1)?;
    Ok((running, proxy))
}

/// What the proxy holds.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rss_kib: f64,
    descriptors: usize,
    sessions: usize,
    in_flight: usize,
}

#[expect(clippy::print_stdout, reason = "the table is the benchmark's result")]
async fn sample(
    name: &str,
    gateway: &Running,
    port: u16,
    began: Instant,
    calls: usize,
) -> anyhow::Result<Sample> {
    let sample = Sample::take(gateway, port).await?;
    println!(
        "| {name} | {} | {:.1} | {} | {} | {} | {} |",
        began.elapsed().as_secs(),
        sample.rss_kib / 1024.0,
        sample.descriptors,
        sample.sessions,
        sample.in_flight,
        if calls > 0 { calls.to_string() } else { String::new() },
    );
    Ok(sample)
}

/// What is to be left when all is done.
struct Rest {
    sessions: usize,
    descriptors: usize,
    /// How many calls were made.
    calls: usize,
}

impl Rest {
    fn of(sample: Sample) -> Self {
        let descriptors = sample.descriptors + SPARE_DESCRIPTORS;
        Self { sessions: sample.sessions, descriptors, calls: 0 }
    }
}

/// Waits until the proxy holds no more than the rest and no calls, for at most half a minute.
async fn settled(
    gateway: &Running,
    port: u16,
    began: Instant,
    rest: Rest,
) -> anyhow::Result<Sample> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let now = Sample::take(gateway, port).await?;
        let few = now.sessions <= rest.sessions && now.descriptors <= rest.descriptors;
        if (few && now.in_flight == 0) || Instant::now() > until {
            return sample("settled", gateway, port, began, rest.calls).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Sample {
    async fn take(gateway: &Running, port: u16) -> anyhow::Result<Self> {
        let folder = format!("/proc/{}", gateway.0.id());
        let status = std::fs::read_to_string(format!("{folder}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rss| rss.trim().strip_suffix(" kB")).context("no VmRSS")?;
        let page = Client::connect(port).await?.send(Method::GET, "/metrics", None, b"").await?;
        let page = page.into_body().collect().await?.to_bytes();
        let page = String::from_utf8_lossy(&page);
        let metric = |name: &str| -> anyhow::Result<usize> {
            let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
        };
        Ok(Self {
            rss_kib: rss.parse()?,
            descriptors: std::fs::read_dir(format!("{folder}/fd"))?.count(),
            sessions: metric("custody_proxy_sessions")?,
            in_flight: metric("custody_proxy_calls_in_flight")?,
        })
    }
}

/// One connection to the proxy.
struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, driver: tokio::spawn(connection) })
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        session: Option<&HeaderValue>,
        body: &[u8],
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(session) = session {
            request = request.header("mcp-session-id", session);
        }
        let request = request
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2025-11-25")
            .body(Full::new(Bytes::copy_from_slice(body)))?;
        self.sender.ready().await.context("the connection was closed")?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status().is_success(), "answered {}", response.status());
        Ok(response)
    }

    /// Sends a message and reads all of the answer.
    async fn post(&mut self, session: &HeaderValue, body: &[u8]) -> anyhow::Result<Bytes> {
        let response = self.send(Method::POST, PATH, Some(session), body).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    async fn open_session(&mut self) -> anyhow::Result<HeaderValue> {
        let response = self.send(Method::POST, PATH, None, INITIALIZE).await?;
        let session = response.headers().get("mcp-session-id").cloned().context("no session")?;
        drop(response.into_body().collect().await?);
        self.post(&session, INITIALIZED).await?;
        Ok(session)
    }
}

/// A session in which nothing happens but what the server says on its own.
struct Idle {
    session: HeaderValue,
    reading: JoinHandle<()>,
}

impl Idle {
    async fn open(port: u16) -> anyhow::Result<Self> {
        let mut client = Client::connect(port).await?;
        let session = client.open_session().await?;
        let mut stream = client.send(Method::GET, PATH, Some(&session), b"").await?.into_body();
        stream.frame().await.context("the stream ended")??;
        let reading = tokio::spawn(async move {
            let _connection = client;
            while let Some(Ok(_)) = stream.frame().await {}
        });
        Ok(Self { session, reading })
    }

    async fn close(self, port: u16) -> anyhow::Result<()> {
        ensure!(!self.reading.is_finished(), "a stream was cut");
        self.reading.abort();
        let mut client = Client::connect(port).await?;
        client.send(Method::DELETE, PATH, Some(&self.session), b"").await?;
        Ok(())
    }
}

/// Opens session after session, and calls in each; the number of calls.
async fn agent(port: u16, rate: u64, until: Instant) -> anyhow::Result<usize> {
    let mut calls = 0;
    let mut pace = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate.max(1))?);
    while Instant::now() < until {
        let mut client = Client::connect(port).await?;
        let session = client.open_session().await?;
        for n in 0..CALLS {
            pace.tick().await;
            if Instant::now() >= until {
                break;
            }
            call(&mut client, port, &session, n).await.with_context(|| format!("call {n}"))?;
            calls += 1;
        }
        client.send(Method::DELETE, PATH, Some(&session), b"").await?;
    }
    Ok(calls)
}

/// Most calls are answered at once, some in a stream; one in fifteen is cancelled, one is left.
async fn call(
    client: &mut Client,
    port: u16,
    session: &HeaderValue,
    n: usize,
) -> anyhow::Result<()> {
    let how = match n % 15 {
        7 | 11 => "never",
        3 | 6 | 9 => "stream",
        _ => "json",
    };
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","arguments":{{"how":"{how}"}}}}}}"#
    );
    if how != "never" {
        let answer = client.post(session, body.as_bytes()).await?;
        ensure!(is_done(&answer), "an answer of {} bytes", answer.len());
        return Ok(());
    }
    let mut other = Client::connect(port).await?;
    let response = other.send(Method::POST, PATH, Some(session), body.as_bytes()).await?;
    let mut stream = response.into_body();
    stream.frame().await.context("no progress")??;
    if n % 15 == 7 {
        client.post(session, CANCEL).await?;
    }
    Ok(())
}

fn is_done(answer: &[u8]) -> bool {
    answer.windows(6).any(|six| six == b"\"done\"")
}
