//! Making a package from a lake, into a file without a name.
//!
//! The leaves of the period are read first and say which records belong into the package. These
//! come in the order of the data files, wait in a spool, and go into the package in the order of
//! their streams. Whatever is long is on disk.

mod found;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use custody_schemas::id::{Micros, StreamId};
use custody_schemas::seal::FLAG_PHI;
use custody_schemas::seal::log::{self, Entry};
use custody_schemas::seal::tile::{bundles, entries};
use serde_json::{Map, Value};

use found::Found;

use super::leaves::{Leaves, file, tile_error};
use super::pieces::Wanted;
use super::sample::Draw;
use super::spool::{Kept, Place};
use super::zip::{Writer, ZipError};
use super::{
    Challenge, FORMAT, Filter, Judged, LOG_ENTRIES, LOG_HEAD, LOG_WITNESSED, MANIFEST, Manifest,
    Population, README, RECORDS, REPORT, ROOT, SAMPLE, Scope, Trust, check, leaves_path,
    population_path, report,
};
use crate::identities::ReadBackError;
use crate::tables::{Lake, LakeError};
use crate::tiles::{LOG_FOLDER, ROOT_PATH, SealError, Seals, WITNESSED_PATH, keyring_path};

/// Leaf data is written in pieces of this size.
const PIECE: usize = 64 << 10;

/// What a package is to hold.
#[derive(Clone, Debug)]
pub struct Order {
    /// The period's first moment.
    pub from: Micros,
    /// The first moment after it.
    pub to: Micros,
    /// When the package is made.
    pub made_at: Micros,
    /// Who asked, for what: stands in the manifest.
    pub asked: Map<String, Value>,
    /// Only what this cites is opened; everything flagged when absent.
    pub filter: Option<Filter>,
    /// The sample that an auditor has asked for.
    pub challenge: Option<Challenge>,
    /// A folder for files without a name, which may become as large as all records of the period.
    pub scratch: PathBuf,
}

/// Why no package can be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The lake cannot be read.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A data file cannot be read.
    #[error(transparent)]
    ReadBack(#[from] ReadBackError),
    /// The seals cannot be read.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// There are none.
    #[error("nothing is sealed in this lake yet: ingest must hold the log's key")]
    Unsealed,
    /// What is sealed cannot be read.
    #[error("{0}: run `custody verify --lake` to see what disagrees")]
    Broken(String),
    /// The records of the period are too many.
    #[error("the records of this period have more than 8 GiB: ask for a shorter one")]
    TooMuch,
    /// It is too large, or cannot be written.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// The scratch folder cannot be used.
    #[error("the folder for unfinished packages cannot be used: {0}")]
    Scratch(#[from] io::Error),
}

/// Makes a package and judges it as its reader will.
///
/// # Errors
/// [`ExportError`].
pub async fn export(lake: &Lake, order: &Order) -> Result<(File, Judged), ExportError> {
    std::fs::create_dir_all(&order.scratch)?;
    let mut making = Making::new(lake.seals(), order)?;
    making.log().await?;
    making.populations().await?;
    let snapshot = lake.events().snapshot().await?;
    let found = making.find(&snapshot).await?;
    if found.places.iter().any(Option::is_none) {
        making.lawful(&snapshot).await?;
    }
    making.records(found)?;
    let mut package = making.end()?;
    package.seek(SeekFrom::Start(0))?;
    let judged = check(&mut package, &Trust::default(), &|_, _| {})?;
    package.seek(SeekFrom::Start(0))?;
    Ok((package, judged))
}

/// A package in the making.
struct Making<'a> {
    seals: &'a Seals,
    order: &'a Order,
    zip: Writer<File>,
    sums: BTreeMap<String, String>,
    deployment: String,
    /// The sizes at which the log has each stream.
    streams: BTreeMap<StreamId, BTreeSet<u64>>,
    /// The leaves whose records are to be found, in the order of streams.
    wanted: Vec<Wanted>,
    /// Those that were drawn.
    drawn: HashSet<(u32, u64)>,
}

impl<'a> Making<'a> {
    fn new(seals: &'a Seals, order: &'a Order) -> Result<Self, ExportError> {
        let zip = Writer::new(tempfile::tempfile_in(&order.scratch)?);
        Ok(Self {
            seals,
            order,
            zip,
            sums: BTreeMap::new(),
            deployment: String::new(),
            streams: BTreeMap::new(),
            wanted: Vec::new(),
            drawn: HashSet::new(),
        })
    }

