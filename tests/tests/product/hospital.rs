//! Everybody whose data passes is on record: in a hospital of other people's making, and when one
//! message is about thousands.

use std::path::Path;
use std::process::Command;

use custody_tests::http::post_mcp;
use custody_tests::product::{Custody, Setup, executable};
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use serde_json::{Value, json};

use crate::clients::cache;

/// `tests/hospital` says what is compared with what; the long run is its `run.py` by hand.
#[test]
fn who_appears_in_a_body_is_on_record_for_that_call_and_nobody_else() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("hospital");
    let installed = cache().join("hospital/data");
    assert!(installed.exists(), "{} is missing: run tests/tools.sh", installed.display());
    let mut command = Command::new("python3");
    command.arg(folder.join("run.py")).arg("--custody").arg(executable().unwrap());
    command.args(["--patients", "4", "--each", "25", "--rounds", "4"]);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let figures: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{told}"));
    assert!(output.status.success(), "{figures} {told}");
    assert_eq!(figures["wrong"], 0, "{told}");
    assert_eq!(figures["patients"], 4);
    assert!(figures["right"].as_u64() > Some(60), "{figures}");
}

/// A Bundle of made-up patients.
fn bundle(people: usize) -> Value {
    let patient = |n| {
        json!({"resource": {"resourceType": "Patient", "id": format!("synthetic-{n:05}"),
            "identifier": [{"system": "urn:oid:1.2.3", "value": format!("M{n}")}]}})
    };
    let entry: Vec<Value> = (0..people).map(patient).collect();
    json!({"resourceType": "Bundle", "type": "searchset", "entry": entry})
}

/// The answer to a question, as soon as the service gives answers.
async fn number(custody: &Custody, statement: &str) -> i64 {
    wait::until("an answer", || async { custody.number(statement).await.ok() }).await.unwrap()
}

/// How many different people there are in the accesses of this kind of message.
async fn people(custody: &Custody, status: &str) -> i64 {
    let statement = format!(
        "SELECT count(DISTINCT subject_id) FROM phi_access \
         WHERE status = '{status}' AND array_has(aliases, concat('urn:oid:1.2.3|M', \
           CAST(CAST(substr(subject_id, 11) AS INT) AS VARCHAR)))"
    );
    number(custody, &statement).await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_patients_of_one_answer_are_on_record_also_after_a_power_cut() {
    let text = bundle(5_000).to_string();
    let answer = json!({"jsonrpc": "2.0", "id": 1,
        "result": {"content": [{"type": "text", "text": text}]}});
    let upstream = Upstream::start(Behaviour::Answer(answer.to_string().into())).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("ehr", &upstream.url(), true);
    let setup = setup.proxy_lines("audit_wait_ms = 20000");
    let mut custody = setup.start(folder.path()).unwrap();
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "search", "arguments": {}}});
    let passed = post_mcp(&custody.server("ehr"), call.to_string()).await.unwrap();
    assert_eq!(passed.body, answer.to_string().as_bytes(), "{}", passed.status);
    custody.kill().unwrap();
    let custody = setup.start(folder.path()).unwrap();
    assert_eq!(people(&custody, "ok").await, 5_000);
    let rows = "SELECT count(*) FROM phi_access WHERE status = 'ok'";
    assert_eq!(number(&custody, rows).await, 5_000, "each once");
    let count = "SELECT subject_count FROM calls WHERE status = 'ok'";
    assert_eq!(number(&custody, count).await, 5_000);
    let most = "SELECT max(cardinality(subjects)) FROM events WHERE kind = 'subjects.listed'";
    assert!((1..=256).contains(&number(&custody, most).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn people_in_a_notification_are_on_record_however_many_they_are() {
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("ehr", &upstream.url(), true);
    let custody = setup.start(folder.path()).unwrap();
    let said = json!({"jsonrpc": "2.0", "method": "notifications/message",
        "params": {"level": "info", "data": bundle(700)}});
    post_mcp(&custody.server("ehr"), said.to_string()).await.unwrap();
    assert_eq!(people(&custody, "relayed").await, 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_examined_is_on_record_with_its_reason() {
    let answer = json!({"jsonrpc": "2.0", "id": 1, "result": {"content": [
        {"type": "image", "data": "AAAA", "mimeType": "image/png"}]}});
    let upstream = Upstream::start(Behaviour::Answer(answer.to_string().into())).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("scans", &upstream.url(), true);
    let custody = setup.start(folder.path()).unwrap();
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "picture", "arguments": {}}});
    post_mcp(&custody.server("scans"), call.to_string()).await.unwrap();
    let rows = "SELECT count(*) FROM phi_access WHERE subject_id IS NULL \
        AND subject_status = 'not_examined'";
    assert_eq!(number(&custody, rows).await, 1);
    let why = "SELECT json_text(detail, 'not_examined') AS why FROM events \
        WHERE kind = 'call.ended'";
    let rows = custody.sql(why).await.unwrap();
    assert_eq!(rows[0]["why"], "[\"image\"]");
}
