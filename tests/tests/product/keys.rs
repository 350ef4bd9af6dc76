//! `custody keys`: a new key at a new run, a writer that is retired, and keys that lie elsewhere.

use std::path::Path;

use custody_tests::product::Setup;
use custody_tests::upstream::{Behaviour, Upstream};
use serde_json::Value;

use crate::verify::{calls, custody, verify};

/// Runs `custody keys … --json`; what it says, or its error.
fn keys(config: &Path, arguments: &[&str]) -> Result<Value, String> {
    let all = [&["keys"], arguments, &["--json", "-c", config.to_str().unwrap()]].concat();
    let output = custody(&all);
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn in_force(ring: &Value) -> Vec<String> {
    let writers = ring["writers"].as_array().unwrap().iter();
    let open = writers.filter(|key| key["until"].is_null());
    open.map(|key| key["vkey"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_changes_its_key_retires_and_comes_back_and_all_it_signed_stays_valid() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    // The root key is not in the folder of keys.
    let root = folder.path().join("safe/root.key");
    let setup = Setup::default().server("s", &upstream.url(), true).lake_lines("flush_seconds = 1");
    let (config, data) = setup.write(folder.path()).unwrap();
    keys(&config, &["init"]).unwrap();
    std::fs::create_dir(root.parent().unwrap()).unwrap();
    std::fs::rename(data.join("keys/root.key"), &root).unwrap();
    let source = format!("[deployment.signers]\nroot = \"file:{}\"", root.display());
    let setup = setup.sections(&source);
    let run = async |name: &str| {
        let mut custody = setup.start(folder.path()).unwrap();
        calls(&custody, name, 2).await;
        let used = "SELECT json_text(detail, 'vkey') AS vkey FROM events \
            WHERE kind = 'stream.opened' ORDER BY at DESC LIMIT 1";
        let used = custody.sql(used).await.unwrap()[0]["vkey"].as_str().unwrap().to_owned();
        assert!(custody.stop().unwrap());
        used
    };
    let first = run("first").await;
    let both = in_force(&keys(&config, &["rotate", "edge-1"]).unwrap());
    assert_eq!((both.len(), &both[0]), (2, &first));
    assert_eq!(run("second").await, both[1], "the new key, from the next run on");
    let after = in_force(&keys(&config, &["add", "edge-1"]).unwrap());
    assert_eq!(after, both[1..]);
    assert!(keys(&config, &["retire", "nobody"]).unwrap_err().contains("not on the keyring"));
    assert!(in_force(&keys(&config, &["retire", "edge-1"]).unwrap()).is_empty());
    assert!(setup.start(folder.path()).is_err(), "a retired writer does not start");
    keys(&config, &["add", "edge-1"]).unwrap();
    run("third").await;
    let exported = keys(&config, &["export"]).unwrap();
    let (lake, root) = (data.join("lake"), exported["root"].as_str().unwrap());
    let arguments = ["verify", "--json", "--root", root, "--lake", lake.to_str().unwrap()];
    let (code, verdict) = verify(&arguments);
    assert_eq!((code, &verdict["unsealed"]), (0, &Value::from(0)), "{verdict:#}");
    assert!(!data.join("keys/root.key").exists());
    // What a secret is stands in no diagnostics and in no answer.
    let secret = std::fs::read_to_string(data.join("keys/edge-1.key")).unwrap();
    let secret = secret.trim().rsplit('+').next().unwrap().to_owned();
    for command in [&["keys", "list"][..], &["keys", "export"]] {
        let said = custody(&[command, &["-c", config.to_str().unwrap()]].concat());
        assert!(said.status.success());
        let all = [said.stdout, said.stderr].concat();
        assert!(!String::from_utf8_lossy(&all).contains(&secret));
    }
}
