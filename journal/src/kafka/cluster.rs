//! What Kafka says of its topics: which partitions there are, where they begin and where they end.
//!
//! One client per journal asks, whoever wants to know; no answer is waited for longer than
//! [`ANSWER`]. One that does not get through for a while is replaced: librdkafka may lose all
//! brokers for good. An error says which topic it is about, what the last trouble of the connection was,
//! and what to do.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;

use super::link::Link;
use super::settings::{KafkaSettings, explain};
use crate::{Partition, ReadError, Topic};

/// How long an answer is waited for.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// How long the reason for an error is waited for, which the client may give a moment later.
const REASON: Duration = Duration::from_millis(300);
/// How old a client that is not answered must be to be replaced.
const RENEW: Duration = Duration::from_secs(10);
/// Notices of the client that are taken from its queue at once.
const NOTICES: usize = 32;

impl ConsumerContext for Link {}

/// Where a partition begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The oldest offset that is kept.
    pub(crate) first: u64,
    /// The offset after the last entry that a reader may see.
    pub(crate) end: u64,
}

/// The cluster, as readers see it.
pub(crate) struct Cluster {
    settings: KafkaSettings,
    asking: Mutex<Asking>,
}

/// The client that asks.
#[derive(Clone)]
struct Asking {
    client: Arc<BaseConsumer<Link>>,
    made_at: Instant,
}

impl Asking {
    fn new(settings: &KafkaSettings) -> Result<Self, KafkaError> {
        let config = settings.client_config(&[], &[("isolation.level", "read_committed")]);
        let client = BaseConsumer::from_config_and_context(&config, Link::default())?;
        Ok(Self { client: Arc::new(client), made_at: Instant::now() })
    }
}

impl Cluster {
    /// Makes the client; nothing is asked yet.
    pub(crate) fn new(settings: &KafkaSettings) -> Result<Self, ReadError> {
        let asking = Asking::new(settings).map_err(|error| {
            ReadError::io(place_of(settings, None), io::Error::other(explain(&error)))
        })?;
        Ok(Self { settings: settings.clone(), asking: Mutex::new(asking) })
    }

    pub(crate) fn settings(&self) -> &KafkaSettings {
        &self.settings
    }

