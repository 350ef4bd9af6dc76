//! Sealed while it runs, verified while it does not: `custody verify --lake`.

use std::path::Path;
use std::process::Command;

use custody_tests::http::post_mcp;
use custody_tests::product::{Setup, executable};
use custody_tests::storm;
use custody_tests::upstream::{Behaviour, Upstream};
use serde_json::Value;

/// What `custody verify --lake` says, and its exit code.
fn verify(lake: &Path, more: &[&str]) -> (i32, Value) {
    let mut command = Command::new(executable().unwrap());
    command.args(["verify", "--json", "--lake"]).arg(lake).args(more).current_dir(lake);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdict = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), verdict.unwrap_or_else(|_| panic!("{said}")))
}

/// A lake that a run of `calls` calls has left, twice over with a kill in between.
async fn run(folder: &Path, calls: u32) {
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).lake_lines("flush_seconds = 1");
    for round in 0..2 {
        let mut custody = setup.start(folder).unwrap();
        for call in 0..calls {
            let call = storm::call(&format!("tool-{round}-{call}"));
            assert!(post_mcp(&custody.server("s"), call).await.unwrap().status.is_success());
        }
        if round == 0 { custody.kill().unwrap() } else { assert!(custody.stop().unwrap()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_is_valid_after_a_kill_and_a_stop_and_every_record_in_it_is_sealed() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 40).await;
    let (code, verdict) = verify(&folder.path().join("data/lake"), &["--bodies"]);
    assert_eq!((code, &verdict["verdict"]), (0, &"valid".into()), "{verdict:#}");
    assert_eq!(verdict["streams"], 2, "{verdict:#}");
    assert_eq!(verdict["unsealed"], 0, "{verdict:#}");
    assert_eq!(verdict["bodies_missing"], 0, "{verdict:#}");
    assert!(verdict["records"].as_u64().unwrap() >= 160, "{verdict:#}");
}
