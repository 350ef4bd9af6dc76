//! The official conformance suite finds behind the proxy, which records everything, what it finds
//! without it: every check of every scenario ends alike. It does so for servers, and for clients
//! except where they sign in: there the proxy is the resource server, and no token of a client
//! goes on to what stands behind it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use custody_tests::conformance::Fixture;
use custody_tests::product::{Custody, Setup, executable};
use custody_tests::wait;
use serde_json::Value;

use super::clients::{clients, modules, node};

/// Scenario and check, and how each occurrence of that check ended, in order.
type Checks = BTreeMap<(String, String), Vec<String>>;

fn package() -> PathBuf {
    modules().join("@modelcontextprotocol/conformance")
}

/// Lets the suite ask the server at `url` what the revision requires, and what it does not score.
fn suite(url: &str, revision: &str, out: &Path) -> Checks {
    let mut command = Command::new(node());
    command.arg(package().join("dist/index.js"));
    command.args(["server", "--url", url, "--requirements", revision, "-o"]).arg(out);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    read(out)
}

/// What the suite has written: a folder for each scenario, whose name ends in a time.
fn read(out: &Path) -> Checks {
    let mut checks = Checks::new();
    for folder in std::fs::read_dir(out).unwrap() {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        let scenario = &name[..name.len() - "-2026-07-28T00-00-00-000Z".len()];
        let text = std::fs::read(folder.path().join("checks.json")).unwrap();
        let found: Vec<Value> = serde_json::from_slice(&text).unwrap();
        for check in found.iter().filter(|check| check["status"] != "INFO") {
            let key = (scenario.to_owned(), check["id"].as_str().unwrap().to_owned());
            let ended = format!("{} {}", check["status"], check["errorMessage"]);
            checks.entry(key).or_default().push(ended);
        }
    }
    checks
}

/// How many checks ended so.
fn ended(checks: &Checks, status: &str) -> usize {
    checks.values().flatten().filter(|ended| ended.contains(status)).count()
}

/// No check that ends otherwise, and none that is only there or only here.
fn same(through: &Checks, direct: &Checks) {
    let only = |of: &Checks, not: &Checks| {
        let differ = of.iter().filter(|(key, ended)| not.get(key) != Some(ended));
        differ.map(|(key, ended)| format!("{key:?} {ended:?}")).collect::<Vec<_>>()
    };
    let (through, direct) = (only(through, direct), only(direct, through));
    assert!(
        through.is_empty() && direct.is_empty(),
        "through the proxy {through:#?}, directly {direct:#?}"
    );
}

/// A lot of calls, all of them ended.
async fn recorded(custody: &Custody) -> i64 {
    wait::until("every call to have ended", || async {
        let open = "SELECT count(*) FROM calls WHERE status = 'in_flight'";
        (custody.number(open).await.ok()? == 0).then_some(())
    })
    .await
    .unwrap();
    custody.number("SELECT count(*) FROM calls").await.unwrap()
}

