//! The shipper's promises, and the ways in which Kafka, a disk or a process tries to break them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_schemas::body::ChunkHeader;
use custody_schemas::event::Draft;
use custody_schemas::id::StreamId;
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, decode};
use custody_schemas::seal::key::Signer;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::{Resend, ShipStatus, Shipper, marks, resend};
use crate::kafka::testing::{Cluster, eventually, now};
use crate::kafka::{self, KafkaJournal, KafkaSettings, Sasl, Secret};
use crate::writer::AppendError;
use crate::{
    Durability, Entry, EntryKind, Journal, OutBody, Part, Topic, Writer, WriterOptions,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn options(dir: &Path) -> WriterOptions {
    WriterOptions {
        origin: "audit.example".to_owned(),
        segment_bytes: 1 << 20,
        alive_after: Duration::from_secs(3600),
        ..WriterOptions::new(dir, "edge-1")
    }
}

fn open(options: WriterOptions) -> Writer {
    let key = format!("audit.example/{}", options.name);
    Writer::open(options, Signer::from_seed(&key, &[3; 32]).unwrap().0).unwrap().0
}

/// Appends `count` events with a body of `len` bytes each, as many at once as the queue takes;
/// how many were answered with `Ok`.
fn append(writer: &Writer, count: usize, len: usize) -> usize {
    now(async {
        let mut good = 0;
        for some in (0..count).collect::<Vec<_>>().chunks(256) {
            let waiting: Vec<_> = some.iter().map(|_| one(writer, len)).collect();
            for appending in waiting {
                good += usize::from(appending.await.is_ok());
            }
        }
        good
    })
}

fn one(writer: &Writer, len: usize) -> crate::Appending {
    let bytes = Bytes::from((0..len).map(|_| rand::random::<u8>()).collect::<Vec<_>>());
    let body = (len > 0).then_some(OutBody { part: Part::Request, bytes });
    writer.append(Draft::new(Kind::MessageRelayed), body.into_iter().collect())
}

/// Everything that Kafka has of `topic`, partition by partition.
fn arrived(settings: &KafkaSettings, topic: Topic) -> Vec<Vec<Entry>> {
    let journal = KafkaJournal::open(settings).unwrap();
    let partitions = journal.partitions().unwrap().into_iter();
    let read = |partition| {
        let mut reader = journal.reader(&partition, 0).unwrap();
        let (end, mut all) = (reader.end().unwrap(), Vec::new());
        while reader.position() < end {
            all.extend(reader.read(10_000, 64 << 20, Duration::from_millis(200)).unwrap());
        }
        all
    };
    partitions.filter(|partition| partition.topic == topic).map(read).collect()
}

/// What Kafka has, once each event is counted once.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arrived {
    /// How many events of each stream.
    streams: BTreeMap<String, u64>,
    /// How many events came more than once.
    again: u64,
    checkpoints: usize,
}

/// Reads everything and checks it: no event is missing below the last, each stream comes in its
/// order whatever comes twice, equal identities have equal bytes, every body is there.
fn check(settings: &KafkaSettings) -> Arrived {
    let mut found = Arrived::default();
    let mut bodies = BTreeSet::new();
    let mut seen: BTreeMap<(String, u64), Bytes> = BTreeMap::new();
    for entry in arrived(settings, Topic::Events).into_iter().flatten() {
        if entry.kind == EntryKind::Checkpoint {
            found.checkpoints += 1;
            continue;
        }
        let Decoded::Event(event) = decode(&entry.value) else { panic!("not an event") };
        bodies.extend(event.bodies.request.map(|body| (body.body, body.chunks.get())));
        let next = found.streams.entry(event.stream.to_string()).or_default();
        assert!(event.seq.get() <= *next, "{} is before its predecessor", event.seq);
        if event.seq.get() == *next {
            *next += 1;
            seen.insert((event.stream.to_string(), event.seq.get()), entry.value);
        } else {
            found.again += 1;
            assert_eq!(seen[&(event.stream.to_string(), event.seq.get())], entry.value);
        }
    }
    let chunks: BTreeSet<_> = arrived(settings, Topic::Bodies)
        .into_iter()
        .flatten()
        .map(|entry| ChunkHeader::decode(&entry.header).unwrap())
        .map(|header| (header.body, header.index))
        .collect();
    for (body, count) in bodies {
        let whole = (0..count).all(|i| chunks.contains(&(body, u32::try_from(i).unwrap())));
        assert!(whole, "a body is missing");
    }
    found
}

fn events(found: &Arrived) -> u64 {
    found.streams.values().sum()
}

/// Waits until Kafka has acknowledged everything.
fn shipped(shipper: &Shipper) -> ShipStatus {
    eventually("everything is shipped", || shipper.status().unshipped_entries == 0);
    shipper.status()
}

#[test]
fn a_spool_arrives_whole_in_order_and_over_partitions() {
    let settings = Cluster::shared().with_topics(3);
    let dir = tempfile::tempdir().unwrap();
    let writer = open(options(dir.path()));
    append(&writer, 300, 2_000);
    let shipper = Shipper::start(&writer, &settings).unwrap();
    append(&writer, 300, 0);
    append(&writer, 5, 1_200_000);
    now(writer.close()).unwrap();
    let status = shipped(&shipper);
    assert_eq!((status.lost_entries, status.retries, status.problem), (0, 0, None));
    assert!(status.connected && status.oldest_unshipped_at.is_none());
    let found = check(&settings);
    assert_eq!((events(&found), found.again), (607, 0));
    assert!(found.checkpoints > 0);
    let spread = arrived(&settings, Topic::Bodies).iter().filter(|of| !of.is_empty()).count();
    assert_eq!(spread, 3, "bodies lie on every partition");
}
