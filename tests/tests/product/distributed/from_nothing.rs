//! `compose/local up` on an empty folder: encrypted, authenticated, replicated, and quick to its
//! first report.

use std::process::Command;
use std::time::{Duration, Instant};

use custody_tests::http::post_mcp;
use custody_tests::product::executable;
use custody_tests::services::local;
use custody_tests::wait;
use serde_json::json;

/// Tells `compose/local` to use ports that nobody has.
const ROLES: [&str; 7] =
    ["record", "proxy-1", "proxy-2", "ingest-1", "ingest-2", "query-1", "query-2"];

fn report(query: &str) -> String {
    let now = Command::new("date").args(["-u", "+%F"]).output().unwrap();
    let today = String::from_utf8(now.stdout).unwrap();
    let output = Command::new(executable().unwrap())
        .args(["report", "phi-access", "--from", today.trim(), "--to", today.trim()])
        .args(["--format", "csv", "--url", query])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_from_nothing_over_tls_answers_its_first_report_in_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("cluster");
    let place = place.to_str().unwrap();
    let parent = std::process::id().to_string();
    let begun = Instant::now();
    let options = ["--sasl", "--durability", "replicated", "--free-ports", "--parent", &parent];
    let told = local(&[&["up", place][..], &options].concat()).unwrap();
    for role in ROLES {
        assert!(told.contains_key(role), "{role} is missing in {told:?}");
    }
    for (n, proxy) in ["proxy-1", "proxy-2"].into_iter().enumerate() {
        let patient = format!("synthetic-00{}", n + 1);
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params":
            {"name": "get_patient", "arguments": {"patient_id": patient}}});
        let url = format!("{}/servers/ehr/mcp", told[proxy]);
        let answer = post_mcp(&url, call.to_string()).await.unwrap();
        assert!(answer.text().contains(&patient), "{}", answer.text());
    }
    for query in ["query-1", "query-2"] {
        let both = || async {
            let report = report(&told[query]);
            (report.contains("synthetic-001") && report.contains("synthetic-002")).then_some(())
        };
        wait::until("both patients in the report", both).await.unwrap();
    }
    let took = begun.elapsed();
    println!("the first report came {took:?} after nothing was there");
    assert!(took < Duration::from_secs(60), "{took:?}");
    local(&["status", place]).unwrap();
    local(&["down", place]).unwrap();
    assert!(local(&["status", place]).is_err(), "after `down` nothing is ready");
}
