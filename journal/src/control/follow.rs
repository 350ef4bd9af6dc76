//! Folds the control topic, and keeps the state current.
//!
//! What cannot be read changes nothing in a state that is in force, and is no state to begin with:
//! a process that starts later must not see another one.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::copy::Copy;
use super::{ControlError, State};
use crate::kafka::cluster::Cluster;
use crate::kafka::reader::KafkaReader;
use crate::{Entry, Partition, Read, ReadError, Topic};

/// How long the follower waits for something new, and so how long its end takes.
const WAIT: Duration = Duration::from_millis(200);
/// How long it rests after an error.
const REST: Duration = Duration::from_secs(1);
/// How often it asks whether Kafka is there while nothing comes.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// After this long without Kafka the whole topic is folded anew: what removed a key is itself
/// removed after a day.
const STALE: Duration = Duration::from_secs(3600);
/// Entries and bytes of one read.
const ENTRIES: usize = 1024;
const BYTES: usize = 1 << 20;

/// What the follower and its owner tell each other.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) problem: Mutex<Option<String>>,
    pub(super) stop: AtomicBool,
}

impl Shared {
    pub(super) fn suffers(&self, problem: String) {
        let mut known = self.problem.lock();
        if known.as_ref() != Some(&problem) {
            tracing::warn!(problem, "control state may be out of date");
        }
        *known = Some(problem);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// The whole topic up to its end as of now, and a reader that goes on there.
pub(super) fn fold(cluster: &Arc<Cluster>) -> Result<(State, KafkaReader), ControlError> {
    let partition = Partition { topic: Topic::Control, name: "0".to_owned() };
    match cluster.partitions(Topic::Control)? {
        None | Some(0) => return Err(cluster.missing(Topic::Control).into()),
        Some(1) => {}
        Some(partitions) => {
            let text = format!(
                "the topic has {partitions} partitions and must have one, or changes have no \
                 order: delete it while nothing runs, and run `custody topics create`"
            );
            let place = cluster.place(Topic::Control, None);
            return Err(ReadError::io(place, io::Error::other(text)).into());
        }
    }
    let mut reader = KafkaReader::new(cluster, &partition, 0, 0)?;
    let mut state = State::default();
    let mut unreadable = BTreeMap::new();
    let end = reader.end()?;
    while reader.position() < end {
        for entry in reader.read(ENTRIES, BYTES, Duration::ZERO)? {
            match take(cluster, &mut state, &entry) {
                Ok(()) => unreadable.remove(&entry.header),
                Err(error) => unreadable.insert(entry.header, error),
            };
        }
    }
    // what was read before such an entry may be compacted away elsewhere: all shall see the same
    match unreadable.into_values().next() {
        Some(error) => Err(error),
        None => Ok((state, reader)),
    }
}

fn take(cluster: &Cluster, state: &mut State, entry: &Entry) -> Result<(), ControlError> {
    state.fold(entry.offset, &entry.header, &entry.value).map_err(|problem| {
        let place = cluster.place(Topic::Control, None).display().to_string();
        let (offset, key) = (entry.offset, String::from_utf8_lossy(&entry.header));
        let problem = format!(
            "{problem}. Custody did not write it; send a message with the key {key:?} and no value \
             to the topic, and set what belonged there again"
        );
        ControlError::Entry { place, offset, problem }
    })
}

/// The same, tried again within `wait` where waiting may help.
pub(super) fn fold_within(
    cluster: &Arc<Cluster>,
    wait: Duration,
) -> Result<(State, KafkaReader), ControlError> {
    let until = Instant::now() + wait;
    loop {
        match fold(cluster) {
            Err(ControlError::Read(error)) if may_pass(&error) && Instant::now() < until => {
                tracing::info!(%error, "waiting for Kafka");
                std::thread::sleep(WAIT);
            }
            done => return done,
        }
    }
}

/// Whether waiting may help.
pub(super) fn may_pass(error: &ReadError) -> bool {
    match error {
        ReadError::Io { source, .. } => {
            !matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound)
        }
        ReadError::Gone { .. }
        | ReadError::Beyond { .. }
        | ReadError::Corrupt { .. }
        | ReadError::Newer { .. }
        | ReadError::NoPartition(_) => false,
    }
}

/// The thread that keeps the state current.
pub(super) struct Follower {
    pub(super) cluster: Arc<Cluster>,
    pub(super) shared: Arc<Shared>,
    pub(super) state: Arc<watch::Sender<Arc<State>>>,
    pub(super) copy: Option<Copy>,
}

impl Follower {
    /// Follows until it is told to stop.
    pub(super) fn run(&self, mut reader: Option<KafkaReader>) {
        let mut heard_at = Instant::now();
        while !self.shared.stopped() {
            let current = reader.take().filter(|_| heard_at.elapsed() < STALE);
            match current.map_or_else(|| self.fold(), |reader| self.follow(reader, &mut heard_at)) {
                Ok(next) => reader = next,
                Err(error) => {
                    self.shared.suffers(error.to_string());
                    let until = Instant::now() + REST;
                    while !self.shared.stopped() && Instant::now() < until {
                        std::thread::sleep(WAIT);
                    }
                }
            }
        }
    }

    /// Begins anew.
    fn fold(&self) -> Result<Option<KafkaReader>, ControlError> {
        let (state, reader) = fold(&self.cluster)?;
        self.publish(state);
        *self.shared.problem.lock() = None;
        Ok(Some(reader))
    }

    /// One step; no reader afterwards when the topic has to be folded anew.
    fn follow(
        &self,
        mut reader: KafkaReader,
        heard_at: &mut Instant,
    ) -> Result<Option<KafkaReader>, ControlError> {
        let entries = match reader.read(ENTRIES, BYTES, WAIT) {
            Ok(entries) => entries,
            Err(ReadError::Gone { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if entries.is_empty() {
            if heard_at.elapsed() >= ASK_EVERY {
                let end = reader.end()?;
                let wanted = reader.position();
                if end < wanted {
                    return Err(ReadError::Beyond { wanted, end }.into());
                }
                *self.shared.problem.lock() = None;
                *heard_at = Instant::now();
            }
            return Ok(Some(reader));
        }
        *heard_at = Instant::now();
        let mut state = State::clone(&self.state.borrow());
        for entry in entries {
            if let Err(error) = take(&self.cluster, &mut state, &entry) {
                // the value before it stays in force
                self.shared.suffers(error.to_string());
                state.end = entry.offset + 1;
            }
        }
        self.publish(state);
        Ok(Some(reader))
    }

    fn publish(&self, next: State) {
        let changed = self.state.send_if_modified(|state| {
            let changed = state.values != next.values;
            *state = Arc::new(next);
            changed
        });
        if changed {
            self.keep();
        }
    }

    /// Writes the copy, where one is kept.
    pub(super) fn keep(&self) {
        let Some(copy) = &self.copy else { return };
        if let Err(error) = copy.write(&self.state.borrow()) {
            let path = copy.path.display();
            tracing::warn!(%error, "no copy of the control state can be kept in {path}");
        }
    }
}
