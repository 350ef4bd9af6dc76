//! Connects the parts into one process and ends them in order.
//!
//! Start: keys, writer (which reads back the last run), lake, ingest, query, proxy; each is ready
//! before the next begins, and what listens, listens last. Stop: the proxy first, so that every
//! call in flight gets its ending; then query; then the writer closes its stream; then ingest
//! carries what is left into the lake.

mod settings;

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use custody_ingest::Ingest;
use custody_journal::control::Control;
use custody_journal::keys::Keys;
use custody_journal::{Journal, Writer};
use custody_lake::{Lake, LakeOptions};
use custody_query::completeness::ListedWriter;
use custody_query::{Engine, EngineOptions};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Runs a command's future to its end.
pub fn block_on(
    command: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A query that does not yield must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// Libraries that print what passes through them, statements and values included, when they are
/// asked to talk: they never say more than warnings here, whatever `RUST_LOG` wants.
const QUIET: [&str; 9] = [
    "sqlparser",
    "datafusion",
    "deltalake",
    "buoyant_kernel",
    "object_store",
    "parquet",
    "hyper",
    "h2",
    "rmcp",
];

/// Diagnostics as lines on standard error; `RUST_LOG` chooses them.
pub fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let chosen = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let quiet = QUIET.iter().filter_map(|target| format!("{target}=warn").parse().ok());
    let filter = quiet.fold(chosen, EnvFilter::add_directive);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if lines.try_init().is_err() {
        tracing::debug!("diagnostics have been set up before");
    }
}

/// Waits for Ctrl-C or SIGTERM.
pub async fn until_stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// `custody up`
pub async fn up(config: Config) -> anyhow::Result<ExitCode> {
    let product = Product::start(config).await?;
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "proxy http://{}", product.proxy)?;
        writeln!(out, "query http://{}", product.query)?;
        out.flush()?;
    }
    let failed = tokio::select! {
        stopped = until_stopped() => { stopped?; None }
        failure = product.failed() => Some(failure),
    };
    tracing::info!("stopping: calls in flight are ended and what is recorded goes into the lake");
    product.stop().await?;
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(part) => anyhow::bail!("{part} ended by itself; its error stands above"),
    }
}

/// Everything in one process, running.
pub struct Product {
    /// Where the proxy listens.
    pub proxy: SocketAddr,
    /// Where the query service listens.
    pub query: SocketAddr,
    writer: Writer,
    edges: [Part; 2],
    ingest: Part,
}

/// A running part and the way to stop it.
struct Part {
    name: &'static str,
    stop: CancellationToken,
    ended: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    fn start<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let ended = CancellationToken::new();
        let running = run(stop.clone());
        let guard = ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _guard = guard;
            let result = running.await;
            if let Err(error) = &result {
                tracing::error!(error = format!("{error:#}"), "{name} ended");
            }
            result
        });
        Self { name, stop, ended, task }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await.with_context(|| format!("{} broke off", self.name))?
    }
}

impl Product {
    /// Starts every part.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let (writer, writers) = open_writer(&config)?;
        let journal: Arc<dyn Journal> = writer.journal();
        let lake = Lake::open(&config.lake.url, &LakeOptions::new(&config.deployment.name)).await?;
        let ingest = start_ingest(&config, &journal, &lake)?;
        let proxy_listener = listen(config.proxy.listen, "proxy.listen").await?;
        let query_listener = listen(config.query.listen, "query.listen").await?;
        let (proxy, query) = (proxy_listener.local_addr()?, query_listener.local_addr()?);
        let engine = open_engine(&config, lake, journal, (writer.clone(), writers)).await?;
        let edge = settings::query(&config)?;
        let answering = Part::start("query", |stop| async move {
            Ok(custody_query::http::run(query_listener, engine, edge, stop).await?)
        });
        let proxy_settings = settings::proxy(&config)?;
        let recorder = writer.clone();
        let proxying = Part::start("proxy", |stop| async move {
            Ok(custody_proxy::run(proxy_listener, proxy_settings, recorder, stop).await?)
        });
        Ok(Self { proxy, query, writer, edges: [proxying, answering], ingest })
    }

    /// Waits until a part ends by itself; its name.
    pub async fn failed(&self) -> &'static str {
        let [proxy, query] = &self.edges;
        tokio::select! {
            () = proxy.ended.cancelled() => proxy.name,
            () = query.ended.cancelled() => query.name,
            () = self.ingest.ended.cancelled() => self.ingest.name,
        }
    }

    /// Ends everything in order; the first error, after all have ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for edge in self.edges {
            result = result.and(edge.stop().await);
        }
        let closed = self.writer.close().await.context("the stream could not be closed");
        result = result.and(closed.map(drop));
        result.and(self.ingest.stop().await)
    }
}

fn open_writer(config: &Config) -> anyhow::Result<(Writer, Vec<ListedWriter>)> {
    let data = &config.deployment.data;
    let keys = Keys::new(data.join("keys"), &config.deployment.name);
    let signer = keys.writer(&config.deployment.writer)?;
    let mut control = Control::open(&data.join("journal"))?;
    let ring = keys.enrol(&mut control, &signer)?;
    let (writer, recovery) = Writer::open(settings::writer(config)?, signer)?;
    if let Some(previous) = &recovery.previous {
        let (stream, size, clean, lost) =
            (&previous.stream, previous.size, previous.clean, previous.lost);
        tracing::info!(%stream, size, clean, lost, orphans = recovery.orphans, "the last run");
    }
    let listed = ring
        .writers
        .into_iter()
        .filter(|key| key.until.is_none())
        .map(|key| ListedWriter { name: key.name, from: key.from, retired: key.retired });
    Ok((writer, listed.collect()))
}

fn start_ingest(config: &Config, journal: &Arc<dyn Journal>, lake: &Lake) -> anyhow::Result<Part> {
    let ingest = Ingest::new(journal, lake.clone(), &settings::ingest(config)?)?;
    Ok(Part::start("ingest", |stop| async move { Ok(ingest.run(stop).await?) }))
}

async fn open_engine(
    config: &Config,
    lake: Lake,
    journal: Arc<dyn Journal>,
    (writer, listed): (Writer, Vec<ListedWriter>),
) -> anyhow::Result<Arc<Engine>> {
    let options: EngineOptions = settings::engine(config, Arc::new(move || listed.clone()))?;
    Ok(Engine::open(lake, journal, writer, options).await?)
}

async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another {key}, or stop who listens there")
    })
}
