//! `docs/` against the product: every setting that there is stands there, and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use custody_tests::product::executable;

const PAGES: [&str; 2] =
    [include_str!("../../../docs/operations.md"), include_str!("../../../docs/proxy.md")];

/// A key that is like no other: what is said of it names those that there are.
const STRANGE: &str = "zzzzzzzzzzzzzzzzzzzz";

/// Every table of a configuration, each with a strange key. Those that need something to be read at
/// all have it.
const TABLES: [(&str, &str); 16] = [
    ("deployment", "[deployment]"),
    ("proxy", "[proxy]"),
    ("server", "[[server]]\nname = \"a\"\nurl = \"http://127.0.0.1:1/mcp\""),
    ("server.recipient", "[server.recipient]\nname = \"a\""),
    (
        "server.oauth",
        "[server.oauth]\ntoken_url = \"http://h/\"\nclient_id = \"a\"\nclient_secret = \"a\"",
    ),
    ("server.rule", "[[server.rule]]"),
    ("server.tools", "[server.tools]"),
    ("key", "[[key]]"),
    ("journal", "[journal]\nkind = \"kafka\"\nbrokers = \"k:1\""),
    ("journal.tls", "[journal.tls]"),
    ("journal.sasl", "[journal.sasl]\nmechanism = \"SCRAM-SHA-512\""),
    ("lake", "[lake]"),
    ("ingest", "[ingest]"),
    ("query", "[query]"),
    ("witness", "[witness]"),
    ("telemetry", "[telemetry]"),
];

/// What stands between backticks.
fn quoted() -> impl Iterator<Item = &'static str> {
    PAGES.iter().flat_map(|page| page.split('`').skip(1).step_by(2))
}

/// What `custody config check` says of this text.
fn check(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("custody.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(executable().unwrap());
    let output = command.args(["config", "check", "-c"]).arg(&file).output().unwrap();
    assert!(!output.status.success(), "{text} is no valid configuration");
    String::from_utf8(output.stderr).unwrap()
}

/// Every key that a configuration knows, with its table.
fn keys() -> BTreeSet<(String, String)> {
    let with_strange = TABLES.map(|(_, text)| format!("{text}\n{STRANGE} = 1\n")).concat();
    let oauth = with_strange.replace("SCRAM-SHA-512", "OAUTHBEARER");
    let said = [check(&with_strange), check(&oauth)].concat();
    let mut keys = BTreeSet::new();
    for (table, _) in TABLES {
        let start = format!("unknown key {table}.{STRANGE}; known are ");
        let lists: Vec<_> = said.lines().filter_map(|line| line.split_once(&start)).collect();
        assert!(!lists.is_empty(), "{table}: {said}");
        let known = lists.iter().flat_map(|(_, list)| list.trim().split(", "));
        keys.extend(known.map(|key| (table.to_owned(), key.to_owned())));
    }
    keys
}

#[test]
fn every_setting_is_in_the_documentation() {
    let not_in_words = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let words: BTreeSet<_> = quoted().flat_map(|text| text.split(not_in_words)).collect();
    let keys = keys();
    assert!(keys.len() > 50, "{keys:?}");
    let missing: Vec<_> = keys.iter().filter(|(_, key)| !words.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "neither docs/operations.md nor docs/proxy.md has {missing:?}");
}

#[test]
fn every_table_of_the_configuration_is_known_to_these_tests() {
    let said = check(&format!("[{STRANGE}]\n"));
    let (_, known) = said.split_once("known are ").unwrap();
    let known: BTreeSet<_> = known.trim().split(", ").collect();
    let here: BTreeSet<_> =
        TABLES.iter().map(|(table, _)| *table).filter(|table| !table.contains('.')).collect();
    assert_eq!(known, here);
}

#[test]
fn every_setting_in_the_documentation_exists() {
    let keys = keys();
    let tables: BTreeSet<_> = keys.iter().map(|(table, _)| table.as_str()).collect();
    let mut invented = BTreeSet::new();
    for name in quoted() {
        let Some((table, key)) = name.rsplit_once('.') else { continue };
        let is_word = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if tables.contains(table) && is_word && !["key", "toml"].contains(&key) {
            let exists = keys.contains(&(table.to_owned(), key.to_owned()));
            let is_table = tables.contains(name);
            if !exists && !is_table {
                invented.insert(name);
            }
        }
    }
    assert!(invented.is_empty(), "there is no setting {invented:?}");
}

/// The text of every Rust file below `folder`.
fn sources(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_metric_in_the_documentation_exists() {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut code = String::new();
    for part in ["proxy", "journal", "ingest", "query", "custody"] {
        sources(&root.join(part).join("src"), &mut code);
    }
    let names = quoted().filter_map(|text| text.strip_prefix("custody_"));
    let names: BTreeSet<_> = names.map(|text| text.split('{').next().unwrap_or(text)).collect();
    assert!(names.len() > 40, "{names:?}");
    // A metric's name is its part's, its own, its unit and `total`: only its own is in the code.
    let is_made = |name: &&&str| {
        let words: Vec<_> = name.split('_').collect();
        let ends = words.len().saturating_sub(2).max(1)..=words.len();
        ends.into_iter().any(|end| {
            let whole = (end >= 2 || words.len() == 2).then(|| words[..end].join("_"));
            let own = (end >= 2).then(|| words[1..end].join("_"));
            let full = whole.as_ref().map(|whole| format!("custody_{whole}"));
            [whole, own, full].iter().flatten().any(|own| code.contains(&format!("\"{own}\"")))
        })
    };
    let invented: Vec<_> = names.iter().filter(|name| !is_made(name)).collect();
    assert!(invented.is_empty(), "there is no metric {invented:?}");
}
