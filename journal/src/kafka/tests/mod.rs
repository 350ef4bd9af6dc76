//! The journal on a real Kafka.

mod group;
mod reading;

use std::sync::Arc;

use bytes::Bytes;

use super::testing::Cluster;
use super::{KafkaAppend, KafkaJournal};
use crate::contract::{Subject, suite};
use crate::{Append, EntryKind, NewEntry, Partition, Topic};

fn events() -> Partition {
    Partition { topic: Topic::Events, name: "0".to_owned() }
}

fn bodies() -> Partition {
    Partition { topic: Topic::Bodies, name: "0".to_owned() }
}

/// Appends events with these texts, one by one.
fn send(append: &mut KafkaAppend, texts: impl IntoIterator<Item = String>) {
    let new = |text: String| NewEntry {
        kind: EntryKind::Event,
        header: Bytes::new(),
        value: Bytes::from(text),
    };
    append.append(&texts.into_iter().map(new).collect::<Vec<_>>()).unwrap();
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
