//! Making a package from a lake.

use std::collections::{BTreeMap, HashMap};

use custody_schemas::event::Event;
use custody_schemas::id::{Bytes, Hash, Micros, StreamId};
use custody_schemas::record::{Decoded, decode, hash};
use custody_schemas::seal::log::{self, Entry};
use custody_schemas::seal::proof::cover;
use custody_schemas::seal::tile::{
    TileError, WIDTH, bundle_path, bundles, entries, root_of, tile_path,
};
use custody_schemas::seal::{FLAG_PHI, Leaf};
use serde_json::{Map, Value};

use super::zip::{self, ZipError};
use super::{
    FORMAT, Judged, LOG_ENTRIES, LOG_HEAD, MANIFEST, Manifest, Population, README, RECORDS, REPORT,
    ROOT, check, leaves_path, population_path, report,
};
use crate::identities::ReadBackError;
use crate::rows_back::Stored;
use crate::snapshot::{Bound, DataFile};
use crate::tables::{Lake, LakeError};
use crate::tiles::{LOG_FOLDER, ROOT_PATH, SealError, Seals, keyring_path, stream_folder};

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
    /// It is too large.
    #[error(transparent)]
    Zip(#[from] ZipError),
}

/// Makes a package and judges it as its reader will.
///
/// # Errors
/// [`ExportError`].
pub async fn export(lake: &Lake, order: &Order) -> Result<(Vec<u8>, Judged), ExportError> {
    let seals = lake.seals();
    let mut files = BTreeMap::new();
    let (deployment, last) = log_files(seals, &mut files).await?;
    let mut wanted = HashMap::new();
    for (stream, size) in &last {
        population(seals, stream, *size, order, &mut wanted, &mut files).await?;
    }
    let records = records(lake, order, &wanted).await?;
    let events = records.values().filter_map(|bytes| event(bytes)).collect::<Vec<_>>();
    files.insert(REPORT.to_owned(), report::make(events.iter()).into_bytes());
    let mut lines = Vec::new();
    for bytes in records.values() {
        lines.extend_from_slice(bytes);
        lines.push(b'\n');
    }
    files.insert(RECORDS.to_owned(), lines);
    files.insert(README.to_owned(), readme(&deployment, order).into_bytes());
    files.insert(MANIFEST.to_owned(), manifest(deployment, order, &files));
    let judged = check::files(&files, None);
    Ok((zip::write(&files)?, judged))
}

fn event(bytes: &[u8]) -> Option<Event> {
    match decode(bytes) {
        Decoded::Event(event) => Some(*event),
        Decoded::Identified { .. } | Decoded::Undecodable { .. } => None,
    }
}

fn manifest(deployment: String, order: &Order, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let sums = files.iter().map(|(name, bytes)| (name.clone(), hash(bytes).to_string()));
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        deployment,
        from: order.from.get(),
        to: order.to.get(),
        made_at: order.made_at.get(),
        software: concat!("custody ", env!("CARGO_PKG_VERSION")).to_owned(),
        asked: order.asked.clone(),
        files: sums.collect(),
    };
    serde_json::to_vec_pretty(&manifest).unwrap_or_default()
}

