//! Connects the parts into processes: one file for each role, and what they share.

pub mod accepting;
#[cfg(any(feature = "ingest", feature = "query"))]
mod alarm;
pub mod health;
#[cfg(feature = "ingest")]
pub mod ingest;
pub mod journal;
pub mod kafka;
#[cfg(any(feature = "ingest", feature = "query"))]
pub mod lake;
pub mod process;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "query")]
pub mod query;
#[cfg(feature = "proxy")]
mod reach;
#[cfg(feature = "ingest")]
pub mod sealing;
pub mod shipping;
#[cfg(all(feature = "proxy", feature = "ingest", feature = "query"))]
pub mod up;
#[cfg(any(feature = "ingest", feature = "query"))]
pub mod witnessing;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use process::Process;

use crate::config::Config;
use crate::metrics;
use crate::telemetry::{self, Collector};

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

/// Starts a role and works until the process is told to stop, which it may be while it starts.
pub fn role<F>(
    name: &'static str,
    config: Config,
    start: impl FnOnce(Config) -> F,
) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<Process>>,
{
    let telemetry = telemetry::start(collector(name, &config))?;
    block_on(async {
        let process = tokio::select! {
            started = start(config) => started?,
            stopped = until_stopped() => {
                stopped?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        process.show(metrics::process);
        let exporting = process.show(|page| telemetry.export(page));
        process.announce()?;
        let ended = process.run(until_stopped()).await;
        exporting.finish().await;
        ended
    })
}

/// Where traces go, and what the process is called there.
fn collector(role: &'static str, config: &Config) -> Option<Collector> {
    let endpoint = config.telemetry.otlp_endpoint.clone()?;
    let about = vec![
        ("service.name", format!("custody-{role}")),
        ("service.namespace", config.deployment.name.clone()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    Some(Collector { endpoint, about })
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
