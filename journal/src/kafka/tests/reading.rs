//! What readers do when Kafka is away, has deleted something, or holds what is not ours.

use std::time::{Duration, Instant};

use custody_schemas::json::Json;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::{events, send};
use crate::control::{Control, ControlOptions};
use crate::kafka::testing::{Cluster, eventually, now};
use crate::kafka::{
    Group, KafkaAppend, KafkaJournal, KafkaSettings, Login, Membership, Sasl, Secret,
};
use crate::{Entry, EntryKind, Journal, Partition, ReadError, Topic};

const STEP: Duration = Duration::from_secs(10);

fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.value.to_vec()).unwrap()).collect()
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("event {number}")).collect()
}

fn admin(settings: &KafkaSettings) -> AdminClient<DefaultClientContext> {
    settings.client_config(&[], &[]).create().unwrap()
}

/// Sends one message in a transaction, which is committed or not.
fn transact(producer: &BaseProducer, topic: &str, text: &str, commit: bool) {
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::<(), str>::to(topic).payload(text)).unwrap();
    if commit {
        producer.commit_transaction(STEP).unwrap();
    } else {
        producer.flush(STEP).unwrap();
        producer.abort_transaction(STEP).unwrap();
    }
}

#[test]
fn a_message_that_is_not_ours_is_read_as_it_is() {
    let settings = Cluster::shared().with_topics(1);
    let producer: BaseProducer = settings.client_config(&[], &[]).create().unwrap();
    let topic = settings.topic(Topic::Events);
    producer.send(BaseRecord::<(), str>::to(&topic).payload("what is this?")).unwrap();
    producer.send(BaseRecord::<str, str>::to(&topic).key("only a key")).unwrap();
    producer.flush(STEP).unwrap();
    let journal = KafkaJournal::open(&settings).unwrap();
    let entries = journal.reader(&events(), 0).unwrap().read(9, 1000, Duration::ZERO).unwrap();
    assert_eq!(texts(&entries), ["what is this?", ""]);
    assert!(entries.iter().all(|entry| entry.kind == EntryKind::Event));
}

#[test]
fn the_gaps_that_transactions_leave_are_passed_and_what_is_not_committed_is_not_read() {
    let settings = Cluster::shared().with_topics(1);
    let topic = settings.topic(Topic::Events);
    let config = settings.client_config(&[], &[("transactional.id", &topic)]);
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(STEP).unwrap();
    transact(&producer, &topic, "first", true);
    transact(&producer, &topic, "never", false);
    let journal = KafkaJournal::open(&settings).unwrap();
    let mut at_once = journal.reader(&events(), 0).unwrap();
    let mut waiting = journal.reader(&events(), 0).unwrap();
    // the broker marks the end of a transaction after it has said that it is ended
    eventually("both transactions are marked", || at_once.end().unwrap() == 4);
    assert_eq!(texts(&at_once.read(9, 1000, Duration::ZERO).unwrap()), ["first"]);
    assert_eq!(at_once.position(), 4);
    let mut seen = Vec::new();
    eventually("the reader stands at the end", || {
        seen.extend(texts(&waiting.read(9, 1000, Duration::from_millis(50)).unwrap()));
        waiting.position() == 4
    });
    transact(&producer, &topic, "second", true);
    eventually("the third is marked", || at_once.end().unwrap() == 6);
    for reader in [&mut at_once, &mut waiting] {
        assert_eq!(texts(&reader.read(9, 1000, Duration::ZERO).unwrap()), ["second"]);
        assert_eq!(reader.position(), 6);
    }
    assert_eq!(seen, ["first"]);
}

#[test]
fn what_retention_has_deleted_is_reported_with_the_first_offset_that_is_left() {
    let settings = Cluster::shared().with_topics(1);
    send(&mut KafkaAppend::open(&settings).unwrap(), numbered(0..20));
    let journal = KafkaJournal::open(&settings).unwrap();
    let mut behind = journal.reader(&events(), 3).unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&settings.topic(Topic::Events), 0, Offset::Offset(12)).unwrap();
    now(admin(&settings).delete_records(&list, &AdminOptions::new())).unwrap();
    for _ in 0..2 {
        let gone = behind.read(9, 1000, STEP).unwrap_err();
        assert!(matches!(gone, ReadError::Gone { wanted: 3, first: 12 }), "{gone}");
        assert_eq!(behind.position(), 3);
    }
    let refused = journal.reader(&events(), 5).err().unwrap();
    assert!(matches!(refused, ReadError::Gone { wanted: 5, first: 12 }), "{refused}");
    behind.seek(12).unwrap();
    assert_eq!(texts(&behind.read(99, 1000, Duration::ZERO).unwrap()), numbered(12..20));
    assert_eq!(journal.reader(&events(), 0).unwrap().position(), 12);
}

