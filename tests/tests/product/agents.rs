//! Clients and servers as they are published, none of them changed: what an agent asks of real
//! servers through the proxy is answered as without it, and is on record.

use std::path::Path;
use std::process::{Command, Stdio};

use custody_tests::product::{Custody, Setup, executable};
use serde_json::{Value, json};

use super::clients::{clients, modules, node, python};

/// The servers, each a program, and how many calls a tour of it is.
const SERVERS: [(&str, i64); 4] = [("everything", 2), ("filesystem", 3), ("memory", 2), ("git", 2)];

/// A product with all servers behind it, and what they work on.
struct Stand {
    custody: Custody,
    folder: tempfile::TempDir,
}

/// A Git repository of one commit.
fn repository(at: &Path) {
    std::fs::create_dir(at).unwrap();
    std::fs::write(at.join("file.txt"), "synthetic\n").unwrap();
    let who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.com"];
    for step in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "A synthetic commit"]]
    {
        let git = Command::new("git").args(who).args(step).current_dir(at).status().unwrap();
        assert!(git.success(), "git {step:?}");
    }
}

impl Stand {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(folder.path()).unwrap();
        repository(&path.join("repository"));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (node, path) = (text(&node()), text(&path));
        let script = |name: &str| text(&modules().join("@modelcontextprotocol").join(name));
        let program = |name: &str| script(&format!("server-{name}/dist/index.js"));
        let git = text(&python().with_file_name("mcp-server-git"));
        let memory = format!("MEMORY_FILE_PATH = {:?}", format!("{path}/memory.jsonl"));
        let custody = Setup::default()
            .program("everything", &[&node, &program("everything"), "stdio"], "")
            .program("filesystem", &[&node, &program("filesystem"), &path], "")
            .program("memory", &[&node, &program("memory")], &memory)
            .program("git", &[&git], &format!("PATH = {:?}", std::env::var("PATH").unwrap()));
        let custody = custody.start(folder.path()).unwrap();
        Self { custody, folder }
    }

    /// Lets a client go through all tours; what each call said.
    fn tour(&self, client: &mut Command, prefix: bool) -> Vec<Value> {
        let folder = std::fs::canonicalize(self.folder.path()).unwrap();
        client.env("MCP_REMOTE_CONFIG_DIR", folder.join("mcp-remote")).env("HOME", &folder);
        let output = client.stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(output.status.success(), "{lines:#?}\n{told}");
        assert_eq!(lines.len(), 9, "{lines:#?}\n{told}");
        let prefixed = |line: &Value| line["tool"].as_str().unwrap().contains("__");
        assert!(lines.iter().all(|line| prefixed(line) == prefix), "{lines:#?}");
        lines
    }

    /// Every call of `times` tours is on record, with its answer.
    async fn recorded(&self, times: i64) {
        let statement = "SELECT server, count(*) AS calls FROM calls JOIN bodies ON body = response_body WHERE method = 'tools/call' AND status = 'ok' GROUP BY server ORDER BY server";
        let mut expected: Vec<Value> =
            SERVERS.iter().map(|(server, calls)| json!([server, calls * times])).collect();
        expected.sort_by_key(ToString::to_string);
        let rows = self.custody.sql(statement).await.unwrap();
        let rows: Vec<Value> =
            rows.iter().map(|row| json!([row["server"], row["calls"]])).collect();
        assert_eq!(rows, expected);
        let other = "SELECT count(*) FROM calls WHERE status IN ('in_flight', 'unknown')";
        assert_eq!(self.custody.number(other).await.unwrap(), 0, "every call has ended");
    }
}

/// The arguments of a tour through all servers, at their common address or at each one's own.
fn all(command: &mut Command, stand: &Stand, common: bool) {
    command.arg("--folder").arg(std::fs::canonicalize(stand.folder.path()).unwrap());
    for (server, _) in SERVERS {
        let prefix = if common { format!("{server}__") } else { String::new() };
        command.arg("--tour").arg(format!("{server}={prefix}"));
    }
}

fn python_client(stand: &Stand, name: &str, era: &str, common: bool) -> Command {
    let mut command = Command::new(python());
    command.arg(clients().join("tour.py")).args(["--client", name, "--era", era]);
    all(&mut command, stand, common);
    command
}

