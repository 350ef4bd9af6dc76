//! Which crate may use which, asked of cargo.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const ALLOWED: [(&str, &[&str]); 6] = [
    ("custody-schemas", &[]),
    ("custody-journal", &["custody-schemas"]),
    ("custody-lake", &["custody-schemas"]),
    ("custody-proxy", &["custody-journal", "custody-schemas"]),
    ("custody-ingest", &["custody-journal", "custody-lake", "custody-schemas"]),
    ("custody-query", &["custody-journal", "custody-lake", "custody-schemas"]),
];

/// Names of all the crates that `package` is built from, itself left out.
fn dependencies(package: &str, extra: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "-p", package, "-e", "normal", "--prefix", "none"])
        .args(extra)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| *name != package && !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn every_crate_uses_only_those_before_it_on_the_line() {
    for (package, allowed) in ALLOWED {
        let used = dependencies(package, &[]);
        let ours: Vec<_> = used.iter().filter(|name| name.starts_with("custody")).collect();
        let forbidden: Vec<_> = ours.iter().filter(|n| !allowed.contains(&n.as_str())).collect();
        assert!(
            forbidden.is_empty(),
            "{package} must not use {forbidden:?}: imports run schemas <- journal, lake <- proxy, ingest, query <- custody <- tests"
        );
    }
}

#[test]
fn the_proxy_compiles_without_arrow_and_without_a_sql_engine() {
    let heavy = |name: &&String| {
        ["arrow", "datafusion", "parquet", "deltalake"].iter().any(|word| name.starts_with(word))
    };
    let proxy = dependencies("custody-proxy", &[]);
    assert_eq!(proxy.iter().filter(heavy).count(), 0, "the proxy would pull in a SQL engine");
    let query = dependencies("custody-query", &[]);
    assert!(query.iter().filter(heavy).count() > 3, "this test would no longer see them");
    let ingest = dependencies("custody-ingest", &[]);
    assert!(!ingest.contains("datafusion"), "ingest needs no SQL engine");
}

#[test]
fn a_build_of_the_proxy_alone_has_no_sql_engine_no_lake_and_no_web_framework() {
    let unwanted = |name: &&String| {
        let beginnings = ["arrow", "datafusion", "parquet", "deltalake", "object_store"];
        beginnings.iter().any(|word| name.starts_with(word))
            || ["axum", "rmcp", "reqwest", "sqlparser", "custody-lake"].contains(&name.as_str())
    };
    let alone = dependencies("custody", &["--no-default-features", "--features", "proxy"]);
    let found: Vec<_> = alone.iter().filter(unwanted).collect();
    assert!(found.is_empty(), "the image of the proxy would hold {found:?}");
    assert!(alone.contains("rdkafka"), "it would have nowhere to ship to");
    let full = dependencies("custody", &[]);
    assert!(full.iter().filter(unwanted).count() > 10, "this test would no longer see them");
    assert!(alone.len() * 3 < full.len() * 2, "{} of {} crates", alone.len(), full.len());
}

/// The numbers of all tests below `folder` that are named `mistake_NN_…`.
fn mistakes(folder: &Path, found: &mut BTreeSet<u32>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            mistakes(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let numbers = text.lines().filter_map(|line| {
                let (_, name) = line.split_once("fn mistake_")?;
                name.split('_').next()?.parse::<u32>().ok()
            });
            found.extend(numbers);
        }
    }
}

#[test]
fn each_of_the_sixteen_mistakes_of_other_proxies_has_a_test_named_after_it() {
    let house = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = BTreeSet::new();
    for folder in ["proxy/src", "tests/tests"] {
        mistakes(&house.join(folder), &mut found);
    }
    let all = (1..=16).collect::<BTreeSet<u32>>();
    assert_eq!(found, all, "a mistake without a test, or one that nobody knows");
}
