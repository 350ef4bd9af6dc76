//! What a process tells those who watch it: diagnostics as lines, and spans of calls by OTLP.
//!
//! Neither ever holds what a message says, a person or a patient: lines are ours, and spans are
//! only made at the few places that ask for one by [`SPANS`], with names, times, outcomes and the
//! id under which the whole call stands in the record. A span joins the trace that the caller
//! names; it changes nothing of what is forwarded. Telemetry never delays a call and never takes
//! more than a fixed amount of memory: what the collector does not take in time is dropped and
//! counted.

mod export;
mod layer;
mod otlp;

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use export::Exporter;
use layer::{Finished, Spans};

/// The target of everything that is a span of a trace, and of nothing else.
pub const SPANS: &str = "custody::span";

/// How many finished spans wait for the collector at most.
const QUEUE: usize = 8192;
/// How long a process that stops waits for the collector to take the last spans.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// Libraries that print what passes through them, statements and values included, when they are
/// asked to talk: they never say more than warnings here, whatever `RUST_LOG` wants.
const QUIET: [&str; 10] = [
    "sqlparser",
    "datafusion",
    "deltalake",
    "buoyant_kernel",
    "object_store",
    "parquet",
    "hyper",
    "h2",
    "rmcp",
    "rdkafka",
];

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Collector {
    /// Base URL of an OTLP/HTTP receiver; `/v1/traces` is added.
    pub endpoint: String,
    /// What the process is called there: attributes of the resource.
    pub about: Vec<(&'static str, String)>,
}

/// What became of spans.
#[derive(Clone, Debug, Default)]
struct Counts {
    exported: Counter,
    dropped: Counter,
}

/// Spans on their way.
pub struct Telemetry {
    exporter: Option<Exporter>,
    counts: Counts,
}

/// A running export.
pub struct Exporting {
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

/// Diagnostics as lines on standard error, which `RUST_LOG` chooses; spans to `collector`, if there
/// is one.
///
/// # Errors
/// When the collector's address is none, or no TLS can be set up towards it.
pub fn start(collector: Option<Collector>) -> anyhow::Result<Telemetry> {
    let counts = Counts::default();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = tracing_subscriber::registry().with(lines.with_filter(chosen()));
    let Some(collector) = collector else {
        if lines.try_init().is_err() {
            tracing::debug!("diagnostics have been set up before");
        }
        return Ok(Telemetry { exporter: None, counts });
    };
    let (finished, waiting) = mpsc::channel::<Finished>(QUEUE);
    let exporter = Exporter::new(&collector, waiting, counts.clone())?;
    let spans = Spans::new(finished, counts.dropped.clone());
    let only = Targets::new().with_target(SPANS, LevelFilter::TRACE);
    if lines.with(spans.with_filter(only)).try_init().is_err() {
        tracing::debug!("diagnostics have been set up before");
    }
    Ok(Telemetry { exporter: Some(exporter), counts })
}

/// What lines are chosen: by `RUST_LOG`, but never spans and never what talks too much.
fn chosen() -> EnvFilter {
    let chosen = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let quiet = QUIET.iter().map(|target| format!("{target}=warn"));
    let quiet = quiet.chain([format!("{SPANS}=off")]);
    quiet.filter_map(|directive| directive.parse().ok()).fold(chosen, EnvFilter::add_directive)
}

impl Telemetry {
    /// Sends spans from now on, and shows in `page` what becomes of them. Needs a runtime.
    pub fn export(self, page: &mut Registry) -> Exporting {
        let stop = CancellationToken::new();
        let Some(exporter) = self.exporter else { return Exporting { stop, task: None } };
        let to = page.sub_registry_with_prefix("custody_traces");
        let (exported, dropped) = (self.counts.exported, self.counts.dropped);
        to.register("spans_exported", "Spans that the collector took", exported);
        to.register("spans_dropped", "Spans that it did not take in time", dropped);
        let task = tokio::spawn(exporter.run(stop.clone()));
        Exporting { stop, task: Some(task) }
    }
}

impl Exporting {
    /// Sends what is left, for a limited time.
    pub async fn finish(self) {
        self.stop.cancel();
        let Some(task) = self.task else { return };
        let stopping = task.abort_handle();
        if tokio::time::timeout(LAST_SPANS, task).await.is_err() {
            stopping.abort();
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

#[cfg(test)]
mod tests;