#[test]
fn a_topic_that_is_deleted_or_made_anew_under_a_reader_is_an_error() {
    let settings = Cluster::shared().with_topics(1);
    send(&mut KafkaAppend::open(&settings).unwrap(), numbered(0..20));
    let journal = KafkaJournal::open(&settings).unwrap();
    let mut reader = journal.reader(&events(), 0).unwrap();
    let mut waiting = journal.reader(&events(), 0).unwrap();
    assert_eq!(reader.read(99, 10_000, Duration::ZERO).unwrap().len(), 20);
    assert_eq!(waiting.read(99, 10_000, STEP).unwrap().len(), 20);
    assert_eq!(waiting.read(99, 10_000, Duration::from_millis(500)).unwrap(), []);
    let topic = settings.topic(Topic::Events);
    now(admin(&settings).delete_topics(&[&topic], &AdminOptions::new())).unwrap();
    for reader in [&mut reader, &mut waiting] {
        let mut told = None;
        eventually("the reader says that its partition is gone", || {
            told = reader.read(9, 1000, Duration::from_millis(100)).err();
            told.is_some()
        });
        let told = told.unwrap();
        assert!(matches!(&told, ReadError::NoPartition(gone) if *gone == events()), "{told}");
        assert_eq!(reader.position(), 20);
    }
    let missing = journal.partitions().unwrap_err().to_string();
    assert!(missing.contains(&topic) && missing.contains("custody topics create"), "{missing}");
    now(crate::kafka::create(&settings)).unwrap();
    send(&mut KafkaAppend::open(&settings).unwrap(), numbered(0..3));
    eventually("the reader says that the journal is another", || {
        let read = reader.read(9, 1000, Duration::from_millis(100));
        matches!(read, Err(ReadError::Beyond { wanted: 20, end: 3 }))
    });
    let refused = journal.reader(&events(), 20).err().unwrap();
    assert!(matches!(refused, ReadError::Beyond { wanted: 20, end: 3 }), "{refused}");
}

#[test]
fn a_broker_that_goes_and_comes_back_costs_time_and_no_entry() {
    let cluster = Cluster::start(1, false);
    let settings = cluster.with_topics(1);
    let mut append = KafkaAppend::open(&settings).unwrap();
    send(&mut append, numbered(0..500));
    let journal = KafkaJournal::open(&settings).unwrap();
    let mut reader = journal.reader(&events(), 0).unwrap();
    let mut seen = texts(&reader.read(100, 1_000_000, STEP).unwrap());
    let at = reader.position();
    let group = Group::join(&settings, &Membership::new("ingest")).unwrap();
    let spare = Group::join(&settings, &Membership::new("another")).unwrap();
    let members = [&group, &spare];
    eventually("both members have both", || {
        members.iter().all(|member| member.assigned().borrow().len() == 2)
    });
    cluster.tell("kill", None);
    let away_at = Instant::now();
    let told = reader.end().unwrap_err();
    assert!(matches!(&told, ReadError::Io { .. }) && away_at.elapsed() < STEP, "{told}");
    assert!(told.to_string().contains(&settings.topic(Topic::Events)), "{told}");
    // what was fetched before may still come; then the reader says why nothing does
    let mut told = None;
    eventually("the reader says that Kafka is away", || {
        match reader.read(1000, 1_000_000, Duration::from_millis(100)) {
            Ok(entries) => seen.extend(texts(&entries)),
            Err(error) => told = Some(error),
        }
        told.is_some()
    });
    assert!(matches!(told, Some(ReadError::Io { .. })), "{told:?}");
    assert!(reader.position() >= at && seen.len() as u64 == reader.position());
    eventually("the group says so too", || group.problem().is_some());
    let dropped_at = Instant::now();
    drop((journal.reader(&events(), 0), spare));
    assert!(dropped_at.elapsed() < STEP, "it took {:?}", dropped_at.elapsed());
    cluster.tell("restart", None);
    eventually("Kafka takes entries again", || {
        let mut again = KafkaAppend::open(&settings).unwrap();
        send(&mut again, numbered(500..600));
        true
    });
    eventually("everything has been read", || {
        if let Ok(entries) = reader.read(64, 1_000_000, Duration::from_millis(100)) {
            seen.extend(texts(&entries));
        }
        seen.len() >= 600
    });
    assert_eq!(seen, numbered(0..600));
    assert_eq!(reader.end().unwrap(), 600);
    eventually("the member is back", || {
        group.problem().is_none() && group.assigned().borrow().len() == 2
    });
}

