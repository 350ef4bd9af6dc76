//! What every process that records has: its keys, the deployment's control state, and a writer
//! with a spool.
//!
//! On local disk the spool is the journal, and a writer enrols itself. On Kafka the spool is
//! shipped, others read it there, and a writer must have been enrolled where the root key is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use custody_journal::control::{Control, ControlOptions};
use custody_journal::keys::Keys;
use custody_journal::ship::ShipStatus;
use custody_journal::writer::Rotation;
use custody_journal::{Journal, Recovery, Writer, WriterOptions, metrics, writer};
use custody_schemas::id::Hash;

use super::health::Ready;
use super::kafka;
use super::process::{Part, Process};
use super::shipping::Shipping;
use crate::config::{Config, Durability};

/// Who records in this process, and where its spool is.
#[derive(Clone, Copy, Debug)]
pub struct Recorder {
    /// The writer's name where none is configured.
    pub name: &'static str,
    /// The folder of the spool in that of the data.
    pub folder: &'static str,
    /// Whether what it records waits for Kafka where `[proxy] durability` says so.
    waits: bool,
}

/// Whoever answers for what agents do.
pub const EDGE: Recorder = Recorder { name: "edge-1", folder: "journal", waits: true };
/// Whoever answers questions, apart from a proxy that may share the folder.
pub const DESK: Recorder = Recorder { name: "query-1", folder: "query", waits: false };

/// A process's right to record, in use.
pub struct Recording {
    /// The writer's name.
    name: String,
    /// Where events are handed in.
    pub writer: Writer,
    /// What the deployment's processes share.
    pub control: Control,
    /// Whose signatures count.
    pub keys: Keys,
    /// What carries the spool to Kafka, if there is one.
    pub shipping: Option<Shipping>,
    durability: Durability,
    /// How long a call waits to be recorded.
    patience: Duration,
}

impl Recording {
    /// Opens the spool, after the writer was found on the keyring or put there.
    pub async fn open(config: &Config, recorder: Recorder) -> anyhow::Result<Self> {
        if let Some(kafka) = &config.journal.kafka {
            kafka::look_at(kafka);
        }
        let config = config.clone();
        let opening = tokio::task::spawn_blocking(move || Self::open_here(&config, recorder));
        opening.await.context("opening the spool broke off")?
    }

    fn open_here(config: &Config, recorder: Recorder) -> anyhow::Result<Self> {
        let name = config.deployment.writer_or(recorder.name);
        let keys = crate::keys::of(config);
        let folder = config.deployment.data.join(recorder.folder);
        let control = control(config, Some(folder.join("control.copy")))?;
        if config.journal.kafka.is_none() && !keys.has_root() {
            made_root(config);
        }
        let signer = match keys.next(&control, &name)? {
            Some(next) => next,
            None => keys.writer(&name)?,
        };
        match &config.journal.kafka {
            Some(_) => keys.admit(&control, &signer)?,
            None => keys.enrol(&control, &signer)?,
        };
        let options = WriterOptions {
            rotation: rotation(control.clone(), keys.clone(), name.clone()),
            ..options(config, recorder, &name)?
        };
        let (writer, recovery) = Writer::open(options, signer)?;
        tell(&recovery);
        let kafka = config.journal.kafka.as_ref();
        let shipping = kafka.map(|kafka| Shipping::start(&writer, &kafka.settings)).transpose()?;
        let durability = recorder.durability(config);
        let patience = Duration::from_millis(config.proxy.audit_wait_ms);
        Ok(Self { name, writer, control, keys, shipping, durability, patience })
    }

    /// The journal that others read, too.
    pub fn journal(&self, config: &Config) -> anyhow::Result<Arc<dyn Journal>> {
        match &config.journal.kafka {
            Some(kafka) => kafka::journal(kafka),
            None => Ok(self.writer.journal()),
        }
    }

    /// Records what others, who record nothing, have found wrong.
    #[cfg(feature = "query")]
    pub fn watch_over(&self, process: &mut Process) {
        let (control, writer) = (self.control.clone(), self.writer.clone());
        process.then(super::alarm::record(control, writer, self.name.clone()));
    }

