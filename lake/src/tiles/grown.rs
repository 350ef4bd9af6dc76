//! Proofs that a stored tree has only grown, from its tiles.

use custody_schemas::id::{Bytes, Hash};
use custody_schemas::seal::consistency::{ranges, root, subtrees};
use custody_schemas::seal::tile::{TileError, WIDTH, root_of, tile_path};

use super::{SealError, Seals};

impl Seals {
    /// The hashes that prove that the tree of size `new` in `folder` begins with the one of size
    /// `old`: a few tiles are read.
    ///
    /// # Errors
    /// When a tile is missing or too short.
    pub async fn consistency(
        &self,
        folder: &str,
        old: u64,
        new: u64,
    ) -> Result<Vec<Hash>, SealError> {
        let mut proof = Vec::new();
        for range in ranges(old, new) {
            let mut nodes = Vec::new();
            for place in subtrees(range) {
                nodes.push(self.node(folder, new, place).await?);
            }
            proof.extend(root(&nodes));
        }
        Ok(proof)
    }

    /// The root of a perfect subtree (its level, and its index among those of that level) of the
    /// tree of this size.
    ///
    /// # Errors
    /// When the tile that it follows from is missing or too short.
    pub async fn node(
        &self,
        folder: &str,
        size: u64,
        (level, index): (u32, u64),
    ) -> Result<Hash, SealError> {
        let (tile_level, within) = (level / 8, level % 8);
        let first = index << within;
        let tile = first / WIDTH;
        let width = (size >> (8 * tile_level)).saturating_sub(tile * WIDTH).min(WIDTH);
        let path = tile_path(tile_level, tile, width);
        let wrong = |problem| {
            let source = TileError { path: path.clone(), problem };
            SealError::Tile { place: folder.to_owned(), source }
        };
        let bytes = self.get(&format!("{folder}{path}")).await?;
        let bytes = bytes.ok_or_else(|| wrong("the file is missing"))?;
        let (nodes, _) = bytes.as_chunks::<32>();
        let from = usize::try_from(first % WIDTH).unwrap_or(0);
        let nodes =
            nodes.get(from..from + (1 << within)).ok_or_else(|| wrong("it is too short"))?;
        Ok(Bytes(root_of(nodes)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use custody_schemas::seal::consistency::holds;
    use custody_schemas::seal::tile::Tiled;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn whatever_a_log_has_grown_from_is_proven_from_its_tiles() {
        let seals = Seals::new(Arc::new(InMemory::new()));
        let (mut tree, mut heads) = (Tiled::default(), Vec::new());
        let sizes = [1, 2, 3, 7, 200, 256, 257, 511, 600, 65_536, 65_800];
        for size in sizes {
            let mut full = Vec::new();
            while tree.size() < size {
                tree.push(&tree.size().to_be_bytes(), &mut full);
            }
            seals.grow("log/", full, &tree).await.unwrap();
            heads.push((size, tree.root()));
        }
        for (later, new) in heads.iter().enumerate() {
            for old in &heads[..=later] {
                let proof = seals.consistency("log/", old.0, new.0).await.unwrap();
                assert!(holds(*old, *new, &proof), "{} of {}", old.0, new.0);
            }
        }
        assert!(seals.consistency("elsewhere/", 3, 7).await.is_err());
    }
}
