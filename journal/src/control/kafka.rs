//! Control state in a compacted topic that all processes of a deployment follow.
//!
//! One thread folds what comes. A change is a transaction under an id that all processes share:
//! beginning one ends every other that is under way, the state is folded to the end after that, and
//! the commit fails if somebody else has begun meanwhile. So nobody overwrites what they have not
//! seen, also across a kill in the middle, and compaction never decides who was first.
//!
//! Where a copy is kept on disk, a process that starts while Kafka is away begins with that, says
//! so, and goes on with the topic as soon as it can.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::watch;

use super::{Changing, ControlError, Medium, State, encode};
use crate::kafka::KafkaSettings;
use crate::kafka::append::Reports;
use crate::kafka::cluster::Cluster;
use crate::kafka::reader::KafkaReader;
use crate::kafka::settings::explain;
use crate::kafka::wire;
use crate::{EntryKind, Partition, Read, ReadError, Topic};

/// How long the follower waits for something new, and so how long the end takes.
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
/// How long one change may take, with its repetitions.
const CHANGE: Duration = Duration::from_secs(30);
/// How long one step of a transaction may take.
const STEP: Duration = Duration::from_secs(10);
/// The longest pause before a change is tried again, in milliseconds.
const AGAIN_MS: u64 = 400;

/// How the control topic is used.
#[derive(Clone, Debug)]
pub struct ControlOptions {
    /// Whose topics these have to be.
    pub deployment: String,
    /// Where a copy of the state is kept, so that this process can start while Kafka is away.
    pub copy: Option<PathBuf>,
    /// How long Kafka is waited for at start.
    pub wait: Duration,
}

impl ControlOptions {
    /// Ten seconds of patience, no copy.
    #[must_use]
    pub fn new(deployment: impl Into<String>) -> Self {
        Self { deployment: deployment.into(), copy: None, wait: Duration::from_secs(10) }
    }
}

/// The topic, followed.
pub(super) struct Log {
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    changing: Mutex<()>,
}

#[derive(Default)]
struct Shared {
    problem: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl Shared {
    fn suffers(&self, problem: String) {
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

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl Log {
    /// Folds the topic into `state` and goes on with it.
    pub(super) fn connect(
        settings: &KafkaSettings,
        options: &ControlOptions,
        state: &Arc<watch::Sender<Arc<State>>>,
    ) -> Result<Self, ControlError> {
        let cluster = Arc::new(Cluster::new(settings)?);
        let shared = Arc::new(Shared::default());
        let copy = options.copy.as_ref().map(|path| Copy::new(path, &options.deployment));
        let reader = match (fold_within(&cluster, options.wait), &copy) {
            (Ok((folded, reader)), _) => {
                state.send_replace(Arc::new(folded));
                Some(reader)
            }
            (Err(ControlError::Read(error)), Some(copy)) if may_pass(&error) => {
                let Some(kept) = copy.read() else { return Err(error.into()) };
                shared.suffers(format!("a copy is used until Kafka answers: {error}"));
                state.send_replace(Arc::new(kept));
                None
            }
            (Err(error), _) => return Err(error),
        };
        let follower = Follower {
            cluster: Arc::clone(&cluster),
            shared: Arc::clone(&shared),
            state: Arc::clone(state),
            copy,
        };
        follower.keep();
        let spawned = std::thread::Builder::new().name("control".to_owned());
        let spawned = spawned.spawn(move || follower.run(reader));
        spawned.map_err(|error| ReadError::io("a new thread", error))?;
        Ok(Self { cluster, shared, changing: Mutex::new(()) })
    }

    /// One attempt at a change; the end of the state that it is part of.
    fn attempt(&self, key: &str, change: &mut Changing<'_>) -> Result<u64, Failed> {
        let topic = self.cluster.settings().topic(Topic::Control);
        let producer = self.producer(&topic)?;
        producer.init_transactions(STEP)?;
        let (folded, _) = fold(&self.cluster)?;
        let Some(bytes) = encode(key, &change(folded.get(key)))? else { return Ok(folded.end) };
        let message = wire::message(EntryKind::Control, key.as_bytes(), &bytes);
        let record = BaseRecord::to(&topic).key(&message.key).headers(message.headers);
        let record = match message.value {
            Some(value) => record.payload(value),
            None => record,
        };
        producer.begin_transaction()?;
        producer.send(record).map_err(|(error, _)| error)?;
        producer.commit_transaction(STEP)?;
        let offset = producer.context().take().into_iter().next();
        Ok(offset.unwrap_or(Err(KafkaError::NoMessageReceived))? + 1)
    }

    /// A producer that ends every other change that is under way.
    fn producer(&self, topic: &str) -> Result<BaseProducer<Reports>, KafkaError> {
        let id = format!("{topic}.change");
        let fixed = [
            ("transactional.id", &*id),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("transaction.timeout.ms", "15000"),
            ("message.timeout.ms", "10000"),
            wire::PARTITIONER,
        ];
        let config = self.cluster.settings().client_config(&[("linger.ms", "0")], &fixed);
        config.create_with_context(Reports::default())
    }
}

/// Why an attempt did not succeed.
enum Failed {
    /// Another may.
    Once(String),
    /// Another would not.
    Forever(ControlError),
}

impl From<KafkaError> for Failed {
    fn from(error: KafkaError) -> Self {
        let refused = [
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::ClusterAuthorizationFailed,
            RDKafkaErrorCode::MessageSizeTooLarge,
        ];
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => {
                let text = "give this user the right to write the transactional id \
                            `{topic of control}.change`";
                Self::Forever(ControlError::Write(io::Error::other(format!("{error}: {text}"))))
            }
            Some(code) if refused.contains(&code) => {
                Self::Forever(ControlError::Write(io::Error::other(explain(&error))))
            }
            _ => Self::Once(explain(&error)),
        }
    }
}

impl From<ControlError> for Failed {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Read(error) if may_pass(&error) => Self::Once(error.to_string()),
            error => Self::Forever(error),
        }
    }
}

