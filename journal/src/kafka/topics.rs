//! The topics of a deployment: made as they have to be, and checked.
//!
//! Nothing that exists is ever changed here: a topic holds records, and whoever owns the cluster
//! decides. A problem says how to mend it, an error what to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::producer::{BaseProducer, Producer};

use super::layout::{Laid, Problem, judge_partitions, judge_settings, partitions, wanted};
use super::link::Link;
use super::settings::{KafkaSettings, advice, explain};
use crate::Topic;

/// How long the cluster has to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one attempt to reach it takes.
const ATTEMPT: Duration = Duration::from_secs(2);

const ALL: [Topic; 3] = [Topic::Events, Topic::Bodies, Topic::Control];

/// Why topics cannot be made or checked.
#[derive(Debug, thiserror::Error)]
pub enum TopicsError {
    /// The settings are none.
    #[error("{0}")]
    Settings(String),
    /// The cluster does not answer.
    #[error("Kafka at {brokers} does not answer: {problem}")]
    Unreachable {
        /// Where it was looked for.
        brokers: String,
        /// What is known of the reason.
        problem: String,
    },
    /// The cluster refuses.
    #[error("Kafka refuses to {what}: {problem}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Why, and what to do.
        problem: String,
    },
}

/// What [`create`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The topics that were made.
    pub created: Vec<String>,
    /// Those that were there.
    pub existing: Vec<String>,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
}

/// Makes the topics that are not there, waits until they can be used, and checks all of them.
///
/// # Errors
/// [`TopicsError`]; some topics may have been made.
pub async fn create(settings: &KafkaSettings) -> Result<Report, TopicsError> {
    let probe = Arc::new(Probe::new(settings)?);
    let before = probe.laid().await?;
    let (existing, missing): (Vec<_>, Vec<_>) =
        ALL.into_iter().partition(|topic| before.contains_key(&settings.topic(*topic)));
    let mut report = Report {
        existing: existing.iter().map(|topic| settings.topic(*topic)).collect(),
        ..Report::default()
    };
    let admin = admin(settings)?;
    for topic in missing {
        let name = settings.topic(topic);
        if make(&admin, settings, topic, &name).await? {
            report.created.push(name);
        } else {
            report.existing.push(name);
        }
    }
    probe.wait_for(&report.created).await?;
    report.problems = check_with(&probe, &admin, settings).await?;
    Ok(report)
}

/// What is wrong with the topics; nothing where a deployment can work with them.
///
/// # Errors
/// [`TopicsError`] when the cluster does not say.
pub async fn check(settings: &KafkaSettings) -> Result<Vec<Problem>, TopicsError> {
    let probe = Arc::new(Probe::new(settings)?);
    // first, for it says why a cluster does not answer
    probe.laid().await?;
    check_with(&probe, &admin(settings)?, settings).await
}

async fn check_with(
    probe: &Arc<Probe>,
    admin: &AdminClient<DefaultClientContext>,
    settings: &KafkaSettings,
) -> Result<Vec<Problem>, TopicsError> {
    let laid = probe.laid().await?;
    let mut problems = Vec::new();
    for topic in ALL {
        let name = settings.topic(topic);
        let of_topic = laid.get(&name).map_or(&[][..], Vec::as_slice);
        problems.extend(judge_partitions(topic, settings, of_topic));
        if !of_topic.is_empty() {
            let found = describe(admin, &name).await?;
            problems.extend(judge_settings(topic, settings, &found));
        }
    }
    Ok(problems)
}

