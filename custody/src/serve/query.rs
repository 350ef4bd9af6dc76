//! The query service: its settings, and the role that runs it alone.

use std::sync::Arc;
use std::time::Duration;

use custody_journal::Journal;
use custody_lake::Lake;
use custody_query::access::{Access, Token};
use custody_query::http::HttpOptions;
use custody_query::{Engine, EngineOptions};

use super::journal::Recording;
use super::process::{Part, Process, listen};
use crate::config::Config;

/// Answers questions about `lake` and the tail of `journal`.
pub async fn answer(
    process: &mut Process,
    config: &Config,
    lake: Lake,
    journal: Arc<dyn Journal>,
    recording: &Recording,
) -> anyhow::Result<Part> {
    let edge = edge(config)?;
    let listener = listen(config.query.listen, "query.listen").await?;
    process.listens("query", listener.local_addr()?);
    let options = options(config, recording)?;
    let engine = Engine::open(lake, journal, recording.writer.clone(), options).await?;
    Ok(Part::start("query", |stop| async move {
        Ok(custody_query::http::run(listener, engine, edge, stop).await?)
    }))
}

/// The settings of the engine.
fn options(config: &Config, recording: &Recording) -> anyhow::Result<EngineOptions> {
    let usual = EngineOptions::new(config.deployment.data.join("spill"));
    Ok(EngineOptions {
        memory_bytes: usize::try_from(config.query.memory_bytes)?,
        max_rows: config.query.max_rows,
        deadline: Duration::from_millis(config.query.deadline_ms),
        time_zone: jiff::tz::TimeZone::get(&config.query.time_zone)?,
        writers: recording.listed(),
        ..usual
    })
}

/// The settings of the HTTP edge.
fn edge(config: &Config) -> anyhow::Result<HttpOptions> {
    let tokens = config.query.tokens.iter().map(|text| Token::parse(text));
    let access = Access::new(tokens.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?);
    Ok(HttpOptions { access, hosts: config.query.allowed_hosts.clone() })
}
