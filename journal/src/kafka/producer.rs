//! Hands entries to Kafka and hears of each whether all in-sync replicas have it.
//!
//! * Only delivery reports count: a flush returns `Ok` also when nobody let us in.
//! * The order of one key is kept, without gaps, as long as a producer lives: whatever could leave
//!   a gap is fatal to it. Then a new one begins again where acknowledgement ended.
//! * It never gives up by itself; what is handed over is bounded, and beyond that it says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use super::layout::{Laid, judge_health, judge_partitions};
use super::link::Link;
use super::settings::{KafkaSettings, explain};
use super::topics::laid;
use super::wire::{PARTITIONER, message};
use crate::{EntryKind, Topic};

/// What may be changed by `extra`.
const USUAL: [(&str, &str); 5] = [
    ("compression.type", "zstd"),
    // half of all that shipping costs is compression
    ("compression.level", "1"),
    // a window's entries are handed over at once: there is little to wait for
    ("linger.ms", "1"),
    ("queue.buffering.max.messages", "50000"),
    ("queue.buffering.max.kbytes", "65536"),
];

/// What the promises stand on.
const FIXED: [(&str, &str); 7] = [
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("enable.gapless.guarantee", "true"),
    // the spool is the retry: nothing times out
    ("message.timeout.ms", "0"),
    ("retries", "2147483647"),
    ("delivery.report.only.error", "false"),
    PARTITIONER,
];

/// How long the cluster has to say how its topics are.
const ASK: Duration = Duration::from_secs(2);
/// After how many questions in a row that only other clients get answered this one is given up.
const STRANDED: u32 = 2;

/// What was handed over is not known to be there: begin again with a new producer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(pub(crate) String);

/// Entries that are acknowledged together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    broken: Option<Broken>,
}

impl Batch {
    /// Waits up to `wait` until all that was handed over is acknowledged; whether it is.
    pub(crate) fn wait(&self, wait: Duration) -> Result<bool, Broken> {
        let until = Instant::now() + wait;
        let mut state = self.state.lock();
        loop {
            match &state.broken {
                Some(broken) => return Err(broken.clone()),
                None if state.waiting == 0 => return Ok(true),
                None => {}
            }
            if self.changed.wait_until(&mut state, until).timed_out() && state.waiting > 0 {
                return state.broken.clone().map_or(Ok(false), Err);
            }
        }
    }

    fn settle(&self, broken: Option<Broken>) {
        let mut state = self.state.lock();
        state.waiting -= 1;
        if state.broken.is_none() {
            state.broken = broken;
        }
        if state.waiting == 0 || state.broken.is_some() {
            self.changed.notify_all();
        }
    }
}

/// Hears what becomes of entries and of the connection.
#[derive(Debug, Default)]
struct Hearing {
    link: Arc<Link>,
    /// Wakes whoever waits for room.
    settled: Condvar,
    turn: Mutex<()>,
}

impl ClientContext for Hearing {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.link.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.link.error(error, reason);
    }
}

impl ProducerContext for Hearing {
    type DeliveryOpaque = Arc<Batch>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        match result {
            Ok(_) => {
                self.link.works();
                batch.settle(None);
            }
            Err((error, _)) => batch.settle(Some(Broken(explain(error)))),
        }
        self.settled.notify_all();
    }
}

/// A producer, from its first entry until something goes wrong with it.
pub(crate) struct Producer {
    inner: Arc<BaseProducer<Hearing>>,
    names: [(Topic, String); 3],
    settings: KafkaSettings,
    stop: Arc<AtomicBool>,
    polling: Option<JoinHandle<()>>,
    /// How often in a row another client was answered and this one was not.
    stranded: AtomicU32,
}

