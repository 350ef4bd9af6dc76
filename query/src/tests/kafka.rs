//! Nodes over a real Kafka: what the spool holds is shipped there, and every node reads it for
//! itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use custody_journal::kafka::{KafkaJournal, KafkaSettings, Topics};
use custody_journal::ship::Shipper;
use custody_journal::{Journal, Topic};
use custody_schemas::words::Status;
use serde_json::{Value, json};

use crate::access::Asker;
use crate::testing::{Deployment, call, json, lines};
use crate::{Engine, Params, Question};

/// A broker of this test's own, which ends with it.
struct Broker {
    folder: tempfile::TempDir,
    bootstrap: String,
}

impl Broker {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let said = local("start", folder.path(), &["--parent", &std::process::id().to_string()]);
        let bootstrap = said.lines().find_map(|line| line.strip_prefix("bootstrap="));
        let bootstrap = bootstrap.expect("the script says where it is").to_owned();
        Self { folder, bootstrap }
    }

    fn be(&self, verb: &str) {
        local(verb, self.folder.path(), &[]);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        local("stop", self.folder.path(), &[]);
    }
}

fn local(verb: &str, folder: &Path, more: &[&str]) -> String {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "compose", "local"].iter().collect();
    let run = Command::new(script).args(["kafka", verb]).arg(folder).args(more).output().unwrap();
    assert!(run.status.success(), "{verb}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

const ROWS: &str = "SELECT stream, seq, kind, call, user_subject, subject_count, journal_partition, \
    journal_offset FROM events ORDER BY journal_partition, journal_offset";
const CALLS: &str = "SELECT count(*) AS n FROM calls WHERE status = 'ok'";

async fn node(deployment: &Deployment, settings: &KafkaSettings) -> Arc<Engine> {
    let mut options = deployment.options();
    options.cluster = "main".to_owned();
    let journal = Arc::new(KafkaJournal::open(settings).unwrap());
    deployment.engine_over(journal, options).await
}

async fn until_calls(engine: &Arc<Engine>, n: u64) {
    let until = Instant::now() + Duration::from_secs(30);
    while lines(engine, CALLS).await != [json!({ "n": n })] {
        assert!(Instant::now() < until, "not {n} calls: {:?}", lines(engine, CALLS).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn at(engine: &Arc<Engine>, cut: &str) -> Vec<Value> {
    let question = Question { cut: Some(cut.to_owned()), ..Question::sql(ROWS, Params::None) };
    let mut answer = engine.ask(&Asker::anonymous(), question).await.unwrap();
    let mut rows = Vec::new();
    while let Some(batch) = answer.next().await {
        rows.extend(json(&batch.unwrap()));
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_over_kafka_give_the_same_answer_at_a_cut_and_say_when_it_is_away() {
    let broker = Broker::start();
    let mut settings = KafkaSettings::new(&broker.bootstrap);
    settings.topics = Topics { partitions: 3, replication: 1, min_in_sync: 1, ..Topics::default() };
    custody_journal::kafka::create(&settings).await.unwrap();
    let deployment = Deployment::new().await;
    let shipper = Shipper::start(&deployment.writer, &settings).unwrap();
    let first = node(&deployment, &settings).await;
    for _ in 0..20 {
        deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    }
    until_calls(&first, 20).await;
    let cut = first.completeness().await.unwrap().cut;
    let expected = at(&first, &cut).await;
    assert!(expected.len() > 40, "{}", expected.len());
    for _ in 0..20 {
        deployment.run(&call("bob", "read", &["p2"]), Status::Ok).await;
    }
    until_calls(&first, 40).await;
    // One table holds some of it, in files that go beyond the cut; the other node begins there.
    let journal = KafkaJournal::open(&settings).unwrap();
    for partition in journal.partitions().unwrap() {
        let end = journal.reader(&partition, 0).unwrap().end().unwrap();
        let up_to = if partition.topic == Topic::Events { end * 3 / 4 } else { end };
        deployment.carry_from(&journal, "main", &partition, up_to).await;
    }
    let second = node(&deployment, &settings).await;
    assert_eq!(at(&second, &cut).await, expected);
    assert_eq!(at(&first, &cut).await, expected);
    until_calls(&second, 40).await;

    broker.be("pause");
    let asked = Instant::now();
    assert_eq!(lines(&second, CALLS).await, [json!({ "n": 40 })], "what was read is there");
    let away = second.completeness().await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(away.unheard_since.is_some() && !away.is_complete(), "{}", away.line());
    deployment.run(&call("cy", "read", &["p3"]), Status::Ok).await;
    broker.be("resume");
    until_calls(&second, 41).await;
    until_calls(&first, 41).await;
    let back = second.completeness().await.unwrap();
    assert!(back.unheard_since.is_none() && back.gaps == 0, "{}", back.line());
    tokio::task::spawn_blocking(move || shipper.drain(Duration::from_secs(5))).await.unwrap();
}
