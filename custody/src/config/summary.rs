//! What a configuration comes down to, in a few lines for people.

use custody_schemas::seal::policy::Policy;

use super::{Config, Durability, Kafka};

impl Config {
    /// What each part will do, as pairs of a part and a line.
    pub fn summary(&self) -> Vec<(&'static str, String)> {
        let writer = self.deployment.writer.as_deref().unwrap_or("called as its command is used");
        let durability = match self.proxy.durability {
            Durability::Local => "its disk",
            Durability::Replicated => "its disk and Kafka",
        };
        vec![
            ("deployment", format!("{}, writer {writer}", self.deployment.name)),
            ("data", self.deployment.data.display().to_string()),
            (
                "proxy",
                format!(
                    "http://{}, {} server(s), {} key(s), calls wait for {durability}",
                    self.proxy.listen,
                    self.servers.len(),
                    self.keys.len()
                ),
            ),
            ("journal", self.journal.kafka.as_ref().map_or_else(|| "local disk".to_owned(), kafka)),
            ("lake", self.lake.url.clone()),
            (
                "query",
                format!(
                    "http://{}, {} token(s), dates in {}",
                    self.query.listen,
                    self.query.tokens.len(),
                    self.query.time_zone
                ),
            ),
            ("witness", self.witness.policy.as_ref().map_or_else(nobody, |policy| asked(policy))),
        ]
    }
}

fn nobody() -> String {
    "nobody cosigns the log: set witness.policy".to_owned()
}

fn asked(policy: &Policy) -> String {
    let all = policy.witnesses();
    let asked = all.iter().filter(|witness| witness.url.is_some()).count();
    format!("{} in the policy, {asked} with an address", all.len())
}

fn kafka(kafka: &Kafka) -> String {
    use custody_journal::kafka::{Sasl, Security};
    let encrypted = match kafka.settings.security {
        Security::Plaintext => "not encrypted",
        Security::Tls(_) => "TLS",
    };
    let login = match kafka.settings.sasl {
        None => "no login",
        Some(Sasl::ScramSha256(_)) => "SCRAM-SHA-256",
        Some(Sasl::ScramSha512(_)) => "SCRAM-SHA-512",
        Some(Sasl::OAuthBearer(_)) => "OAUTHBEARER",
    };
    format!("Kafka at {} ({encrypted}, {login})", kafka.settings.brokers)
}