/// The log with its keyrings; the deployment, and the last size of each stream.
async fn log_files(
    seals: &Seals,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(String, BTreeMap<StreamId, u64>), ExportError> {
    let note = seals.text(&format!("{LOG_FOLDER}checkpoint")).await?;
    let note = note.ok_or(ExportError::Unsealed)?;
    let broken = |what: &str| ExportError::Broken(what.to_owned());
    let mut lines = note.lines();
    let deployment = lines.next().unwrap_or_default().to_owned();
    let size = lines.next().and_then(|line| line.parse().ok());
    let size = size.ok_or_else(|| broken("the log has no head"))?;
    let (mut all, mut last) = (Vec::new(), BTreeMap::new());
    for (path, count) in bundles(size) {
        let bytes = file(seals, &format!("{LOG_FOLDER}{path}")).await?;
        let found = entries(&path, &bytes, count).map_err(|e| tile_error(LOG_FOLDER, e))?;
        for entry in found {
            match log::read(&deployment, &entry).map_err(|e| broken(&e.to_string()))? {
                Entry::Stream { stream, checkpoint, .. } => {
                    let size = last.entry(stream).or_insert(0);
                    *size = checkpoint.size.max(*size);
                }
                Entry::Keyring { edition, .. } => {
                    let path = keyring_path(edition);
                    files.insert(path.clone(), file(seals, &path).await?);
                }
            }
        }
        all.extend_from_slice(&bytes);
    }
    files.insert(LOG_HEAD.to_owned(), note.into_bytes());
    files.insert(LOG_ENTRIES.to_owned(), all);
    files.insert(ROOT.to_owned(), file(seals, ROOT_PATH).await?);
    Ok((deployment, last))
}

async fn file(seals: &Seals, path: &str) -> Result<Vec<u8>, ExportError> {
    let found = seals.get(path).await?;
    found
        .map(|bytes| bytes.to_vec())
        .ok_or_else(|| ExportError::Broken(format!("seal/{path} is missing")))
}

fn tile_error(folder: &str, source: TileError) -> ExportError {
    SealError::Tile { place: folder.to_owned(), source }.into()
}

/// The leaves of one stream over the period with a neighbour on either side, and their proof.
async fn population(
    seals: &Seals,
    stream: &StreamId,
    size: u64,
    order: &Order,
    wanted: &mut HashMap<(StreamId, u64), Leaf>,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), ExportError> {
    let mut leaves = Leaves { seals, folder: stream_folder(stream), size, read: BTreeMap::new() };
    let low = leaves.first_at(order.from).await?;
    let high = leaves.first_at(order.to).await?;
    let (first, end) = (low.saturating_sub(1), (high + 1).min(size));
    let mut data = Vec::new();
    for seq in first..end {
        let leaf = leaves.get(seq).await?;
        data.extend_from_slice(leaf.as_bytes());
        if (low..high).contains(&seq) && leaf.flags() & FLAG_PHI != 0 {
            wanted.insert((stream.clone(), seq), leaf);
        }
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for place in cover(0, first) {
        left.push(leaves.node(place).await?.to_string());
    }
    for place in cover(end, size) {
        right.push(leaves.node(place).await?.to_string());
    }
    let population = Population { stream: stream.to_string(), size, first, end, left, right };
    let json = serde_json::to_vec_pretty(&population).unwrap_or_default();
    files.insert(population_path(stream.as_str()), json);
    files.insert(leaves_path(stream.as_str()), data);
    Ok(())
}

/// A stream's leaves, read bundle by bundle as they are needed.
struct Leaves<'a> {
    seals: &'a Seals,
    folder: String,
    size: u64,
    read: BTreeMap<u64, Vec<Leaf>>,
}

impl Leaves<'_> {
    async fn get(&mut self, seq: u64) -> Result<Leaf, ExportError> {
        let index = seq / WIDTH;
        if !self.read.contains_key(&index) {
            let width = (self.size - index * WIDTH).min(WIDTH);
            let path = bundle_path(index, width);
            let bytes = file(self.seals, &format!("{}{path}", self.folder)).await?;
            let found = entries(&path, &bytes, width).map_err(|e| tile_error(&self.folder, e))?;
            let found = found.into_iter().filter_map(|data| data.try_into().ok());
            // A period is read in order: what lies far behind is not needed again.
            self.read.retain(|kept, _| kept + 64 > index);
            self.read.insert(index, found.map(Leaf::from_bytes).collect());
        }
        let place = usize::try_from(seq % WIDTH).unwrap_or(0);
        let leaf = self.read.get(&index).and_then(|bundle| bundle.get(place));
        leaf.copied().ok_or_else(|| ExportError::Broken(format!("{} leaf {seq}", self.folder)))
    }

    /// The index of the first leaf that is not before `at`.
    async fn first_at(&mut self, at: Micros) -> Result<u64, ExportError> {
        let (mut low, mut high) = (0, self.size);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).await?.at() < at { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The root of a perfect subtree.
    async fn node(&self, (level, index): (u32, u64)) -> Result<Hash, ExportError> {
        let (tile_level, within) = (level / 8, level % 8);
        let first = index << within;
        let tile = first / WIDTH;
        let width = ((self.size >> (8 * tile_level)) - tile * WIDTH).min(WIDTH);
        let path = format!("{}{}", self.folder, tile_path(tile_level, tile, width));
        let bytes = file(self.seals, &path).await?;
        let (nodes, _) = bytes.as_chunks::<32>();
        let from = usize::try_from(first % WIDTH).unwrap_or(0);
        let nodes = nodes.get(from..from + (1 << within));
        let nodes =
            nodes.ok_or_else(|| ExportError::Broken(format!("seal/{path} is too short")))?;
        Ok(Bytes(root_of(nodes)))
    }
}

/// The stored records that have these leaves, in the order of their streams.
async fn records(
    lake: &Lake,
    order: &Order,
    wanted: &HashMap<(StreamId, u64), Leaf>,
) -> Result<BTreeMap<(StreamId, u64), Vec<u8>>, ExportError> {
    let mut found = BTreeMap::new();
    let snapshot = lake.events().snapshot().await?;
    for file in snapshot.files().iter().filter(|file| overlaps(file, order)) {
        snapshot
            .records_back(file, |stored: Stored<'_>| {
                let Some(identity) = stored.identity() else { return };
                let Some(leaf) = wanted.get(&identity) else { return };
                if hash(stored.bytes) == leaf.record() {
                    found.insert(identity, stored.bytes.to_vec());
                }
            })
            .await?;
    }
    Ok(found)
}

fn overlaps(file: &DataFile, order: &Order) -> bool {
    let micros = |at: Micros| i64::try_from(at.get()).unwrap_or(i64::MAX);
    match file.ranges.get("at") {
        Some((Bound::Moment(first), Bound::Moment(last))) => {
            *first < micros(order.to) && *last >= micros(order.from)
        }
        _ => true,
    }
}

fn readme(deployment: &str, order: &Order) -> String {
    format!(
        "Evidence of {deployment}: every access to protected health information recorded from\n\
         {} up to {} (UTC).\n\n\
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
