//! A tree as plain files: C2SP tlog-tiles.
//!
//! Entry bundles hold the leaf data, 256 to a file; tiles hold the hashes over them. What is full
//! never changes. [`Tiled`] is a tree of which only the files on its right edge are in memory: it
//! says which files growing makes, and goes on from those of its last size.

use sha2::{Digest, Sha256};

use super::tree::{Tree, join, leaf_hash};
use crate::id::Hash;

/// Entries in a full bundle, hashes in a full tile.
pub const WIDTH: u64 = 256;
/// Levels of tiles that a tree of 2⁶⁴ leaves has.
const LEVELS: u32 = 8;
/// The longest entry: its length is a u16.
pub const MAX_ENTRY_BYTES: usize = 65_535;

/// One file of a tree, by its path from the tree's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileFile {
    /// `tile/0/x001/067.p/3`, `tile/entries/000` …
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Files do not make a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TileError {
    /// The file.
    pub path: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The path of the tile of this level, with its width when it is not full.
#[must_use]
pub fn tile_path(level: u32, index: u64, width: u64) -> String {
    format!("tile/{level}/{}", place(index, width))
}

/// The path of a bundle of entries.
#[must_use]
pub fn bundle_path(index: u64, width: u64) -> String {
    format!("tile/entries/{}", place(index, width))
}

/// `x001/x234/067`, and `.p/W` behind it.
fn place(index: u64, width: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    if width < WIDTH { format!("{text}.p/{width}") } else { text }
}

/// The paths of the bundles of a tree of this size, in order, each with its number of entries.
pub fn bundles(size: u64) -> impl Iterator<Item = (String, u64)> {
    (0..size.div_ceil(WIDTH)).map(move |index| {
        let width = (size - index * WIDTH).min(WIDTH);
        (bundle_path(index, width), width)
    })
}

/// The entries of a bundle.
///
/// # Errors
/// When the bytes are not exactly so many entries.
pub fn entries(path: &str, bytes: &[u8], count: u64) -> Result<Vec<Vec<u8>>, TileError> {
    let wrong = |problem| TileError { path: path.to_owned(), problem };
    let mut rest = bytes;
    let mut found = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, behind) =
            behind.split_at_checked(length).ok_or_else(|| wrong("an entry is cut short"))?;
        found.push(entry.to_vec());
        rest = behind;
    }
    if !rest.is_empty() || found.len() as u64 != count {
        return Err(wrong("it does not hold as many entries as its name says"));
    }
    Ok(found)
}

/// Appends an entry to a bundle.
fn put_entry(bundle: &mut Vec<u8>, entry: &[u8]) {
    let length = u16::try_from(entry.len()).unwrap_or(u16::MAX);
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(&entry[..usize::from(length)]);
}

/// A growing tree with the files on its right edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiled {
    size: u64,
    bundle: Vec<u8>,
    /// The hashes of the open tile of each level.
    levels: Vec<Vec<[u8; 32]>>,
}

impl Tiled {
    /// Number of entries.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds an entry of at most [`MAX_ENTRY_BYTES`], and to `full` the files that it fills.
    pub fn push(&mut self, entry: &[u8], full: &mut Vec<TileFile>) {
        put_entry(&mut self.bundle, entry);
        if (self.size + 1).is_multiple_of(WIDTH) {
            let path = bundle_path(self.size / WIDTH, WIDTH);
            full.push(TileFile { path, bytes: std::mem::take(&mut self.bundle) });
        }
        self.grow(0, leaf_hash(entry), full);
        self.size += 1;
    }

    fn grow(&mut self, level: u32, node: [u8; 32], full: &mut Vec<TileFile>) {
        let place = level as usize;
        if self.levels.len() <= place {
            self.levels.resize_with(place + 1, Vec::new);
        }
        self.levels[place].push(node);
        if self.levels[place].len() as u64 == WIDTH {
            let nodes = std::mem::take(&mut self.levels[place]);
            let index = self.size >> (8 * (level + 1));
            full.push(TileFile { path: tile_path(level, index, WIDTH), bytes: nodes.concat() });
            self.grow(level + 1, root_of(&nodes), full);
        }
    }

    /// The files on the right edge, which are not full: what else a reader of this size needs.
    #[must_use]
    pub fn edge(&self) -> Vec<TileFile> {
        let mut files = Vec::new();
        for (path, level) in edge_paths(self.size) {
            let bytes = match level {
                None => self.bundle.clone(),
                Some(level) => self.levels[level as usize].concat(),
            };
            files.push(TileFile { path, bytes });
        }
        files
    }

