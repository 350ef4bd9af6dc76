//! Sealed while it runs, verified while it does not: `custody verify` on a lake and on evidence,
//! and what happens to either when somebody changes it.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use custody_lake::evidence::{Judged, Trust, zip};
use custody_lake::verify::{Request, Verdict};
use custody_tests::http::post_mcp;
use custody_tests::product::{Custody, Setup, executable};
use custody_tests::upstream::{Behaviour, Upstream};
use custody_tests::{storm, tools};
use serde_json::{Value, json};

use crate::evidence::forged;

/// What `custody verify` says, and its exit code.
pub fn verify(arguments: &[&str]) -> (i32, Value) {
    let output = custody(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdict = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), verdict.unwrap_or_else(|_| panic!("{said}")))
}

pub fn custody(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(executable().unwrap());
    command.args(arguments).current_dir(std::env::temp_dir()).output().unwrap()
}

pub async fn calls(custody: &Custody, name: &str, count: u32) {
    for call in 0..count {
        let call = storm::call(&format!("{name}-{call}"));
        assert!(post_mcp(&custody.server("s"), call).await.unwrap().status.is_success());
    }
}

/// What a run has left that was killed, and another that was stopped in order.
async fn run(folder: &Path, count: u32) -> PathBuf {
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).lake_lines("flush_seconds = 1");
    let mut first = setup.start(folder).unwrap();
    calls(&first, "first", count).await;
    first.kill().unwrap();
    let mut second = setup.start(folder).unwrap();
    calls(&second, "second", count).await;
    assert!(second.stop().unwrap());
    folder.join("data/lake")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_is_valid_after_a_kill_and_a_stop_and_every_record_in_it_is_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let lake = run(folder.path(), 40).await;
    let (code, verdict) =
        verify(&["verify", "--json", "--bodies", "--lake", lake.to_str().unwrap()]);
    assert_eq!((code, &verdict["verdict"]), (0, &"valid".into()), "{verdict:#}");
    assert_eq!(verdict["streams"], 2, "{verdict:#}");
    assert_eq!(verdict["unsealed"], 0, "{verdict:#}");
    assert_eq!(verdict["bodies_missing"], 0, "{verdict:#}");
    assert_eq!(verdict["records"], verdict["leaves"], "{verdict:#}");
    assert!(verdict["records"].as_u64().unwrap() >= 160, "{verdict:#}");
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files_in(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap().path();
        if entry.is_dir() { files_in(&entry, found) } else { found.push(entry) }
    }
}

/// The files of a lake on which the verdict rests: a smaller edge of a tree has been replaced by a
/// larger one, and commits and cursors are ingest's own.
fn sealed_files(lake: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files_in(lake, &mut all);
    let width = |path: &PathBuf| -> Option<(PathBuf, u32)> {
        let folder = path.parent()?.to_owned();
        let is_edge = folder.extension().is_some_and(|end| end == "p");
        is_edge.then(|| Some((folder, path.file_name()?.to_str()?.parse().ok()?)))?
    };
    let mut widest: BTreeMap<PathBuf, u32> = BTreeMap::new();
    for (folder, width) in all.iter().filter_map(width) {
        let known = widest.entry(folder).or_insert(width);
        *known = (*known).max(width);
    }
    all.retain(|path| {
        let text = path.to_str().unwrap();
        let own = text.contains("/commits/") || text.contains("/cursors/");
        let replaced = width(path).is_some_and(|(folder, width)| widest[&folder] != width);
        let of_table = text.contains("/bodies/") || text.contains("_delta_log");
        text.contains("/seal/") && !own && !replaced || !text.contains("/seal/") && !of_table
    });
    all
}

async fn verdict(lake: &Path, head: Option<&str>) -> Result<Verdict, String> {
    let request = Request { head: head.map(str::to_owned), ..Request::default() };
    let url = lake.to_str().unwrap();
    let verdict = custody_lake::verify::lake(url, &request, &|_, _| {}).await;
    verdict.map_err(|error| error.to_string())
}

