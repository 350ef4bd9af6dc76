//! Connects the parts into processes: one file for each role, and what they share.

#[cfg(feature = "ingest")]
pub mod ingest;
pub mod journal;
pub mod process;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "query")]
pub mod query;
#[cfg(all(feature = "proxy", feature = "ingest", feature = "query"))]
pub mod up;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use process::Process;

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

/// Starts a role and works until the process is told to stop, which it may be while it starts.
pub fn role<F>(config: Config, start: impl FnOnce(Config) -> F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<Process>>,
{
    log_to_stderr();
    block_on(async {
        let process = tokio::select! {
            started = start(config) => started?,
            stopped = until_stopped() => {
                stopped?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        process.announce()?;
        process.run(until_stopped()).await
    })
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
