//! What an operator can get wrong: a clear error that says what to do, and nothing lost.

use custody_tests::cluster::{Cluster, Plan};
use custody_tests::http::{post_mcp, send};
use custody_tests::question::number;
use custody_tests::services::{Kafka, Store};
use custody_tests::storm::call;
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use http::Method;

fn said(output: &std::process::Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The command fails, and says each of these.
fn fails(cluster: &Cluster, arguments: &[&str], words: &[&str]) {
    let output = cluster.run(arguments).unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{arguments:?} succeeded: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
}

#[test]
fn wrong_credentials_for_kafka_are_named_without_the_password() {
    let kafka = Kafka::own(&["--sasl"]).unwrap();
    let store = Store::shared().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let right = Plan::new(&kafka, &store).build(folder.path()).unwrap();
    right.prepare(&[]).unwrap();
    let mut wrong = kafka;
    wrong.facts.insert("password".to_owned(), "not-the-password".to_owned());
    let cluster = Plan::new(&wrong, &store).build(folder.path()).unwrap();
    let output = cluster.run(&["topics", "check"]).unwrap();
    let said = said(&output).to_lowercase();
    assert!(!output.status.success() && said.contains("authentication"), "{said}");
    assert!(!said.contains("not-the-password"), "{said}");
}

#[test]
fn topics_that_are_not_there_or_not_right_are_told_with_the_fix() {
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Plan::new(&kafka, &store);
    let cluster = plan.build(folder.path()).unwrap();
    fails(&cluster, &["topics", "check"], &["custody topics create", &plan.prefix]);
    cluster.prepare(&[]).unwrap();
    plan.partitions = 5;
    let cluster = plan.build(folder.path()).unwrap();
    fails(&cluster, &["topics", "check"], &["partitions", "5"]);
    plan.replicas = (3, 2);
    let cluster = plan.build(folder.path()).unwrap();
    fails(&cluster, &["topics", "check"], &["replica"]);
}

#[test]
fn a_bucket_that_is_not_there_and_wrong_credentials_for_it_are_told_apart() {
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::new(&kafka, &Store { bucket: "absent".to_owned(), ..store.clone() });
    let cluster = plan.build(folder.path()).unwrap();
    cluster.prepare(&[]).unwrap();
    let absent = cluster.refused("ingest-1").unwrap();
    assert!(absent.contains("NoSuchBucket") && absent.contains("create \"absent\""), "{absent}");
    let wrong = Store { secret_key: "not-the-secret".to_owned(), ..store };
    let mut other = Plan::new(&kafka, &wrong);
    other.prefix.clone_from(&plan.prefix);
    let cluster = other.build(folder.path()).unwrap();
    let refused = cluster.refused("ingest-2").unwrap();
    assert!(refused.contains("secret_access_key"), "{refused}");
    assert!(!refused.contains("not-the-secret"), "{refused}");
}

#[test]
fn two_deployments_on_one_lake_or_on_one_set_of_topics_are_refused() {
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = Plan::new(&kafka, &store);
    let cluster = first.build(folders[0].path()).unwrap();
    cluster.prepare(&["query-1"]).unwrap();
    let worker = cluster.start("ingest-1").unwrap();
    let query = cluster.start("query-1").unwrap();
    let mut second = Plan::new(&kafka, &store);
    second.lake_path.clone_from(&first.lake_path);
    let cluster = second.build(folders[1].path()).unwrap();
    cluster.prepare(&[]).unwrap();
    let refused = cluster.refused("ingest-1").unwrap();
    assert!(refused.contains(&first.deployment), "{refused}");
    let mut third = Plan::new(&kafka, &store);
    third.prefix.clone_from(&first.prefix);
    let cluster = third.build(folders[1].path()).unwrap();
    fails(&cluster, &["keys", "add", "proxy-1"], &[&first.deployment, "topic_prefix"]);
    drop((worker, query));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_made_anew_is_refused_until_the_epoch_is_raised_and_nothing_stored_is_lost() {
    let (kafka, store) = (Kafka::own(&[]).unwrap(), Store::shared().unwrap());
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Plan::new(&kafka, &store).server("s", &upstream.url(), true);
    plan.partitions = 1;
    let cluster = plan.build(folder.path()).unwrap();
    cluster.prepare(&["proxy-1", "query-1"]).unwrap();
    let mut proxy = cluster.start("proxy-1").unwrap();
    let mut worker = cluster.start("ingest-1").unwrap();
    let mut query = cluster.start("query-1").unwrap();
    for n in 0..10 {
        post_mcp(&proxy.server("s"), call(&format!("before-{n}"))).await.unwrap();
    }
    wait::until("ten calls in the lake", || async {
        let stored =
            "SELECT count(*) FROM events WHERE kind = 'call.ended' AND stored_at IS NOT NULL";
        (number(&query.url, stored).await.ok()? == 10).then_some(())
    })
    .await
    .unwrap();
    assert!(proxy.stop().unwrap() && worker.stop().unwrap() && query.stop().unwrap());

    kafka.tell("wipe", None).unwrap();
    kafka.start().unwrap();
    cluster.prepare(&["proxy-1", "query-1"]).unwrap();
    let worker = cluster.start("ingest-1").unwrap();
    let refused = wait::until("a worker that is not ready and says why", || async {
        let answer = send(Method::GET, &format!("{}/readyz", worker.url), &[], "").await.ok()?;
        (!answer.status.is_success()).then(|| answer.text())
    })
    .await
    .unwrap();
    drop(worker);
    assert!(refused.contains("epoch = 2"), "{refused}");

    plan.journal = "epoch = 2\n".to_owned();
    let cluster = plan.build(folder.path()).unwrap();
    let proxy = cluster.start("proxy-1").unwrap();
    let worker = cluster.start("ingest-1").unwrap();
    let query = cluster.start("query-1").unwrap();
    for n in 0..5 {
        post_mcp(&proxy.server("s"), call(&format!("after-{n}"))).await.unwrap();
    }
    wait::until("old and new calls", || async {
        let both = "SELECT count(*) FROM (SELECT DISTINCT tool FROM calls WHERE status = 'ok' AND tool <> '')";
        (number(&query.url, both).await.ok()? == 15).then_some(())
    })
    .await
    .unwrap();
    drop(worker);
}
