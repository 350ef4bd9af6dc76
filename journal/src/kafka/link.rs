//! What a client of Kafka says of its connection, kept for whoever asks how it is doing.
//!
//! The newest problem stays until something has been acknowledged again: a broker that cannot be
//! reached is tried for ever, and only this tells why nothing moves.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::settings::advice;

/// The state of one client's connection.
#[derive(Debug, Default)]
pub(crate) struct Link {
    problem: Mutex<Option<Problem>>,
    /// Whether the last that was heard is good.
    up: AtomicBool,
}

#[derive(Clone, Debug)]
struct Problem {
    text: String,
    /// Whether trying again cannot help: somebody has to change something.
    lasting: bool,
}

impl Link {
    /// Why nothing moves, as far as the client has said.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().as_ref().map(|problem| problem.text.clone())
    }

    /// The same, where trying again cannot help.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.problem
            .lock()
            .as_ref()
            .filter(|problem| problem.lasting)
            .map(|problem| problem.text.clone())
    }

    /// Whether something is wrong.
    pub(crate) fn is_down(&self) -> bool {
        self.problem.lock().is_some()
    }

    /// Whether the last that was heard of a broker is good; not so before anything was.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Notes that a broker has done what it was asked for.
    pub(crate) fn works(&self) {
        if !self.is_up() {
            let mut problem = self.problem.lock();
            *problem = None;
            self.up.store(true, Ordering::Relaxed);
        }
    }

    /// Notes what somebody else has found out about this connection.
    pub(crate) fn suffers(&self, text: String) {
        self.note(&mut self.problem.lock(), Problem { text, lasting: false });
    }

    fn note(&self, known: &mut Option<Problem>, problem: Problem) {
        self.up.store(false, Ordering::Relaxed);
        if known.as_ref().is_none_or(|known| known.text != problem.text) {
            tracing::warn!(problem = problem.text, "kafka");
        }
        *known = Some(problem);
    }
}

impl ClientContext for Link {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            // settings that we mean as they are
            _ if facility == "CONFWARN" => tracing::debug!(facility, "kafka: {text}"),
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
        let Some(mut code) = error.rdkafka_error_code() else { return };
        // a reader that has read everything is well
        if code == RDKafkaErrorCode::PartitionEOF {
            return;
        }
        // a broker that refuses our certificate says so after the handshake, as far as we see
        if reason.contains("SSL routines") {
            code = RDKafkaErrorCode::SSL;
        }
        let mut problem = self.problem.lock();
        // that all brokers are down follows from what was said of each of them
        if code == RDKafkaErrorCode::AllBrokersDown && problem.is_some() {
            return;
        }
        let text = match advice(&code) {
            Some(advice) => format!("{reason}: {advice}"),
            None => reason.to_owned(),
        };
        self.note(&mut problem, Problem { text, lasting: is_lasting(&code) });
    }
}

/// For clients that only ask.
impl ProducerContext for Link {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Whether the same attempt will fail the same way.
fn is_lasting(code: &RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::SSL
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
    )
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
        assert!(link.is_down() && !link.is_up());
        link.works();
        assert!(link.is_up() && link.problem().is_none());
    }
}
