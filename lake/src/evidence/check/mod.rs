//! Checking a package with nothing but the package, and the root's key and a head of the log if the
//! auditor has them.
//!
//! The order is that of docs/formats.md: the manifest's sums; keyring, log and checkpoints
//! (`sealed`); the population of every stream (`population`); what has left lawfully, the records,
//! the report and the sample (`opened`). What cannot be read ends the check with a finding; what
//! is merely wrong is one among others.

mod opened;
mod population;
mod sealed;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};

use custody_schemas::id::{Hash, Micros, StreamId, Uint};
use custody_schemas::seal::keyring::Keyring;
use custody_schemas::seal::policy::Policy;
use custody_schemas::seal::proof::Range;
use sha2::{Digest, Sha256};

use super::pieces::Wanted;
use super::zip::{Archive, ZipError};
use super::{
    FORMAT, LAWFUL, LAWFUL_PROOFS, LOG_ENTRIES, LOG_HEAD, LOG_WITNESSED, MANIFEST, Manifest,
    README, RECORDS, REPORT, ROOT, SAMPLE, Scope, leaves_path, population_path,
};
use crate::lawful::Lawful;
use crate::verify::{Finding, Progress};
use crate::witnessed::Witnessed;

/// How many findings, and missing records, are kept; the others are counted.
const KEPT: usize = 1_000;
/// The longest file that is read whole, but for the log.
const MOST: u64 = 64 << 20;

/// What an auditor brings along.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The root's public key; else the one that lies in the package.
    pub root: Option<String>,
    /// A head of the log that they have kept, as its note.
    pub head: Option<String>,
    /// Whose cosignatures on the log they ask for.
    pub policy: Option<Policy>,
}

/// What checking a package has shown.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// The deployment.
    pub deployment: String,
    /// The root key under which the keyring was read.
    pub root: String,
    /// Whether the auditor named it.
    pub pinned: bool,
    /// The auditor's earlier head, if one was given and is the beginning of this log.
    pub earlier: Option<u64>,
    /// The period, half open.
    pub from: Micros,
    /// Its end.
    pub to: Micros,
    /// Up to where the sealed streams reach, when that is before the period's end.
    pub through: Option<Micros>,
    /// Entries of the log.
    pub log_size: u64,
    /// The newest head of it that witnesses have cosigned, if there is one.
    pub witnessed: Option<Witnessed>,
    /// Streams in it.
    pub streams: u64,
    /// Checkpoints whose signatures were checked.
    pub checkpoints: u64,
    /// Those among them whose root was computed again.
    pub roots: u64,
    /// Leaves within the period.
    pub population: u64,
    /// Those that are about protected health information.
    pub flagged: u64,
    /// Those of which the record is in the package and is what was signed.
    pub opened: u64,
    /// Which of them had to be.
    pub scope: Scope,
    /// The filter, in words, where one was used; that it left none out is not proven.
    pub filter: Option<String>,
    /// Leaves of the sample that was drawn.
    pub drawn: u64,
    /// Those of which the record is in the package and is what was signed.
    pub drawn_opened: u64,
    /// Records that retention has let go.
    pub expired: u64,
    /// Records that were erased.
    pub erased: u64,
    /// How many are not there for no such reason.
    pub lacking: u64,
    /// Where those are: stream and number; the first thousand.
    pub missing: Vec<(String, u64)>,
    /// Lines of the report.
    pub accesses: u64,
    /// What is wrong, at most so many as are kept.
    pub findings: Vec<Finding>,
    /// How many findings there are.
    pub found: u64,
}

impl Judged {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.found == 0
    }

    /// Whether every record is there, and the streams reach to the period's end.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.lacking == 0 && self.through.is_none()
    }

    fn find(&mut self, place: impl Into<String>, problem: impl Into<String>) {
        self.add(Finding { place: place.into(), problem: problem.into() });
    }

    fn add(&mut self, finding: Finding) {
        self.found += 1;
        if self.findings.len() < KEPT {
            self.findings.push(finding);
        }
    }

    fn miss(&mut self, stream: &StreamId, seq: u64) {
        self.lacking += 1;
        if self.missing.len() < KEPT {
            self.missing.push((stream.to_string(), seq));
        }
    }
}

/// Checks a package. `progress` is told of records.
///
/// # Errors
/// When the bytes are no package at all.
pub fn check<R: Read + Seek>(
    package: R,
    trust: &Trust,
    progress: Progress<'_>,
) -> Result<Judged, ZipError> {
    let archive = Archive::open(package)?;
    let mut check = Check { archive, trust, progress, judged: Judged::default() };
    if let Err(finding) = check.all() {
        check.judged.add(finding);
    }
    Ok(check.judged)
}

/// A signed checkpoint of a stream.
#[derive(Clone, Copy, Debug)]
struct Signed {
    root: Hash,
    /// Until when the key that signed it was in force.
    until: Option<Micros>,
}

/// What the log of the package says.
#[derive(Default)]
struct Log {
    ring: Keyring,
    /// The checkpoints of each stream by size.
    streams: BTreeMap<StreamId, BTreeMap<u64, Signed>>,
    /// The keyrings that its entries name.
    rings: BTreeSet<String>,
}

/// A package under examination.
struct Check<'a, R> {
    archive: Archive<R>,
    trust: &'a Trust,
    progress: Progress<'a>,
    judged: Judged,
}

fn wrong(place: &str, problem: impl Into<String>) -> Finding {
    Finding { place: place.to_owned(), problem: problem.into() }
}

