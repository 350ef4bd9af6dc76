//! The compose file, judged by compose's own library: it loads, and says what it must.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use custody_tests::product::executable;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// Every `${NAME…}` of the compose file with what follows the name.
fn variables(compose: &str) -> Vec<(&str, &str)> {
    let starts = compose.match_indices("${").map(|(at, _)| &compose[at + 2..]);
    let inner = starts.map(|rest| &rest[..rest.find('}').unwrap()]);
    inner.map(|v| v.split_at(v.find(':').unwrap_or(v.len()))).collect()
}

/// What `tests/tools.sh compose` has installed, on this text.
fn load(compose: &str) -> Output {
    let cache = std::env::var("CUSTODY_CACHE")
        .unwrap_or_else(|_| format!("{}/.cache/custody", std::env::var("HOME").unwrap()));
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("compose.yaml");
    std::fs::write(&file, compose).unwrap();
    let program = Path::new(&cache).join("compose/compose");
    let judged = Command::new(&program).args(["-format", "json"]).arg(file).output();
    judged.unwrap_or_else(|e| panic!("{}: {e}: run tests/tools.sh compose", program.display()))
}

/// The compose file with a value for each variable that must have one.
fn filled() -> String {
    let mut compose = text("compose.yaml");
    let required: Vec<String> = variables(&compose)
        .iter()
        .filter(|(_, rest)| rest.starts_with(":?"))
        .map(|(name, rest)| format!("${{{name}{rest}}}"))
        .collect();
    assert!(required.len() >= 3, "the secrets must be required: {required:?}");
    for variable in required {
        compose = compose.replace(&variable, "set-by-test");
    }
    compose
}

#[test]
fn the_compose_file_is_valid_only_with_its_secrets() {
    let without = load(&text("compose.yaml"));
    assert!(!without.status.success(), "it must not start without secrets");
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(said.contains("MINIO_ROOT_PASSWORD"), "{said}");
    let with = load(&filled());
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stderr));
    let broken = load(&filled().replace("healthcheck:", "healthcheque:"));
    assert!(!broken.status.success(), "a key that compose does not know must not pass");
}

#[test]
fn every_image_is_pinned_and_every_role_there_twice_without_rights() {
    let loaded: Value = serde_json::from_slice(&load(&filled()).stdout).unwrap();
    let services = loaded["services"].as_object().unwrap();
    for (name, service) in services {
        let image = service["image"].as_str().unwrap_or_else(|| panic!("{name} has no image"));
        let tag = image.rsplit_once(':').map(|(_, tag)| tag).unwrap_or_default();
        assert!(tag.bytes().any(|b| b.is_ascii_digit()), "{name}: {image} is not pinned");
    }
    for name in ["proxy-1", "proxy-2", "ingest-1", "ingest-2", "query-1", "query-2"] {
        let service = &services[name];
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"][0], "ALL", "{name}");
        let own_name = match name.starts_with("ingest") {
            true => "CUSTODY__JOURNAL__INSTANCE",
            false => "CUSTODY__DEPLOYMENT__WRITER",
        };
        assert_eq!(service["environment"][own_name], name);
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        let published = &service["ports"][0];
        assert_eq!(published["host_ip"], "127.0.0.1", "{name}");
        let has_credentials = service["environment"].get("AWS_SECRET_ACCESS_KEY").is_some();
        assert_eq!(has_credentials, !name.starts_with("proxy"), "{name}: the lake's credentials");
    }
    let dockerfile = text("Dockerfile");
    for line in dockerfile.lines().filter(|line| line.starts_with("FROM ")) {
        let image = line.split(' ').nth(1).unwrap();
        let pinned = image.contains(':') && !image.ends_with("latest");
        let own = dockerfile.contains(&format!(" AS {image}\n"));
        assert!(pinned || own, "{line}");
    }
    assert!(dockerfile.contains("\nUSER 10001"), "the images must not run as root");
}

#[test]
fn every_variable_of_the_compose_file_is_in_the_example_and_the_other_way_round() {
    let compose = text("compose.yaml");
    let used: BTreeMap<&str, &str> = variables(&compose).into_iter().collect();
    let example = text(".env.example");
    let lines = example.lines().filter(|line| !line.starts_with('#'));
    let described: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once('=')).collect();
    let names = |map: &BTreeMap<&str, &str>| -> BTreeSet<String> {
        map.keys().map(|name| (*name).to_owned()).collect()
    };
    assert_eq!(names(&used), names(&described));
    for (name, rest) in used {
        if let Some(default) = rest.strip_prefix(":-") {
            assert_eq!(described[name], default, "{name} has another default in .env.example");
        }
    }
}

#[test]
fn the_example_configuration_is_valid_for_every_role() {
    let config = folder().join("custody.example.toml");
    for (variable, address) in [
        ("CUSTODY__PROXY__LISTEN", "0.0.0.0:7400"),
        ("CUSTODY__INGEST__LISTEN", "0.0.0.0:7470"),
        ("CUSTODY__QUERY__LISTEN", "0.0.0.0:7480"),
    ] {
        let output = Command::new(executable().unwrap())
            .args(["config", "check", "-c"])
            .arg(&config)
            .env(variable, address)
            .env("CUSTODY__QUERY__TOKENS", format!("a=sha256:{}", "0".repeat(64)))
            .env("CUSTODY__DEPLOYMENT__WRITER", "proxy-1")
            .env("CUSTODY__JOURNAL__PARTITIONS", "3")
            .env("CUSTODY__JOURNAL__INSTANCE", "ingest-1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