fn admin(settings: &KafkaSettings) -> Result<AdminClient<DefaultClientContext>, TopicsError> {
    let config = settings.client_config(&[], &[]);
    config.create().map_err(|error| TopicsError::Settings(explain(&error)))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

/// Makes `topic`; whether it was not there before.
async fn make(
    admin: &AdminClient<DefaultClientContext>,
    settings: &KafkaSettings,
    topic: Topic,
    name: &str,
) -> Result<bool, TopicsError> {
    let wanted = wanted(topic, settings);
    let replication = TopicReplication::Fixed(settings.topics.replication);
    let mut new = NewTopic::new(name, partitions(topic, settings), replication);
    for setting in &wanted {
        new = new.set(setting.name, &setting.value);
    }
    let refused = |problem| TopicsError::Refused { what: format!("make topic {name}"), problem };
    let results = admin.create_topics([&new], &options()).await;
    let result = results.map_err(|error| refused(explain(&error)))?.pop();
    match result {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, code))) => Err(refused(why_not_made(&code, settings))),
        Some(Ok(_)) | None => Ok(true),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "librdkafka has two hundred codes")]
fn why_not_made(code: &RDKafkaErrorCode, settings: &KafkaSettings) -> String {
    let replication = settings.topics.replication;
    match code {
        RDKafkaErrorCode::InvalidReplicationFactor => format!(
            "there are fewer than {replication} brokers. Start the others, or set \
             replication_factor and min_insync_replicas in [journal] lower and live with what \
             that loses"
        ),
        RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed => {
            "this user may not make topics. Let somebody who may run `custody topics create`"
                .to_owned()
        }
        code => match advice(code) {
            Some(advice) => format!("{code}: {advice}"),
            None => format!("{code}"),
        },
    }
}