    fn put(&mut self, name: &str, content: &[u8]) -> Result<(), ExportError> {
        let sum = self.zip.add(name, content)?;
        self.sums.insert(name.to_owned(), sum.to_string());
        Ok(())
    }

    fn ended(&mut self, name: &str) -> Result<(), ExportError> {
        let sum = self.zip.end()?;
        self.sums.insert(name.to_owned(), sum.to_string());
        Ok(())
    }

    /// The log with its keyrings.
    async fn log(&mut self) -> Result<(), ExportError> {
        let note = self.seals.text(&format!("{LOG_FOLDER}checkpoint")).await?;
        let note = note.ok_or(ExportError::Unsealed)?;
        let broken = |what: &str| ExportError::Broken(what.to_owned());
        let mut lines = note.lines();
        self.deployment = lines.next().unwrap_or_default().to_owned();
        let size = lines.next().and_then(|line| line.parse().ok());
        let size = size.ok_or_else(|| broken("the log has no head"))?;
        let (mut all, mut rings) = (Vec::new(), BTreeSet::new());
        for (path, count) in bundles(size) {
            let bytes = file(self.seals, &format!("{LOG_FOLDER}{path}")).await?;
            let found = entries(&path, &bytes, count).map_err(|e| tile_error(LOG_FOLDER, e))?;
            for entry in found {
                match log::read(&self.deployment, &entry).map_err(|e| broken(&e.to_string()))? {
                    Entry::Stream { stream, checkpoint, .. } => {
                        self.streams.entry(stream).or_default().insert(checkpoint.size);
                    }
                    Entry::Keyring { edition, .. } => drop(rings.insert(keyring_path(edition))),
                }
            }
            all.extend_from_slice(&bytes);
        }
        if let Some(witnessed) = self.seals.get(WITNESSED_PATH).await?
            && is_of(&witnessed, size)
        {
            self.put(LOG_WITNESSED, &witnessed)?;
        }
        self.put(LOG_HEAD, note.as_bytes())?;
        self.put(LOG_ENTRIES, &all)?;
        let root = file(self.seals, ROOT_PATH).await?;
        self.put(ROOT, &root)?;
        for path in rings {
            let ring = file(self.seals, &path).await?;
            self.put(&path, &ring)?;
        }
        Ok(())
    }

    /// The leaves of every stream over the period, and which of them are to be opened.
    async fn populations(&mut self) -> Result<(), ExportError> {
        let mut draw = Draw::new(self.order.challenge.as_ref());
        let streams: Vec<_> =
            self.streams.iter().map(|(s, sizes)| (s.clone(), sizes.clone())).collect();
        for (index, (stream, sizes)) in streams.iter().enumerate() {
            let index = u32::try_from(index).map_err(|_| ExportError::TooMuch)?;
            self.population(index, stream, sizes, &mut draw).await?;
        }
        let drawn = draw.end();
        self.drawn = drawn.iter().map(Wanted::key).collect();
        self.wanted.extend(drawn);
        self.wanted.sort_unstable();
        self.wanted.dedup();
        Ok(())
    }

    /// The leaves of one stream with a neighbour on either side, and the nodes beside them.
    async fn population(
        &mut self,
        index: u32,
        stream: &StreamId,
        sizes: &BTreeSet<u64>,
        draw: &mut Draw,
    ) -> Result<(), ExportError> {
        let size = sizes.last().copied().unwrap_or(0);
        let mut leaves = Leaves::new(self.seals, stream, size);
        let low = leaves.first_at(self.order.from).await?;
        let high = leaves.first_at(self.order.to).await?;
        let (first, end) = (low.saturating_sub(1), (high + 1).min(size));
        let path = leaves_path(stream.as_str());
        self.zip.begin(&path)?;
        let mut piece = Vec::with_capacity(PIECE);
        for seq in first..end {
            let leaf = leaves.get(seq).await?;
            piece.extend_from_slice(leaf.as_bytes());
            if piece.len() + leaf.as_bytes().len() > PIECE {
                self.zip.write(&piece)?;
                piece.clear();
            }
            if (low..high).contains(&seq) {
                let wanted = Wanted { stream: index, seq, leaf };
                draw.offer(wanted);
                if leaf.flags() & FLAG_PHI != 0 {
                    self.wanted.push(wanted);
                }
            }
        }
        self.zip.write(&piece)?;
        self.ended(&path)?;
        let none = BTreeSet::new();
        let cuts = if low < high { sizes } else { &none };
        let left = leaves.nodes(0, first, cuts).await?;
        let right = leaves.nodes(end, size, cuts).await?;
        let population = Population { stream: stream.to_string(), size, first, end, left, right };
        let json = serde_json::to_vec_pretty(&population).unwrap_or_default();
        self.put(&population_path(stream.as_str()), &json)
    }

