//! Witnesses: what nobody can tell without one, and what everybody can with one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use custody_lake::{Lake, Storage};
use custody_schemas::id::Bytes;
use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::key::Signer;
use custody_schemas::seal::witness::Submission;
use custody_tests::cluster::{Cluster, Plan};
use custody_tests::http::send;
use custody_tests::product::Setup;
use custody_tests::question;
use custody_tests::services::{Kafka, Store};
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::witness::Witness;
use custody_tests::{tools, wait};
use http::Method;
use serde_json::{Value, json};

use crate::verify::{calls, copy, custody, verify};

/// What `custody keys export log` prints.
fn log_key(config: &Path) -> String {
    let config = config.to_str().unwrap();
    let made = custody(&["keys", "init", "-c", config]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let told = custody(&["keys", "export", "log", "-c", config]);
    String::from_utf8(told.stdout).unwrap().trim().to_owned()
}

/// What the second verifier says of the folder `seal` under this policy.
fn second(lake: &Path, policy: &Path) -> (i32, String) {
    let mut command = Command::new(tools::path("second/second"));
    let output = command.arg("-policy").arg(policy).arg("-seal").arg(lake.join("seal")).output();
    let output = output.unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many streams are sealed in the lake below `folder`.
fn sealed(folder: &Path) -> usize {
    let streams = std::fs::read_dir(folder.join("data/lake/seal/streams/edge-1"));
    let streams = streams.into_iter().flatten().flatten();
    streams.filter(|stream| stream.path().join("checkpoint").exists()).count()
}

/// Runs the product once, to its orderly end. Its stream is in the log before: of a run that left
/// nothing there a rollback takes nothing away.
async fn run(setup: &Setup, folder: &Path, name: &str) {
    let before = sealed(folder);
    let mut custody = setup.start(folder).unwrap();
    calls(&custody, name, 3).await;
    let own = || async { (sealed(folder) > before).then_some(()) };
    wait::until("its stream to be sealed", own).await.unwrap();
    assert!(custody.stop().unwrap());
}

/// The Go libraries of transparency.dev open the cosigned note and follow the proof that the log
/// has grown; and they refuse either when a bit of it is another.
async fn strangers_agree(folder: &Path, lake: &Path, before: &str, witness: &Witness, log: &str) {
    let after = witness.head().unwrap();
    let size = |note: &str| note.lines().nth(1).unwrap().parse::<u64>().unwrap();
    let seals = Lake::seals_at(lake.to_str().unwrap(), &Storage::default()).unwrap();
    let proof = seals.consistency("log/", size(before), size(&after)).await.unwrap();
    assert!(!proof.is_empty(), "{} to {}", size(before), size(&after));
    let submission = Submission { old: size(before), proof, note: after.clone() }.encode();
    let referee = |what: &str, text: &str, more: &[&str]| {
        let path = folder.join("judged");
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(tools::path("referee/referee"));
        let output = command.arg(what).args(more).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let judged = folder.join("judged");
    let (judged, known) = (judged.to_str().unwrap(), folder.join("known"));
    std::fs::write(&known, before).unwrap();
    let keys = [judged, log, &witness.vkey];
    let said = referee("cosigned", &after, &keys);
    assert_eq!(said.0, 0, "{}", said.1);
    let other_time = after.replacen("\n\n", "x\n\n", 1);
    assert_eq!(referee("cosigned", &other_time, &keys).0, 1);
    let grown = [known.to_str().unwrap(), judged];
    let said = referee("grown", &submission, &grown);
    assert_eq!(said.0, 0, "{}", said.1);
    let at = submission.find('\n').unwrap() + 3;
    let other = if submission.as_bytes()[at] == b'A' { "B" } else { "A" };
    let mut changed = submission;
    changed.replace_range(at..=at, other);
    assert_eq!(referee("grown", &changed, &grown).0, 1);
}

fn judged(lake: &Path, more: &[&str]) -> (i32, Value) {
    verify(&[&["verify", "--json", "--lake", lake.to_str().unwrap()], more].concat())
}

fn place(verdict: &Value) -> &str {
    verdict["findings"][0]["place"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_of_table_log_and_disk_together_passes_before_all_who_ask_no_witness() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).lake_lines("flush_seconds = 1");
    let (config, data) = setup.write(folder.path()).unwrap();
    let log = log_key(&config);
    let witness = Witness::start(folder.path(), &log, 0).unwrap();
    let policy = witness.policy(folder.path()).unwrap();
    let setup = setup.sections(&format!("[witness]\npolicy = {policy:?}"));
    let (lake, asks) = (data.join("lake"), ["--policy", policy.to_str().unwrap()]);

    run(&setup, folder.path(), "first").await;
    let (code, verdict) = judged(&lake, &asks);
    assert_eq!(code, 0, "{verdict:#}");
    assert_eq!(verdict["witnessed"]["size"], verdict["log_size"], "{verdict:#}");
    assert_eq!(verdict["witnessed"]["by"][0]["witness"], "w1", "{verdict:#}");
    assert_eq!(second(&lake, &policy).0, 0, "{}", second(&lake, &policy).1);
    let (old, before) = (folder.path().join("old"), witness.head().unwrap());
    copy(&data, &old);
    run(&setup, folder.path(), "second").await;
    assert_eq!(judged(&lake, &asks).0, 0);
    strangers_agree(folder.path(), &lake, &before, &witness, &log).await;

    // The operator puts everything back to where it was, and nothing that is left says so.
    std::fs::remove_dir_all(&data).unwrap();
    copy(&old, &data);
    assert_eq!(judged(&lake, &[]).0, 0, "this is what no mathematics can tell alone");
    assert_eq!(judged(&lake, &asks).0, 0, "nor the cosignatures of that time");
    // The witness remembers.
    let remembered = folder.path().join("remembered");
    std::fs::write(&remembered, witness.head().unwrap()).unwrap();
    let (code, verdict) = judged(&lake, &["--head", remembered.to_str().unwrap()]);
    assert_eq!((code, place(&verdict)), (1, "seal/log"), "{verdict:#}");
    let (code, verdict) = judged(&lake, &[&asks[..], &["--ask"]].concat());
    assert_eq!((code, place(&verdict)), (1, "witness w1"), "{verdict:#}");
    // And whoever goes on from there is told at once, and so is everybody who asks.
    let custody = setup.start(folder.path()).unwrap();
    let found = || async {
        let asked = "SELECT json_text(detail, 'finding') AS finding FROM events \
            WHERE kind = 'integrity.failed'";
        custody.sql(asked).await.unwrap().pop()
    };
    let found = wait::until("the rollback to be on the record", found).await.unwrap();
    let finding = found["finding"].as_str().unwrap().to_owned();
    assert!(["rolled_back", "forked"].contains(&finding.as_str()), "{finding}");
    let answer = custody.ask("SELECT 1", "application/json").await.unwrap();
    let said = answer.headers["custody-completeness"].to_str().unwrap().to_owned();
    assert!(said.contains("\"integrity_failures\":1") && said.contains("\"complete\":false"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_that_was_away_catches_up_and_another_one_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).lake_lines("flush_seconds = 1");
    let (config, data) = setup.write(folder.path()).unwrap();
    let (key, lake) = (log_key(&config), data.join("lake"));
    let witness = Witness::start(folder.path(), &key, 0).unwrap();
    let port = witness.url.rsplit(':').next().unwrap().parse().unwrap();
    let policy = witness.policy(folder.path()).unwrap();
    let setup = setup.sections(&format!("[witness]\npolicy = {policy:?}"));
    let asks = ["--policy", policy.to_str().unwrap()];
    drop(witness);
    run(&setup, folder.path(), "away").await;
    let (code, verdict) = judged(&lake, &asks);
    assert_eq!((code, place(&verdict)), (1, "seal/log/witnessed"), "{verdict:#}");
    assert_eq!(judged(&lake, &[]).0, 0, "without a policy nobody asks");
    assert_eq!(second(&lake, &policy).0, 1);
    let witness = Witness::start(folder.path(), &key, port).unwrap();
    run(&setup, folder.path(), "back").await;
    let (code, verdict) = judged(&lake, &asks);
    assert_eq!(code, 0, "{verdict:#}");
    assert_eq!(verdict["witnessed"]["size"], verdict["log_size"], "{verdict:#}");
    // The auditor trusts another witness.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Witness::start(elsewhere.path(), &key, 0).unwrap();
    let others = other.policy(elsewhere.path()).unwrap();
    let (code, verdict) = judged(&lake, &["--policy", others.to_str().unwrap()]);
    assert_eq!((code, place(&verdict)), (1, "seal/log/witnessed"), "{verdict:#}");
    assert_eq!(second(&lake, &others).0, 1);
    drop(witness);
}

/// Lets the witness cosign a log of this size that is none of ours, under the log's own key.
async fn mislead(witness: &Witness, cluster: &Cluster, folder: &Path, size: u64) {
    let made = cluster.run(&["keys", "init"]).unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = std::fs::read_to_string(folder.join("keys/log.key")).unwrap();
    let signer = Signer::parse(&key).unwrap();
    let origin = signer.name().to_owned();
    let note = Checkpoint { origin, size, root: Bytes([7; 32]) }.sign(&signer).unwrap();
    let body = Submission { old: 0, proof: Vec::new(), note }.encode();
    let url = format!("{}/add-checkpoint", witness.url);
    assert_eq!(send(Method::POST, &url, &[], body).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_of_a_cluster_finds_wrong_is_in_sql_and_in_every_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let mut plan = Plan::new(&kafka, &store).server("s", &upstream.url(), true);
    let cluster = plan.build(folder.path()).unwrap();
    cluster.prepare(&["proxy-1", "query-1"]).unwrap();
    let made = cluster.run(&["keys", "init"]).unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = cluster.run(&["keys", "export", "log"]).unwrap();
    let key = String::from_utf8(key.stdout).unwrap();
    let witness = Witness::start(folder.path(), key.trim(), 0).unwrap();
    mislead(&witness, &cluster, folder.path(), 1_000_000).await;
    let policy = witness.policy(folder.path()).unwrap();
    plan.more = format!("[witness]\npolicy = {policy:?}");
    let cluster = plan.build(folder.path()).unwrap();
    let query = cluster.start("query-1").unwrap();
    let (_ingest, proxy) = (cluster.start("ingest-1").unwrap(), cluster.start("proxy-1").unwrap());
    let call = custody_tests::storm::call("one");
    let called = custody_tests::http::post_mcp(&proxy.server("s"), call).await.unwrap();
    assert!(called.status.is_success());
    let found = || async {
        let asked = "SELECT stream, json_text(detail, 'finding') AS finding, \
            json_text(detail, 'witness') AS witness FROM events WHERE kind = 'integrity.failed'";
        question::sql(&query.url, asked).await.unwrap().pop()
    };
    let patience = Duration::from_secs(90);
    let found = wait::within(patience, "the finding to be on the record", found).await.unwrap();
    assert_eq!((&found["finding"], &found["witness"]), (&json!("rolled_back"), &json!("w1")));
    assert!(found["stream"].as_str().unwrap().starts_with("query-1/"), "{found:?}");
    let answer = question::ask(&query.url, json!({"sql": "SELECT 1"}), "application/json").await;
    let said = answer.unwrap().headers["custody-completeness"].to_str().unwrap().to_owned();
    assert!(said.contains("\"integrity_failures\":1"), "{said}");
}
