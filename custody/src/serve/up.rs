//! `custody up`: all parts in one process, on local disk or on Kafka.
//!
//! Start: the writer (which reads back the last run), lake, query, proxy, ingest; each is ready
//! before the next begins. Stop: the edges first, so that every call in flight gets its ending;
//! then the writer closes its stream; then what is in the spool goes to Kafka, if there is one;
//! then ingest carries what is left into the lake.

use super::ingest::Worker;
use super::journal::{EDGE, Recording};
use super::process::Process;
use super::{lake, proxy, query, sealing};
use crate::config::Config;

/// Starts every part.
pub async fn start(config: Config) -> anyhow::Result<Process> {
    let mut process = Process::default();
    let recording = Recording::open(&config, EDGE).await?;
    let journal = recording.journal(&config)?;
    let lake = lake::open(&config).await?;
    let sealing = sealing::together(&config, &recording).await?;
    let worker = match &config.journal.kafka {
        Some(kafka) => Worker::join(&config, kafka, lake.clone(), sealing)?,
        None => Worker::alone(&config, journal.clone(), lake.clone(), sealing)?,
    };
    worker.show(&process);
    let carrying = worker.carry();
    let answering = query::answer(&mut process, &config, lake, journal, &recording).await?;
    let proxying = proxy::serve(&mut process, &config, &recording).await?;
    process.then(proxying);
    process.then(answering);
    recording.watch_over(&mut process);
    recording.end_with(&mut process);
    process.then(carrying);
    Ok(process)
}
