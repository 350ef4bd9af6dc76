//! Kafka goes away while calls pass: callers see what the promise says, and everything arrives.

use std::time::{Duration, Instant};

use custody_tests::cluster::Plan;
use custody_tests::http::send;
use custody_tests::services::{Kafka, Store};
use custody_tests::storm::Storm;
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use http::Method;

use super::check;

/// A call was not recorded in time and did not run.
const UNAVAILABLE: i64 = 47_001;
/// A call may have run, its ending was not recorded in time.
const UNRECORDED: i64 = 47_002;

/// How long Kafka is away; `CUSTODY_OUTAGE_SECONDS` makes it two minutes where there is time.
fn outage() -> Duration {
    let seconds = std::env::var("CUSTODY_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

async fn ready(url: &str) -> bool {
    let answer = send(Method::GET, &format!("{url}/readyz"), &[], "").await;
    answer.is_ok_and(|answer| answer.status.is_success())
}

/// The value of a metric without labels.
async fn metric(url: &str, name: &str) -> f64 {
    let page = send(Method::GET, &format!("{url}/metrics"), &[], "").await.unwrap().text();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_local_calls_go_on_replicated_ones_are_refused_and_all_arrives() {
    let (kafka, store) = (Kafka::own(&[]).unwrap(), Store::shared().unwrap());
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cluster = Plan::new(&kafka, &store).server("s", &upstream.url(), true);
    let cluster = cluster.build(folder.path()).unwrap();
    cluster.prepare(&["proxy-1", "proxy-2", "query-1"]).unwrap();
    let local = cluster.start("proxy-1").unwrap();
    let mut command = cluster.command("proxy-2").unwrap();
    command.env("CUSTODY__PROXY__DURABILITY", "replicated");
    command.env("CUSTODY__PROXY__AUDIT_WAIT_MS", "2000");
    let replicated = cluster.start_with("proxy-2", command).unwrap();
    let worker = cluster.start("ingest-1").unwrap();
    let query = cluster.start("query-1").unwrap();
    let pause = Duration::from_millis(20);
    let calm = Storm::start("local", &[local.server("s")], 3, pause);
    let strict = Storm::start("replicated", &[replicated.server("s")], 3, pause);
    wait::until("calls through both", || async {
        let both = calm.seen().answered.len().min(strict.seen().answered.len());
        (both >= 20).then_some(())
    })
    .await
    .unwrap();
    assert!(ready(&replicated.url).await && ready(&local.url).await);

    kafka.tell("kill", None).unwrap();
    let gone = Instant::now();
    let before = calm.seen().answered.len();
    wait::until("replicated calls refused and the proxy not ready", || async {
        let refused = strict.seen().refused.contains_key(&UNAVAILABLE);
        (refused && !ready(&replicated.url).await).then_some(())
    })
    .await
    .unwrap();
    wait::until("local calls go on, and the lag shows", || async {
        let more = calm.seen().answered.len() >= before + 50;
        let lag = metric(&local.url, "custody_ship_lag_seconds").await;
        (more && lag >= 2.0 && gone.elapsed() >= outage()).then_some(())
    })
    .await
    .unwrap();
    assert!(ready(&local.url).await, "local calls do not depend on Kafka");
    assert!(metric(&local.url, "custody_ship_unshipped_entries").await > 0.0);

    kafka.start().unwrap();
    wait::until("replicated calls again, and no lag", || async {
        let lag = metric(&local.url, "custody_ship_unshipped_entries").await;
        (ready(&replicated.url).await && lag < 100.0).then_some(())
    })
    .await
    .unwrap();
    let (calm, strict) = (calm.end().await.unwrap(), strict.end().await.unwrap());
    assert!(calm.refused.is_empty() && calm.broken.is_empty(), "{:?}", calm.refused);
    let codes: Vec<_> = strict.refused.keys().copied().collect();
    assert!(codes.iter().all(|code| [UNAVAILABLE, UNRECORDED].contains(code)), "{codes:?}");
    assert!(strict.broken.is_empty(), "a refusal is an answer");
    assert!(strict.slowest < Duration::from_secs(20), "{:?}: it must not hang", strict.slowest);
    println!(
        "away {:?}: {} local calls, {} replicated, refused {:?}",
        gone.elapsed(),
        calm.answered.len(),
        strict.answered.len(),
        strict.refused.iter().map(|(code, calls)| (code, calls.len())).collect::<Vec<_>>()
    );
    check::answered_calls_are_there_once(&query.url, &[&calm, &strict]).await;
    refused_calls_say_so(&query.url, &strict.refused.get(&UNAVAILABLE)).await;
    drop(worker);
}

/// A call that was refused before it ran is on record as not forwarded, or not at all.
async fn refused_calls_say_so(query: &str, refused: &Option<&std::collections::BTreeSet<String>>) {
    let rows = custody_tests::question::sql(query, "SELECT tool, status FROM calls").await;
    for row in rows.unwrap() {
        let tool = row["tool"].as_str().unwrap_or_default();
        if refused.is_some_and(|refused| refused.contains(tool)) {
            assert_eq!(row["status"], "not_forwarded", "{tool} was said not to have run");
        }
    }
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
