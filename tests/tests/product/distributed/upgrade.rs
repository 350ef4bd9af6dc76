//! What a later version, a stranger or a clock that is wrong has put into the journal: stored,
//! readable, and in nobody's way.

use bytes::Bytes;
use custody_journal::kafka::{KafkaAppend, KafkaSettings, Topics};
use custody_journal::{Append, EntryKind, NewEntry};
use custody_tests::cluster::Plan;
use custody_tests::http::post_mcp;
use custody_tests::question::{number, sql};
use custody_tests::services::{Kafka, Store};
use custody_tests::storm::call;
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use serde_json::{Value, json};

const DAY_US: u64 = 86_400_000_000;

fn entry(value: impl Into<Bytes>) -> NewEntry {
    NewEntry { kind: EntryKind::Event, header: Bytes::new(), value: value.into() }
}

/// A record of ours as another writer would have written it at `seq`; serde_json sorts the keys.
fn as_of(record: &Value, writer: &str, seq: u64, change: Value) -> Bytes {
    let mut record = record.clone();
    let stream = record["stream"].as_str().unwrap().to_owned();
    let run = stream.rsplit_once('/').unwrap().1;
    record["stream"] = json!(format!("{writer}/{run}"));
    record["seq"] = json!(seq);
    let changes = change.as_object().unwrap().clone();
    record.as_object_mut().unwrap().extend(changes);
    record.to_string().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn later_versions_strangers_and_wrong_clocks_are_stored_and_readable() {
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::new(&kafka, &store).server("s", &upstream.url(), true);
    let cluster = plan.build(folder.path()).unwrap();
    cluster.prepare(&["proxy-1", "query-1"]).unwrap();
    // Only a worker makes the lake.
    assert!(cluster.start("ingest-1").unwrap().stop().unwrap());
    let proxy = cluster.start("proxy-1").unwrap();
    let query = cluster.start("query-1").unwrap();
    post_mcp(&proxy.server("s"), call("first")).await.unwrap();
    let opening = "SELECT record FROM events WHERE kind = 'call.requested'";
    let record = wait::until("the call in SQL", || async {
        let rows = sql(&query.url, opening).await.ok()?;
        serde_json::from_str::<Value>(rows.first()?["record"].as_str()?).ok()
    })
    .await
    .unwrap();

    let topics = Topics { prefix: Some(plan.prefix.clone()), ..Topics::default() };
    let settings = KafkaSettings { topics, ..KafkaSettings::new(&kafka.bootstrap) };
    let mut journal = KafkaAppend::open(&settings).unwrap();
    let at = record["at"].as_u64().unwrap();
    let entries = [
        entry(as_of(&record, "later", 0, json!({"weather": {"sky": "grey"}, "call": null}))),
        entry(as_of(&record, "later", 1, json!({"kind": "call.paused"}))),
        entry(as_of(&record, "fast", 0, json!({"kind": "note", "at": at + 40 * DAY_US}))),
        entry(as_of(&record, "slow", 0, json!({"kind": "note", "at": at - 40 * DAY_US}))),
        entry("this is not ours"),
    ];
    journal.append(&entries).unwrap();
    // Before and after it went into the lake.
    let worker = cluster.start("ingest-1");
    for _ in 0..2 {
        wait::until("five entries more", || async {
            let ours = "SELECT count(*) FROM events WHERE stream LIKE 'later/%' OR stream LIKE 'fast/%' OR stream LIKE 'slow/%' OR kind IS NULL AND entry = 'undecodable'";
            (number(&query.url, ours).await.ok()? == 5).then_some(())
        })
        .await
        .unwrap();
        let kinds = "SELECT stream, seq, kind, at, record FROM events WHERE stream LIKE 'later/%' ORDER BY seq";
        let later = sql(&query.url, kinds).await.unwrap();
        assert!(later[0]["record"].as_str().unwrap().contains("\"sky\":\"grey\""), "{later:?}");
        assert_eq!(later[1]["kind"], "call.paused", "{later:?}");
        let quarantine = sql(&query.url, "SELECT * FROM quarantine").await.unwrap();
        assert_eq!(quarantine.len(), 1, "only what is not ours: {quarantine:?}");
        let stored = "SELECT count(*) FROM events WHERE stored_at IS NULL AND (stream LIKE 'later/%' OR stream LIKE 'fast/%' OR stream LIKE 'slow/%' OR entry = 'undecodable')";
        wait::until("all of it in the lake", || async {
            (number(&query.url, stored).await.ok()? == 0).then_some(())
        })
        .await
        .unwrap();
    }
    drop(worker);
}
