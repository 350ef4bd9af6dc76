//! Control state in a compacted topic that all processes of a deployment follow.
//!
//! One thread folds what comes. A change is a transaction under an id that all processes share:
//! beginning one ends every other that is under way, the state is folded to the end after that, and
//! the commit fails if somebody else has begun meanwhile. So nobody overwrites what they have not
//! seen, also across a kill in the middle, and compaction never decides who was first.
//!
//! Where a copy is kept on disk, a process that starts while Kafka is away begins with that, says
//! so, and goes on with the topic as soon as it can.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::watch;

use super::copy::Copy;
use super::follow::{Follower, Shared, fold, fold_within, may_pass};
use super::{Changing, ControlError, Medium, State, encode};
use crate::kafka::KafkaSettings;
use crate::kafka::append::Reports;
use crate::kafka::cluster::Cluster;
use crate::kafka::settings::explain;
use crate::kafka::wire;
use crate::{EntryKind, ReadError, Topic};

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
        let passes = matches!(&error, ControlError::Read(error) if may_pass(error));
        if passes { Self::Once(error.to_string()) } else { Self::Forever(error) }
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
