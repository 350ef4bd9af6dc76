//! The shipper: carries a writer's spool to Kafka, and whatever earlier writers left beside it.
//!
//! * A record is handed to Kafka only after every body it may refer to is acknowledged; the order
//!   of a stream is kept.
//! * What is acknowledged is marked; after a crash it goes on from the mark, so that entries may
//!   arrive twice, never not at all. Readers drop what they have by its identity.
//! * Kafka may be gone for as long as the spool has room: memory is bounded, nothing times out.
//! * What is shipped stays in the spool for 72 hours, unless the disk needs the room: it can be
//!   sent again with [`resend`].

mod carrier;
mod marks;
mod resend;
mod status;
mod stop;
#[cfg(test)]
mod tests;
mod window;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use resend::{Resend, ResendError, Resent, resend};
pub use status::ShipStatus;

use crate::kafka::KafkaSettings;
use crate::kafka::producer::Broken;
use crate::{ReadError, Writer};
use carrier::Carrier;
use status::Tally;
use stop::Stop;

/// Why an attempt to carry a spool ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Kafka, or its client.
    #[error(transparent)]
    Kafka(#[from] Broken),
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] ReadError),
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A thread broke off.
    #[error("a thread of the shipper broke off")]
    Panic,
    /// Nothing is wrong: the end was asked for, or the other thread knows more.
    #[error("it was asked to end")]
    Over,
}

/// Ships the spools of one process. Dropping it ends that at once; [`drain`](Self::drain) sends
/// first what is there.
#[derive(Debug)]
pub struct Shipper {
    tallies: Vec<Arc<Tally>>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Shipper {
    /// Begins to ship the spool of `writer`, and after one another those that lie beside it.
    /// Kafka need not be there.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(writer: &Writer, settings: &KafkaSettings) -> io::Result<Self> {
        let (journal, stop) = (writer.journal(), Arc::default());
        let mut live = Vec::new();
        let mut left = Vec::new();
        let mut tallies = Vec::new();
        for spool in journal.spools() {
            let is_live = spool.writer() == writer.name();
            let acks = is_live.then(|| writer.acks());
            let carrier = Carrier::new(spool, &journal, settings, &stop, acks);
            tallies.push(Arc::clone(carrier.tally()));
            if is_live { live.push(carrier) } else { left.push(carrier) }
        }
        let mut shipper = Self { tallies, stop, threads: Vec::new() };
        for (name, carriers) in [("ship-live", live), ("ship-left", left)] {
            let run = move || carriers.into_iter().for_each(Carrier::run);
            shipper.threads.push(thread::Builder::new().name(name.to_owned()).spawn(run)?);
        }
        Ok(shipper)
    }

    /// How shipping is going.
    #[must_use]
    pub fn status(&self) -> ShipStatus {
        let mut status = ShipStatus::default();
        for tally in &self.tallies {
            tally.add_to(&mut status);
        }
        // the first carries the live spool: it ends only when it is asked to
        if !self.stop.is_asked() && self.threads.first().is_some_and(JoinHandle::is_finished) {
            status.connected = false;
            status.problem = Some(format!("{}: start this process again", Trouble::Panic));
        }
        status
    }

    /// Sends what is in the spools, for `patience` at most, then ends; what is left is shipped at
    /// the next start. Close the writer first. Blocks: give it a thread.
    #[must_use]
    pub fn drain(mut self, patience: Duration) -> ShipStatus {
        self.end(patience);
        self.status()
    }

    fn end(&mut self, patience: Duration) {
        self.stop.ask(Instant::now() + patience);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the shipper panicked");
            }
        }
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}
