//! The straight line: a call through the proxy is in SQL, at once, once, as it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_tests::http::post_mcp;
use custody_tests::product::Setup;
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use serde_json::json;

const BUNDLE: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"{\"resourceType\":\"Bundle\",\"type\":\"searchset\",\"entry\":[{\"resource\":{\"resourceType\":\"Patient\",\"id\":\"synthetic-1\"}},{\"resource\":{\"resourceType\":\"Observation\",\"subject\":{\"reference\":\"Patient/synthetic-2\"}}}]}"}],"isError":false}}"#;

/// A call with id 1, as the servers of these tests answer it.
fn call(tool: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
           "params": {"name": tool, "arguments": {}}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_call_is_in_sql_long_before_the_next_commit() {
    let upstream = Upstream::start(Behaviour::Answer(BUNDLE.into())).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Commits come every hour here: what SQL shows can only come from the fresh tail.
    let setup =
        Setup::default().server("ehr", &upstream.url(), true).lake_lines("flush_seconds = 3600");
    let custody = setup.start(folder.path()).unwrap();
    let mut slowest = Duration::ZERO;
    for n in 1..=5 {
        let answer = post_mcp(&custody.server("ehr"), call("search")).await.unwrap();
        assert_eq!(answer.body, Bytes::from(BUNDLE));
        let answered = Instant::now();
        wait::until("the call in SQL", || async {
            let statement = "SELECT count(*) FROM calls WHERE status = 'ok'";
            (custody.number(statement).await.ok()? == i64::from(n)).then_some(())
        })
        .await
        .unwrap();
        slowest = slowest.max(answered.elapsed());
    }
    println!("slowest until visible: {slowest:?}");
    let patients = custody
        .sql("SELECT subject_id, count(*) AS n FROM phi_access GROUP BY 1 ORDER BY 1")
        .await
        .unwrap();
    let expected =
        json!([{"subject_id": "synthetic-1", "n": 5}, {"subject_id": "synthetic-2", "n": 5}]);
    assert_eq!(json!(patients), expected);
}

/// A bundle with these patients, half of them only as the subject of an observation.
fn bundle(patients: &BTreeSet<String>) -> String {
    let entries: Vec<_> = patients
        .iter()
        .enumerate()
        .map(|(i, id)| match i % 2 {
            0 => json!({"resource": {"resourceType": "Patient", "id": id}}),
            _ => json!({"resource": {"resourceType": "Observation",
                "subject": {"reference": format!("Patient/{id}")}}}),
        })
        .collect();
    let bundle = json!({"resourceType": "Bundle", "type": "searchset", "entry": entries});
    let content = json!([{"type": "text", "text": bundle.to_string()}]);
    json!({"jsonrpc": "2.0", "id": 1, "result": {"content": content}}).to_string()
}

/// Every patient in the bytes that a client got, found without any JSON reader.
fn patients_in(bytes: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(bytes);
    let names = text.match_indices("synthetic-").map(|(at, _)| {
        text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect()
    });
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_patients_in_sql_are_those_in_the_bytes_that_the_client_got() {
    let mut upstreams = Vec::new();
    let mut setup = Setup::default();
    for (n, count) in [1, 2, 63, 64, 65, 200, 500].into_iter().enumerate() {
        let patients = (0..count).map(|i| format!("synthetic-{n}-{i}")).collect();
        let answer = Behaviour::Answer(bundle(&patients).into());
        let upstream = Upstream::start(answer).await.unwrap();
        setup = setup.server(&format!("s{n}"), &upstream.url(), true);
        upstreams.push(upstream);
    }
    let folder = tempfile::tempdir().unwrap();
    let custody = setup.start(folder.path()).unwrap();
    for n in 0..upstreams.len() {
        let answer = post_mcp(&custody.server(&format!("s{n}")), call("search")).await.unwrap();
        let statement = format!("SELECT subject_id FROM phi_access WHERE server = 's{n}'");
        let rows = custody.sql(&statement).await.unwrap();
        let told: BTreeSet<String> =
            rows.iter().map(|row| row["subject_id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(told, patients_in(&answer.body), "server s{n}");
        assert_eq!(rows.len(), told.len(), "each once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phi_call_without_a_recognised_patient_is_an_access_too() {
    let answer =
        r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"free text"}]}}"#;
    let upstream = Upstream::start(Behaviour::Answer(answer.into())).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("ehr", &upstream.url(), true);
    let setup = setup.server("weather", &upstream.url(), false);
    let custody = setup.start(folder.path()).unwrap();
    post_mcp(&custody.server("ehr"), call("note")).await.unwrap();
    post_mcp(&custody.server("weather"), call("note")).await.unwrap();
    let rows = custody.sql("SELECT server, subject_id FROM phi_access").await.unwrap();
    assert_eq!(json!(rows), json!([{"server": "ehr", "subject_id": null}]));
    let completeness = custody.sql("SELECT * FROM completeness").await.unwrap();
    assert_eq!(completeness[0]["phi_calls_without_patient"], json!(1), "{completeness:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rows_come_from_the_lake_after_a_stop_and_a_start() {
    let upstream = Upstream::start(Behaviour::Answer(BUNDLE.into())).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("ehr", &upstream.url(), true);
    let mut custody = setup.start(folder.path()).unwrap();
    for _ in 1..=20 {
        post_mcp(&custody.server("ehr"), call("search")).await.unwrap();
    }
    let statement =
        "SELECT call, status, tool, server, request_bytes, response_bytes FROM calls ORDER BY call";
    let fresh = custody.sql(statement).await.unwrap();
    assert_eq!(fresh.len(), 20);
    assert!(custody.stop().unwrap(), "SIGTERM must end it with success");
    let custody = setup.start(folder.path()).unwrap();
    assert_eq!(custody.sql(statement).await.unwrap(), fresh);
    let bodies =
        "SELECT count(*) FROM calls JOIN bodies ON body = response_body WHERE length = 334";
    assert_eq!(
        custody.number(bodies.replace("334", &BUNDLE.len().to_string()).as_str()).await.unwrap(),
        20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_is_a_call_in_the_audit() {
    let folder = tempfile::tempdir().unwrap();
    let custody = Setup::default().start(folder.path()).unwrap();
    custody.sql("SELECT 41 + 1 AS answer").await.unwrap();
    assert!(custody.sql("SELECT nonsense").await.is_err());
    let rows = wait::until("both questions ended", || async {
        let rows = custody.sql("SELECT status FROM queries WHERE request NOT LIKE '%FROM queries%' AND (request LIKE '%SELECT 41 + 1%' OR request LIKE '%SELECT nonsense%') ORDER BY at").await.ok()?;
        (rows.len() == 2 && rows.iter().all(|r| r["status"] != json!("in_flight"))).then_some(rows)
    })
    .await
    .unwrap();
    assert_eq!(rows[0]["status"], json!("ok"));
    assert_ne!(rows[1]["status"], json!("ok"));
}
