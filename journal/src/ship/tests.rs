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
use rand::RngCore as _;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::{Resend, ShipStatus, Shipper, marks, resend};
use crate::kafka::testing::{Cluster, eventually, now};
use crate::kafka::{self, KafkaJournal, KafkaSettings, Sasl, Secret};
use crate::writer::AppendError;
use crate::{
    Durability, Entry, EntryKind, Journal, OutBody, Part, ReadError, Topic, Writer, WriterOptions,
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
    let mut bytes = vec![0; len];
    rand::rng().fill_bytes(&mut bytes);
    let body = (len > 0).then(|| OutBody { part: Part::Request, bytes: Bytes::from(bytes) });
    writer.append(Draft::new(Kind::MessageRelayed), body.into_iter().collect())
}

/// Everything that Kafka has of `topic`, partition by partition.
fn arrived(settings: &KafkaSettings, topic: Topic) -> Vec<Vec<Entry>> {
    let mut read = Err(ReadError::Beyond { wanted: 0, end: 0 });
    // a broker that was just restarted may not answer at once
    eventually("Kafka can be read", || {
        read = read_all(settings, topic);
        read.is_ok()
    });
    read.unwrap()
}

fn read_all(settings: &KafkaSettings, topic: Topic) -> Result<Vec<Vec<Entry>>, ReadError> {
    let journal = KafkaJournal::open(settings)?;
    let partitions = journal.partitions()?.into_iter();
    let read = |partition| {
        let mut reader = journal.reader(&partition, 0)?;
        let (end, mut all) = (reader.end()?, Vec::new());
        while reader.position() < end {
            all.extend(reader.read(10_000, 64 << 20, Duration::from_millis(200))?);
        }
        Ok(all)
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

#[test]
fn a_killed_broker_stops_only_what_waits_for_it_and_all_arrives_in_order_afterwards() {
    let cluster = Cluster::start(1, false);
    let settings = cluster.with_topics(2);
    let dir = tempfile::tempdir().unwrap();
    let writer = open(WriterOptions { durability: Durability::Replicated, ..options(dir.path()) });
    let shipper = Shipper::start(&writer, &settings).unwrap();
    let mut acknowledged = append(&writer, 2_000, 500);
    assert_eq!(acknowledged, 2_000);
    let waiting: Vec<_> = (0..3_000).map(|_| one(&writer, 500)).collect();
    cluster.tell("kill", None);
    eventually("it is seen", || !shipper.status().connected);
    let mut late = one(&writer, 0);
    let stored = writer.subscribe().borrow().main;
    eventually("it is on disk", || writer.subscribe().borrow().main > stored);
    let early = async { tokio::time::timeout(Duration::from_millis(100), &mut late).await };
    assert!(now(early).is_err(), "answered although Kafka is dead");
    let status = shipper.status();
    assert!(status.unshipped_entries > 0 && status.oldest_unshipped_at.is_some(), "{status:?}");
    assert!(status.problem.unwrap().contains("`brokers` of [journal]"));
    cluster.tell("restart", None);
    for appending in waiting {
        acknowledged += usize::from(now(appending).is_ok());
    }
    now(late).unwrap();
    now(writer.close()).unwrap();
    let status = shipped(&shipper);
    assert_eq!((status.lost_entries, status.problem), (0, None));
    assert_eq!(acknowledged, 5_000);
    // stream.opened, stream.closed and the late one
    assert_eq!(events(&check(&settings)), 5_003);
}

#[test]
fn a_broker_that_falls_silent_is_noticed_and_nothing_is_lost() {
    let cluster = Cluster::start(1, false);
    let settings = cluster.with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let writer = open(WriterOptions { durability: Durability::Replicated, ..options(dir.path()) });
    let shipper = Shipper::start(&writer, &settings).unwrap();
    append(&writer, 100, 100);
    shipped(&shipper);
    cluster.tell("pause", None);
    let mut late = one(&writer, 0);
    eventually("it is noticed", || !shipper.status().connected);
    let early = async { tokio::time::timeout(Duration::from_millis(100), &mut late).await };
    let answer = now(early);
    assert!(answer.is_err(), "answered although Kafka is silent: {answer:?}");
    let others: Vec<_> = (0..99).map(|_| one(&writer, 100)).collect();
    cluster.tell("resume", None);
    now(late).unwrap();
    assert!(others.into_iter().all(|other| now(other).is_ok()));
    now(writer.close()).unwrap();
    shipped(&shipper);
    assert_eq!(events(&check(&settings)), 202);
}

#[test]
fn one_of_three_brokers_may_die_at_any_time_unless_all_three_must_acknowledge() {
    let cluster = Cluster::start(3, false);
    let settings = cluster.with_topics(3);
    let mut strict = cluster.deployment(1);
    strict.topics.min_in_sync = 3;
    now(kafka::create(&strict)).unwrap();
    let (dir, strict_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let replicated =
        |dir: &Path| WriterOptions { durability: Durability::Replicated, ..options(dir) };
    let (writer, held) = (open(replicated(dir.path())), open(replicated(strict_dir.path())));
    let shipper = Shipper::start(&writer, &settings).unwrap();
    let mut acknowledged = append(&writer, 1_000, 1_000);
    let waiting: Vec<_> = (0..2_000).map(|_| one(&writer, 1_000)).collect();
    cluster.tell("kill", Some(2));
    for appending in waiting {
        acknowledged += usize::from(now(appending).is_ok());
    }
    acknowledged += append(&writer, 500, 70_000);
    assert_eq!(acknowledged, 3_500);
    now(writer.close()).unwrap();
    shipped(&shipper);
    assert_eq!(events(&check(&settings)), 3_502);

    let shipper = Shipper::start(&held, &strict).unwrap();
    let mut appending = one(&held, 100);
    let said = || shipper.status().problem.unwrap_or_default();
    eventually("it is said", || said().contains("2 replicas in sync of the 3"));
    let early = async { tokio::time::timeout(Duration::from_millis(100), &mut appending).await };
    assert!(now(early).is_err(), "answered by two replicas");
    cluster.tell("restart", Some(2));
    now(appending).unwrap();
    assert_eq!(shipped(&shipper).problem, None);
}

#[test]
fn a_process_that_dies_between_acknowledgement_and_mark_sends_again_and_loses_nothing() {
    let settings = Cluster::shared().with_topics(2);
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("edge-1");
    let mark = spool.join("shipped");
    let mut count = 0;
    for found in ["as it was", "none", "damaged", "of a longer spool"] {
        let writer = open(options(dir.path()));
        let shipper = Shipper::start(&writer, &settings).unwrap();
        append(&writer, 50, 100);
        shipped(&shipper);
        eventually("it is marked", || marks::read(&spool).is_some());
        let before = fs::read(&mark).unwrap();
        append(&writer, 500, 100);
        append(&writer, 1, 200_000);
        now(writer.close()).unwrap();
        count += 553;
        shipped(&shipper);
        drop(shipper);
        drop(writer);
        let after = marks::read(&spool).unwrap();
        assert!(after.main > marks::Mark::default().main);
        match found {
            "as it was" => fs::write(&mark, before).unwrap(),
            "none" => fs::remove_file(&mark).unwrap(),
            "damaged" => fs::write(&mark, "custody-shipped-1 7 ").unwrap(),
            _ => {
                let beyond = marks::Mark { main: 1 << 40, bulk: 0 };
                marks::Marks::open(&spool).0.write(beyond).unwrap();
            }
        }
    }
    let writer = open(options(dir.path()));
    let shipper = Shipper::start(&writer, &settings).unwrap();
    now(writer.close()).unwrap();
    shipped(&shipper);
    let found = check(&settings);
    assert_eq!((events(&found), found.streams.len()), (count + 2, 5));
    assert!(found.again > 500, "{found:?}");
}

#[test]
fn a_wrong_password_is_said_and_nothing_counts_as_shipped_until_it_is_right() {
    let cluster = Cluster::start(1, true);
    let right = cluster.with_topics(1);
    let mut wrong = right.clone();
    if let Some(Sasl::ScramSha512(login)) = &mut wrong.sasl {
        login.password = Secret::new("guessed");
    }
    let dir = tempfile::tempdir().unwrap();
    let writer = open(options(dir.path()));
    let shipper = Shipper::start(&writer, &wrong).unwrap();
    assert_eq!(append(&writer, 100, 100), 100, "local appends go on");
    eventually("it is said", || shipper.status().problem.is_some());
    let status = shipper.drain(Duration::from_millis(300));
    assert!(status.problem.unwrap().contains("[journal.sasl]"));
    assert!(!status.connected && status.acknowledged_entries == 0);
    assert!(status.unshipped_entries > 200, "100 events, 100 bodies");
    assert_eq!(marks::read(&dir.path().join("edge-1")), Some(marks::Mark::default()));
    let shipper = Shipper::start(&writer, &right).unwrap();
    now(writer.close()).unwrap();
    shipped(&shipper);
    assert_eq!(events(&check(&right)), 102);
}

#[test]
fn without_a_topic_for_bodies_no_record_with_a_body_arrives() {
    let cluster = Cluster::shared();
    let settings = cluster.with_topics(1);
    cluster.delete(&settings.topic(Topic::Bodies));
    let dir = tempfile::tempdir().unwrap();
    let writer = open(options(dir.path()));
    let shipper = Shipper::start(&writer, &settings).unwrap();
    append(&writer, 10, 100);
    let said = || shipper.status().problem.unwrap_or_default();
    eventually("it is said", || said().contains("`custody topics create`"));
    let journal = KafkaJournal::open(&settings).unwrap();
    let events_topic = crate::Partition { topic: Topic::Events, name: "0".to_owned() };
    let mut reader = journal.reader(&events_topic, 0).unwrap();
    for entry in reader.read(1_000, 1 << 20, Duration::from_millis(500)).unwrap() {
        let Decoded::Event(event) = decode(&entry.value) else { continue };
        assert!(event.bodies.is_empty(), "a record came before its body");
    }
    now(kafka::create(&settings)).unwrap();
    now(writer.close()).unwrap();
    shipped(&shipper);
    assert_eq!(events(&check(&settings)), 12);
}

#[test]
fn a_client_that_gives_up_for_good_is_replaced_and_begins_again_at_the_mark() {
    let mock = MockCluster::new(1).unwrap();
    let mut settings = KafkaSettings::new(mock.bootstrap_servers());
    settings.topics.min_in_sync = 1;
    for topic in [Topic::Events, Topic::Bodies] {
        mock.create_topic(&settings.topic(topic), 1, 1).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let writer = open(options(dir.path()));
    let shipper = Shipper::start(&writer, &settings).unwrap();
    append(&writer, 50, 0);
    shipped(&shipper);
    // what a broker says that has forgotten this producer: fatal to its gapless order
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    mock.request_errors(RDKafkaApiKey::Produce, &[lost]);
    append(&writer, 500, 0);
    now(writer.close()).unwrap();
    let status = shipped(&shipper);
    assert!(status.retries > 0, "{status:?}");
    assert_eq!(events(&check(&settings)), 552);
}

#[test]
fn a_spool_larger_than_all_buffers_arrives_and_leaves_the_disk_when_room_is_short() {
    let settings = Cluster::shared().with_topics(1);
    let nowhere = KafkaSettings::new("127.0.0.1:1");
    let dir = tempfile::tempdir().unwrap();
    let writer = open(WriterOptions { spool_max_bytes: 120 << 20, ..options(dir.path()) });
    let shipper = Shipper::start(&writer, &nowhere).unwrap();
    let mut stored = 0;
    let full = loop {
        match now(one(&writer, 500_000)) {
            Ok(_) => stored += 1,
            Err(full) => break full,
        }
    };
    assert!(matches!(full, AppendError::Full { .. }), "{full}");
    assert!(stored * 500_000 > 96 << 20, "only {stored} were stored");
    let begun = Instant::now();
    let left = shipper.drain(Duration::from_millis(500));
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(left.unshipped_bytes > 96 << 20, "{left:?}");
    let shipper = Shipper::start(&writer, &settings).unwrap();
    shipped(&shipper);
    assert_eq!(append(&writer, 20, 500_000), 20, "what is shipped makes room");
    now(writer.close()).unwrap();
    shipped(&shipper);
    assert_eq!(events(&check(&settings)), stored + 22);
}

#[test]
fn what_an_earlier_writer_left_is_shipped_too() {
    let settings = Cluster::shared().with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let earlier = open(WriterOptions { name: "edge-0".to_owned(), ..options(dir.path()) });
    append(&earlier, 20, 100_000);
    now(earlier.close()).unwrap();
    drop(earlier);
    let writer = open(options(dir.path()));
    let shipper = Shipper::start(&writer, &settings).unwrap();
    now(writer.close()).unwrap();
    let status = shipper.drain(PATIENCE);
    assert_eq!((status.unshipped_entries, status.problem), (0, None));
    let found = check(&settings);
    assert_eq!((found.streams.len(), events(&found)), (2, 24));
}

#[test]
fn what_somebody_removes_before_it_is_shipped_is_counted_and_the_rest_goes_on() {
    let settings = Cluster::shared().with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let writer = open(options(dir.path()));
    append(&writer, 300, 60_000);
    let main = dir.path().join("edge-1/main");
    let mut segments: Vec<_> = fs::read_dir(&main).unwrap().map(|e| e.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
    segments.sort();
    now(writer.close()).unwrap();
    drop(writer);
    fs::remove_file(&segments[segments.len() / 2]).unwrap();
    let writer = open(options(dir.path()));
    let shipper = Shipper::start(&writer, &settings).unwrap();
    let status = shipped(&shipper);
    assert!(status.lost_entries > 0, "{status:?}");
    let last = arrived(&settings, Topic::Events).pop().unwrap().pop().unwrap();
    assert!(last.offset > 200);
}

#[test]
fn a_part_of_a_stream_is_sent_again_while_its_writer_runs() {
    let settings = Cluster::shared().with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let writer =
        open(WriterOptions { checkpoint_after: Duration::from_millis(1), ..options(dir.path()) });
    let shipper = Shipper::start(&writer, &settings).unwrap();
    for _ in 0..10 {
        append(&writer, 9, 1_000);
        append(&writer, 1, 600_000);
    }
    shipped(&shipper);
    eventually("all of it is marked", || {
        marks::read(&dir.path().join("edge-1"))
            .is_some_and(|mark| mark.main == writer.subscribe().borrow().main)
    });
    // a cluster that has nothing of it
    let empty = Cluster::shared().with_topics(1);
    let ask = |stream: StreamId, seqs| Resend {
        dir: dir.path().to_owned(),
        stream,
        seqs,
        patience: PATIENCE,
    };
    let stream = writer.status().stream;
    let resent = resend(&ask(stream.clone(), 21..=60), &empty).unwrap();
    assert_eq!((resent.events, resent.found), (40, Some((21, 60))));
    assert_eq!(resent.chunks, 36 + 4 * 2, "36 small bodies and 4 of two chunks");
    assert!(resent.checkpoints > 0);
    let entries = arrived(&empty, Topic::Events).pop().unwrap();
    let seqs: Vec<_> = entries
        .iter()
        .filter_map(|entry| match decode(&entry.value) {
            Decoded::Event(event) => Some(event.seq.get()),
            Decoded::Identified { .. } | Decoded::Undecodable { .. } => None,
        })
        .collect();
    assert_eq!(seqs, (21..=60).collect::<Vec<_>>());
    assert_eq!(arrived(&empty, Topic::Bodies)[0].len(), 44);
    let nothing = resend(&ask(stream, 5_000..=6_000), &empty).unwrap();
    assert_eq!((nothing.events, nothing.found), (0, None));
    let unknown: StreamId = "edge-9/01890000-0000-7000-8000-000000000000".parse().unwrap();
    let error = resend(&ask(unknown, 0..=1), &empty).unwrap_err().to_string();
    assert!(error.contains("no spool of edge-9"), "{error}");
}
