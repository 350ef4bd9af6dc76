//! Checking a package with nothing but the package, and the root's key if the auditor has it.

use std::collections::{BTreeMap, BTreeSet};

use custody_schemas::event::Event;
use custody_schemas::id::{Micros, StreamId, Uint};
use custody_schemas::record::{Decoded, decode, hash};
use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::keyring::Keyring;
use custody_schemas::seal::log::{self, Entry};
use custody_schemas::seal::proof::Range;
use custody_schemas::seal::{FLAG_PHI, Leaf, Tree, leaf_hash};

use super::zip::{self, ZipError};
use super::{
    FORMAT, LOG_ENTRIES, LOG_HEAD, MANIFEST, Manifest, Population, RECORDS, REPORT, ROOT,
    leaves_path, population_path, report,
};
use crate::tiles::keyring_path;
use crate::verify::Finding;

/// What checking a package has shown.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// The deployment.
    pub deployment: String,
    /// The root key under which the keyring was read.
    pub root: String,
    /// Whether the auditor named it.
    pub pinned: bool,
    /// The period, half open.
    pub from: Micros,
    /// Its end.
    pub to: Micros,
    /// Up to where the sealed streams reach, when that is before the period's end.
    pub through: Option<Micros>,
    /// Entries of the log.
    pub log_size: u64,
    /// Streams in it.
    pub streams: u64,
    /// Checkpoints whose signatures were checked.
    pub checkpoints: u64,
    /// Leaves within the period.
    pub population: u64,
    /// Those that are about protected health information.
    pub flagged: u64,
    /// Those of which the record is in the package and is what was signed.
    pub opened: u64,
    /// Those of which it is not.
    pub missing: Vec<(String, u64)>,
    /// Lines of the report.
    pub accesses: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Judged {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether every record is there, and the streams reach to the period's end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.through.is_none()
    }

    fn find(&mut self, place: impl Into<String>, problem: impl Into<String>) {
        self.findings.push(Finding { place: place.into(), problem: problem.into() });
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// Checks a package; `root` is the root's public key as the auditor keeps it.
///
/// # Errors
/// When the bytes are no package at all.
pub fn check(package: &[u8], root: Option<&str>) -> Result<Judged, ZipError> {
    Ok(files(&zip::read(package)?, root))
}

/// Checks the files of a package.
pub(super) fn files(files: &Files, root: Option<&str>) -> Judged {
    let mut judged = Judged::default();
    if let Err(finding) = all(files, root, &mut judged) {
        judged.findings.push(finding);
    }
    judged
}

fn wrong(place: &str, problem: impl Into<String>) -> Finding {
    Finding { place: place.to_owned(), problem: problem.into() }
}

fn text<'a>(files: &'a Files, name: &str) -> Result<&'a str, Finding> {
    let bytes = files.get(name).ok_or_else(|| wrong(name, "the file is missing"))?;
    std::str::from_utf8(bytes).map_err(|_| wrong(name, "it is no text"))
}

fn all(files: &Files, root: Option<&str>, judged: &mut Judged) -> Result<(), Finding> {
    let manifest = manifest(files, judged)?;
    judged.root =
        root.map_or_else(|| text(files, ROOT).map(str::to_owned), |r| Ok(r.to_owned()))?;
    judged.root = judged.root.trim().to_owned();
    judged.pinned = root.is_some();
    let entries = entries(files)?;
    let ring = keyring(files, &entries, judged)?;
    head(files, &ring, &entries, judged)?;
    let last = checkpoints(&ring, &entries, judged);
    judged.streams = last.len() as u64;
    let mut flagged = BTreeMap::new();
    let mut newest = BTreeMap::new();
    for (stream, checkpoint) in &last {
        let leaves = population(files, stream, checkpoint, judged, &mut flagged)?;
        // Streams come in the order of time: the last one is the writer's newest.
        newest.insert(stream.writer().to_owned(), leaves);
    }
    judged.through = through(&ring, &newest, manifest.to);
    let events = records(files, &flagged, judged)?;
    if text(files, REPORT)? != report::make(events.iter()) {
        judged.find(REPORT, "it is not what follows from the records");
    }
    judged.accesses = text(files, REPORT)?.lines().count().saturating_sub(1) as u64;
    extra(files, &last, judged);
    Ok(())
}

