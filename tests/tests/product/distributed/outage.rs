//! Kafka goes away while calls pass: callers see what the promise says, and everything arrives.

use std::time::Duration;

use custody_tests::cluster::Plan;
use custody_tests::outage;
use custody_tests::services::{Kafka, Store};
use custody_tests::storm::{Storm, UNAVAILABLE};
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_local_calls_go_on_replicated_ones_are_refused_and_all_arrives() {
    // `bench outage` lets it be away for two minutes.
    println!("{}", outage::run(Duration::from_secs(8)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_too_few_replicas_in_sync_replicated_calls_are_refused_until_there_are_enough() {
    let kafka = Kafka::own(&["--brokers", "3"]).unwrap();
    let store = Store::shared().unwrap();
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Plan::new(&kafka, &store).server("s", &upstream.url(), true);
    plan.replicas = (3, 3);
    plan.proxy = "durability = \"replicated\"\naudit_wait_ms = 2000\n".to_owned();
    let cluster = plan.build(folder.path()).unwrap();
    cluster.prepare(&["proxy-1"]).unwrap();
    let proxy = cluster.start("proxy-1").unwrap();
    let storm = Storm::start("call", &[proxy.server("s")], 2, Duration::from_millis(50));
    let count = |code: Option<i64>| match code {
        Some(code) => storm.seen().refused.get(&code).map_or(0, |calls| calls.len()),
        None => storm.seen().answered.len(),
    };
    wait::until("calls", || async { (count(None) >= 5).then_some(()) }).await.unwrap();
    kafka.tell("stop", Some(3)).unwrap();
    wait::until("refusals", || async { (count(Some(UNAVAILABLE)) >= 2).then_some(()) })
        .await
        .unwrap();
    kafka.start().unwrap();
    let before = count(None);
    wait::until("calls again", || async { (count(None) >= before + 5).then_some(()) })
        .await
        .unwrap();
}
