//! Sealing: the key of the deployment log, the keyring, the witnesses, and who is told when
//! something is wrong.
//!
//! Where the root key lies the log's key is made and put on the keyring; elsewhere it must have
//! been brought there (`log.key` in the folder of keys, or where [deployment.signers] says), or this
//! worker stores without sealing. What is wrong goes into control state, and from there into SQL.

use std::sync::Arc;

use anyhow::Context;
use custody_ingest::Sealing;
use custody_ingest::verify::Ring;
use custody_journal::control::Control;
use custody_journal::keys::Keys;

use super::journal::{self, Recording};
use super::{alarm, witnessing};
use crate::config::Config;

/// Sealing in a process that records.
#[cfg(all(feature = "proxy", feature = "query"))]
pub async fn together(config: &Config, recording: &Recording) -> anyhow::Result<Option<Sealing>> {
    let control = recording.control.clone();
    open(config, move |_| Ok(control)).await
}

/// Sealing in a worker that records nothing: others record what it finds.
pub async fn apart(config: &Config) -> anyhow::Result<Option<Sealing>> {
    open(config, |config| journal::control(config, None)).await
}

async fn open(
    config: &Config,
    control: impl FnOnce(&Config) -> anyhow::Result<Control> + Send + 'static,
) -> anyhow::Result<Option<Sealing>> {
    let config = config.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let keys = crate::keys::of(&config);
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
        let witnesses = witnessing::witnesses(&config)?;
        let (alarm, log) = (alarm::into(control.clone()), Arc::new(log));
        Ok(Some(Sealing { ring: ring(control, keys), log, alarm, witnesses }))
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
