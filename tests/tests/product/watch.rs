//! What a process tells those who watch it: metrics that a strict reader takes, spans that join
//! the caller's trace; and neither names a patient, a person or what they asked for.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use custody_tests::cluster::Plan;
use custody_tests::http::{post_mcp, send};
use custody_tests::product::{Custody, Setup};
use custody_tests::services::{Kafka, Store};
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use http::Method;
use serde_json::Value;

use crate::clients::python;

/// Stands in a tool's name, in arguments, in ids and in SQL: wherever a stranger can put it.
const MARY: &str = "MARY-SYNTHETIC";
/// What explains every metric.
const OPERATIONS: &str = include_str!("../../../docs/operations.md");
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn call(id: u64) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{MARY}","_meta":{{"traceparent":"{TRACEPARENT}","tracestate":"v=1"}},"arguments":{{"patient":"{MARY}","x":1.0}}}}}}"#
    )
}

/// What a script of ours reads out of `text`: one JSON value a line.
fn read_with(script: &str, text: &str) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let mut command = Command::new(python());
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8(output.stdout).unwrap();
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The samples on the page of a listener.
async fn page(base: &str) -> Vec<Value> {
    let answer = send(Method::GET, &format!("{base}/metrics"), &[], "").await.unwrap();
    assert!(answer.status.is_success(), "{answer:?}");
    let media = answer.headers["content-type"].to_str().unwrap();
    assert!(media.starts_with("application/openmetrics-text"), "{media}");
    let text = answer.text();
    assert!(!text.contains(MARY), "{text}");
    let samples = read_with("metrics.py", &text);
    for sample in &samples {
        let family = sample["family"].as_str().unwrap();
        assert!(OPERATIONS.contains(family), "docs/operations.md does not explain {family}");
    }
    samples
}

/// The only sample of this name with these labels.
fn value(samples: &[Value], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Value| {
        let has = |(key, value): &(&str, &str)| sample["labels"][*key] == *value;
        sample["name"] == name && labels.iter().all(has)
    };
    let found: Vec<_> = samples.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{name}{labels:?}: {found:?}");
    found[0]["value"].as_f64().unwrap()
}

