//! Ingest: its settings, and the role that runs one worker alone.

use std::sync::Arc;
use std::time::Duration;

use custody_ingest::{Assigned, Ingest, Settings};
use custody_journal::Journal;
use custody_lake::Lake;

use super::process::Part;
use crate::config::Config;

/// Carries `journal` into `lake`.
pub fn carry(config: &Config, journal: &Arc<dyn Journal>, lake: Lake) -> anyhow::Result<Part> {
    let ingest = Ingest::new(Arc::clone(journal), lake, settings(config)?);
    Ok(Part::start("ingest", |stop| async move { Ok(ingest.run(Assigned::All, stop).await?) }))
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    Ok(Settings {
        flush_bytes: usize::try_from(config.lake.flush_bytes)?,
        flush_after: Duration::from_secs(config.lake.flush_seconds),
        ..Settings::default()
    })
}