fn node_client(stand: &Stand, name: &str, era: &str, common: bool) -> Command {
    let mut command = Command::new(node());
    command.arg(clients().join("ts/tour.mjs")).args(["--client", name, "--era", era]);
    all(&mut command, stand, common);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn python_agents_reach_real_servers_through_the_proxy() {
    let stand = Stand::start();
    let url = stand.custody.server("{server}");
    for (name, era) in [("mcp", "2025-11-25"), ("mcp", "auto"), ("fastmcp", "auto")] {
        stand.tour(python_client(&stand, name, era, false).arg(&url), false);
    }
    stand.recorded(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_agents_reach_real_servers_through_the_proxy() {
    let stand = Stand::start();
    let url = stand.custody.server("{server}");
    for (name, era) in [("sdk", "2025-11-25"), ("client", "2025-11-25"), ("client", "auto")] {
        stand.tour(node_client(&stand, name, era, false).arg(&url), false);
    }
    stand.recorded(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_only_speaks_stdio_reaches_real_servers_with_mcp_remote() {
    let stand = Stand::start();
    let mut client = python_client(&stand, "stdio", "auto", false);
    client.arg(node()).arg(modules().join("mcp-remote/dist/proxy.js"));
    stand.tour(client.arg(stand.custody.server("{server}")), false);
    stand.recorded(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_only_speaks_stdio_reaches_real_servers_with_custody_connect() {
    let stand = Stand::start();
    for era in ["2025-11-25", "auto"] {
        let mut client = python_client(&stand, "stdio", era, false);
        client.arg(executable().unwrap()).arg("connect");
        stand.tour(client.arg(stand.custody.server("{server}")), false);
    }
    stand.recorded(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inspector_reaches_real_servers_through_the_proxy() {
    let stand = Stand::start();
    let folder = std::fs::canonicalize(stand.folder.path()).unwrap();
    let tours = std::fs::read_to_string(clients().join("tours.json")).unwrap();
    let tours = tours.replace("${folder}", folder.to_str().unwrap());
    let tours: Value = serde_json::from_str(&tours).unwrap();
    for (server, _) in SERVERS {
        for step in tours[server].as_array().unwrap() {
            let mut command = Command::new(node());
            let launcher = "@modelcontextprotocol/inspector/clients/launcher/build/index.js";
            command.arg(modules().join(launcher)).arg("--cli").arg(stand.custody.server(server));
            command.args(["--method", "tools/call", "--tool-name"]);
            command.arg(step["tool"].as_str().unwrap());
            for (name, value) in step["arguments"].as_object().unwrap() {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                command.arg("--tool-arg").arg(format!("{name}={value}"));
            }
            command.env("HOME", &folder).stdin(Stdio::null());
            let output = command.output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{step}: {told}");
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            let text = answer["content"][0]["text"].as_str().unwrap_or_default();
            assert!(text.contains(step["says"].as_str().unwrap()), "{step}: {answer}");
        }
    }
    stand.recorded(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_reach_real_servers_at_their_common_address() {
    let stand = Stand::start();
    let url = format!("{}/mcp", stand.custody.proxy);
    stand.tour(python_client(&stand, "mcp", "2025-11-25", true).arg(&url), true);
    for name in ["sdk", "client"] {
        stand.tour(node_client(&stand, name, "2025-11-25", true).arg(&url), true);
    }
    let mut client = python_client(&stand, "stdio", "2025-11-25", true);
    stand.tour(client.arg(executable().unwrap()).args(["connect", &url]), true);
    stand.recorded(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_agent_sees_at_the_common_address_the_servers_that_speak_its_revision() {
    let stand = Stand::start();
    for name in ["mcp", "fastmcp"] {
        let mut client = Command::new(python());
        client.arg(clients().join("tour.py")).args(["--client", name, "--tour", "git=git__"]);
        client.arg("--folder").arg(std::fs::canonicalize(stand.folder.path()).unwrap());
        client.arg(format!("{}/mcp", stand.custody.proxy)).stdin(Stdio::null());
        let output = client.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {told}");
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(told.lines().count(), 2, "{name}: {told}");
    }
    let newer = "SELECT count(*) FROM calls WHERE method = 'tools/call' AND server = 'git' AND status = 'ok' AND protocol = '2026-07-28'";
    assert_eq!(stand.custody.number(newer).await.unwrap(), 4);
}
