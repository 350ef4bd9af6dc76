//! Control state on a real Kafka: several processes, at once, killed, alone, and somebody else's.

use std::time::Duration;

use custody_schemas::json::Json;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::{Control, ControlError, ControlOptions, DEPLOYMENT};
use crate::Topic;
use crate::kafka::KafkaSettings;
use crate::kafka::testing::{Cluster, eventually};
use crate::keys::{Keys, KeysError};

const OURS: &str = "audit.example";

fn options() -> ControlOptions {
    ControlOptions::new(OURS)
}

fn connect(settings: &KafkaSettings) -> Control {
    Control::connect(settings, &options()).unwrap()
}

#[test]
fn what_one_process_sets_all_have_and_a_new_one_finds() {
    let settings = Cluster::shared().with_topics(1);
    let (one, other) = (connect(&settings), connect(&settings));
    let mut changed = other.changed();
    for i in 0..5u64 {
        one.put("pin/a", Some(Json::from(i))).unwrap();
        assert_eq!(one.get("pin/a"), Some(Json::from(i)));
    }
    one.put("pin/b", Some(Json::from("x"))).unwrap();
    one.put("pin/a", None).unwrap();
    eventually("the other process has it", || {
        let state = other.state();
        state.get("pin/a").is_none() && state.get("pin/b") == Some(&Json::from("x"))
    });
    assert!(changed.has_changed().unwrap());
    assert_eq!(changed.borrow_and_update().get("pin/b"), Some(&Json::from("x")));
    let late = connect(&settings).state();
    assert_eq!(late.entries("pin/").collect::<Vec<_>>(), [("pin/b", &Json::from("x"))]);
    assert_eq!(late.get(DEPLOYMENT), Some(&Json::from(OURS)));
}

#[test]
fn processes_that_enrol_themselves_at_once_are_all_on_the_keyring() {
    let settings = Cluster::shared().with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let names = ["edge-1", "edge-2", "edge-3"];
    std::thread::scope(|scope| {
        for name in names {
            let (settings, dir) = (&settings, dir.path());
            scope.spawn(move || {
                let keys = Keys::new(dir.join("keys"), OURS);
                let control = Control::connect(settings, &options()).unwrap();
                keys.enrol(&control, &keys.writer(name).unwrap()).unwrap();
            });
        }
    });
    let keys = Keys::new(dir.path().join("keys"), OURS);
    let ring = keys.ring(&connect(&settings)).unwrap().unwrap();
    let mut listed: Vec<_> = ring.writers.iter().map(|writer| writer.name.as_str()).collect();
    listed.sort_unstable();
    assert_eq!((listed.as_slice(), ring.edition), (&names[..], 3));
}

#[test]
fn a_process_without_the_root_key_starts_when_its_writer_is_enrolled() {
    let settings = Cluster::shared().with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let (office, host) = (dir.path().join("office"), dir.path().join("host"));
    let (office, host) = (Keys::new(office, OURS), Keys::new(host, OURS));
    let control = connect(&settings);
    let writer = host.writer("edge-1").unwrap();
    let refused = host.admit(&control, &writer).unwrap_err().to_string();
    let command = format!("custody keys add edge-1 --vkey {}", writer.vkey());
    assert!(refused.contains(&command), "{refused}");
    office.enrol(&control, &office.writer("office").unwrap()).unwrap();
    assert!(matches!(host.admit(&control, &writer), Err(KeysError::NotEnrolled { .. })));
    office.add(&control, "edge-1", writer.vkey()).unwrap();
    let ring = host.admit(&control, &writer).unwrap();
    assert_eq!((ring.edition, ring.writers.len()), (2, 2));
    // another key of the same name is not the enrolled one
    let thief = Keys::new(dir.path().join("thief"), OURS);
    let stolen = thief.writer("edge-1").unwrap();
    assert!(matches!(thief.admit(&control, &stolen), Err(KeysError::NotEnrolled { .. })));
}

