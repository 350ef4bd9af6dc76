//! Evidence of lakes that a forger with the right keys could make: what is gone lawfully, what an
//! auditor draws, what a filter opens, and every attempt to show another history, judged by both
//! verifiers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read as _};
use std::process::Command;

use custody_lake::evidence::{Challenge, Filter, Judged, Trust, check, zip};
use custody_lake::verify::{Request, Verdict};
use custody_schemas::event::Draft;
use custody_schemas::id::{Bytes, StreamId};
use custody_schemas::kind::Kind;
use custody_schemas::record::hash;
use custody_tests::sealed::{BEGIN, Sealed, call, calls, judge};
use custody_tests::tools;
use serde_json::{Value, json};

type Files = BTreeMap<String, Vec<u8>>;

const DEPLOYMENT: &str = "audit.example";
const ONE: &str = "edge-1/0190c8a0-7b1e-7000-8000-000000000001";
const TWO: &str = "edge-2/0190c8a0-7b1e-7000-8000-000000000002";
/// Later than every event of interest.
const SECOND: u64 = 1_000_000;

fn stream(text: &str) -> StreamId {
    text.parse().unwrap()
}

/// A lake of two proxies with 60 calls each, every third about a patient, and one event later.
async fn two_proxies(folder: &std::path::Path) -> Sealed {
    let mut lake = Sealed::new(folder, DEPLOYMENT, &["edge-1", "edge-2"]).await.unwrap();
    for name in [ONE, TWO] {
        // Two checkpoints of each stream lie within the period.
        lake.record(&stream(name), calls(40, 3), &[]).await.unwrap();
        let rest = (40..60).map(|n| (call(n, n % 3 == 0), n * 1_000));
        lake.record(&stream(name), rest, &[]).await.unwrap();
        let later = [(Draft::new(Kind::StreamAlive), SECOND)];
        lake.record(&stream(name), later.into_iter(), &[]).await.unwrap();
    }
    lake
}

fn bytes(mut package: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    package.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What both verifiers say of a package: the first's judgement, the second's exit code and words.
fn both(package: &[u8], root: &str) -> (Judged, i32, String) {
    let trust = Trust { root: Some(root.to_owned()), ..Trust::default() };
    let judged = check(Cursor::new(package), &trust, &|_, _| {}).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), package).unwrap();
    let second = tools::path("second/second");
    let output = Command::new(second).args(["-root", root]).arg(file.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (judged, output.status.code().unwrap(), said)
}

/// The package with a manifest that names its files as they are: what a careful forger does.
pub(crate) fn forged(mut files: Files, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let sums = files.iter().filter(|(name, _)| *name != "manifest.json");
    let sums: BTreeMap<_, _> =
        sums.map(|(name, bytes)| (name.clone(), hash(bytes).to_string())).collect();
    manifest["files"] = json!(sums);
    change(&mut manifest);
    files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
    zip::write(&files).unwrap()
}

