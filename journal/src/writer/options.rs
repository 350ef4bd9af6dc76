//! How a writer works: plain data.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use custody_schemas::id::Hash;
use custody_schemas::seal::key::Signer;

/// What has to have happened before an append is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// It is on this host's disk.
    #[default]
    Local,
    /// Kafka's replicas have it too, as the shipper of this writer's spool says: without one, no
    /// append is ever answered. A failed disk and `close` are answered as with `Local`.
    Replicated,
}

/// Asked between two runs for the key of the next; it must not wait long.
#[derive(Clone, Default)]
pub struct Rotation(Option<Arc<NextKey>>);

type NextKey = dyn Fn() -> Option<Signer> + Send + Sync;

impl Rotation {
    /// Asks `next` for a new key, which it hands out once.
    #[must_use]
    pub fn new(next: impl Fn() -> Option<Signer> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(next)))
    }

    pub(crate) fn next(&self) -> Option<Signer> {
        self.0.as_ref().and_then(|next| next())
    }
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Rotation(…)" } else { "Rotation" })
    }
}

/// How a writer works. `..WriterOptions::new(dir, name)` fills in what is usual.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// The journal's folder, `{data}/journal`; the spool is the folder `name` in it.
    pub dir: PathBuf,
    /// The writer's name, see [`custody_schemas::id::is_writer_name`].
    pub name: String,
    /// The deployment's name: the first part of the origin of the stream's checkpoints.
    pub origin: String,
    /// Length of a segment, 64 MiB by default and at least 1 MiB.
    pub segment_bytes: u64,
    /// What has to have happened before an append is answered; `Local` by default.
    pub durability: Durability,
    /// The most bytes that the spool may hold, 16 GiB by default.
    pub spool_max_bytes: u64,
    /// The most calls that may be open, and the most other appends that may wait; 4096 by default.
    pub queue: usize,
    /// The most bytes of large bodies that may wait for the disk, beyond those of endings.
    pub bulk_in_flight_bytes: u64,
    /// Whether an append waits for the disk. `false` loses what power loss takes: for benchmarks.
    pub sync: bool,
    /// Whether everything is thrown away unhashed and answered at once, against every promise of
    /// this module: the base line of benchmarks, which no configuration can ask for.
    #[doc(hidden)]
    pub discard: bool,
    /// When a run ends and the next begins, 24 h by default.
    pub roll_after: Duration,
    /// After how long a silence the stream says that it lives, 10 s by default.
    pub alive_after: Duration,
    /// The least time between two signed checkpoints, 1 s by default.
    pub checkpoint_after: Duration,
    /// The software's version, for `stream.opened`.
    pub build: String,
    /// Hash of the configuration in force, for `stream.opened`.
    pub config_hash: Option<Hash>,
    /// Version of the policy set in force, for `stream.opened`.
    pub policy_version: Option<String>,
    /// The key for the next run, where there is a new one.
    pub rotation: Rotation,
    /// Lets tests make the next append fail.
    #[cfg(test)]
    pub(crate) fail: Arc<std::sync::atomic::AtomicBool>,
    /// The same for large bodies.
    #[cfg(test)]
    pub(crate) fail_bulk: Arc<std::sync::atomic::AtomicBool>,
}

impl WriterOptions {
    /// The usual options for the writer `name` under the folder `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, name: &str) -> Self {
        Self {
            dir: dir.into(),
            name: name.to_owned(),
            origin: "custody.local".to_owned(),
            segment_bytes: 64 << 20,
            durability: Durability::Local,
            spool_max_bytes: 16 << 30,
            queue: 4096,
            bulk_in_flight_bytes: 256 << 20,
            sync: true,
            discard: false,
            roll_after: Duration::from_secs(24 * 3600),
            alive_after: Duration::from_secs(10),
            checkpoint_after: Duration::from_secs(1),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: None,
            policy_version: None,
            rotation: Rotation::default(),
            #[cfg(test)]
            fail: Arc::default(),
            #[cfg(test)]
            fail_bulk: Arc::default(),
        }
    }
}
