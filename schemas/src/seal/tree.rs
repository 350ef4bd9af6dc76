//! The RFC 6962 tree of a stream, grown leaf by leaf and kept as its frontier only.

use sha2::{Digest, Sha256};

use super::Leaf;
use crate::id::{Bytes, Hash};

/// A growing tree: its size and the roots of its perfect subtrees, largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    frontier: Vec<[u8; 32]>,
}

impl Tree {
    /// The tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf on the right.
    pub fn push(&mut self, leaf: &Leaf) {
        self.push_node(leaf_hash(leaf.as_bytes()));
    }

    /// Adds the hash of a leaf on the right.
    pub fn push_node(&mut self, leaf: [u8; 32]) {
        let mut node = leaf;
        // One bit of the size that goes from 1 to 0 is one pair of equal subtrees that join.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.frontier.pop() {
                node = join(left, node);
            }
        }
        self.frontier.push(node);
        self.size += 1;
    }

    /// The tree of this size whose perfect subtrees, largest first, have these roots.
    pub(super) const fn from_peaks(size: u64, frontier: Vec<[u8; 32]>) -> Self {
        Self { size, frontier }
    }

    /// The root (RFC 6962 § 2.1): SHA-256 of nothing for the empty tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let right_to_left = self.frontier.iter().rev().copied();
        let root = right_to_left.reduce(|right, left| join(left, right));
        Bytes(root.unwrap_or_else(|| Sha256::digest([]).into()))
    }

    /// Appends the size (u64, little endian) and the frontier, largest subtree first; how many
    /// nodes there are follows from the size.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.size.to_le_bytes());
        for node in &self.frontier {
            bytes.extend_from_slice(node);
        }
    }

    /// The reverse of [`encode`](Self::encode), and what stands behind it; nothing when the bytes
    /// are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (size, mut rest) = bytes.split_first_chunk::<8>()?;
        let size = u64::from_le_bytes(*size);
        let mut frontier = Vec::new();
        for _ in 0..size.count_ones() {
            let (node, behind) = rest.split_first_chunk::<32>()?;
            frontier.push(*node);
            rest = behind;
        }
        Some((Self { size, frontier }, rest))
    }
}

/// The hash of a leaf (RFC 6962 § 2.1).
#[must_use]
pub fn leaf_hash(data: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// The hash of an inner node (RFC 6962 § 2.1).
#[must_use]
pub fn join(left: [u8; 32], right: [u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

#[cfg(test)]
mod tests {
    use tlog_tiles::Hash as Node;

    use super::*;

    struct Stored(Vec<Node>);

    impl tlog_tiles::HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Node>, tlog_tiles::tlog::Error> {
            Ok(indexes.iter().map(|i| self.0[usize::try_from(*i).unwrap()]).collect())
        }
    }

    #[test]
    fn the_root_equals_that_of_an_independent_implementation_at_every_size() {
        let mut tree = Tree::new();
        let mut stored = Stored(Vec::new());
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(tree.root().to_string(), empty);
        for i in 0..300u64 {
            let mut data = [0; Leaf::BYTES];
            data[..8].copy_from_slice(&i.to_be_bytes());
            tree.push(&Leaf::from_bytes(data));
            stored.0.extend(tlog_tiles::stored_hashes(i, &data, &stored).unwrap());
            let expected = tlog_tiles::tree_hash(i + 1, &stored).unwrap();
            assert_eq!(tree.root().0, expected.0, "size {}", i + 1);
            let mut bytes = Vec::new();
            tree.encode(&mut bytes);
            assert_eq!(Tree::decode(&bytes[..bytes.len() - 1]), None);
            bytes.push(7);
            assert_eq!(Tree::decode(&bytes), Some((tree.clone(), &[7][..])));
        }
    }
}
