//! What the roles have of Kafka: its topics looked at, and a journal to read.

use std::sync::Arc;

use custody_journal::Journal;
use custody_journal::kafka::{Group, KafkaJournal, Membership, check};

use crate::config::{Config, Kafka};

/// Looks at the topics meanwhile, and says what is wrong with them. A process goes on all the same:
/// what is recorded waits in its spool, and what keeps it from working at all is an error where it
/// works.
pub fn look_at(kafka: &Kafka) {
    let settings = kafka.settings.clone();
    tokio::spawn(async move {
        match check(&settings).await {
            Ok(problems) => problems.iter().for_each(|problem| tracing::warn!("{problem}")),
            Err(error) => tracing::warn!(%error, "the topics cannot be checked"),
        }
    });
}

/// The journal that this configuration names beside local disk.
pub fn journal(kafka: &Kafka) -> anyhow::Result<Arc<dyn Journal>> {
    Ok(Arc::new(KafkaJournal::open(&kafka.settings)?))
}

/// A member of the group of ingest workers, and the journal that tells the group what is stored.
pub fn member(kafka: &Kafka) -> anyhow::Result<(Group, Arc<dyn Journal>)> {
    let usual = Membership::new(&kafka.group);
    let group =
        Group::join(&kafka.settings, &Membership { instance: kafka.instance.clone(), ..usual })?;
    let journal = KafkaJournal::open(&kafka.settings)?.reporting_to(&group);
    Ok((group, Arc::new(journal)))
}

/// The first part of the lake's positions, and the epoch in them.
pub fn positions(config: &Config) -> (String, u32) {
    match &config.journal.kafka {
        Some(kafka) => (kafka.cluster.clone(), kafka.epoch),
        None => ("file".to_owned(), 1),
    }
}