impl<R: Read + Seek> Check<'_, R> {
    fn all(&mut self) -> Result<(), Finding> {
        let manifest = self.manifest()?;
        let log = self.log()?;
        let population = self.populations(&log, manifest.challenge.as_ref())?;
        self.judged.through = population.through(&log.ring, self.judged.to);
        let lawful = self.lawful(&log)?;
        self.records(&population, &lawful)?;
        if manifest.challenge.is_some() {
            self.sample(&population, &lawful)?;
        }
        self.strangers(&log, manifest.challenge.is_some());
        Ok(())
    }

    /// A file that is read whole.
    fn bytes(&self, name: &str, most: u64) -> Result<Vec<u8>, Finding> {
        let bytes = self.archive.bytes(name, most).map_err(|e| wrong(name, e.to_string()))?;
        bytes.ok_or_else(|| wrong(name, "the file is missing"))
    }

    fn text(&self, name: &str) -> Result<String, Finding> {
        let text = String::from_utf8(self.bytes(name, MOST)?);
        text.map_err(|_| wrong(name, "it is no text"))
    }

    fn manifest(&mut self) -> Result<Manifest, Finding> {
        let manifest: Manifest = serde_json::from_str(&self.text(MANIFEST)?)
            .map_err(|e| wrong(MANIFEST, e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(wrong(MANIFEST, format!("its format {:?} is not known", manifest.format)));
        }
        if let Some(mistake) = manifest.challenge.as_ref().and_then(|asked| asked.mistake()) {
            return Err(wrong(MANIFEST, mistake));
        }
        let judged = &mut self.judged;
        judged.deployment.clone_from(&manifest.deployment);
        (judged.from, judged.to) = (Uint::new(manifest.from), Uint::new(manifest.to));
        judged.scope = manifest.population;
        judged.filter = manifest.filter.as_ref().map(super::Filter::words);
        self.sums(&manifest);
        Ok(manifest)
    }

    /// Every file is the one that the manifest names.
    fn sums(&mut self, manifest: &Manifest) {
        let names: Vec<_> = self.archive.names().map(str::to_owned).collect();
        for name in names.iter().filter(|name| *name != MANIFEST) {
            match (manifest.files.get(name), self.sum(name)) {
                (_, Err(finding)) => self.judged.add(finding),
                (None, _) => self.judged.find(name, "the manifest does not name it"),
                (Some(said), Ok(sum)) if *said != sum => {
                    self.judged.find(name, "it is not the file that the manifest names");
                }
                (Some(_), Ok(_)) => {}
            }
        }
        let there: BTreeSet<_> = names.iter().collect();
        for name in manifest.files.keys().filter(|name| !there.contains(name)) {
            self.judged.find(name, "the file is missing");
        }
    }

    fn sum(&self, name: &str) -> Result<String, Finding> {
        let mut sum = Sha256::new();
        let content = self.archive.content(name).map_err(|e| wrong(name, e.to_string()))?;
        let mut content = content.ok_or_else(|| wrong(name, "the file is missing"))?;
        std::io::copy(&mut content, &mut sum).map_err(|_| wrong(name, "it is damaged"))?;
        Ok(custody_schemas::id::Bytes::<32>(sum.finalize().into()).to_string())
    }

    /// Whatever no check has looked at does not belong into a package.
    fn strangers(&mut self, log: &Log, sampled: bool) {
        let fixed = [MANIFEST, README, LOG_HEAD, LOG_ENTRIES, LOG_WITNESSED, ROOT, RECORDS, REPORT];
        let lawful = [LAWFUL, LAWFUL_PROOFS];
        let sample = [SAMPLE].into_iter().filter(|_| sampled);
        let fixed = fixed.into_iter().chain(lawful).chain(sample).map(str::to_owned);
        let streams = log.streams.keys().map(StreamId::as_str);
        let streams = streams.flat_map(|name| [population_path(name), leaves_path(name)]);
        let known: BTreeSet<String> = fixed.chain(streams).chain(log.rings.clone()).collect();
        let strange: Vec<_> =
            self.archive.names().filter(|name| !known.contains(*name)).map(str::to_owned).collect();
        for name in strange {
            self.judged.find(name, "it belongs to no package with this log");
        }
    }
}

/// The leaves that are to be opened, and how far every writer's newest stream is shown.
struct Shown {
    streams: Vec<StreamId>,
    /// In the order of streams.
    flagged: Vec<Wanted>,
    /// The same.
    drawn: Vec<Wanted>,
    /// By writer: the last leaf's moment where the newest stream is shown to its end.
    newest: BTreeMap<String, Option<Micros>>,
}

impl Shown {
    /// The smallest moment up to which a writer in force is sealed, when that is before the
    /// period's end. A stream that was closed bounds it, too: a later run may not be in the log
    /// yet.
    fn through(&self, ring: &Keyring, to: Micros) -> Option<Micros> {
        let listed = ring.writers.iter().filter(|key| key.until.is_none() && !key.retired);
        let ends = listed.filter_map(|key| match self.newest.get(&key.name) {
            None => Some(key.from),
            // Its last leaf lies beyond what is shown, so beyond the period.
            Some(None) => None,
            Some(Some(last)) => Some(*last),
        });
        ends.min().filter(|end| *end < to)
    }

    /// Why the record of this leaf is not there, if that is lawful.
    fn gone(&self, lawful: &Lawful, wanted: &Wanted) -> Option<crate::lawful::Gone> {
        lawful.event(&self.streams[wanted.stream as usize], wanted.seq, wanted.leaf.at())
    }
}

/// The nodes that stand in a proof.
fn range(
    (size, first, end): (u64, u64, u64),
    (left, right): (&[String], &[String]),
    place: &str,
) -> Result<Range, Finding> {
    let nodes = |texts: &[String]| texts.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    let unreadable = |_| wrong(place, "a hash cannot be read");
    let (left, right) = (nodes(left).map_err(unreadable)?, nodes(right).map_err(unreadable)?);
    Ok(Range { size, first, end, left, right })
}
