//! What a client of Kafka says of its connection, kept for whoever asks how it is doing.
//!
//! The newest problem stays until something has been acknowledged again: a broker that cannot be
//! reached is tried for ever, and only this tells why nothing moves.

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::settings::advice;

/// The state of one client's connection.
#[derive(Debug, Default)]
pub(crate) struct Link(Mutex<Option<Problem>>);

#[derive(Clone, Debug)]
struct Problem {
    text: String,
    /// Whether trying again cannot help: somebody has to change something.
    lasting: bool,
}

impl Link {
    /// Why nothing moves, as far as the client has said.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0.lock().as_ref().map(|problem| problem.text.clone())
    }

    /// The same, where trying again cannot help.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.0.lock().as_ref().filter(|problem| problem.lasting).map(|problem| problem.text.clone())
    }

    /// Whether something is wrong.
    pub(crate) fn is_down(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Notes that a broker has answered.
    pub(crate) fn works(&self) {
        *self.0.lock() = None;
    }

    /// Notes what somebody else has found out about this connection.
    pub(crate) fn suffers(&self, text: String) {
        *self.0.lock() = Some(Problem { text, lasting: false });
    }
}

impl ClientContext for Link {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, "kafka: {text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, "kafka: {text}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut problem = self.0.lock();
        // that all brokers are down follows from what was said of each of them
        if code == RDKafkaErrorCode::AllBrokersDown && problem.is_some() {
            return;
        }
        let text = match advice(&code) {
            Some(advice) => format!("{reason}: {advice}"),
            None => reason.to_owned(),
        };
        if problem.as_ref().is_none_or(|known| known.text != text) {
            tracing::warn!(problem = text, "kafka");
        }
        *problem = Some(Problem { text, lasting: is_lasting(&code) });
    }
}

/// For clients that only ask.
impl ProducerContext for Link {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Whether the same attempt will fail the same way.
#[expect(clippy::wildcard_enum_match_arm, reason = "librdkafka has two hundred codes")]
fn is_lasting(code: &RDKafkaErrorCode) -> bool {
    match code {
        RDKafkaErrorCode::Authentication
        | RDKafkaErrorCode::SaslAuthenticationFailed
        | RDKafkaErrorCode::SSL
        | RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_not_lost_behind_the_news_that_all_brokers_are_down() {
        let link = Link::default();
        link.error(KafkaError::Global(RDKafkaErrorCode::Authentication), "wrong password");
        link.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        let refusal = link.refusal().unwrap();
        assert!(refusal.starts_with("wrong password") && refusal.contains("[journal.sasl]"));
        link.works();
        assert!(!link.is_down() && link.problem().is_none());
    }
}
