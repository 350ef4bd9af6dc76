//! `custody up`: all parts in one process.
//!
//! Start: the writer (which reads back the last run), lake, ingest, query, proxy; each is ready
//! before the next begins. Stop: the edges first, so that every call in flight gets its ending;
//! then the writer closes its stream; then ingest carries what is left into the lake.

use custody_lake::{Lake, LakeOptions};

use super::journal::{EDGE, Recording};
use super::process::Process;
use super::{ingest, proxy, query};
use crate::config::Config;

/// Starts every part.
pub async fn start(config: Config) -> anyhow::Result<Process> {
    let mut process = Process::default();
    let recording = Recording::open(&config, EDGE)?;
    let journal = recording.journal();
    let lake = Lake::open(&config.lake.url, &LakeOptions::new(&config.deployment.name)).await?;
    let carrying = ingest::carry(&config, &journal, lake.clone())?;
    let answering = query::answer(&mut process, &config, lake, journal, &recording).await?;
    let proxying = proxy::serve(&mut process, &config, &recording.writer).await?;
    process.then(proxying);
    process.then(answering);
    process.then(recording.closing());
    process.then(carrying);
    Ok(process)
}