impl Producer {
    /// Begins; says on `link` how the connection is. Does not wait for it.
    pub(crate) fn new(settings: &KafkaSettings, link: &Arc<Link>) -> Result<Self, Broken> {
        let hearing = Hearing { link: Arc::clone(link), ..Hearing::default() };
        let config = settings.client_config(&USUAL, &FIXED);
        let inner: BaseProducer<Hearing> =
            config.create_with_context(hearing).map_err(|error| Broken(explain(&error)))?;
        let (inner, stop) = (Arc::new(inner), Arc::new(AtomicBool::new(false)));
        let (polled, ended) = (Arc::clone(&inner), Arc::clone(&stop));
        let poll = move || {
            while !ended.load(Ordering::Relaxed) {
                polled.poll(Duration::from_millis(100));
            }
        };
        let polling = thread::Builder::new().name("kafka-reports".to_owned()).spawn(poll);
        let polling = polling.map_err(|error| Broken(format!("no thread for Kafka: {error}")))?;
        let names = [Topic::Events, Topic::Bodies, Topic::Control]
            .map(|topic| (topic, settings.topic(topic)));
        let (settings, polling, stranded) = (settings.clone(), Some(polling), AtomicU32::new(0));
        Ok(Self { inner, names, settings, stop, polling, stranded })
    }

    /// Hands over one entry; `false` when there is no room at the moment.
    pub(crate) fn send(
        &self,
        batch: &Arc<Batch>,
        kind: EntryKind,
        header: &[u8],
        value: &[u8],
    ) -> Result<bool, Broken> {
        let message = message(kind, header, value);
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(
            self.name(message.topic),
            Arc::clone(batch),
        )
        .key(&message.key)
        .headers(message.headers);
        record.payload = message.value;
        batch.state.lock().waiting += 1;
        let Err((error, _)) = self.inner.send(record) else { return Ok(true) };
        batch.settle(None);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
            return Ok(false);
        }
        Err(Broken(explain(&error)))
    }

    /// Waits up to `wait` until something that was handed over has been settled.
    pub(crate) fn wait_for_room(&self, wait: Duration) {
        let hearing = self.inner.context();
        let mut turn = hearing.turn.lock();
        hearing.settled.wait_for(&mut turn, wait);
    }

    /// Why this producer will never deliver anything again.
    pub(crate) fn fatal(&self) -> Option<Broken> {
        let (code, reason) = self.inner.client().fatal_error()?;
        Some(Broken(format!("Kafka's client gave up ({code}): {reason}")))
    }

    /// Asks the cluster why nothing is acknowledged, and says so on the link if it tells. A client
    /// that gets no answer where a new one does will never get any.
    pub(crate) fn diagnose(&self) -> Result<(), Broken> {
        let link = &self.inner.context().link;
        for topic in [Topic::Bodies, Topic::Events] {
            let name = self.name(topic);
            let metadata = match self.inner.client().fetch_metadata(Some(name), ASK) {
                Ok(metadata) => metadata,
                Err(error) => {
                    if link.problem().is_none() {
                        link.suffers(explain(&error));
                    }
                    return self.look_beside(name);
                }
            };
            self.stranded.store(0, Ordering::Relaxed);
            let found: Vec<Laid> = metadata.topics().first().map(laid).unwrap_or_default();
            let least = usize::try_from(self.settings.topics.min_in_sync).unwrap_or(0);
            let problem = if found.is_empty() {
                judge_partitions(topic, &self.settings, &found).pop()
            } else {
                judge_health(name, least, &found)
            };
            if let Some(problem) = problem {
                link.suffers(problem.to_string());
                break;
            }
        }
        Ok(())
    }

    /// Whether a new client would be answered, which this one is not. librdkafka 2.12 forgets all
    /// brokers, for good, when one that comes back to life names none in its metadata.
    fn look_beside(&self, topic: &str) -> Result<(), Broken> {
        let other = self.settings.client_config(&[], &[]);
        let other: Result<BaseProducer<Link>, _> = other.create_with_context(Link::default());
        let seen = other.and_then(|other| other.client().fetch_metadata(Some(topic), ASK));
        if !seen.is_ok_and(|seen| !seen.brokers().is_empty()) {
            self.stranded.store(0, Ordering::Relaxed);
            return Ok(());
        }
        if self.stranded.fetch_add(1, Ordering::Relaxed) + 1 < STRANDED {
            return Ok(());
        }
        Err(Broken("Kafka answers new connections and none of this client's".to_owned()))
    }

    fn name(&self, topic: Topic) -> &str {
        let [(_, first), ..] = &self.names;
        self.names.iter().find(|(other, _)| *other == topic).map_or(first, |(_, name)| name)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(polling) = self.polling.take()
            && polling.join().is_err()
        {
            tracing::error!("the thread that hears Kafka's reports panicked");
        }
    }
}
