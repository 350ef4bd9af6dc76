//! What every process that records has: its keys, its writer with a spool, and the journal that
//! others read.

use std::sync::Arc;

use anyhow::Context;
use custody_journal::control::Control;
use custody_journal::keys::Keys;
use custody_journal::{Journal, Recovery, Writer, WriterOptions};
use custody_schemas::id::Hash;
use custody_schemas::seal::keyring::Keyring;

use super::process::Part;
use crate::config::Config;

/// The writer of a process that answers for what agents do.
pub const EDGE: &str = "edge-1";

/// A process's right to record, in use.
pub struct Recording {
    /// Where events are handed in.
    pub writer: Writer,
    ring: Keyring,
}

impl Recording {
    /// Opens the spool and lets the writer be listed.
    pub fn open(config: &Config, usual_name: &str) -> anyhow::Result<Self> {
        anyhow::ensure!(config.journal.kafka.is_none(), "a journal on Kafka is not connected yet");
        let name = config.deployment.writer_or(usual_name);
        let keys = Keys::new(&config.deployment.keys, &config.deployment.name);
        let signer = keys.writer(&name)?;
        let mut control = Control::open(&config.deployment.data.join("journal"))?;
        let ring = keys.enrol(&mut control, &signer)?;
        let (writer, recovery) = Writer::open(options(config, &name)?, signer)?;
        tell(&recovery);
        Ok(Self { writer, ring })
    }

    /// The journal that holds what is recorded.
    pub fn journal(&self) -> Arc<dyn Journal> {
        self.writer.journal()
    }

    /// The writers that the keyring lists, as questions are judged by them.
    #[cfg(feature = "query")]
    pub fn listed(&self) -> custody_query::engine::Writers {
        use custody_query::completeness::ListedWriter;
        let in_force = self.ring.writers.iter().filter(|key| key.until.is_none());
        let listed = in_force.map(|key| ListedWriter {
            name: key.name.clone(),
            from: key.from,
            retired: key.retired,
        });
        let listed: Vec<_> = listed.collect();
        Arc::new(move || listed.clone())
    }

    /// What ends the recording: the stream is closed and signed.
    pub fn closing(&self) -> Part {
        let writer = self.writer.clone();
        Part::start("writer", |stop| async move {
            stop.cancelled().await;
            writer.close().await.context("the stream could not be closed").map(drop)
        })
    }
}

fn tell(recovery: &Recovery) {
    let Some(previous) = &recovery.previous else { return };
    let (stream, size, clean, lost) =
        (&previous.stream, previous.size, previous.clean, previous.lost);
    tracing::info!(%stream, size, clean, lost, orphans = recovery.orphans, "the last run");
}

fn options(config: &Config, name: &str) -> anyhow::Result<WriterOptions> {
    let dir = config.deployment.data.join("journal");
    let hash: Hash = config.hash.parse().context("the configuration's hash")?;
    Ok(WriterOptions {
        origin: config.deployment.name.clone(),
        segment_bytes: config.journal.segment_bytes,
        spool_max_bytes: config.journal.max_bytes,
        queue: usize::try_from(config.proxy.max_calls)?,
        build: concat!("custody ", env!("CARGO_PKG_VERSION")).to_owned(),
        config_hash: Some(hash),
        ..WriterOptions::new(dir, name)
    })
}
