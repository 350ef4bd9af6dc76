//! Sealing: the key of the deployment log, the keyring, and who is told when something is wrong.
//!
//! Where the root key lies the log's key is made and put on the keyring; elsewhere it must have
//! been brought there (`log.key` in the folder of keys), or this worker stores without sealing.

use std::sync::Arc;

use anyhow::Context;
use custody_ingest::Sealing;
use custody_ingest::verify::{Alarm, Fault, Ring};
use custody_journal::control::Control;
use custody_journal::keys::Keys;
use custody_schemas::event::Draft;
use custody_schemas::id::StreamId;
use custody_schemas::kind::Kind;

use super::journal::{self, Recording};
use crate::config::Config;

/// Sealing in a process that records: what is wrong becomes an event.
pub async fn together(config: &Config, recording: &Recording) -> anyhow::Result<Option<Sealing>> {
    let (writer, runtime) = (recording.writer.clone(), tokio::runtime::Handle::current());
    let alarm = move |stream: &StreamId, fault: &Fault| {
        let (writer, draft) = (writer.clone(), failed(stream, fault));
        runtime.spawn(async move {
            if let Err(error) = writer.append(draft, Vec::new()).await {
                tracing::error!(%error, "integrity.failed could not be recorded");
            }
        });
    };
    let control = recording.control.clone();
    open(config, move |_| Ok(control), Arc::new(alarm)).await
}

/// Sealing in a worker that records nothing: what is wrong stands in its log and its metrics.
pub async fn apart(config: &Config) -> anyhow::Result<Option<Sealing>> {
    open(config, |config| journal::control(config, None), Arc::new(|_, _| {})).await
}

async fn open(
    config: &Config,
    control: impl FnOnce(&Config) -> anyhow::Result<Control> + Send + 'static,
    alarm: Alarm,
) -> anyhow::Result<Option<Sealing>> {
    let config = config.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let keys = Keys::new(&config.deployment.keys, &config.deployment.name);
        if !keys.has_root() && keys.log()?.is_none() {
            tracing::warn!(
                "nothing is sealed here: bring log.key into {} from where the root key is",
                config.deployment.keys.display()
            );
            return Ok(None);
        }
        let control = control(&config)?;
        let log = match keys.log()? {
            Some(log) if !keys.has_root() => log,
            _ => keys.enrol_log(&control)?,
        };
        Ok(Some(Sealing { ring: ring(control, keys), log: Arc::new(log), alarm }))
    });
    opening.await.context("opening the log's key broke off")?
}

/// The keyring in force; a keyring that the root has not signed is none.
fn ring(control: Control, keys: Keys) -> Ring {
    Arc::new(move || match keys.signed_ring(&control) {
        Ok(ring) => ring,
        Err(error) => {
            tracing::error!(%error, "no keyring to seal with");
            None
        }
    })
}

fn failed(stream: &StreamId, fault: &Fault) -> Draft {
    let (finding, at) = match fault {
        Fault::Altered(seq) => ("altered", seq),
        Fault::Root(size) => ("root", size),
        Fault::Unsigned(size) => ("unsigned", size),
        Fault::Closed(size) => ("closed_key", size),
    };
    Draft::new(Kind::IntegrityFailed)
        .with("stream", stream.as_str())
        .with("finding", finding)
        .with("at", *at)
}
