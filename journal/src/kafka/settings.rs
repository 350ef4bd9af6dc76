//! How Kafka is reached and how its topics are kept: plain data, and what librdkafka makes of it.
//!
//! Passwords are of a type that prints nothing, and what librdkafka says of a setting is told
//! without its value. What a promise stands on (acknowledgement by all replicas, no gaps) is set
//! by whoever makes the promise and cannot be overridden by `extra`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::Topic;

/// The least time that Kafka keeps entries: longer than the longest outage of ingest.
pub const LEAST_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// A password or token: comes from the configuration, goes to Kafka, is printed nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever hands it on.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How Kafka is reached. `..KafkaSettings::new(brokers)` fills in what is usual.
#[derive(Clone)]
pub struct KafkaSettings {
    /// Some of the brokers, `host:port` separated by commas.
    pub brokers: String,
    /// Whether the connection is encrypted.
    pub security: Security,
    /// Who we are, unless a client certificate says so.
    pub sasl: Option<Sasl>,
    /// What brokers call this process in their logs and quotas.
    pub client_id: String,
    /// How the topics are kept.
    pub topics: Topics,
    /// Further settings of librdkafka, by its own names.
    pub extra: BTreeMap<String, String>,
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // of what is set by librdkafka's names anything may be a secret
        let extra: Vec<_> = self.extra.keys().collect();
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("security", &self.security)
            .field("sasl", &self.sasl)
            .field("client_id", &self.client_id)
            .field("topics", &self.topics)
            .field("extra", &extra)
            .finish()
    }
}

/// Whether the connection is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// It is not.
    #[default]
    Plaintext,
    /// By TLS; the broker's name is checked against its certificate.
    Tls(Tls),
}

/// Certificates, as PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities that sign brokers' certificates; the system's where there are none.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its private key, where brokers ask for one.
    pub client: Option<ClientCertificate>,
}

/// A certificate by which brokers know us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and what stands between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// What the key's file is encrypted with.
    pub key_password: Option<Secret>,
}

/// How we say who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sasl {
    /// SCRAM-SHA-256.
    ScramSha256(Login),
    /// SCRAM-SHA-512.
    ScramSha512(Login),
    /// OAUTHBEARER: a token from an identity provider, fetched and renewed by librdkafka.
    OAuthBearer(OAuth),
}

/// A user of Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub username: String,
    /// Its password.
    pub password: Secret,
}

/// A client of an identity provider, by the client-credentials grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuth {
    /// Where tokens are given out, an URL.
    pub token_endpoint: String,
    /// The client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// What the token shall be good for.
    pub scope: Option<String>,
    /// What brokers want to be told beside it, `name=value` separated by commas.
    pub extensions: Option<String>,
    /// The authorities that sign the endpoint's certificate; the system's where there are none.
    pub ca: Option<PathBuf>,
}

/// How the topics are kept: what they are made with and what they are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Stands before the names, with a dot: two deployments may share a cluster.
    pub prefix: Option<String>,
    /// Partitions of events, and of bodies; control state has one.
    pub partitions: i32,
    /// On how many brokers each partition lies.
    pub replication: i32,
    /// On how many of them an entry is before it is acknowledged.
    pub min_in_sync: i32,
    /// How long events and bodies are kept, at least [`LEAST_RETENTION`].
    pub retention: Duration,
}

impl Default for Topics {
    fn default() -> Self {
        let retention = LEAST_RETENTION;
        Self { prefix: None, partitions: 3, replication: 3, min_in_sync: 2, retention }
    }
}

impl Topics {
    /// The name of `topic` in this deployment.
    #[must_use]
    pub fn name(&self, topic: Topic) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}.{}", topic.name()),
            None => topic.name().to_owned(),
        }
    }
}

