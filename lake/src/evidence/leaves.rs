//! A stream's leaves and the nodes above them, read from its tiles as they are needed.

use std::collections::{BTreeMap, BTreeSet};

use custody_schemas::id::{Bytes, Hash, Micros, StreamId};
use custody_schemas::seal::Leaf;
use custody_schemas::seal::proof::cover_cut;
use custody_schemas::seal::tile::{TileError, WIDTH, bundle_path, entries, root_of, tile_path};

use super::export::ExportError;
use crate::tiles::{SealError, Seals, stream_folder};

/// How many bundles are kept: a period is read in order, and a search comes back to few.
const KEPT: u64 = 64;

/// The leaves of one stream up to its last checkpoint.
pub(super) struct Leaves<'a> {
    seals: &'a Seals,
    folder: String,
    size: u64,
    read: BTreeMap<u64, Vec<Leaf>>,
}

/// A file that has to be there.
pub(super) async fn file(seals: &Seals, path: &str) -> Result<Vec<u8>, ExportError> {
    let found = seals.get(path).await?;
    found
        .map(|bytes| bytes.to_vec())
        .ok_or_else(|| ExportError::Broken(format!("seal/{path} is missing")))
}

pub(super) fn tile_error(folder: &str, source: TileError) -> ExportError {
    SealError::Tile { place: folder.to_owned(), source }.into()
}

impl<'a> Leaves<'a> {
    pub(super) fn new(seals: &'a Seals, stream: &StreamId, size: u64) -> Self {
        Self { seals, folder: stream_folder(stream), size, read: BTreeMap::new() }
    }

    pub(super) async fn get(&mut self, seq: u64) -> Result<Leaf, ExportError> {
        let index = seq / WIDTH;
        if !self.read.contains_key(&index) {
            let width = self.size.saturating_sub(index * WIDTH).min(WIDTH);
            let path = bundle_path(index, width);
            let bytes = file(self.seals, &format!("{}{path}", self.folder)).await?;
            let found = entries(&path, &bytes, width).map_err(|e| tile_error(&self.folder, e))?;
            let found = found.into_iter().filter_map(|data| data.try_into().ok());
            self.read.retain(|kept, _| kept + KEPT > index);
            self.read.insert(index, found.map(Leaf::from_bytes).collect());
        }
        let place = usize::try_from(seq % WIDTH).unwrap_or(0);
        let leaf = self.read.get(&index).and_then(|bundle| bundle.get(place));
        leaf.copied().ok_or_else(|| ExportError::Broken(format!("{} leaf {seq}", self.folder)))
    }

    /// The index of the first leaf that is not before `at`.
    pub(super) async fn first_at(&mut self, at: Micros) -> Result<u64, ExportError> {
        let (mut low, mut high) = (0, self.size);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).await?.at() < at { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The roots of the subtrees that cover `[from, to)`, hexadecimal.
    pub(super) async fn nodes(
        &self,
        from: u64,
        to: u64,
        cuts: &BTreeSet<u64>,
    ) -> Result<Vec<String>, ExportError> {
        let mut nodes = Vec::new();
        for place in cover_cut(from, to, cuts) {
            nodes.push(self.node(place).await?.to_string());
        }
        Ok(nodes)
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