/// Where a changed lake is said to be wrong; nothing when nobody notices.
async fn noticed(lake: &Path) -> Option<String> {
    match verdict(lake, None).await {
        Err(error) => Some(error),
        Ok(verdict) if !verdict.is_valid() => Some(verdict.findings[0].place.clone()),
        Ok(verdict) if !verdict.is_complete() => Some(verdict.gaps[0].0.clone()),
        Ok(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_file_of_a_lake_is_changed_cut_or_removed_it_is_noticed_there() {
    let folder = tempfile::tempdir().unwrap();
    let lake = run(folder.path(), 12).await;
    assert_eq!(noticed(&lake).await, None);
    let files = sealed_files(&lake);
    let (mut tried, mut unnoticed, mut elsewhere) = (0, Vec::new(), Vec::new());
    for file in &files {
        let bytes = std::fs::read(file).unwrap();
        let text = file.to_str().unwrap();
        let mut changes: Vec<(&str, Option<Vec<u8>>)> = vec![("removed", None)];
        changes.push(("cut", Some(bytes[..bytes.len() - 1].to_vec())));
        if text.contains("/seal/") {
            for at in [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 2] {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                changes.push(("changed", Some(changed)));
            }
        }
        for (what, content) in changes {
            match &content {
                Some(content) => std::fs::write(file, content).unwrap(),
                None => std::fs::remove_file(file).unwrap(),
            }
            tried += 1;
            let name = file.file_name().unwrap().to_str().unwrap();
            match noticed(&lake).await {
                // A stream's own checkpoint may be missing: the log has it.
                None if what == "removed" && name == "checkpoint" => {}
                // The last newline of a key says nothing.
                None if what == "cut" && text.ends_with("seal/root") => {}
                None => unnoticed.push(format!("{text} {what}")),
                Some(place) if !place.contains(name) => elsewhere.push(format!("{text}: {place}")),
                Some(_) => {}
            }
            std::fs::write(file, &bytes).unwrap();
        }
    }
    println!("{tried} changes of {} files, {} unnoticed", files.len(), unnoticed.len());
    println!("named another place: {elsewhere:#?}");
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
    assert!(tried > 40, "{tried} changes are no storm");
    assert_eq!(noticed(&lake).await, None, "the storm is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_passes_for_the_newest_only_before_those_who_kept_no_head() {
    let folder = tempfile::tempdir().unwrap();
    let lake = run(folder.path(), 3).await;
    let old = folder.path().join("old");
    copy(&lake, &old);
    let old_head = std::fs::read_to_string(old.join("seal/log/checkpoint")).unwrap();
    run(folder.path(), 3).await;
    let head = std::fs::read_to_string(lake.join("seal/log/checkpoint")).unwrap();
    let grown = verdict(&lake, Some(&old_head)).await.unwrap();
    assert!(grown.is_valid() && grown.earlier.is_some(), "{grown:#?}");
    // This is what no mathematics can tell without a witness or a head of one's own.
    assert!(verdict(&old, None).await.unwrap().is_valid());
    let told = verdict(&old, Some(&head)).await.unwrap();
    assert!(told.findings[0].problem.contains("rolled back"), "{told:#?}");
    // An older table under the newer log is noticed by anybody.
    std::fs::remove_dir_all(lake.join("events")).unwrap();
    copy(&old.join("events"), &lake.join("events"));
    let mixed = verdict(&lake, None).await.unwrap();
    assert!(!mixed.is_complete(), "{mixed:#?}");
}

/// A package of everything that `run` left, and the moment up to which it is sealed.
async fn package(folder: &Path) -> (Vec<u8>, String) {
    run(folder, 8).await;
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).lake_lines("flush_seconds = 1");
    let custody = setup.start(folder).unwrap();
    let file = folder.join("all.evidence");
    let (file, url) = (file.to_str().unwrap(), custody.query.as_str());
    let export = |to: &str| {
        let from = ["evidence", "export", "--from", "2020-01-01", "--to", to];
        let output = self::custody(&[&from[..], &["-o", file, "--url", url]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(file).unwrap()
    };
    export("2100-01-01");
    let (code, said) = verify(&["verify", "--json", file]);
    assert_eq!((code, &said["verdict"]), (3, &json!("incomplete")), "{said:#}");
    assert_eq!(said["missing"], json!([]), "{said:#}");
    let through = said["through"].as_u64().unwrap();
    let rows = format!("SELECT CAST(to_timestamp_micros({through}) AS VARCHAR) AS at");
    let rows = custody.sql(&rows).await.unwrap();
    let through = format!("{}Z", rows[0]["at"].as_str().unwrap().trim_end_matches('Z'));
    let package = export(&through);
    let asked = "SELECT count(*) FROM events WHERE kind = 'evidence.exported'";
    assert_eq!(custody.number(asked).await.unwrap(), 2);
    (package, through)
}

/// What Tessera's fsck says of the tree in `folder`.
fn fsck(folder: &Path, vkey: &str, scratch: &Path) -> String {
    let key = scratch.join("vkey");
    std::fs::write(&key, vkey).unwrap();
    let head = std::fs::read_to_string(folder.join("checkpoint")).unwrap();
    let origin = head.lines().next().unwrap();
    let mut fsck = Command::new(tools::path("fsck/fsck"));
    fsck.arg(format!("--storage_url=file://{}/", folder.display()));
    fsck.arg(format!("--public_key={}", key.display())).arg(format!("--origin={origin}"));
    let output = fsck.args(["--logtostderr", "-ui=false"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("Successfully"), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn others_who_share_no_code_with_us_accept_logs_streams_and_packages_and_refuse_changed_ones()
{
    let folder = tempfile::tempdir().unwrap();
    let (package, _) = package(folder.path()).await;
    let seal = folder.path().join("data/lake/seal");
    let second = |arguments: &[&str]| {
        let output = Command::new(tools::path("second/second")).args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let seal_text = seal.to_str().unwrap();
    assert_eq!(second(&["-seal", seal_text]).0, 0, "{}", second(&["-seal", seal_text]).1);
    let keyrings = std::fs::read_dir(seal.join("keyring")).unwrap();
    let newest = keyrings.map(|entry| entry.unwrap().path()).max().unwrap();
    let ring = std::fs::read_to_string(newest).unwrap();
    let key = |name: &str| {
        let line = ring.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split(' ').nth(1).unwrap().to_owned()
    };
    fsck(&seal.join("log"), &key("log"), folder.path());
    for run in std::fs::read_dir(seal.join("streams/edge-1")).unwrap() {
        fsck(&run.unwrap().path(), &key("edge-1"), folder.path());
    }
    let file = folder.path().join("some.evidence");
    let judge = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        second(&[file.to_str().unwrap()])
    };
    assert_eq!(judge(&package).0, 0, "{}", judge(&package).1);
    let files = zip::read(&package).unwrap();
    let proving =
        files.keys().filter(|name| !["README.txt", "manifest.json"].contains(&name.as_str()));
    for name in proving {
        let mut changed = files.clone();
        let middle = changed[name].len() / 2;
        changed.get_mut(name).unwrap()[middle] ^= 1;
        assert_ne!(judge(&forged(changed, |_| {})).0, 0, "{name} changed");
        let mut without = files.clone();
        without.remove(name);
        assert_ne!(judge(&forged(without, |_| {})).0, 0, "{name} removed");
    }
}

/// What a check of a package says, by somebody who trusts this root, or the package.
fn judge(package: &[u8], root: Option<&str>) -> Result<Judged, zip::ZipError> {
    let trust = Trust { root: root.map(str::to_owned), ..Trust::default() };
    custody_lake::evidence::check(Cursor::new(package), &trust, &|_, _| {})
}

/// Whether a package is accepted as it is.
fn accepted(package: &[u8]) -> bool {
    judge(package, None).is_ok_and(|judged| judged.is_valid() && judged.is_complete())
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_of_a_real_run_holds_every_flagged_event_and_is_nothing_under_another_root() {
    let folder = tempfile::tempdir().unwrap();
    let (package, _) = package(folder.path()).await;
    let judged = judge(&package, None).unwrap();
    assert!(accepted(&package), "{judged:#?}");
    assert!(judged.opened >= 32 && judged.population > judged.flagged, "{judged:#?}");
    let other = "audit.other/root+512eeeb9+AURThiC8+sR816SQhXe9nkGlOtkqXx5DmrHAprYry4JG";
    assert!(!judge(&package, Some(other)).unwrap().is_valid(), "another deployment's root");
}
