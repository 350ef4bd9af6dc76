//! What carries a spool to Kafka, as a process has it: watched while it runs, waited for at the end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use custody_journal::Writer;
use custody_journal::kafka::KafkaSettings;
use custody_journal::ship::{ShipStatus, Shipper};
use parking_lot::Mutex;

use super::process::Part;

/// How long a process that stops waits until Kafka has everything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A shipper at work. Clones watch the same one.
#[derive(Clone)]
pub struct Shipping(Arc<Mutex<Option<Shipper>>>);

impl Shipping {
    /// Begins to ship what `writer` records. Kafka need not be there.
    pub fn start(writer: &Writer, settings: &KafkaSettings) -> io::Result<Self> {
        let shipper = Shipper::start(writer, settings)?;
        Ok(Self(Arc::new(Mutex::new(Some(shipper)))))
    }

    /// How it goes; nothing is known any more while the process ends.
    pub fn status(&self) -> Option<ShipStatus> {
        self.0.lock().as_ref().map(Shipper::status)
    }

    /// Ships until it is stopped, then what is left, for a limited time.
    pub fn ending(self) -> Part {
        Part::start("shipper", |stop| async move {
            stop.cancelled().await;
            let Some(shipper) = self.0.lock().take() else { return Ok(()) };
            let draining = tokio::task::spawn_blocking(move || shipper.drain(PATIENCE));
            let left = draining.await.context("shipping broke off")?;
            if left.unshipped_entries == 0 {
                return Ok(());
            }
            let problem = left.problem.map_or_else(String::new, |problem| format!(" ({problem})"));
            anyhow::bail!(
                "Kafka has not acknowledged {} entries{problem}. They are safe in the spool: start \
                 this process again with the same folder, and they are shipped",
                left.unshipped_entries
            )
        })
    }
}
