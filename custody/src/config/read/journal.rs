//! Reads `[journal]`, with `[journal.tls]`, `[journal.sasl]` and `[journal.options]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use custody_journal::kafka::{
    ClientCertificate, KafkaSettings, LEAST_RETENTION, Login, OAuth, Sasl, Secret, Security, Tls,
    Topics,
};

use super::is_http_url;
use crate::config::document::Document;
use crate::config::section::{At, Section};
use crate::config::{Journal, Kafka};

/// `[journal]`
pub(super) fn journal(d: &mut Document<'_>) -> Journal {
    let mut s = d.section("journal");
    let on_kafka = kind(d, &mut s);
    let segment_bytes = s.bytes(d, "segment_bytes", 1 << 20..=1 << 30).unwrap_or(64 << 20);
    let max_bytes = s.bytes(d, "max_bytes", 1 << 20..=1 << 50).unwrap_or(64 << 30);
    if max_bytes < 8 * segment_bytes {
        d.mistake(s.line(), "journal.max_bytes must be at least eight times journal.segment_bytes");
    }
    let kafka = kafka(d, &mut s, on_kafka);
    d.finish_section(s);
    Journal { max_bytes, segment_bytes, kafka: on_kafka.then_some(kafka) }
}

/// Whether the journal is on Kafka.
fn kind<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> bool {
    let Some(At { line, value }) = s.text(d, "kind") else { return false };
    if !["file", "kafka"].contains(&value.as_str()) {
        d.mistake(line, format!("journal.kind must be \"file\" or \"kafka\", not {value:?}"));
    }
    value == "kafka"
}

/// How Kafka is reached and used. The keys are read also where the journal is on local disk, so
/// that whoever has forgotten to say `kind` is told.
fn kafka<'t>(d: &mut Document<'t>, s: &mut Section<'t>, on_kafka: bool) -> Kafka {
    let brokers = brokers(d, s, on_kafka);
    let settings = KafkaSettings::new(brokers);
    let client_id = s.text(d, "client_id").map_or(settings.client_id, |at| at.value);
    let topics = topics(d, s);
    let prefixed = |name: &str| match &topics.prefix {
        Some(prefix) => format!("{prefix}.{name}"),
        None => name.to_owned(),
    };
    let group = s.text(d, "group").map_or_else(|| prefixed("custody-ingest"), |at| at.value);
    let settings = KafkaSettings {
        client_id,
        security: d.subsection(s, "tls").map_or(Security::Plaintext, |t| Security::Tls(tls(d, t))),
        sasl: d.subsection(s, "sasl").and_then(|section| sasl(d, section)),
        extra: options(d, s),
        topics,
        brokers: settings.brokers,
    };
    let cluster = word(d, s, "cluster", "kafka");
    let epoch = s.integer(d, "epoch", 1..=u64::from(u32::MAX)).unwrap_or(1);
    let instance = s.text(d, "instance").map(|at| at.value);
    let epoch = u32::try_from(epoch).unwrap_or(u32::MAX);
    Kafka { settings, cluster, epoch, group, instance }
}

fn brokers<'t>(d: &mut Document<'t>, s: &mut Section<'t>, on_kafka: bool) -> String {
    let found = s.text(d, "brokers");
    match &found {
        Some(at) if !on_kafka => {
            d.mistake(at.line, "journal.brokers is of use only with journal.kind = \"kafka\"");
        }
        Some(at) if !are_brokers(&at.value) => {
            let text = format!(
                "journal.brokers must be host:port, several separated by commas, not {:?}",
                at.value
            );
            d.mistake(at.line, text);
        }
        None if on_kafka => {
            let text =
                "journal.kind = \"kafka\" needs journal.brokers, such as \"k1:9092,k2:9092\"";
            d.mistake(s.line(), text);
        }
        _ => {}
    }
    found.map_or_else(String::new, |at| at.value)
}

fn are_brokers(text: &str) -> bool {
    let is_one = |broker: &str| {
        let (host, port) = broker.trim().rsplit_once(':')?;
        (!host.is_empty() && !host.contains('/')).then_some(port.parse::<u16>().ok()?)
    };
    text.split(',').all(|broker| is_one(broker).is_some())
}

/// A name that stands in positions and in topics' names.
fn word<'t>(d: &mut Document<'t>, s: &mut Section<'t>, key: &'static str, usual: &str) -> String {
    let Some(At { line, value }) = s.text(d, key) else { return usual.to_owned() };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !(1..=100).contains(&value.len()) || !value.bytes().all(allowed) {
        d.mistake(line, format!("journal.{key} must be 1 to 100 of a-z A-Z 0-9 . _ -"));
    }
    value
}

fn topics<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Topics {
    let usual = Topics::default();
    let mut number = |d: &mut Document<'t>, key, usual: i32| {
        let found = s.integer(d, key, 1..=10_000);
        found.and_then(|n| i32::try_from(n).ok()).unwrap_or(usual)
    };
    let partitions = number(d, "partitions", usual.partitions);
    let replication = number(d, "replication_factor", usual.replication);
    let least = usual.min_in_sync.min(replication);
    let min_in_sync = number(d, "min_insync_replicas", least);
    if min_in_sync > replication {
        let text = "journal.min_insync_replicas is more than journal.replication_factor: nothing \
                    could ever be acknowledged";
        d.mistake(s.line(), text);
    }
    let hours = LEAST_RETENTION.as_secs() / 3_600;
    let retention = s.integer(d, "retention_hours", hours..=24 * 36_500).unwrap_or(hours);
    let prefix = word(d, s, "topic_prefix", "");
    Topics {
        prefix: (!prefix.is_empty()).then_some(prefix),
        partitions,
        replication,
        min_in_sync,
        retention: Duration::from_secs(retention * 3_600),
    }
}

