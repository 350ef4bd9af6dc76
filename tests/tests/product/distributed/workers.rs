//! Ingest workers come, go, die and stand still while calls pass: no row twice, none missing.

use std::time::Duration;

use custody_tests::check;
use custody_tests::cluster::{Plan, Role};
use custody_tests::question::sql;
use custody_tests::services::{Kafka, Store};
use custody_tests::storm::Storm;
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use serde_json::Value;

/// A worker that is silent for so long loses its partitions.
const SESSION_MS: u32 = 3_000;

/// Waits until everything that is now in the journal is in the lake, by whichever worker: the
/// oldest event that SQL still takes from the tail is younger than this moment.
async fn stored_from_now_on(query: &Role) {
    let newest = "SELECT max(at) AS at FROM events WHERE entry = 'event'";
    let at = sql(&query.url, newest).await.unwrap()[0]["at"].clone();
    let Value::String(at) = at else { panic!("no event yet: {at}") };
    let statement = format!(
        "SELECT count(*) AS n FROM events WHERE stored_at IS NULL AND at <= TIMESTAMP '{at}'"
    );
    wait::until("what was in the journal is in the lake", || async {
        let rows = sql(&query.url, &statement).await.ok()?;
        (rows[0]["n"].as_i64() == Some(0)).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_added_and_paused_store_every_row_once() {
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Plan::new(&kafka, &store).server("s", &upstream.url(), true);
    plan.options = format!("\"session.timeout.ms\" = {SESSION_MS}\n");
    let cluster = plan.build(folder.path()).unwrap();
    cluster.prepare(&["proxy-1", "query-1"]).unwrap();
    let proxy = cluster.start("proxy-1").unwrap();
    let query = cluster.start("query-1").unwrap();
    let mut first = cluster.start("ingest-1").unwrap();
    let second = cluster.start("ingest-2").unwrap();
    let storm = Storm::start("tool", &[proxy.server("s")], 4, Duration::from_millis(5));
    let some = |n: usize| {
        let seen = &storm;
        wait::until("calls answered", move || async move {
            (seen.seen().answered.len() >= n).then_some(())
        })
    };
    some(50).await.unwrap();
    first.kill().unwrap();
    let third = cluster.start("ingest-3").unwrap();
    stored_from_now_on(&query).await;
    second.signal("STOP").unwrap();
    stored_from_now_on(&query).await;
    second.signal("CONT").unwrap();
    let fourth = cluster.start("ingest-1").unwrap();
    stored_from_now_on(&query).await;
    let seen = storm.end().await.unwrap();
    assert!(seen.refused.is_empty() && seen.broken.is_empty(), "workers are no caller's concern");
    stored_from_now_on(&query).await;
    check::answered_calls_are_there_once(&query.url, &[&seen], wait::PATIENCE).await.unwrap();
    println!("{} calls while workers came and went", seen.answered.len());
    drop((second, third, fourth));
}