    /// The records in the order of streams, the report, and the sample.
    fn records(&mut self, found: Found) -> Result<(), ExportError> {
        let Found { places, mut records, ended, cited } = found;
        let mut lines = tempfile::tempfile_in(&self.order.scratch)?;
        let mut report = io::BufWriter::new(&mut lines);
        report.write_all(report::HEADER.as_bytes())?;
        self.zip.begin(RECORDS)?;
        for (wanted, place) in self.wanted.iter().zip(&places) {
            let Some(place) = place else { continue };
            if wanted.leaf.flags() & FLAG_PHI == 0 || !cited.cites(place.call, place.fit) {
                continue;
            }
            let (record, lines) = records.get(place)?;
            self.zip.write(record)?;
            self.zip.write(b"\n")?;
            if !(place.opens && place.call.is_some_and(|call| ended.contains(&call))) {
                report.write_all(lines)?;
            }
        }
        self.ended(RECORDS)?;
        report.flush()?;
        drop(report);
        lines.seek(SeekFrom::Start(0))?;
        self.copy(REPORT, lines)?;
        if self.order.challenge.is_some() {
            self.sample(&places, &mut records)?;
        }
        Ok(())
    }

    fn copy(&mut self, name: &str, mut from: File) -> Result<(), ExportError> {
        self.zip.begin(name)?;
        let mut piece = vec![0; PIECE];
        loop {
            let read = from.read(&mut piece)?;
            if read == 0 {
                return self.ended(name);
            }
            self.zip.write(piece.get(..read).unwrap_or_default())?;
        }
    }

    fn sample(&mut self, places: &[Option<Place>], records: &mut Kept) -> Result<(), ExportError> {
        self.zip.begin(SAMPLE)?;
        for (wanted, place) in self.wanted.iter().zip(places) {
            let Some(place) = place.filter(|_| self.drawn.contains(&wanted.key())) else {
                continue;
            };
            self.zip.write(records.get(&place)?.0)?;
            self.zip.write(b"\n")?;
        }
        self.ended(SAMPLE)
    }

    fn end(mut self) -> Result<File, ExportError> {
        let readme = readme(&self.deployment, self.order);
        self.put(README, readme.as_bytes())?;
        let order = self.order;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            deployment: self.deployment,
            from: order.from.get(),
            to: order.to.get(),
            made_at: order.made_at.get(),
            software: concat!("custody ", env!("CARGO_PKG_VERSION")).to_owned(),
            population: if order.filter.is_some() { Scope::Flags } else { Scope::Full },
            filter: order.filter.clone(),
            challenge: order.challenge.clone(),
            asked: order.asked.clone(),
            files: self.sums,
        };
        self.zip.add(MANIFEST, &serde_json::to_vec_pretty(&manifest).unwrap_or_default())?;
        Ok(self.zip.finish()?)
    }
}

/// Whether a cosigned head is not newer than the log that goes into the package: ingest may have
/// written it meanwhile.
fn is_of(note: &[u8], size: u64) -> bool {
    let text = String::from_utf8_lossy(note);
    text.lines().nth(1).and_then(|line| line.parse::<u64>().ok()).is_some_and(|of| of <= size)
}

fn readme(deployment: &str, order: &Order) -> String {
    let filter = order.filter.as_ref().map_or_else(String::new, |filter| {
        format!(
            "Only calls with {} are opened; that the filter left none out is not proven.\n",
            filter.words()
        )
    });
    format!(
        "Evidence of {deployment}: every access to protected health information recorded from\n\
         {} up to {} (UTC).\n{filter}\n\
         Check it with    custody verify FILE --root VKEY\n\
         where VKEY is the deployment's root key as you keep it. Nothing else is needed, no network\n\
         and no account. report.csv is for people; it follows from records.jsonl, and the check\n\
         makes it again. How to check without our software, byte by byte: docs/formats.md,\n\
         \"Evidence package\"; what each line of the verdict means, and what a package cannot\n\
         prove: docs/evidence.md.\n",
        report::time(order.from),
        report::time(order.to),
    )
}