/// The broker that leads the partition of events.
fn leader(settings: &KafkaSettings) -> i32 {
    let topic = settings.topic(Topic::Events);
    let metadata = admin(settings).inner().fetch_metadata(Some(&topic), STEP).unwrap();
    metadata.topics()[0].partitions()[0].leader()
}

#[test]
fn a_leader_that_dies_hands_over_and_the_reader_goes_on_in_order() {
    let cluster = Cluster::start(3, false);
    let settings = cluster.with_topics(1);
    let mut append = KafkaAppend::open(&settings).unwrap();
    send(&mut append, numbered(0..300));
    let journal = KafkaJournal::open(&settings).unwrap();
    let mut reader = journal.reader(&events(), 0).unwrap();
    let mut seen = texts(&reader.read(100, 1_000_000, STEP).unwrap());
    let (dead, mut sent) = (leader(&settings), 300);
    cluster.tell("kill", Some(dead));
    eventually("everything has been read from the next leader", || {
        if sent < 600 {
            send(&mut append, numbered(sent..sent + 100));
            sent += 100;
        }
        if let Ok(entries) = reader.read(64, 1_000_000, Duration::from_millis(100)) {
            seen.extend(texts(&entries));
        }
        seen.len() >= 600
    });
    assert_eq!(seen, numbered(0..600));
    assert_ne!(leader(&settings), dead);
}

#[test]
fn a_partition_is_known_by_its_plain_number_only() {
    let settings = Cluster::shared().with_topics(2);
    let journal = KafkaJournal::open(&settings).unwrap();
    let named = |topic, name: &str| Partition { topic, name: name.to_owned() };
    let all = journal.partitions().unwrap();
    let (events, bodies) = (Topic::Events, Topic::Bodies);
    let expected = [named(events, "0"), named(events, "1"), named(bodies, "0"), named(bodies, "1")];
    assert_eq!(all, expected);
    for name in ["2", "00", "-1", "+1", "", "99999999999"] {
        let refused = journal.reader(&named(events, name), 0).err();
        assert!(matches!(refused, Some(ReadError::NoPartition(_))), "{name}");
    }
    assert!(journal.release(&named(Topic::Control, "0"), 0).is_err());
}

#[test]
fn over_tls_with_a_login_all_works_and_a_wrong_password_is_said() {
    let cluster = Cluster::start(1, true);
    let settings = cluster.with_topics(1);
    send(&mut KafkaAppend::open(&settings).unwrap(), numbered(0..3));
    let journal = KafkaJournal::open(&settings).unwrap();
    let mut reader = journal.reader(&events(), 0).unwrap();
    assert_eq!(texts(&reader.read(9, 1000, Duration::ZERO).unwrap()), numbered(0..3));
    let group = Group::join(&settings, &Membership::new("ingest")).unwrap();
    eventually("the member has both", || group.assigned().borrow().len() == 2);
    let control = Control::connect(&settings, &ControlOptions::new("audit.example")).unwrap();
    control.put("pin/a", Some(Json::from(1u64))).unwrap();
    let Some(Sasl::ScramSha512(login)) = settings.sasl.clone() else { panic!("no login") };
    let login = Login { password: Secret::new("a guess"), ..login };
    let wrong = KafkaSettings { sasl: Some(Sasl::ScramSha512(login)), ..settings };
    let refused = KafkaJournal::open(&wrong).unwrap().partitions().unwrap_err().to_string();
    assert!(refused.contains("[journal.sasl]") && !refused.contains("a guess"), "{refused}");
    let group = Group::join(&wrong, &Membership::new("ingest")).unwrap();
    eventually("the group says why", || {
        group.problem().is_some_and(|problem| problem.contains("[journal.sasl]"))
    });
}