async fn busy(folder: &Path, more: &str) -> (Custody, Upstream, Upstream) {
    let server = Upstream::start(Behaviour::Echo).await.unwrap();
    let collector = Upstream::start(Behaviour::Answer("{}".into())).await.unwrap();
    let setup = Setup::default()
        .server("ehr", &server.url(), true)
        .query_lines(&more.replace("COLLECTOR", &collector.url()));
    let custody = setup.start(folder).unwrap();
    (custody, server, collector)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_reader_takes_the_metrics_of_every_listener_and_they_count_what_happened() {
    let folder = tempfile::tempdir().unwrap();
    let (custody, _server, _) = busy(folder.path(), "").await;
    for id in 0..3 {
        let answer = post_mcp(&custody.server("ehr"), call(id)).await.unwrap();
        assert!(answer.status.is_success(), "{answer:?}");
    }
    let twins = r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"ping"}"#;
    assert_eq!(post_mcp(&custody.server("ehr"), twins).await.unwrap().status.as_u16(), 400);
    let statement = format!("SELECT call FROM calls WHERE tool = '{MARY}'");
    assert!(custody.ask(&statement, "text/csv").await.unwrap().status.is_success());
    let counted = || async {
        let samples = page(&custody.query).await;
        let asked = samples.iter().any(|sample| sample["name"] == "custody_query_questions_total");
        asked.then_some(samples)
    };
    let of_query = wait::until("the question to be counted", counted).await.unwrap();
    let sql = [("kind", "sql"), ("outcome", "ok")];
    assert_eq!(value(&of_query, "custody_query_questions_total", &sql), 1.0);
    assert_eq!(value(&of_query, "custody_query_rows_total", &[]), 3.0);
    let samples = page(&custody.proxy).await;
    let ok = [("server", "ehr"), ("status", "ok")];
    assert_eq!(value(&samples, "custody_proxy_calls_ended_total", &ok), 3.0);
    assert_eq!(value(&samples, "custody_proxy_refused_total", &[("reason", "twin_keys")]), 1.0);
    let opening = [("step", "opening")];
    assert_eq!(value(&samples, "custody_proxy_audit_wait_seconds_count", &opening), 3.0);
    assert_eq!(value(&samples, "custody_proxy_upstream_seconds_count", &ok[..1]), 3.0);
    assert!(value(&samples, "custody_spool_events_total", &[]) >= 8.0);
    assert!(value(&samples, "custody_spool_used_bytes", &[]) > 0.0);
    assert!(value(&samples, "custody_spool_writable", &[]) == 1.0);
    assert!(value(&samples, "custody_query_tail_bytes", &[]) > 0.0);
    let events = [("topic", "custody.events"), ("partition", "edge-1")];
    assert_eq!(value(&samples, "custody_ingest_assigned", &events), 1.0);
    assert!(value(&samples, "custody_ingest_rows_total", &events) >= 0.0);
    assert!(value(&samples, "custody_started_at_seconds", &[]) > 1e9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_joins_its_callers_trace_and_reaches_the_server_with_it_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let telemetry = "[telemetry]\notlp_endpoint = \"COLLECTOR\"";
    let (mut custody, server, collector) = busy(folder.path(), telemetry).await;
    let message = call(7);
    let answer = post_mcp(&custody.server("ehr"), message.clone()).await.unwrap();
    assert!(answer.status.is_success(), "{answer:?}");
    let untraced = r#"{"jsonrpc":"2.0","id":8,"method":"ping"}"#;
    post_mcp(&custody.server("ehr"), untraced).await.unwrap();
    assert_eq!(server.received(), [message.as_str(), untraced], "byte for byte");
    let rows = custody.sql("SELECT call, trace FROM calls ORDER BY at").await.unwrap();
    assert_eq!(rows[0]["trace"], TRACEPARENT);
    assert!(rows[1]["trace"].is_null());
    assert!(custody.stop().unwrap());
    let sent: Vec<_> =
        collector.received().iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect();
    let sent = sent.join("\n");
    assert!(!sent.contains(MARY), "{sent}");
    let spans = read_with("spans.py", &sent);
    let of_call = |span: &&Value| span["attributes"]["custody.call"] == rows[0]["call"];
    let span = spans.iter().find(of_call).unwrap_or_else(|| panic!("{spans:#?}"));
    assert_eq!(span["trace"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span["parent"], "b7ad6b7169203331");
    assert_eq!((&span["name"], &span["kind"]), (&"call".into(), &"SPAN_KIND_SERVER".into()));
    assert_eq!(span["attributes"]["custody.status"], "ok");
    let steps: Vec<_> = spans.iter().filter(|step| step["parent"] == span["span"]).collect();
    let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["record opening", "ask server", "record ending"]);
    assert!(steps.iter().all(|step| step["trace"] == span["trace"]));
    let alone = spans.iter().find(|span| span["attributes"]["custody.call"] == rows[1]["call"]);
    let alone = alone.unwrap_or_else(|| panic!("{spans:#?}"));
    assert!(alone["parent"] == "" && alone["trace"] != span["trace"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_every_role_is_ready_and_shows_its_part() {
    let (kafka, store) = (Kafka::shared().unwrap(), Store::shared().unwrap());
    let server = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::new(&kafka, &store).server("ehr", &server.url(), true);
    let cluster = plan.build(folder.path()).unwrap();
    cluster.prepare(&["proxy-1", "query-1"]).unwrap();
    let proxy = cluster.start("proxy-1").unwrap();
    let worker = cluster.start("ingest-1").unwrap();
    let query = cluster.start("query-1").unwrap();
    assert!(post_mcp(&proxy.server("ehr"), call(1)).await.unwrap().status.is_success());
    for role in [&proxy, &worker, &query] {
        let ready = || async {
            let answer = send(Method::GET, &format!("{}/readyz", role.url), &[], "").await.ok()?;
            answer.status.is_success().then_some(())
        };
        wait::until("every role to be ready", ready).await.unwrap();
    }
    let shipped = || async {
        let samples = page(&proxy.url).await;
        let left = value(&samples, "custody_ship_unshipped_entries", &[]);
        (left == 0.0).then_some(samples)
    };
    let samples = wait::until("everything to be shipped", shipped).await.unwrap();
    assert_eq!(value(&samples, "custody_ship_connected", &[]), 1.0);
    assert!(value(&samples, "custody_ship_acknowledged_entries_total", &[]) >= 3.0);
    assert!(value(&samples, "custody_ship_lag_seconds", &[]) == 0.0);
    let carried = || async {
        let samples = page(&worker.url).await;
        let own =
            |sample: &&Value| sample["name"] == "custody_ingest_assigned" && sample["value"] == 1.0;
        (samples.iter().filter(own).count() >= 2).then_some(samples)
    };
    let samples = wait::until("the worker to carry partitions", carried).await.unwrap();
    assert!(samples.iter().any(|sample| sample["name"] == "custody_ingest_lag_seconds"));
    let samples = page(&query.url).await;
    assert!(value(&samples, "custody_query_tail_limit_bytes", &[]) > 0.0);
}