impl Medium for Log {
    fn update(
        &self,
        state: &watch::Sender<Arc<State>>,
        key: &str,
        change: &mut Changing<'_>,
    ) -> Result<(), ControlError> {
        let _one_at_a_time = self.changing.lock();
        let until = Instant::now() + CHANGE;
        let end = loop {
            match self.attempt(key, change) {
                Ok(end) => break end,
                Err(Failed::Forever(error)) => return Err(error),
                Err(Failed::Once(problem)) if Instant::now() >= until => {
                    return Err(ControlError::Write(io::Error::other(problem)));
                }
                Err(Failed::Once(problem)) => {
                    tracing::debug!(problem, key, "a change of control state begins again");
                    let pause_ms = rand::random_range(AGAIN_MS / 10..AGAIN_MS);
                    std::thread::sleep(Duration::from_millis(pause_ms));
                }
            }
        };
        while state.borrow().end < end {
            if Instant::now() >= until {
                let late = "it is stored, but has not come back in time";
                return Err(ControlError::Write(io::Error::new(ErrorKind::TimedOut, late)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn problem(&self) -> Option<String> {
        self.shared.problem.lock().clone()
    }
}

/// The whole topic up to its end as of now, and a reader that goes on there.
fn fold(cluster: &Arc<Cluster>) -> Result<(State, KafkaReader), ControlError> {
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
    let end = reader.end()?;
    while reader.position() < end {
        for entry in reader.read(ENTRIES, BYTES, Duration::ZERO)? {
            take(cluster, &mut state, entry.offset, &entry.header, &entry.value)?;
        }
    }
    Ok((state, reader))
}

fn take(
    cluster: &Cluster,
    state: &mut State,
    offset: u64,
    key: &[u8],
    value: &[u8],
) -> Result<(), ControlError> {
    state.fold(offset, key, value).map_err(|problem| {
        let place = cluster.place(Topic::Control, None).display().to_string();
        let key = String::from_utf8_lossy(key).into_owned();
        let problem = format!(
            "{problem}. Custody did not write it; send a message with the key {key:?} and no value \
             to the topic, and set what belonged there again"
        );
        ControlError::Entry { place, offset, problem }
    })
}

/// The same, tried again within `wait` where waiting may help.
fn fold_within(
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
fn may_pass(error: &ReadError) -> bool {
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
struct Follower {
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    state: Arc<watch::Sender<Arc<State>>>,
    copy: Option<Copy>,
}

impl Follower {
    fn run(&self, mut reader: Option<KafkaReader>) {
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
            if let Err(error) =
                take(&self.cluster, &mut state, entry.offset, &entry.header, &entry.value)
            {
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
    fn keep(&self) {
        let Some(copy) = &self.copy else { return };
        if let Err(error) = copy.write(&self.state.borrow()) {
            let path = copy.path.display();
            tracing::warn!(%error, "no copy of the control state can be kept in {path}");
        }
    }
}

/// The state as a file, for a start without Kafka.
struct Copy {
    path: PathBuf,
    deployment: String,
}

impl Copy {
    fn new(path: &Path, deployment: &str) -> Self {
        Self { path: path.to_owned(), deployment: deployment.to_owned() }
    }

    fn read(&self) -> Option<State> {
        let values = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let state = State { values, end: 0 };
        let ours = Some(&custody_schemas::json::Json::from(self.deployment.as_str()));
        (state.get(super::DEPLOYMENT) == ours).then_some(state)
    }

    /// Writes a file that is never half written, for its owner only.
    fn write(&self, state: &State) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&file, &state.values)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}