/// The suite scores `marks` directly, and the same through the proxy.
async fn alike(revision: &'static str, marks: usize) {
    let fixture = Fixture::start(0).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let custody = Setup::default().server("fixture", &fixture.url(), true);
    let custody = custody.start(folder.path()).unwrap();
    // The suite's checks of names want to see `localhost`.
    let ask = |url: String, out: &str| {
        let (url, out) = (url.replace("127.0.0.1", "localhost"), folder.path().join(out));
        tokio::task::spawn_blocking(move || suite(&url, revision, &out))
    };
    let direct = ask(fixture.url(), "direct").await.unwrap();
    let through = ask(custody.server("fixture"), "through").await.unwrap();
    same(&through, &direct);
    assert_eq!(ended(&direct, "SUCCESS"), marks, "{direct:#?}");
    assert_eq!(ended(&direct, "FAILURE"), 0, "{direct:#?}");
    let calls = recorded(&custody).await;
    assert!(calls > 40, "only {calls} calls are recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_finds_a_server_of_2025_11_25_behind_the_proxy_as_it_is() {
    alike("2025-11-25", 83).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_finds_a_server_of_2026_07_28_behind_the_proxy_as_it_is() {
    alike("2026-07-28", 197).await;
}

/// What the suite has for clients of 2025-11-25 and our client can play.
const PLAYED_2025: [&str; 4] =
    ["initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry"];

/// The same for 2026-07-28.
const PLAYED_2026: [&str; 7] = [
    "tools_call",
    "request-metadata",
    "sep-2322-client-request-state",
    "http-standard-headers",
    "http-custom-headers",
    "http-invalid-tool-headers",
    "json-schema-ref-no-deref",
];

/// What cannot be played through a proxy: the suite's server wants the client to sign in there and
/// to bring its token. Custody is the resource server that clients sign in to; what stands behind
/// it is reached with the proxy's own credentials, and a client's token is never passed on.
const SIGNING_IN: [&str; 25] = [
    "auth/metadata-default",
    "auth/metadata-var1",
    "auth/metadata-var2",
    "auth/metadata-var3",
    "auth/basic-cimd",
    "auth/scope-from-www-authenticate",
    "auth/scope-from-scopes-supported",
    "auth/scope-omitted-when-undefined",
    "auth/scope-step-up",
    "auth/scope-retry-limit",
    "auth/token-endpoint-auth-basic",
    "auth/token-endpoint-auth-post",
    "auth/token-endpoint-auth-none",
    "auth/pre-registration",
    "auth/resource-mismatch",
    "auth/offline-access-scope",
    "auth/offline-access-not-supported",
    "auth/authorization-server-migration",
    "auth/iss-supported",
    "auth/iss-not-advertised",
    "auth/iss-supported-missing",
    "auth/iss-wrong-issuer",
    "auth/iss-unexpected",
    "auth/iss-normalized",
    "auth/metadata-issuer-mismatch",
];

/// The scenarios that the suite requires of clients of a revision.
fn required(revision: &str) -> Vec<String> {
    let list = package().join(format!("requirements/{revision}.yaml"));
    let text = std::fs::read_to_string(list).unwrap();
    let of_clients = text.lines().skip_while(|line| *line != "client:").skip(1);
    let of_clients = of_clients.take_while(|line| line.starts_with(' ') || line.is_empty());
    of_clients.filter_map(|line| Some(line.trim().strip_prefix("- ")?.to_owned())).collect()
}

/// Lets the suite play a scenario to our client, which puts the product between or does not.
fn scenario(name: &str, revision: &str, custody: Option<&Path>, out: &Path) -> Checks {
    let script = clients().join("ts/scenarios.mjs");
    let mut client = format!("{} {}", node().display(), script.display());
    if let Some(custody) = custody {
        client.push_str(&format!(" --custody {}", custody.display()));
    }
    let mut command = Command::new(node());
    command.arg(package().join("dist/index.js")).args(["client", "--command", &client]);
    command.args(["--scenario", name, "--spec-version", revision, "-o"]).arg(out);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    read(out)
}

/// The suite finds the client alike with and without the proxy, in every scenario, and these are
/// all but those of signing in.
async fn client_alike(revision: &'static str, played: &'static [&'static str]) {
    let mut known: Vec<&str> = [played, &SIGNING_IN].concat();
    let required = required(revision);
    known.retain(|name| required.iter().any(|required| required == name));
    assert_eq!(known.len(), required.len(), "{required:?} are required");
    let folder = tempfile::tempdir().unwrap();
    for &name in played {
        let (direct, through) = (folder.path().join("direct"), folder.path().join("through"));
        let direct = tokio::task::spawn_blocking(move || scenario(name, revision, None, &direct));
        let through = tokio::task::spawn_blocking(move || {
            scenario(name, revision, Some(&executable().unwrap()), &through)
        });
        let (direct, through) = (direct.await.unwrap(), through.await.unwrap());
        same(&through, &direct);
        for badly in ["FAILURE", "WARNING"] {
            assert_eq!(ended(&direct, badly), 0, "{direct:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_finds_a_client_of_2025_11_25_behind_the_proxy_as_it_is() {
    client_alike("2025-11-25", &PLAYED_2025).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_finds_a_client_of_2026_07_28_behind_the_proxy_as_it_is() {
    client_alike("2026-07-28", &PLAYED_2026).await;
}