    /// Whether what is recorded becomes durable where calls wait for it to be.
    pub fn ready(&self) -> Ready {
        let watched = self.shipping.clone().filter(|_| self.durability == Durability::Replicated);
        let patience = self.patience;
        Arc::new(move || {
            let Some(status) = watched.as_ref().and_then(Shipping::status) else { return Ok(()) };
            let late = waiting(&status) > patience;
            if status.connected && !late {
                return Ok(());
            }
            let unheard = if late { "it acknowledges nothing" } else { "it has not answered yet" };
            let problem = status.problem.unwrap_or_else(|| unheard.to_owned());
            Err(format!("calls wait for Kafka: {problem}"))
        })
    }

    /// Lets `process` show how spool and shipping stand.
    fn show(&self, process: &Process) {
        process.show(|page| metrics::spool(page, &self.writer));
        if let Some(shipping) = self.shipping.clone() {
            process.show(|page| metrics::ship(page, move || shipping.status()));
        }
    }

    /// What ends the recording after everybody who records: the stream is closed and signed, then
    /// all of it is shipped.
    pub fn end_with(self, process: &mut Process) {
        self.show(process);
        let writer = self.writer;
        process.then(Part::start("writer", |stop| async move {
            stop.cancelled().await;
            writer.close().await.context("the stream could not be closed").map(drop)
        }));
        if let Some(shipping) = self.shipping {
            process.then(shipping.ending());
        }
    }
}

impl Recorder {
    /// Only those who answer agents may have to wait for Kafka.
    fn durability(self, config: &Config) -> Durability {
        if self.waits { config.proxy.durability } else { Durability::Local }
    }
}

/// The deployment's control state, with a copy for starts without Kafka where one is wanted; blocks.
pub fn control(config: &Config, copy: Option<PathBuf>) -> anyhow::Result<Control> {
    let Some(kafka) = &config.journal.kafka else {
        return Ok(Control::open(&config.deployment.data.join(EDGE.folder))?);
    };
    let options = ControlOptions { copy, ..ControlOptions::new(&config.deployment.name) };
    Ok(Control::connect(&kafka.settings, &options)?)
}

/// What it means that a root key is made here, in a few plain words.
fn made_root(config: &Config) {
    tracing::info!(
        "this is a new deployment: its root key is made in {0}. Whoever can read that folder can \
         record in its name. Give {0}/root.vkey to your auditors now, and in earnest keep root.key \
         offline: docs/evidence.md says how",
        config.deployment.keys.display()
    );
}

/// The key of the next run, when there is a new one.
fn rotation(control: Control, keys: Keys, name: String) -> Rotation {
    Rotation::new(move || match keys.next(&control, &name) {
        Ok(next) => next,
        Err(error) => {
            tracing::error!(%error, "the key in use stays in use");
            None
        }
    })
}

/// How long the oldest entry has waited that Kafka has not acknowledged.
fn waiting(status: &ShipStatus) -> Duration {
    let Some(at) = status.oldest_unshipped_at else { return Duration::ZERO };
    let at = UNIX_EPOCH + Duration::from_micros(at.get());
    SystemTime::now().duration_since(at).unwrap_or_default()
}

fn tell(recovery: &Recovery) {
    let Some(previous) = &recovery.previous else { return };
    let (stream, size, clean, lost) =
        (&previous.stream, previous.size, previous.clean, previous.lost);
    tracing::info!(%stream, size, clean, lost, orphans = recovery.orphans, "the last run");
}

fn options(config: &Config, recorder: Recorder, name: &str) -> anyhow::Result<WriterOptions> {
    let dir = config.deployment.data.join(recorder.folder);
    let hash: Hash = config.hash.parse().context("the configuration's hash")?;
    Ok(WriterOptions {
        origin: config.deployment.name.clone(),
        segment_bytes: config.journal.segment_bytes,
        spool_max_bytes: config.journal.max_bytes,
        queue: usize::try_from(config.proxy.max_calls)?,
        build: concat!("custody ", env!("CARGO_PKG_VERSION")).to_owned(),
        config_hash: Some(hash),
        durability: match recorder.durability(config) {
            Durability::Local => writer::Durability::Local,
            Durability::Replicated => writer::Durability::Replicated,
        },
        ..WriterOptions::new(dir, name)
    })
}