async fn verify(folder: &std::path::Path) -> Verdict {
    let url = folder.to_str().unwrap();
    custody_lake::verify::lake(url, &Request::default(), &|_, _| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_or_was_erased_is_told_from_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut lake = Sealed::new(folder.path(), DEPLOYMENT, &["edge-1", "edge-2"]).await.unwrap();
    lake.record(&stream(ONE), calls(30, 1), &[2, 10, 20]).await.unwrap();
    let retention =
        Draft::new(Kind::RetentionApplied).with("table", "events").with("before", BEGIN + 5_000);
    let erased = Draft::new(Kind::SubjectErased).with("events", vec![format!("{ONE}/10")]);
    let later = [(retention, SECOND), (erased, SECOND)];
    lake.record(&stream(TWO), later.into_iter(), &[]).await.unwrap();
    let alive = [(Draft::new(Kind::StreamAlive), SECOND)];
    lake.record(&stream(ONE), alive.into_iter(), &[]).await.unwrap();

    let (package, _) = lake.package((0, SECOND), |_| {}).await.unwrap();
    let package = bytes(package);
    let (judged, code, said) = both(&package, lake.root());
    assert!(judged.is_valid() && !judged.is_complete(), "{judged:#?}");
    assert_eq!((judged.expired, judged.erased, judged.opened), (1, 1, 27), "{judged:#?}");
    assert_eq!(judged.missing, [(ONE.to_owned(), 20)]);
    assert_eq!(code, 3, "{said}");
    let verdict = verify(folder.path()).await;
    assert!(verdict.is_valid(), "{verdict:#?}");
    assert_eq!((verdict.expired, verdict.erased), (1, 1), "{verdict:#?}");
    assert_eq!(verdict.gaps, [(ONE.to_owned(), 20, 21)]);

    // Nobody can say of more that it has expired than what is signed.
    let mut files = zip::read(&package).unwrap();
    let lines = String::from_utf8(files["lawful.jsonl"].clone()).unwrap();
    let more = lines.replace(&(BEGIN + 5_000).to_string(), &(BEGIN + 25_000).to_string());
    assert_ne!(more, lines);
    files.insert("lawful.jsonl".to_owned(), more.into_bytes());
    let (judged, code, _) = both(&forged(files.clone(), |_| {}), lake.root());
    assert!(judged.findings[0].place.starts_with("lawful.jsonl"), "{judged:#?}");
    assert_eq!(code, 1);
    // Without what says so, all three are missing.
    files.remove("lawful.jsonl");
    files.remove("lawful.json");
    let (judged, code, _) = both(&forged(files, |_| {}), lake.root());
    assert_eq!((judged.is_valid(), judged.lacking, code), (true, 3, 3), "{judged:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_draws_a_sample_that_whoever_makes_the_package_cannot_choose() {
    let folder = tempfile::tempdir().unwrap();
    let lake = two_proxies(folder.path()).await;
    let dice = Challenge { seed: "4 1 6 6 2 5".to_owned(), count: 12 };
    let asked = dice.clone();
    let made = lake.package((0, SECOND), |order| order.challenge = Some(asked)).await.unwrap();
    let package = bytes(made.0);
    let (judged, code, said) = both(&package, lake.root());
    assert!(judged.is_valid() && judged.is_complete(), "{judged:#?}");
    assert_eq!((judged.drawn, judged.drawn_opened, judged.population), (12, 12, 120));
    assert_eq!(code, 0, "{said}");
    let files = zip::read(&package).unwrap();
    let unflagged = String::from_utf8(files["sample.jsonl"].clone()).unwrap();
    assert!(unflagged.lines().any(|line| !line.contains("phi")), "not only what is flagged");
    // A sample for another word is none for this one.
    let other = forged(files.clone(), |manifest| manifest["challenge"]["seed"] = json!("1 1 1"));
    let (judged, code, _) = both(&other, lake.root());
    assert!(!judged.is_valid() && code == 1, "{judged:#?}");
    // What is not opened is missing.
    let mut fewer = files.clone();
    let cut = unflagged.find('\n').unwrap() + 1;
    fewer.insert("sample.jsonl".to_owned(), unflagged.as_bytes()[cut..].to_vec());
    let (judged, code, _) = both(&forged(fewer, |_| {}), lake.root());
    assert_eq!((judged.is_valid(), judged.drawn_opened, judged.lacking, code), (true, 11, 1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_opens_what_it_cites_and_the_verdict_says_what_is_not_proven_then() {
    let folder = tempfile::tempdir().unwrap();
    let lake = two_proxies(folder.path()).await;
    let filter = Filter { patient: Some("synthetic-9".to_owned()), ..Filter::default() };
    let made = lake.package((0, SECOND), |order| order.filter = Some(filter)).await.unwrap();
    let package = bytes(made.0);
    let (judged, code, said) = both(&package, lake.root());
    assert!(judged.is_valid() && judged.is_complete(), "{judged:#?}");
    assert_eq!((judged.opened, judged.flagged, judged.accesses), (2, 40, 2), "{judged:#?}");
    assert_eq!(judged.filter.as_deref(), Some("patient \"synthetic-9\""));
    assert_eq!(code, 0, "{said}");
    let files = zip::read(&package).unwrap();
    let people = String::from_utf8(files["records.jsonl"].clone()).unwrap();
    assert!(!people.contains("synthetic-12"), "nobody else leaves the house");
    // It cannot pass for a full one.
    let full = forged(files, |manifest| manifest["population"] = json!("full"));
    let (judged, code, _) = both(&full, lake.root());
    assert_eq!((judged.is_valid(), judged.lacking, code), (true, 38, 3), "{judged:#?}");
}

/// Attempts on a package, and who noticed them.
#[derive(Default)]
struct Score {
    tried: u32,
    /// By the first, by the first at the right place, by the second.
    caught: [u32; 3],
    escaped: Vec<String>,
}

impl Score {
    fn attempt(&mut self, what: &str, place: &str, package: &[u8], root: &str) {
        let (judged, code, _) = both(package, root);
        let first = !judged.is_valid() || !judged.is_complete();
        let found = judged.findings.first().map(|finding| finding.place.as_str());
        let name = place.trim_end_matches(".leaves").trim_end_matches(".json");
        // A record that is not there is named by its stream and number.
        let listed = place.ends_with(".jsonl") && !judged.missing.is_empty();
        let there = listed || found.is_some_and(|found| found.contains(name));
        self.tried += 1;
        for (caught, yes) in self.caught.iter_mut().zip([first, there, code != 0]) {
            *caught += u32::from(yes);
        }
        if !(first && there && code != 0) {
            self.escaped.push(format!("{what}: {found:?}, the second says {code}"));
        }
    }
}

/// Everything that can be done to the lines or entries of a file.
fn rearranged(parts: &[&[u8]]) -> Vec<(&'static str, Vec<u8>)> {
    let last = parts.len() - 1;
    let pick = |order: &[usize]| order.iter().flat_map(|i| parts[*i]).copied().collect();
    let all: Vec<_> = (0..parts.len()).collect();
    let mut swapped = all.clone();
    swapped.swap(0, last);
    let reversed: Vec<_> = all.iter().rev().copied().collect();
    vec![
        ("the first deleted", pick(&all[1..])),
        ("the last deleted", pick(&all[..last])),
        ("one twice", pick(&[&all[..], &[last]].concat())),
        ("two swapped", pick(&swapped)),
        ("in another order", pick(&reversed)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn both_verifiers_notice_every_change_of_every_file_of_a_package_and_name_it() {
    let folder = tempfile::tempdir().unwrap();
    let lake = two_proxies(folder.path()).await;
    let dice = Challenge { seed: "2 2 3".to_owned(), count: 9 };
    let made = lake.package((0, SECOND), |order| order.challenge = Some(dice)).await.unwrap();
    let files = zip::read(&bytes(made.0)).unwrap();
    let mut score = Score::default();
    let root = lake.root();
    // Nobody has signed the manifest and the page that explains; the root is the auditor's own.
    let unsigned = ["README.txt", "manifest.json", "keyring/root"];
    for (name, content) in files.iter().filter(|(name, _)| !unsigned.contains(&name.as_str())) {
        let mut changes: Vec<(String, Option<Vec<u8>>)> = vec![("removed".to_owned(), None)];
        for at in [0, content.len() / 3, content.len() / 2, content.len() - 2] {
            let mut flipped = content.clone();
            flipped[at] ^= 1;
            changes.push((format!("flipped at {at}"), Some(flipped)));
            changes.push((format!("cut at {at}"), Some(content[..at].to_vec())));
        }
        let parts: Vec<&[u8]> = match name.as_str() {
            leaves if leaves.ends_with(".leaves") => content.chunks(44).collect(),
            lines if lines.ends_with(".jsonl") || lines.ends_with(".csv") => {
                content.split_inclusive(|byte| *byte == b'\n').collect()
            }
            _ => Vec::new(),
        };
        if !parts.is_empty() {
            let more = rearranged(&parts).into_iter();
            changes.extend(more.map(|(what, content)| (what.to_owned(), Some(content))));
        }
        for (what, content) in changes {
            let mut changed = files.clone();
            match content {
                Some(content) => drop(changed.insert(name.clone(), content)),
                None => drop(changed.remove(name)),
            }
            score.attempt(&format!("{name} {what}"), name, &forged(changed, |_| {}), root);
        }
    }
    println!("{} changes; noticed, at the place, by the second: {:?}", score.tried, score.caught);
    assert!(score.escaped.is_empty(), "{:#?}", score.escaped);
    assert!(score.tried > 100, "{} changes are no storm", score.tried);
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_that_were_spliced_dropped_forked_backdated_or_replayed_are_refused_by_both() {
    let folder = tempfile::tempdir().unwrap();
    let lake = two_proxies(&folder.path().join("true")).await;
    let made = lake.package((0, SECOND), |_| {}).await.unwrap();
    let files = zip::read(&bytes(made.0)).unwrap();
    let head = String::from_utf8(files["log/checkpoint"].clone()).unwrap();
    let mut score = Score::default();
    let root = lake.root().to_owned();

    // Two streams change places.
    let mut spliced = files.clone();
    for end in ["leaves", "json"] {
        let [one, two] = [ONE, TWO].map(|name| format!("population/{name}.{end}"));
        spliced.insert(one.clone(), files[&two].clone());
        spliced.insert(two, files[&one].clone());
    }
    score.attempt("spliced", ONE, &forged(spliced, |_| {}), &root);
    // A proxy is left out of the package.
    let mut dropped = files.clone();
    dropped.retain(|name, _| !name.contains(TWO));
    score.attempt("dropped", TWO, &forged(dropped, |_| {}), &root);
    // A package of another deployment, whose makers have no key of this one.
    let other = Sealed::new(&folder.path().join("other"), "other.example", &["edge-1"]).await;
    let other = other.unwrap().package((0, SECOND), |_| {}).await.unwrap();
    score.attempt("replayed", "keyring/", &bytes(other.0), &root);
    // A disk was cloned, and both wrote: two roots at one size, and at an earlier one.
    for (what, size) in [("two roots", 61), ("a fork", 25)] {
        let mut forked = two_proxies(&folder.path().join(what)).await;
        let note = forked.checkpoint(&stream(ONE), size, Bytes([7; 32])).unwrap();
        forked.enter(note).await.unwrap();
        let made = forked.package((0, SECOND), |_| {}).await.unwrap();
        let place = if size == 61 { "log/entries" } else { ONE };
        score.attempt(what, place, &bytes(made.0), &root);
    }
    // An event that happened before the one before it.
    let mut back = two_proxies(&folder.path().join("back")).await;
    let early = [(call(70, true), 1_500)];
    back.record(&stream(ONE), early.into_iter(), &[]).await.unwrap();
    let made = back.package((0, SECOND), |_| {}).await.unwrap();
    score.attempt("backdated", ONE, &bytes(made.0), &root);
    // The key was closed before the last events.
    let mut closed = two_proxies(&folder.path().join("closed")).await;
    closed.enrol(2, Some(50_000)).await.unwrap();
    let made = closed.package((0, 2 * SECOND), |_| {}).await.unwrap();
    score.attempt("signed after the key's end", ONE, &bytes(made.0), &root);
    // An access is left out of the report; the record stays.
    let mut silent = files.clone();
    let report = String::from_utf8(files["report.csv"].clone()).unwrap();
    let kept: String =
        report.split_inclusive('\n').filter(|l| !l.contains(",synthetic-9,")).collect();
    silent.insert("report.csv".to_owned(), kept.into_bytes());
    score.attempt("omitted from the report", "report.csv", &forged(silent.clone(), |_| {}), &root);
    // Its record, too.
    let records = String::from_utf8(files["records.jsonl"].clone()).unwrap();
    let kept: String =
        records.split_inclusive('\n').filter(|l| !l.contains("\"synthetic-9\"")).collect();
    silent.insert("records.jsonl".to_owned(), kept.into_bytes());
    score.attempt("omitted", "records.jsonl", &forged(silent, |_| {}), &root);
    // With the log's key, and all records of the other proxy, whoever has no head of the log sees
    // only that the keyring names a writer who is not shown.
    let apart = folder.path().join("alone");
    let mut alone = Sealed::new(&apart, DEPLOYMENT, &["edge-1", "edge-2"]).await.unwrap();
    alone.record(&stream(ONE), calls(60, 3), &[]).await.unwrap();
    let (mut package, judged) = alone.package((0, 50_000), |_| {}).await.unwrap();
    assert_eq!(judged.through.map(|at| at.get()), Some(BEGIN), "{judged:#?}");
    assert!(judge(&mut package, &root).unwrap().is_valid());
    let trust = Trust { root: Some(root), head: Some(head), ..Trust::default() };
    let told = check(&mut package, &trust, &|_, _| {}).unwrap();
    assert!(told.findings[0].problem.contains("rolled back"), "{told:#?}");

    println!("{} histories; noticed, at the place, by the second: {:?}", score.tried, score.caught);
    assert!(score.escaped.is_empty(), "{:#?}", score.escaped);
}
