//! The plain form of Kafka's writing end: what the contract suite runs against.
//!
//! The product writes into spools and ships those. This sends what it is given and waits until all
//! in-sync replicas have it: the chunks first, so that no body comes after its record.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::settings::{KafkaSettings, explain};
use super::wire;
use crate::{Append, NewEntry, Topic};

/// How long the entries of one append may take.
const WAIT: Duration = Duration::from_secs(30);

/// Appends to the topics, without a spool.
pub struct KafkaAppend {
    settings: KafkaSettings,
    producer: BaseProducer<Reports>,
}

impl std::fmt::Debug for KafkaAppend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaAppend").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What became of the messages that were sent: the offsets of those that are stored.
#[derive(Default)]
pub(crate) struct Reports(Mutex<Vec<Result<u64, KafkaError>>>);

impl Reports {
    fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// All of them, in the order in which they came.
    pub(crate) fn take(&self) -> Vec<Result<u64, KafkaError>> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let report = match result {
            Ok(message) => Ok(u64::try_from(message.offset()).unwrap_or(0)),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.lock().push(report);
    }
}

impl KafkaAppend {
    /// A producer for the topics of `settings`.
    ///
    /// # Errors
    /// When librdkafka refuses a setting.
    pub fn open(settings: &KafkaSettings) -> io::Result<Self> {
        let fixed = [("enable.idempotence", "true"), ("acks", "all"), wire::PARTITIONER];
        let config = settings.client_config(&[("linger.ms", "1")], &fixed);
        let producer = BaseProducer::from_config_and_context(&config, Reports::default());
        let producer = producer.map_err(|error| io::Error::other(explain(&error)))?;
        Ok(Self { settings: settings.clone(), producer })
    }

    /// Sends what belongs to `topic`, and waits for it; the offsets in order of the reports.
    fn send(&self, topic: Topic, entries: &[NewEntry]) -> Result<Vec<u64>, KafkaError> {
        let name = self.settings.topic(topic);
        let mut sent = 0;
        for entry in entries.iter().filter(|entry| topic.carries(entry.kind)) {
            let message = wire::message(entry.kind, &entry.header, &entry.value);
            let record = BaseRecord::to(&name).key(&message.key).headers(message.headers);
            let record = match message.value {
                Some(value) => record.payload(value),
                None => record,
            };
            self.producer.send(record).map_err(|(error, _)| error)?;
            sent += 1;
        }
        let until = Instant::now() + WAIT;
        while self.producer.context().count() < sent {
            if Instant::now() >= until {
                return Err(KafkaError::NoMessageReceived);
            }
            self.producer.poll(Duration::from_millis(10));
        }
        self.producer.context().take().into_iter().collect()
    }
}

impl Append for KafkaAppend {
    /// The offsets are those of the events, or of the chunks where there are no events; with
    /// several partitions they say nothing.
    fn append(&mut self, entries: &[NewEntry]) -> io::Result<Range<u64>> {
        let mut offsets = Vec::new();
        for topic in [Topic::Bodies, Topic::Control, Topic::Events] {
            let sent = self.send(topic, entries);
            let sent = sent.map_err(|error| io::Error::other(explain(&error)))?;
            if !sent.is_empty() {
                offsets = sent;
            }
        }
        let (first, last) = (offsets.iter().min(), offsets.iter().max());
        Ok(first.copied().unwrap_or(0)..last.map_or(0, |last| last + 1))
    }
}