/// `[journal.tls]`
fn tls<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Tls {
    let ca = file(d, &mut s, "ca");
    let certificate = file(d, &mut s, "certificate");
    let key = file(d, &mut s, "key");
    let key_password = secret(d, &mut s, "key_password", "key_password_file");
    if certificate.is_some() != key.is_some() {
        d.mistake(s.line(), "[journal.tls] certificate and key belong together: name both");
    }
    let client = certificate.zip(key);
    d.finish_section(s);
    let client =
        client.map(|(certificate, key)| ClientCertificate { certificate, key, key_password });
    Tls { ca, client }
}

/// `[journal.sasl]`
fn sasl<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Option<Sasl> {
    const MECHANISMS: &str = "\"SCRAM-SHA-512\", \"SCRAM-SHA-256\" or \"OAUTHBEARER\"";
    let Some(At { line, value }) = s.text(d, "mechanism") else {
        d.mistake(s.line(), format!("[journal.sasl] needs a mechanism: {MECHANISMS}"));
        return None;
    };
    let sasl = match value.as_str() {
        "SCRAM-SHA-256" => login(d, &mut s).map(Sasl::ScramSha256),
        "SCRAM-SHA-512" => login(d, &mut s).map(Sasl::ScramSha512),
        "OAUTHBEARER" => oauth(d, &mut s).map(Sasl::OAuthBearer),
        _ => {
            d.mistake(line, format!("sasl.mechanism must be {MECHANISMS}, not {value:?}"));
            return None;
        }
    };
    d.finish_section(s);
    sasl
}

fn login<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Option<Login> {
    let username = needed(d, s, "username");
    let password = needed_secret(d, s, "password", "password_file");
    Some(Login { username: username?, password: password? })
}

fn oauth<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Option<OAuth> {
    let endpoint = s.text(d, "token_endpoint");
    match &endpoint {
        None => d.mistake(s.line(), "[journal.sasl] needs the key `token_endpoint`"),
        Some(At { line, value }) if !is_http_url(value) => d.mistake(
            *line,
            format!("sasl.token_endpoint must be https://host/path, not {value:?}"),
        ),
        Some(_) => {}
    }
    let client_id = needed(d, s, "client_id");
    let client_secret = needed_secret(d, s, "client_secret", "client_secret_file");
    let scope = s.text(d, "scope").map(|at| at.value);
    let extensions = s.text(d, "extensions").map(|at| at.value);
    let ca = file(d, s, "ca");
    let (token_endpoint, client_id) = (endpoint?.value, client_id?);
    let client_secret = client_secret?;
    Some(OAuth { token_endpoint, client_id, client_secret, scope, extensions, ca })
}

/// A string without which one cannot log in.
fn needed<'t>(d: &mut Document<'t>, s: &mut Section<'t>, key: &'static str) -> Option<String> {
    let found = s.text(d, key);
    if found.is_none() {
        d.mistake(s.line(), format!("[journal.sasl] needs the key `{key}`"));
    }
    found.map(|at| at.value)
}

fn needed_secret<'t>(
    d: &mut Document<'t>,
    s: &mut Section<'t>,
    key: &'static str,
    in_file: &'static str,
) -> Option<Secret> {
    let before = d.count();
    let found = secret(d, s, key, in_file);
    if found.is_none() && d.count() == before {
        d.mistake(s.line(), format!("[journal.sasl] needs the key `{key}` or `{in_file}`"));
    }
    found
}

/// A secret that stands under `key`, or in the file under `in_file`.
pub(super) fn secret<'t>(
    d: &mut Document<'t>,
    s: &mut Section<'t>,
    key: &'static str,
    in_file: &'static str,
) -> Option<Secret> {
    let here = s.secret(d, key);
    let there = s.text(d, in_file);
    match (here, there) {
        (Some(_), Some(at)) => {
            d.mistake(at.line, format!("{key} and {in_file} say the same thing: keep one"));
            None
        }
        (Some(at), None) => Some(Secret::new(at.value)),
        (None, Some(At { line, value })) => match std::fs::read_to_string(&value) {
            Ok(text) => Some(Secret::new(text.trim_end_matches(['\r', '\n']))),
            Err(error) => {
                d.mistake(line, format!("{in_file} {value:?} cannot be read: {error}"));
                None
            }
        },
        (None, None) => None,
    }
}

/// A file that must be there.
pub(super) fn file<'t>(
    d: &mut Document<'t>,
    s: &mut Section<'t>,
    key: &'static str,
) -> Option<PathBuf> {
    let At { line, value } = s.text(d, key)?;
    if let Err(error) = std::fs::File::open(&value) {
        d.mistake(line, format!("{key} {value:?} cannot be read: {error}"));
    }
    Some(value.into())
}

/// `[journal.options]`: librdkafka's own settings.
fn options<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> BTreeMap<String, String> {
    let Some(mut options) = d.subsection(s, "options") else { return BTreeMap::new() };
    let named = options.rest(d);
    d.finish_section(options);
    named.into_iter().map(|(name, at)| (name, at.value)).collect()
}