    /// The tree of this size whose edge consists of these files, in the order of [`edge_paths`].
    ///
    /// # Errors
    /// When they do not fit each other.
    pub fn resume(size: u64, edge: &[Vec<u8>]) -> Result<Self, TileError> {
        let mut tree = Self { size, ..Self::default() };
        for ((path, level), bytes) in edge_paths(size).into_iter().zip(edge) {
            let wrong = |problem| TileError { path: path.clone(), problem };
            let Some(level) = level else {
                let found = entries(&path, bytes, size % WIDTH)?;
                let hashes: Vec<_> = found.iter().map(|entry| leaf_hash(entry)).collect();
                tree.levels = vec![hashes];
                tree.bundle.clone_from(bytes);
                continue;
            };
            let (nodes, []) = bytes.as_chunks::<32>() else {
                return Err(wrong("it does not hold whole hashes"));
            };
            if level == 0 && tree.levels.first().is_some_and(|hashes| hashes != nodes) {
                return Err(wrong("its hashes are not those of the entries"));
            }
            if nodes.len() as u64 != width(size, level) {
                return Err(wrong("it does not hold as many hashes as its name says"));
            }
            if tree.levels.len() <= level as usize {
                tree.levels.resize_with(level as usize + 1, Vec::new);
            }
            tree.levels[level as usize] = nodes.to_vec();
        }
        Ok(tree)
    }

    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> Hash {
        let nodes = self.levels.iter().rev().flat_map(|level| peaks(level));
        Tree::from_peaks(self.size, nodes.collect()).root()
    }
}

/// The paths of the files on the right edge of a tree of this size: the bundle (no level), then
/// the tiles from level 0 up.
#[must_use]
pub fn edge_paths(size: u64) -> Vec<(String, Option<u32>)> {
    let mut paths = Vec::new();
    if !size.is_multiple_of(WIDTH) {
        paths.push((bundle_path(size / WIDTH, size % WIDTH), None));
    }
    for level in (0..LEVELS).filter(|level| width(size, *level) > 0) {
        let index = size.checked_shr(8 * (level + 1)).unwrap_or(0);
        paths.push((tile_path(level, index, width(size, level)), Some(level)));
    }
    paths
}

/// How many hashes the open tile of this level has.
fn width(size: u64, level: u32) -> u64 {
    (size >> (8 * level)) % WIDTH
}

/// The roots of the perfect subtrees over these nodes, largest first.
fn peaks(nodes: &[[u8; 32]]) -> Vec<[u8; 32]> {
    let mut rest = nodes;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (subtree, behind) = rest.split_at(1 << rest.len().ilog2());
        found.push(root_of(subtree));
        rest = behind;
    }
    found
}

/// The root over 2ⁿ nodes.
#[must_use]
pub fn root_of(nodes: &[[u8; 32]]) -> [u8; 32] {
    let mut nodes = nodes.to_vec();
    while nodes.len() > 1 {
        nodes = nodes.chunks(2).map(|pair| join(pair[0], pair[pair.len() - 1])).collect();
    }
    nodes.first().copied().unwrap_or_else(|| Sha256::digest([]).into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::seal::Leaf;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(tile_path(0, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(tile_path(1, 67, 8), "tile/1/067.p/8");
        assert_eq!(bundle_path(1_000, 255), "tile/entries/x001/000.p/255");
        let of_600: Vec<_> = bundles(600).collect();
        assert_eq!(of_600[2], ("tile/entries/002.p/88".to_owned(), 88));
    }

    #[test]
    fn a_tree_resumed_from_its_files_at_any_size_grows_into_the_same_files() {
        let mut files = BTreeMap::new();
        let (mut tree, mut whole) = (Tiled::default(), Tree::new());
        for i in 0..70_000u64 {
            let mut data = [0; Leaf::BYTES];
            data[..8].copy_from_slice(&i.to_be_bytes());
            let mut full = Vec::new();
            tree.push(&data, &mut full);
            whole.push(&Leaf::from_bytes(data));
            files.extend(full.into_iter().map(|f| (f.path, f.bytes)));
            if i % 997 != 0 && i < 65_500 {
                continue;
            }
            assert_eq!(tree.root(), whole.root(), "size {}", i + 1);
            files.extend(tree.edge().into_iter().map(|f| (f.path, f.bytes)));
            let edge = edge_paths(i + 1);
            let edge: Vec<_> = edge.iter().map(|(path, _)| files[path].clone()).collect();
            assert_eq!(Tiled::resume(i + 1, &edge).unwrap().root(), whole.root());
        }
        let mut count = 0;
        for (path, width) in bundles(70_000) {
            count += entries(&path, &files[&path], width).unwrap().len();
        }
        assert_eq!(count, 70_000);
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let mut tree = Tiled::default();
        for i in 0..3u8 {
            tree.push(&[i; 44], &mut Vec::new());
        }
        let edge: Vec<_> = tree.edge().into_iter().map(|file| file.bytes).collect();
        assert!(Tiled::resume(3, &edge).is_ok());
        for (file, length) in [(0, edge[0].len() - 1), (1, 64), (1, 65)] {
            let mut wrong = edge.clone();
            wrong[file].truncate(length);
            assert!(Tiled::resume(3, &wrong).is_err());
        }
        let mut wrong = edge.clone();
        wrong[0][9] ^= 1;
        assert!(Tiled::resume(3, &wrong).is_err());
    }
}