fn manifest(files: &Files, judged: &mut Judged) -> Result<Manifest, Finding> {
    let manifest: Manifest =
        serde_json::from_str(text(files, MANIFEST)?).map_err(|e| wrong(MANIFEST, e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(wrong(MANIFEST, format!("its format {:?} is not known", manifest.format)));
    }
    let named: BTreeSet<_> = manifest.files.keys().collect();
    for (name, bytes) in files.iter().filter(|(name, _)| *name != MANIFEST) {
        match manifest.files.get(name) {
            None => judged.find(name, "the manifest does not name it"),
            Some(sum) if *sum != hash(bytes).to_string() => {
                judged.find(name, "it is not the file that the manifest names");
            }
            Some(_) => {}
        }
    }
    for name in named.into_iter().filter(|name| !files.contains_key(*name)) {
        judged.find(name, "the file is missing");
    }
    judged.deployment.clone_from(&manifest.deployment);
    (judged.from, judged.to) = (Uint::new(manifest.from), Uint::new(manifest.to));
    Ok(manifest)
}

fn entries(files: &Files) -> Result<Vec<Vec<u8>>, Finding> {
    let mut rest = files.get(LOG_ENTRIES).map(Vec::as_slice);
    let mut found = Vec::new();
    while let Some(bytes) = rest.filter(|bytes| !bytes.is_empty()) {
        let cut = || wrong(LOG_ENTRIES, "an entry is cut short");
        let (length, behind) = bytes.split_first_chunk::<2>().ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, behind) = behind.split_at_checked(length).ok_or_else(cut)?;
        found.push(entry.to_vec());
        rest = Some(behind);
    }
    Ok(found)
}

/// The newest keyring in the log; every one must be signed by the root.
fn keyring(files: &Files, entries: &[Vec<u8>], judged: &mut Judged) -> Result<Keyring, Finding> {
    let mut newest: Option<Keyring> = None;
    for (index, entry) in entries.iter().enumerate() {
        let Ok(Entry::Keyring { edition, hash: expected }) = log::read(&judged.deployment, entry)
        else {
            continue;
        };
        let path = keyring_path(edition);
        let note = text(files, &path)?;
        if hash(note.as_bytes()) != expected {
            return Err(wrong(&path, format!("it is not the one that log entry {index} names")));
        }
        let ring = Keyring::verify(note, &judged.root)
            .map_err(|e| wrong(&path, format!("not signed by the root key: {e}")))?;
        if ring.deployment != judged.deployment || ring.edition != edition {
            return Err(wrong(&path, "it is another deployment's or another edition"));
        }
        if newest.as_ref().is_some_and(|known| known.edition > edition) {
            judged.find(path, "an older keyring came after a newer one");
            continue;
        }
        newest = Some(ring);
    }
    newest.ok_or_else(|| wrong(LOG_ENTRIES, "no keyring stands in the log"))
}

fn head(
    files: &Files,
    ring: &Keyring,
    entries: &[Vec<u8>],
    judged: &mut Judged,
) -> Result<(), Finding> {
    let head = log::verify_head(ring, text(files, LOG_HEAD)?)
        .map_err(|e| wrong(LOG_HEAD, e.to_string()))?;
    let mut tree = Tree::new();
    entries.iter().for_each(|entry| tree.push_node(leaf_hash(entry)));
    if (head.size, head.root) != (tree.size(), tree.root()) {
        return Err(wrong(LOG_ENTRIES, "they are not those that the log's head commits to"));
    }
    judged.checkpoints += 1;
    judged.log_size = head.size;
    Ok(())
}

/// The last checkpoint of each stream; every one must be signed by its writer and be no smaller
/// than those before.
fn checkpoints(
    ring: &Keyring,
    entries: &[Vec<u8>],
    judged: &mut Judged,
) -> BTreeMap<StreamId, Checkpoint> {
    let mut last: BTreeMap<StreamId, Checkpoint> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let place = format!("{LOG_ENTRIES} {index}");
        match log::read(&judged.deployment, entry) {
            Ok(Entry::Keyring { .. }) => {}
            Ok(Entry::Stream { stream, note, .. }) => {
                match log::verify_stream(ring, &stream, &note) {
                    Ok(checkpoint) => {
                        judged.checkpoints += 1;
                        let known = last.get(&stream).map_or(0, |known| known.size);
                        if checkpoint.size >= known {
                            last.insert(stream, checkpoint);
                        }
                    }
                    Err(error) => judged.find(place, error.to_string()),
                }
            }
            Err(error) => judged.find(place, error.to_string()),
        }
    }
    last
}