#[test]
fn a_keyring_of_another_root_is_refused_by_whoever_has_seen_the_first() {
    let settings = Cluster::shared().with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let (office, host) = (dir.path().join("office"), dir.path().join("host"));
    let (office, host) = (Keys::new(office, OURS), Keys::new(host, OURS));
    let control = connect(&settings);
    let writer = host.writer("edge-1").unwrap();
    office.add(&control, "edge-1", writer.vkey()).unwrap();
    host.admit(&control, &writer).unwrap();
    let thief = Keys::new(dir.path().join("thief"), OURS);
    let refused = thief.add(&control, "edge-1", writer.vkey()).unwrap_err();
    assert!(matches!(refused, KeysError::Keyring(_)), "{refused}");
    control.put(crate::keys::KEYRING, None).unwrap();
    thief.add(&control, "edge-1", writer.vkey()).unwrap();
    let refused = host.admit(&control, &writer).unwrap_err();
    assert!(matches!(refused, KeysError::Keyring(_)), "{refused}");
}

#[test]
fn the_topics_of_another_deployment_are_refused() {
    let settings = Cluster::shared().with_topics(1);
    let first = connect(&settings);
    let refused = Control::connect(&settings, &ControlOptions::new("other.example")).unwrap_err();
    assert!(matches!(&refused, ControlError::Deployment { found, .. } if found == OURS));
    assert!(refused.to_string().contains("topic_prefix"), "{refused}");
    assert_eq!(first.get(DEPLOYMENT), Some(Json::from(OURS)));
}

#[test]
fn a_change_that_was_killed_in_the_middle_stops_nobody() {
    let settings = Cluster::shared().with_topics(1);
    let control = connect(&settings);
    let topic = settings.topic(Topic::Control);
    let id = format!("{topic}.change");
    let killed: BaseProducer =
        settings.client_config(&[], &[("transactional.id", &id)]).create().unwrap();
    killed.init_transactions(Duration::from_secs(10)).unwrap();
    killed.begin_transaction().unwrap();
    killed.send(BaseRecord::to(&topic).key("pin/a").payload("1")).unwrap();
    killed.flush(Duration::from_secs(10)).unwrap();
    control.put("pin/b", Some(Json::from(2u64))).unwrap();
    assert_eq!((control.get("pin/a"), control.get("pin/b")), (None, Some(Json::from(2u64))));
    // it has been overtaken, and can no longer commit
    assert!(killed.commit_transaction(Duration::from_secs(10)).is_err());
}

#[test]
fn an_entry_that_is_not_ours_is_named_and_changes_nothing() {
    let settings = Cluster::shared().with_topics(1);
    let control = connect(&settings);
    control.put("pin/a", Some(Json::from(1u64))).unwrap();
    let producer: BaseProducer = settings.client_config(&[], &[]).create().unwrap();
    let topic = settings.topic(Topic::Control);
    producer.send(BaseRecord::to(&topic).key("pin/a").payload("no JSON")).unwrap();
    producer.flush(Duration::from_secs(10)).unwrap();
    eventually("the follower says so", || control.problem().is_some());
    assert_eq!(control.get("pin/a"), Some(Json::from(1u64)));
    let refused = Control::connect(&settings, &options()).unwrap_err();
    assert!(matches!(refused, ControlError::Entry { .. }));
    assert!(refused.to_string().contains("\"pin/a\""), "{refused}");
    producer.send(BaseRecord::<str, str>::to(&topic).key("pin/a")).unwrap();
    producer.flush(Duration::from_secs(10)).unwrap();
    assert_eq!(connect(&settings).get("pin/a"), None);
}

#[test]
fn a_process_with_a_copy_starts_while_kafka_is_away_and_one_without_does_not() {
    let cluster = Cluster::start(1, false);
    let settings = cluster.with_topics(1);
    let dir = tempfile::tempdir().unwrap();
    let wait = Duration::from_millis(10);
    let copy =
        ControlOptions { copy: Some(dir.path().join("data/control.copy")), wait, ..options() };
    let first = Control::connect(&settings, &copy).unwrap();
    first.put("pin/a", Some(Json::from("kept"))).unwrap();
    drop(first);
    cluster.tell("kill", None);
    let alone = ControlOptions { wait, ..options() };
    let refused = Control::connect(&settings, &alone).unwrap_err();
    assert!(matches!(refused, ControlError::Read(_)), "{refused}");
    let started = Control::connect(&settings, &copy).unwrap();
    assert_eq!(started.get("pin/a"), Some(Json::from("kept")));
    assert!(started.problem().is_some_and(|problem| problem.contains("copy")));
    cluster.tell("restart", None);
    eventually("it follows the topic", || started.problem().is_none());
    started.put("pin/a", Some(Json::from("changed"))).unwrap();
    assert_eq!(started.get("pin/a"), Some(Json::from("changed")));
}