impl KafkaSettings {
    /// The usual settings for the cluster of `brokers`.
    #[must_use]
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            security: Security::Plaintext,
            sasl: None,
            client_id: "custody".to_owned(),
            topics: Topics::default(),
            extra: BTreeMap::new(),
        }
    }

    /// The name of `topic` in this deployment.
    #[must_use]
    pub fn topic(&self, topic: Topic) -> String {
        self.topics.name(topic)
    }

    /// What librdkafka reads: these settings, `usual` ones where `extra` does not say otherwise,
    /// and `fixed` ones that nobody can change.
    pub(crate) fn client_config(
        &self,
        usual: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Warning);
        config.set("bootstrap.servers", &self.brokers).set("client.id", &self.client_id);
        // a broker that falls silent is left within seconds, a dead one is tried again every two
        config.set("socket.timeout.ms", "10000").set("socket.keepalive.enable", "true");
        config.set("socket.connection.setup.timeout.ms", "10000");
        config.set("reconnect.backoff.max.ms", "2000");
        set_all(&mut config, usual.iter().copied());
        self.secure(&mut config);
        set_all(&mut config, self.extra.iter().map(|(key, value)| (&**key, &**value)));
        // a topic made by a broker in passing would have none of the settings it needs
        config.set("allow.auto.create.topics", "false");
        set_all(&mut config, fixed.iter().copied());
        config
    }

    fn secure(&self, config: &mut ClientConfig) {
        let protocol = match (&self.security, &self.sasl) {
            (Security::Plaintext, None) => "plaintext",
            (Security::Plaintext, Some(_)) => "sasl_plaintext",
            (Security::Tls(_), None) => "ssl",
            (Security::Tls(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Security::Tls(tls) = &self.security {
            tls.set(config);
        }
        match &self.sasl {
            Some(Sasl::ScramSha256(login)) => login.set("SCRAM-SHA-256", config),
            Some(Sasl::ScramSha512(login)) => login.set("SCRAM-SHA-512", config),
            Some(Sasl::OAuthBearer(oauth)) => oauth.set(config),
            None => {}
        }
    }
}

fn set_all<'a>(config: &mut ClientConfig, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
    for (key, value) in pairs {
        config.set(key, value);
    }
}

impl Tls {
    fn set(&self, config: &mut ClientConfig) {
        if let Some(ca) = &self.ca {
            config.set("ssl.ca.location", ca.to_string_lossy());
        }
        let Some(client) = &self.client else { return };
        config.set("ssl.certificate.location", client.certificate.to_string_lossy());
        config.set("ssl.key.location", client.key.to_string_lossy());
        if let Some(password) = &client.key_password {
            config.set("ssl.key.password", password.expose());
        }
    }
}

impl Login {
    fn set(&self, mechanism: &str, config: &mut ClientConfig) {
        config.set("sasl.mechanism", mechanism);
        config.set("sasl.username", &self.username);
        config.set("sasl.password", self.password.expose());
    }
}

impl OAuth {
    fn set(&self, config: &mut ClientConfig) {
        config.set("sasl.mechanism", "OAUTHBEARER").set("sasl.oauthbearer.method", "oidc");
        config.set("sasl.oauthbearer.token.endpoint.url", &self.token_endpoint);
        config.set("sasl.oauthbearer.client.id", &self.client_id);
        config.set("sasl.oauthbearer.client.secret", self.client_secret.expose());
        if let Some(scope) = &self.scope {
            config.set("sasl.oauthbearer.scope", scope);
        }
        if let Some(extensions) = &self.extensions {
            config.set("sasl.oauthbearer.extensions", extensions);
        }
        if let Some(ca) = &self.ca {
            config.set("https.ca.location", ca.to_string_lossy());
        }
    }
}

/// What librdkafka says, without the value of any setting, and what to do about it.
pub(crate) fn explain(error: &KafkaError) -> String {
    if let KafkaError::ClientConfig(_, description, key, _) = error {
        // the description may quote the value, which may be a secret
        let is_secret = key.contains("password") || key.contains("secret");
        let description = if is_secret { "its value is refused" } else { description };
        return format!("Kafka's setting {key:?} cannot be used: {description}");
    }
    let said = error.to_string();
    match error.rdkafka_error_code().and_then(|code| advice(&code)) {
        Some(advice) => format!("{said}: {advice}"),
        None => said,
    }
}

/// What to do about an error of Kafka, where that can be said.
#[expect(clippy::wildcard_enum_match_arm, reason = "librdkafka has two hundred codes")]
pub(crate) fn advice(code: &RDKafkaErrorCode) -> Option<&'static str> {
    Some(match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
            "check the mechanism, the user and the password of [journal.sasl], and that the broker \
             knows this user"
        }
        RDKafkaErrorCode::SSL => {
            "check [journal.tls]: the authority that signed the broker's certificate, the host name \
             in it, and our own certificate where brokers ask for one"
        }
        RDKafkaErrorCode::Resolve => "check the host names in `brokers` of [journal]",
        RDKafkaErrorCode::BrokerTransportFailure
        | RDKafkaErrorCode::AllBrokersDown
        | RDKafkaErrorCode::OperationTimedOut
        | RDKafkaErrorCode::RequestTimedOut => {
            "check `brokers` of [journal], that they run, and that this host reaches them"
        }
        RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownPartition => {
            "run `custody topics check`, then `custody topics create`"
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => {
            "give this user the right to describe, read and write the topic"
        }
        RDKafkaErrorCode::ClusterAuthorizationFailed => {
            "give this user the right to write idempotently on the cluster"
        }
        RDKafkaErrorCode::GroupAuthorizationFailed => "give this user the right to read the group",
        RDKafkaErrorCode::NotEnoughReplicas | RDKafkaErrorCode::NotEnoughReplicasAfterAppend => {
            "too few replicas are in sync: bring the missing brokers back"
        }
        RDKafkaErrorCode::MessageSizeTooLarge => {
            "raise the topic's max.message.bytes to at least 1048576, see `custody topics check`"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login { username: "edge".to_owned(), password: Secret::new("hunter2") }
    }

    #[test]
    fn a_secret_is_printed_nowhere() {
        let mut settings = KafkaSettings::new("k1:9092");
        settings.sasl = Some(Sasl::ScramSha512(login()));
        settings.extra.insert("ssl.key.password".to_owned(), "hunter2".to_owned());
        let printed = format!("{settings:?} {:?}", settings.client_config(&[], &[]));
        assert!(printed.contains("edge") && !printed.contains("hunter2"), "{printed}");
        let refused = KafkaError::ClientConfig(
            rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            "hunter2 is no good".to_owned(),
            "sasl.password".to_owned(),
            "hunter2".to_owned(),
        );
        assert!(!explain(&refused).contains("hunter2"));
    }

    #[test]
    fn the_protocol_follows_from_encryption_and_login() {
        let mut settings = KafkaSettings::new("k1:9092");
        let protocol = |settings: &KafkaSettings| {
            let config = settings.client_config(&[], &[]);
            config.get("security.protocol").unwrap().to_owned()
        };
        assert_eq!(protocol(&settings), "plaintext");
        settings.sasl = Some(Sasl::ScramSha256(login()));
        assert_eq!(protocol(&settings), "sasl_plaintext");
        settings.security = Security::Tls(Tls::default());
        assert_eq!(protocol(&settings), "sasl_ssl");
        settings.sasl = None;
        assert_eq!(protocol(&settings), "ssl");
    }

    #[test]
    fn extra_settings_override_usual_ones_and_never_fixed_ones() {
        let mut settings = KafkaSettings::new("k1:9092");
        settings.extra.insert("linger.ms".to_owned(), "50".to_owned());
        settings.extra.insert("acks".to_owned(), "0".to_owned());
        let config = settings.client_config(&[("linger.ms", "1")], &[("acks", "all")]);
        assert_eq!((config.get("linger.ms"), config.get("acks")), (Some("50"), Some("all")));
    }

    #[test]
    fn every_way_to_log_in_is_one_that_librdkafka_knows() {
        let mut settings = KafkaSettings::new("k1:9092");
        settings.security = Security::Tls(Tls::default());
        let oauth = OAuth {
            token_endpoint: "http://127.0.0.1:1/token".to_owned(),
            client_id: "edge".to_owned(),
            client_secret: Secret::new("s"),
            scope: Some("kafka".to_owned()),
            extensions: Some("tenant=a".to_owned()),
            ca: None,
        };
        let ways =
            [Sasl::ScramSha256(login()), Sasl::ScramSha512(login()), Sasl::OAuthBearer(oauth)];
        for way in ways {
            settings.sasl = Some(way);
            settings.client_config(&[], &[]).create_native_config().unwrap();
        }
    }

    #[test]
    fn topics_of_two_deployments_have_different_names() {
        let mut topics = Topics::default();
        assert_eq!(topics.name(Topic::Events), "custody.events");
        topics.prefix = Some("staging".to_owned());
        assert_eq!(topics.name(Topic::Control), "staging.custody.control");
    }
}