/// The leaves of one stream: under its checkpoint, and with a neighbour on either side of the
/// period. Returns the last one that is shown when it is the stream's last.
fn population(
    files: &Files,
    stream: &StreamId,
    checkpoint: &Checkpoint,
    judged: &mut Judged,
    flagged: &mut BTreeMap<(StreamId, u64), Leaf>,
) -> Result<Option<Leaf>, Finding> {
    let path = population_path(stream.as_str());
    let said: Population =
        serde_json::from_str(text(files, &path)?).map_err(|e| wrong(&path, e.to_string()))?;
    let data = leaves_path(stream.as_str());
    let bytes = files.get(&data).ok_or_else(|| wrong(&data, "the file is missing"))?;
    let (leaves, []) = bytes.as_chunks::<{ Leaf::BYTES }>() else {
        return Err(wrong(&data, "it does not hold whole leaves"));
    };
    let leaves: Vec<_> = leaves.iter().map(|data| Leaf::from_bytes(*data)).collect();
    let nodes = |texts: &[String]| texts.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    let range = Range {
        size: said.size,
        first: said.first,
        end: said.end,
        left: nodes(&said.left).map_err(|_| wrong(&path, "a hash cannot be read"))?,
        right: nodes(&said.right).map_err(|_| wrong(&path, "a hash cannot be read"))?,
    };
    let root = range.root(leaves.iter().map(|leaf| leaf_hash(leaf.as_bytes())));
    let root = root.map_err(|e| wrong(&path, e.to_string()))?;
    if said.stream != stream.as_str() || (range.size, root) != (checkpoint.size, checkpoint.root) {
        return Err(wrong(&path, "its leaves are not those of the stream's last checkpoint"));
    }
    borders(&path, &range, &leaves, judged);
    for (seq, leaf) in (range.first..).zip(&leaves) {
        if leaf.at() >= judged.from && leaf.at() < judged.to {
            judged.population += 1;
            if leaf.flags() & FLAG_PHI != 0 {
                flagged.insert((stream.clone(), seq), *leaf);
            }
        }
    }
    Ok(leaves.last().copied().filter(|_| range.end == range.size))
}

/// Nothing of the period lies beyond what is shown, because time never goes backwards.
fn borders(path: &str, range: &Range, leaves: &[Leaf], judged: &mut Judged) {
    if leaves.windows(2).any(|pair| pair[1].at() < pair[0].at()) {
        judged.find(path, "time goes backwards");
    }
    let first = leaves.first().is_some_and(|leaf| leaf.at() < judged.from);
    if range.first > 0 && !first {
        judged.find(path, "no neighbour before the period is shown");
    }
    let last = leaves.last().is_some_and(|leaf| leaf.at() >= judged.to);
    if range.end < range.size && !last {
        judged.find(path, "no neighbour after the period is shown");
    }
}

/// The smallest moment up to which a writer in force is sealed, when that is before the period's
/// end. A stream that was closed bounds it, too: a later run may not be in the log yet.
fn through(ring: &Keyring, newest: &BTreeMap<String, Option<Leaf>>, to: u64) -> Option<Micros> {
    let listed = ring.writers.iter().filter(|key| key.until.is_none() && !key.retired);
    let ends = listed.filter_map(|key| match newest.get(&key.name) {
        None => Some(key.from),
        // Its last leaf lies beyond what is shown, so beyond the period.
        Some(None) => None,
        Some(Some(last)) => Some(last.at()),
    });
    ends.min().filter(|end| end.get() < to)
}

/// Every record is the one of its leaf, and every flagged leaf has one.
fn records(
    files: &Files,
    flagged: &BTreeMap<(StreamId, u64), Leaf>,
    judged: &mut Judged,
) -> Result<Vec<Event>, Finding> {
    let (mut seen, mut events) = (BTreeSet::new(), Vec::new());
    for (index, line) in text(files, RECORDS)?.lines().enumerate() {
        let place = format!("{RECORDS} line {}", index + 1);
        let (identity, event) = match decode(line.as_bytes()) {
            Decoded::Event(event) => (event.identity(), Some(event)),
            Decoded::Identified { identity, .. } => (identity, None),
            Decoded::Undecodable { problem } => {
                judged.find(place, problem);
                continue;
            }
        };
        let key = (identity.stream.clone(), identity.seq.get());
        match flagged.get(&key) {
            None => judged.find(place, "no flagged leaf of the period is its own"),
            Some(leaf) if *leaf != identity.leaf(line.as_bytes()) => {
                judged.find(place, format!("{} {} is not what was signed", key.0, key.1));
            }
            Some(_) if !seen.insert(key) => judged.find(place, "the record stands twice"),
            Some(_) => events.extend(event.map(|event| *event)),
        }
    }
    judged.flagged = flagged.len() as u64;
    judged.opened = seen.len() as u64;
    let missing = flagged.keys().filter(|key| !seen.contains(*key));
    judged.missing = missing.map(|(stream, seq)| (stream.to_string(), *seq)).collect();
    Ok(events)
}

/// Whatever no check has looked at does not belong into a package.
fn extra(files: &Files, last: &BTreeMap<StreamId, Checkpoint>, judged: &mut Judged) {
    let of = |stream: &StreamId| [population_path(stream.as_str()), leaves_path(stream.as_str())];
    let known: BTreeSet<String> = last.keys().flat_map(of).collect();
    for name in files.keys().filter(|name| name.starts_with("population/")) {
        if !known.contains(name) {
            judged.find(name, "no stream in the log is its own");
        }
    }
}