/// The settings in force of one topic.
async fn describe(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
) -> Result<BTreeMap<String, String>, TopicsError> {
    let refused =
        |problem| TopicsError::Refused { what: format!("describe topic {name}"), problem };
    let asked = [ResourceSpecifier::Topic(name)];
    let answer = admin.describe_configs(&asked, &options()).await;
    let answer = answer.map_err(|error| refused(explain(&error)))?.pop();
    let resource = answer.ok_or_else(|| refused("it says nothing of it".to_owned()))?;
    let resource = resource.map_err(|code| refused(explain(&KafkaError::AdminOp(code))))?;
    let entries = resource.entries.into_iter();
    Ok(entries.filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

/// Asks for topics and partitions, and hears why nobody answers.
struct Probe {
    producer: BaseProducer<Link>,
    brokers: String,
}

impl Probe {
    fn new(settings: &KafkaSettings) -> Result<Self, TopicsError> {
        let config = settings.client_config(&[], &[]);
        let producer = config.create_with_context(Link::default());
        let producer = producer.map_err(|error| TopicsError::Settings(explain(&error)))?;
        Ok(Self { producer, brokers: settings.brokers.clone() })
    }

    /// Every topic with its partitions.
    async fn laid(self: &Arc<Self>) -> Result<BTreeMap<String, Vec<Laid>>, TopicsError> {
        let probe = Arc::clone(self);
        let asked = tokio::task::spawn_blocking(move || probe.ask());
        asked.await.unwrap_or_else(|error| Err(self.unreachable(error.to_string())))
    }

    fn ask(&self) -> Result<BTreeMap<String, Vec<Laid>>, TopicsError> {
        let until = Instant::now() + PATIENCE;
        let link = self.producer.context();
        loop {
            let error = match self.producer.client().fetch_metadata(None, ATTEMPT) {
                Ok(metadata) => return Ok(topics(&metadata)),
                Err(error) => error,
            };
            // what the client has to say arrives here
            self.producer.poll(Duration::from_millis(50));
            if let Some(problem) = link.refusal() {
                return Err(self.unreachable(problem));
            }
            if Instant::now() >= until {
                let problem = link.problem().unwrap_or_else(|| explain(&error));
                return Err(self.unreachable(problem));
            }
        }
    }

    /// Waits until every partition of the topics `made` has a leader.
    async fn wait_for(self: &Arc<Self>, made: &[String]) -> Result<(), TopicsError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let laid = self.laid().await?;
            let is_ready = |name: &String| {
                laid.get(name).is_some_and(|laid| laid.iter().all(|partition| partition.led))
            };
            match made.iter().find(|name| !is_ready(name)) {
                None => return Ok(()),
                Some(name) if Instant::now() >= until => {
                    let problem = format!("topic {name} was made and still has no leader");
                    return Err(self.unreachable(problem));
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn unreachable(&self, problem: String) -> TopicsError {
        TopicsError::Unreachable { brokers: self.brokers.clone(), problem }
    }
}

fn topics(metadata: &Metadata) -> BTreeMap<String, Vec<Laid>> {
    let of = |topic: &MetadataTopic| (topic.name().to_owned(), laid(topic));
    metadata.topics().iter().map(of).filter(|(_, laid)| !laid.is_empty()).collect()
}

/// The partitions of a topic.
pub(crate) fn laid(topic: &MetadataTopic) -> Vec<Laid> {
    let partitions = topic.partitions().iter();
    let of = |partition: &rdkafka::metadata::MetadataPartition| Laid {
        number: partition.id(),
        led: partition.leader() >= 0,
        replicas: partition.replicas().len(),
        in_sync: partition.isr().len(),
    };
    partitions.map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;
    use std::time::{SystemTime, UNIX_EPOCH};

    use rdkafka::producer::BaseRecord;

    use super::super::settings::{ClientCertificate, Login, OAuth, Sasl, Secret, Security, Tls};
    use super::super::testing::{Cluster, now};
    use super::*;
    use crate::Journal as _;

    #[test]
    fn topics_are_made_once_and_as_they_have_to_be() {
        let settings = Cluster::shared().deployment(3);
        let missing = now(check(&settings)).unwrap();
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(missing[0].fix.contains("custody topics create"), "{missing:?}");
        let first = now(create(&settings)).unwrap();
        assert_eq!((first.created.len(), first.existing.len()), (3, 0));
        assert_eq!(first.problems, []);
        let second = now(create(&settings)).unwrap();
        assert_eq!((second.created.len(), second.existing.len()), (0, 3));
        assert_eq!(now(check(&settings)).unwrap(), []);
    }

    #[test]
    fn a_topic_that_somebody_else_made_is_left_alone_and_its_faults_are_named() {
        let settings = Cluster::shared().deployment(3);
        let name = settings.topic(Topic::Events);
        let admin = admin(&settings).unwrap();
        let theirs = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
        now(admin.create_topics([&theirs], &options())).unwrap();
        let report = now(create(&settings)).unwrap();
        assert_eq!(report.existing, [name]);
        let faults: Vec<_> = report.problems.iter().map(|problem| &*problem.what).collect();
        assert_eq!(
            faults,
            [
                "it has 1 partitions, 3 are configured",
                "message.timestamp.type is CreateTime, LogAppendTime is needed"
            ]
        );
    }

    #[test]
    fn more_replicas_than_brokers_are_refused_with_the_setting_to_change() {
        let mut settings = Cluster::shared().deployment(3);
        settings.topics.replication = 3;
        let error = now(create(&settings)).unwrap_err().to_string();
        assert!(error.contains("fewer than 3 brokers"), "{error}");
        assert!(error.contains("replication_factor"), "{error}");
    }

    #[test]
    fn nobody_there_is_an_error_that_says_where_it_looked() {
        let settings = KafkaSettings::new("127.0.0.1:1");
        let error = now(check(&settings)).unwrap_err().to_string();
        assert!(
            error.contains("127.0.0.1:1") && error.contains("`brokers` of [journal]"),
            "{error}"
        );
    }

    #[test]
    fn a_secured_cluster_lets_in_who_it_knows_and_says_why_it_refuses_others() {
        let cluster = Cluster::start(1, true);
        let right = cluster.with_topics(1);
        let mut wrong = right.clone();
        let Some(Sasl::ScramSha512(login)) = right.sasl.clone() else { panic!("no login") };
        let guessed = Secret::new("guessed");
        wrong.sasl = Some(Sasl::ScramSha512(Login { password: guessed, ..login.clone() }));
        let error = now(check(&wrong)).unwrap_err().to_string();
        assert!(error.contains("[journal.sasl]"), "{error}");
        assert!(!error.contains("guessed"), "{error}");
        let mut stranger = right.clone();
        stranger.security = Security::Tls(Tls::default());
        let error = now(check(&stranger)).unwrap_err().to_string();
        assert!(error.contains("[journal.tls]"), "{error}");

        let mut other = right.clone();
        other.sasl = Some(Sasl::ScramSha256(login));
        assert_eq!(now(check(&other)).unwrap(), []);
        other.sasl = Some(Sasl::OAuthBearer(OAuth {
            token_endpoint: identity_provider(),
            client_id: "edge".to_owned(),
            client_secret: Secret::new("s3cret"),
            scope: Some("kafka".to_owned()),
            extensions: None,
            ca: None,
        }));
        assert_eq!(now(check(&other)).unwrap(), []);
        let mut by_certificate = right;
        by_certificate.sasl = None;
        cluster.said("mtls").clone_into(&mut by_certificate.brokers);
        let error = now(check(&by_certificate)).unwrap_err().to_string();
        assert!(error.contains("[journal.tls]"), "without a certificate: {error}");
        by_certificate.security = Security::Tls(Tls {
            ca: Some(cluster.said("ca").into()),
            client: Some(ClientCertificate {
                certificate: cluster.said("certificate").into(),
                key: cluster.said("key").into(),
                key_password: None,
            }),
        });
        assert_eq!(now(check(&by_certificate)).unwrap(), []);
    }

    #[test]
    fn what_a_writer_sends_whose_clock_is_forty_days_off_is_taken_at_the_brokers_time() {
        let settings = Cluster::shared().with_topics(1);
        let config = settings.client_config(&[], &[("message.timeout.ms", "10000")]);
        let producer: BaseProducer<Link> = config.create_with_context(Link::default()).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (now, off) = (i64::try_from(now.as_millis()).unwrap(), 40 * 24 * 3600 * 1000);
        let topic = settings.topic(Topic::Events);
        for at in [now - off, now + off] {
            let record = BaseRecord::to(&topic).key("k").payload("x").timestamp(at);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
        let journal = super::super::KafkaJournal::open(&settings).unwrap();
        let events = journal.partitions().unwrap().remove(0);
        let mut reader = journal.reader(&events, 0).unwrap();
        let mut entries = Vec::new();
        while entries.len() < 2 {
            let some = reader.read(10, 1000, PATIENCE).unwrap();
            assert!(!some.is_empty(), "an entry was refused");
            entries.extend(some);
        }
        for entry in entries {
            let at = i64::try_from(entry.journaled_at.get() / 1000).unwrap();
            assert!((now - 60_000..now + 600_000).contains(&at), "{at}");
        }
    }

    /// Gives an unsigned token to whoever asks; where.
    fn identity_provider() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let read = stream.read(&mut request).unwrap();
                assert!(String::from_utf8_lossy(&request[..read]).contains("Basic "));
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
                let claims =
                    format!(r#"{{"sub":"edge","iat":{now},"exp":{},"scope":"kafka"}}"#, now + 3600);
                let token = format!("{}.{}.", base64(r#"{"alg":"none"}"#), base64(&claims));
                let body = format!(
                    r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":3600}}"#
                );
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
                write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        format!("http://{address}/token")
    }

    fn base64(text: &str) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut encoded = String::new();
        for three in text.as_bytes().chunks(3) {
            let bits = (0..3)
                .fold(0, |bits, i| bits << 8 | usize::from(three.get(i).copied().unwrap_or(0)));
            let digits = (0..=three.len()).map(|i| DIGITS[bits >> (18 - 6 * i) & 63]);
            encoded.extend(digits.map(char::from));
        }
        encoded
    }
}
