//! The journal on a real Kafka.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::testing::Cluster;
use super::{KafkaAppend, KafkaJournal, KafkaSettings};
use crate::contract::{Subject, suite};
use crate::{Append, EntryKind, Journal, NewEntry, Partition, Topic};

fn events() -> Partition {
    Partition { topic: Topic::Events, name: "0".to_owned() }
}

fn bodies() -> Partition {
    Partition { topic: Topic::Bodies, name: "0".to_owned() }
}

#[test]
fn the_journal_on_kafka_keeps_the_contract() {
    let cluster = Cluster::shared();
    suite(&|| {
        let mut settings = cluster.with_topics(1);
        settings.extra.insert("message.max.bytes".to_owned(), (4 << 20).to_string());
        let append = Box::new(KafkaAppend::open(&settings).unwrap());
        let journal = Arc::new(KafkaJournal::open(&settings).unwrap());
        Subject { append, journal, events: events(), bodies: bodies() }
    });
}