    /// How many partitions `topic` has; none when it is not there.
    pub(crate) fn partitions(&self, topic: Topic) -> Result<Option<usize>, ReadError> {
        let name = self.settings.topic(topic);
        let metadata = self.answer(|client| client.fetch_metadata(Some(&name), ANSWER));
        let metadata = metadata.map_err(|error| self.error(topic, None, &error))?;
        let found = metadata.topics().iter().find(|found| found.name() == name);
        match found.map(|found| (found.error(), found.partitions().len())) {
            None | Some((Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART), _)) => {
                Ok(None)
            }
            Some((None, 0)) => Ok(None),
            Some((None, partitions)) => Ok(Some(partitions)),
            Some((Some(error), _)) => {
                Err(self.error(topic, None, &KafkaError::MetadataFetch(error.into())))
            }
        }
    }

    /// Where partition `number` of `topic` begins and ends.
    pub(crate) fn bounds(&self, partition: &Partition, number: i32) -> Result<Bounds, ReadError> {
        let name = self.settings.topic(partition.topic);
        match self.answer(|client| client.fetch_watermarks(&name, number, ANSWER)) {
            Ok((first, end)) => {
                let offset = |offset| u64::try_from(offset).unwrap_or(0);
                Ok(Bounds { first: offset(first), end: offset(end) })
            }
            Err(error) => Err(self.lost(partition, number, &error)),
        }
    }

    /// The error for a partition that could not be asked about or read.
    pub(crate) fn lost(&self, partition: &Partition, number: i32, error: &KafkaError) -> ReadError {
        let unknown = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownPartition
                    | RDKafkaErrorCode::UnknownTopic
            )
        );
        // a broker that has just started may not know the topic yet: its metadata decide
        let there = usize::try_from(number).unwrap_or(usize::MAX);
        if unknown && self.partitions(partition.topic).is_ok_and(|n| n.unwrap_or(0) <= there) {
            return ReadError::NoPartition(partition.clone());
        }
        self.error(partition.topic, Some(number), error)
    }

    /// The error for whatever else went wrong with `topic`; waiting may mend it.
    pub(crate) fn error(&self, topic: Topic, number: Option<i32>, error: &KafkaError) -> ReadError {
        let problem = self.asking.lock().client.context().problem();
        failed(self.place(topic, number), error, problem)
    }

    /// The error for a topic that is not there.
    pub(crate) fn missing(&self, topic: Topic) -> ReadError {
        let text = "the topic is not there: run `custody topics create`";
        ReadError::io(self.place(topic, None), io::Error::new(ErrorKind::NotFound, text))
    }

    /// How an error message names a partition.
    pub(crate) fn place(&self, topic: Topic, number: Option<i32>) -> PathBuf {
        place_of(&self.settings, Some((topic, number)))
    }

    /// Asks, and takes the client's notices from its queue, so that they do not pile up.
    fn answer<T>(
        &self,
        ask: impl FnOnce(&BaseConsumer<Link>) -> Result<T, KafkaError>,
    ) -> Result<T, KafkaError> {
        let Asking { client, made_at } = self.asking.lock().clone();
        let answer = ask(&client);
        let link = client.context();
        let until = Instant::now() + REASON;
        for _ in 0..NOTICES {
            // whatever it returns was noted by the link
            drop(client.poll(Duration::ZERO));
        }
        while answer.is_err() && link.problem().is_none() && Instant::now() < until {
            drop(client.poll(Duration::from_millis(10)));
        }
        match &answer {
            Ok(_) => link.works(),
            Err(error) if is_cut_off(error) && made_at.elapsed() > RENEW => self.renew(made_at),
            Err(_) => {}
        }
        answer
    }

    /// Replaces the client that was made at `made_at`; the reason why it failed stays known.
    fn renew(&self, made_at: Instant) {
        let Ok(new) = Asking::new(&self.settings) else { return };
        let mut asking = self.asking.lock();
        if asking.made_at == made_at {
            if let Some(problem) = asking.client.context().problem() {
                new.client.context().suffers(problem);
            }
            *asking = new;
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("brokers", &self.settings.brokers).finish_non_exhaustive()
    }
}

/// A client of its own for one reader or one membership; `usual` and `fixed` as in the settings.
pub(crate) fn consumer<C: ConsumerContext>(
    cluster: &Arc<Cluster>,
    usual: &[(&str, &str)],
    fixed: &[(&str, &str)],
    context: C,
) -> Result<BaseConsumer<C>, KafkaError> {
    let config = cluster.settings.client_config(usual, fixed);
    BaseConsumer::from_config_and_context(&config, context)
}

fn place_of(settings: &KafkaSettings, at: Option<(Topic, Option<i32>)>) -> PathBuf {
    let brokers = &settings.brokers;
    PathBuf::from(match at {
        None => format!("Kafka {brokers}"),
        Some((topic, None)) => format!("Kafka {brokers}, topic {}", settings.topic(topic)),
        Some((topic, Some(number))) => {
            format!("Kafka {brokers}, topic {}, partition {number}", settings.topic(topic))
        }
    })
}

/// An error of Kafka as one of the journal, with the trouble that may have been its cause.
pub(crate) fn failed(place: PathBuf, error: &KafkaError, trouble: Option<String>) -> ReadError {
    let kind = kind_of(error);
    let text = match trouble.filter(|_| kind != ErrorKind::Other) {
        Some(trouble) => format!("{error}; {trouble}"),
        None => explain(error),
    };
    ReadError::io(place, io::Error::new(kind, text))
}

/// Whether an error says that Kafka cannot be reached, for now.
pub(crate) fn is_cut_off(error: &KafkaError) -> bool {
    matches!(kind_of(error), ErrorKind::NotConnected | ErrorKind::TimedOut)
}

/// What an error is to somebody who asks whether waiting helps.
fn kind_of(error: &KafkaError) -> ErrorKind {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::RequestTimedOut) => {
            ErrorKind::TimedOut
        }
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::BrokerNotAvailable
            | RDKafkaErrorCode::Resolve,
        ) => ErrorKind::NotConnected,
        Some(
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        ) => ErrorKind::PermissionDenied,
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            ErrorKind::NotFound
        }
        _ => ErrorKind::Other,
    }
}
