//! One workload through one process and through a cluster: the same rows, and from every query
//! node the same answer at the same cut.

use custody_tests::cluster::Plan;
use custody_tests::http::post_mcp;
use custody_tests::product::Setup;
use custody_tests::question::{Row, ask, number, rows, sql};
use custody_tests::services::{Kafka, Store};
use custody_tests::storm::call;
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use serde_json::{Value, json};

const BUNDLE: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"{\"resourceType\":\"Bundle\",\"type\":\"searchset\",\"entry\":[{\"resource\":{\"resourceType\":\"Patient\",\"id\":\"synthetic-1\"}},{\"resource\":{\"resourceType\":\"Observation\",\"subject\":{\"reference\":\"Patient/synthetic-2\"}}}]}"}],"isError":false}}"#;

/// Where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1/mcp";

/// What is new in every run: ids and times, and who wrote which call.
const OWN: [&str; 13] = [
    "call",
    "at",
    "ended_at",
    "duration_us",
    "session",
    "request_body",
    "response_body",
    "edits_body",
    "stream",
    "seq",
    "ended_stream",
    "ended_seq",
    "policy_version",
];

/// The rows without what is new in every run, in an order that does not depend on it.
fn comparable(rows: Vec<Row>) -> Vec<String> {
    let without = |mut row: Row| {
        OWN.iter().for_each(|column| drop(row.remove(*column)));
        Value::Object(row).to_string()
    };
    let mut lines: Vec<_> = rows.into_iter().map(without).collect();
    lines.sort();
    lines
}

/// What a client sends: good calls, a refused one, one that fails, and strange texts.
async fn workload(url: impl Fn(usize, &str) -> String) {
    for n in 0..12 {
        let answer = post_mcp(&url(n, "ehr"), call(&format!("search-{n}"))).await.unwrap();
        assert_eq!(answer.text(), BUNDLE);
        post_mcp(&url(n, "plain"), call(&format!("größe \"{n}\" \u{1F9EA}"))).await.unwrap();
    }
    for n in 0..2 {
        post_mcp(&url(n, "broken"), call("never-answered")).await.unwrap();
        let twins = r#"{"jsonrpc":"2.0","id":7,"id":8,"method":"tools/call","params":{}}"#;
        post_mcp(&url(n, "ehr"), twins).await.unwrap();
        let big = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                         "params": {"name": "big", "arguments": {"a": "x".repeat(700_000)}}});
        post_mcp(&url(n, "plain"), big.to_string()).await.unwrap();
    }
}

/// What SQL shows of it at `query`, once every call has ended.
async fn shown(query: &str) -> Vec<(String, Vec<String>)> {
    const CALLS: i64 = 30;
    wait::until("every call ended", || async {
        let ended = "SELECT count(*) FROM calls WHERE status NOT IN ('in_flight')";
        (number(query, ended).await.ok()? == CALLS).then_some(())
    })
    .await
    .unwrap();
    let mut shown = Vec::new();
    for statement in [
        "SELECT * FROM calls",
        "SELECT * FROM accesses",
        "SELECT agent_id, tool, count(*) AS n FROM phi_access GROUP BY 1, 2",
        "SELECT * FROM denied",
        "SELECT kind, count(*) AS n FROM events WHERE kind LIKE 'call.%' OR kind LIKE 'subjects.%' GROUP BY 1",
        "SELECT length, count(*) AS n FROM bodies WHERE body IN (SELECT request_body FROM calls UNION SELECT response_body FROM calls) GROUP BY 1",
    ] {
        let rows = sql(query, statement).await.unwrap();
        assert!(!rows.is_empty(), "{statement} shows nothing");
        shown.push((statement.to_owned(), comparable(rows)));
    }
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn one_workload_gives_the_same_rows_in_one_process_and_in_a_cluster() {
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let ehr = Upstream::start(Behaviour::Answer(BUNDLE.into())).await.unwrap();
    let plain = Upstream::start(Behaviour::Echo).await.unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];

    let setup = Setup::default()
        .server("ehr", &ehr.url(), true)
        .server("plain", &plain.url(), false)
        .server("broken", NOBODY, true);
    let alone = setup.start(folders[0].path()).unwrap();
    workload(|_, server| alone.server(server)).await;
    let expected = shown(&alone.query).await;
    drop(alone);

    let cluster = Plan::new(&kafka, &store)
        .server("ehr", &ehr.url(), true)
        .server("plain", &plain.url(), false)
        .server("broken", NOBODY, true)
        .build(folders[1].path())
        .unwrap();
    cluster.prepare(&["proxy-1", "proxy-2", "query-1", "query-2"]).unwrap();
    let proxies = [cluster.start("proxy-1").unwrap(), cluster.start("proxy-2").unwrap()];
    let workers = [cluster.start("ingest-1").unwrap(), cluster.start("ingest-2").unwrap()];
    let queries = [cluster.start("query-1").unwrap(), cluster.start("query-2").unwrap()];
    workload(|n, server| proxies[n % 2].server(server)).await;
    for query in &queries {
        for (mine, theirs) in shown(&query.url).await.iter().zip(&expected) {
            assert_eq!(mine, theirs);
        }
    }
    the_same_answer_at_the_same_cut([&queries[0].url, &queries[1].url]).await;
    drop(workers);
}

/// Asks one node, and then the other one at the first one's cut while more goes on being recorded:
/// every question is an event itself.
async fn the_same_answer_at_the_same_cut(queries: [&str; 2]) {
    let statement = "SELECT * FROM events ORDER BY stream, seq, journal_partition, journal_offset";
    let accept = "application/x-ndjson";
    let told = ask(queries[0], json!({"sql": statement}), accept).await.unwrap();
    let cut = told.headers["custody-cut"].to_str().unwrap().to_owned();
    let told = rows(&told).unwrap();
    for query in [queries[1], queries[0]] {
        let question = json!({"sql": statement, "cut": cut});
        let again = rows(&ask(query, question, accept).await.unwrap()).unwrap();
        let without_place = |rows: &[Row]| -> Vec<Row> {
            let mut rows = rows.to_vec();
            // When ingest stored it is no part of what was recorded: a row moves from tail to lake.
            rows.iter_mut().for_each(|row| drop(row.remove("stored_at")));
            rows
        };
        assert_eq!(without_place(&again), without_place(&told), "at {query}");
    }
    let more = sql(queries[1], "SELECT count(*) AS n FROM events").await.unwrap();
    assert!(more[0]["n"].as_u64() > Some(told.len() as u64), "later questions must be in it");
}
