//! Bad input and bad days: always a clear error, an event where a call was involved, no hang.

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use custody_tests::http::{Answer, post_mcp, send};
use custody_tests::product::{Custody, Setup, executable};
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::wait;
use http::Method;
use serde_json::{Value, json};

const CALL: &str =
    r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x","arguments":{}}}"#;

/// The error message of an answer that must be a JSON-RPC error.
fn refusal(answer: &Answer) -> String {
    let error: Value = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|e| panic!("{}: {e}: {}", answer.status, answer.text()));
    error["error"]["message"].as_str().unwrap_or_else(|| panic!("no error in {error}")).to_owned()
}

async fn one(status: &str, custody: &Custody) {
    let statement = format!("SELECT count(*) FROM calls WHERE status = '{status}'");
    wait::until(&format!("one call that ended as {status}"), || async {
        (custody.number(&statement).await.ok()? == 1).then_some(())
    })
    .await
    .unwrap();
}

async fn behind(behaviour: Behaviour, lines: &str) -> (Upstream, tempfile::TempDir, Custody) {
    let upstream = Upstream::start(behaviour).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).proxy_lines(lines);
    let custody = setup.start(folder.path()).unwrap();
    (upstream, folder, custody)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_can_be_read_in_two_ways_never_reach_the_server() {
    let (upstream, _folder, custody) = behind(Behaviour::Echo, "").await;
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let deep_call = CALL.replace("{}", &format!("{{\"a\":{deep}}}"));
    let escaped = CALL.replace("\"arguments\":{}", "\"arguments\":{},\"n\\u0061me\":\"evil\"");
    let twice = CALL.replace("\"name\":\"x\"", "\"name\":\"x\",\"name\":\"evil\"");
    let wrong = [
        ("not JSON", "this is not JSON".to_owned()),
        ("nothing", String::new()),
        ("a batch", format!("[{CALL}]")),
        ("a key twice", twice),
        ("a key twice, escaped", escaped),
        ("very deep", deep_call),
        ("params that are no object", CALL.replace("{\"name\":\"x\",\"arguments\":{}}", "[1]")),
        ("cut off", CALL[..CALL.len() - 1].to_owned()),
    ];
    for (what, message) in &wrong {
        let answer = post_mcp(&custody.server("s"), message.clone()).await.unwrap();
        assert!(answer.status.is_client_error(), "{what}: {}", answer.status);
        assert!(refusal(&answer).len() > 20, "{what}: {}", refusal(&answer));
    }
    assert_eq!(upstream.received().len(), 0);
    let denied = custody.number("SELECT count(*) FROM denied").await.unwrap();
    assert_eq!(denied, wrong.len() as i64, "each refusal is recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_is_refused_with_413_and_recorded() {
    let (upstream, _folder, custody) = behind(Behaviour::Echo, "").await;
    let big = CALL.replace("{}", &format!("{{\"a\":\"{}\"}}", "x".repeat(17 << 20)));
    let answer = post_mcp(&custody.server("s"), big).await.unwrap();
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(refusal(&answer).contains("max_message_bytes"), "{}", refusal(&answer));
    assert_eq!(upstream.received().len(), 0);
    assert_eq!(custody.number("SELECT count(*) FROM denied").await.unwrap(), 1);
    let large = CALL.replace("{}", &format!("{{\"a\":\"{}\"}}", "x".repeat(9 << 20)));
    let answer = post_mcp(&custody.server("s"), large).await.unwrap();
    assert!(answer.status.is_success() && answer.body.len() > 9 << 20, "nine megabytes pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_beyond_the_limit_is_withheld_and_recorded() {
    let big =
        Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":7,"result":"{}"}}"#, "x".repeat(17 << 20)));
    let (_upstream, _folder, custody) = behind(Behaviour::Answer(big), "").await;
    let answer = post_mcp(&custody.server("s"), CALL).await.unwrap();
    assert!(answer.status.is_server_error() && answer.body.len() < 4096);
    one("too_large", &custody).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_a_timeout() {
    let (_upstream, _folder, custody) = behind(Behaviour::Hang, "upstream_timeout_ms = 300").await;
    let answer = post_mcp(&custody.server("s"), CALL).await.unwrap();
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(!refusal(&answer).contains("127.0.0.1"), "the server's address leaks");
    one("timeout", &custody).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_resets_or_is_not_there_is_unreachable() {
    let (upstream, _folder, custody) = behind(Behaviour::Reset, "").await;
    let answer = post_mcp(&custody.server("s"), CALL).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    drop(upstream);
    let answer = post_mcp(&custody.server("s"), CALL).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(!refusal(&answer).contains("127.0.0.1"), "the server's address leaks");
    let ended = "SELECT count(*) FROM calls WHERE status IN ('unreachable', 'unknown')";
    assert_eq!(custody.number(ended).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_talks_garbage_is_an_error_of_the_server() {
    let (_upstream, _folder, custody) = behind(Behaviour::Garbage, "").await;
    let answer = post_mcp(&custody.server("s"), CALL).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    let ended = "SELECT count(*) FROM calls WHERE status IN ('unreachable', 'unknown')";
    assert_eq!(custody.number(ended).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_leaves_an_ending_behind() {
    let late = Bytes::from_static(br#"{"jsonrpc":"2.0","id":7,"result":{}}"#);
    let behaviour = Behaviour::Late(Duration::from_secs(2), late);
    let (upstream, _folder, custody) = behind(behaviour, "").await;
    let url = custody.server("s");
    let client = tokio::spawn(async move { post_mcp(&url, CALL).await });
    wait::until("the call at the server", || async {
        (upstream.received().len() == 1).then_some(())
    })
    .await
    .unwrap();
    client.abort();
    wait::until("an ending", || async {
        let open = "SELECT count(*) FROM calls WHERE status NOT IN ('in_flight', 'ok')";
        (custody.number(open).await.ok()? == 1).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_server_is_404_and_recorded() {
    let (_upstream, _folder, custody) = behind(Behaviour::Echo, "").await;
    let answer = post_mcp(&custody.server("nobody"), CALL).await.unwrap();
    assert_eq!(answer.status, 404);
    assert!(refusal(&answer).contains("no server of this name"), "{}", refusal(&answer));
    assert_eq!(custody.number("SELECT count(*) FROM denied").await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_host_or_origin_is_refused() {
    let (upstream, _folder, custody) = behind(Behaviour::Echo, "").await;
    for (name, value) in [("host", "evil.example"), ("origin", "http://evil.example")] {
        let headers = [(name, value), ("content-type", "application/json")];
        let answer = send(Method::POST, &custody.server("s"), &headers, CALL).await.unwrap();
        assert_eq!(answer.status, 403, "{name}: {}", answer.text());
    }
    assert_eq!(upstream.received().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_that_writes_or_reads_files_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let custody = Setup::default().start(folder.path()).unwrap();
    let before = custody.number("SELECT count(*) FROM events").await.unwrap();
    for statement in [
        "INSERT INTO events SELECT * FROM events",
        "DELETE FROM events",
        "DROP TABLE events",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "COPY (SELECT 1) TO '/tmp/custody-must-not-exist.csv'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SET datafusion.execution.batch_size = 1",
        "SELECT 1; SELECT 2",
        "not even SQL",
    ] {
        let answer = custody.ask(statement, "application/json").await.unwrap();
        assert!(
            answer.status.is_client_error(),
            "{statement}: {} {}",
            answer.status,
            answer.text()
        );
        let error: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(error["error"]["message"].as_str().unwrap().len() > 10, "{statement}: {error}");
    }
    assert!(!std::path::Path::new("/tmp/custody-must-not-exist.csv").exists());
    assert!(custody.number("SELECT count(*) FROM events").await.unwrap() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_that_never_ends_or_needs_everything_is_stopped_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "deadline_ms = 3000\nmemory_bytes = \"16 MiB\"";
    let custody = Setup::default().query_lines(lines).start(folder.path()).unwrap();
    let statements = [
        "SELECT count(*) FROM generate_series(1, 1000000000000)",
        "SELECT count(*) FROM generate_series(1, 10000000) a, generate_series(1, 10000000) b",
        "SELECT array_agg(v) FROM generate_series(1, 20000000000) AS t(v)",
    ];
    for statement in statements {
        let answer = custody.ask(statement, "application/json").await.unwrap();
        assert!(!answer.status.is_success(), "{statement}: {}", answer.text());
        let error: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(error["error"]["hint"].as_str().unwrap().len() > 10, "{statement}: {error}");
    }
    assert_eq!(custody.number("SELECT 1").await.unwrap(), 1, "it still answers");
    let ended = "SELECT count(*) FROM queries WHERE status NOT IN ('ok', 'in_flight')";
    wait::until("the endings of all three", || async {
        (custody.number(ended).await.ok()? == 3).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_any_shape_never_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let custody = Setup::default().start(folder.path()).unwrap();
    let many = |text: &str, times: usize| text.repeat(times);
    let statements = [
        format!("SELECT 1{}", many("+1", 2_000)),
        format!("SELECT 1{}", many("+1", 20_000)),
        format!("SELECT true{}", many(" OR true", 100_000)),
        format!("SELECT 1{}", many(" UNION ALL SELECT 1", 40_000)),
        format!("SELECT 1{}", many("::int", 150_000)),
        format!("SELECT x{}", many("[1]", 150_000)),
        format!("SELECT 1{}", many(" IS NULL", 100_000)),
        format!("SELECT {}1{}", many("(", 100_000), many(")", 100_000)),
        format!("SELECT 'a'{}", many("||'a'", 150_000)),
    ];
    for statement in statements {
        let start: String = statement.chars().take(30).collect();
        let answer = custody.ask(&statement, "application/json").await;
        let answer = answer.unwrap_or_else(|e| panic!("{start} …: {e:#}"));
        assert!(answer.status.is_client_error() || answer.status.is_success(), "{start} …");
        assert_eq!(custody.number("SELECT 1").await.unwrap(), 1, "{start} …");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_protected_is_in_diagnostics_or_metrics_however_much_they_say() {
    let marker = "synthetic-marker-4711";
    let answer = format!(
        r#"{{"jsonrpc":"2.0","id":7,"result":{{"content":[{{"type":"text","text":"{{\"resourceType\":\"Patient\",\"id\":\"{marker}\"}}"}}]}}}}"#
    );
    let upstream = Upstream::start(Behaviour::Answer(answer.into())).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).talkative();
    let mut custody = setup.start(folder.path()).unwrap();
    let call = CALL.replace("{}", &format!("{{\"patient\":\"{marker}\"}}"));
    post_mcp(&custody.server("s"), call).await.unwrap();
    let seen = format!("SELECT count(*) FROM phi_access WHERE subject_id = '{marker}'");
    assert!(custody.number(&seen).await.unwrap() >= 1);
    for base in [&custody.proxy, &custody.query] {
        let metrics = send(Method::GET, &format!("{base}/metrics"), &[], "").await.unwrap();
        assert!(metrics.status.is_success() && !metrics.text().contains(marker));
    }
    assert!(custody.stop().unwrap());
    let log = std::fs::read_to_string(folder.path().join("stderr.log")).unwrap();
    assert!(log.len() > 500, "it was to say something: {log}");
    let told: Vec<_> = log.lines().filter(|line| line.contains(marker)).take(3).collect();
    assert!(told.is_empty(), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_spool_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default();
    let _first = setup.start(folder.path()).unwrap();
    let output = Command::new(executable().unwrap())
        .args(["up", "-c"])
        .arg(folder.path().join("custody.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("another process") || text.contains("in use"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_of_a_newer_format_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default();
    let mut custody = setup.start(folder.path()).unwrap();
    assert!(custody.stop().unwrap());
    let log = custody.data.join("lake/events/_delta_log/00000000000000000000.json");
    let text = std::fs::read_to_string(&log).unwrap();
    let newer = text.replace("\"custody.format\":\"1\"", "\"custody.format\":\"9\"");
    assert_ne!(newer, text, "the format stands in the table's properties");
    std::fs::write(&log, newer).unwrap();
    let output = Command::new(executable().unwrap())
        .args(["up", "-c"])
        .arg(folder.path().join("custody.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("has format 9") && text.contains("upgrade custody"), "{text}");
}

#[test]
fn three_mistakes_in_a_configuration_are_told_together_with_exit_code_64() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("custody.toml");
    let text = "[proxy]\nlisten = \"nowhere\"\naudit_wait = 5\n\n[[server]]\nname = \"ehr\"\n";
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(executable().unwrap());
    let output = command.args(["config", "check", "-c"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8_lossy(&output.stderr);
    for line in ["line 2:", "line 3:", "line 5:"] {
        assert!(text.contains(line), "{text}");
    }
    let expected = json!(3);
    assert_eq!(json!(text.matches("line ").count()), expected, "{text}");
}
