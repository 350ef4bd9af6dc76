//! The RFC 6962 tree of a stream, grown leaf by leaf and kept as its frontier only.

use sha2::{Digest, Sha256};
use tlog_tiles::{Hash as Node, node_hash, record_hash};

use super::Leaf;
use crate::id::{Bytes, Hash};

/// A growing tree: its size and the roots of its perfect subtrees, largest first.
#[derive(Clone, Default)]
pub struct Tree {
    size: u64,
    frontier: Vec<Node>,
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
        let mut node = record_hash(leaf.as_bytes());
        // One bit of the size that goes from 1 to 0 is one pair of equal subtrees that join.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.frontier.pop() {
                node = node_hash(left, node);
            }
        }
        self.frontier.push(node);
        self.size += 1;
    }

    /// The root (RFC 6962 § 2.1): SHA-256 of nothing for the empty tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let right_to_left = self.frontier.iter().rev().copied();
        let root = right_to_left.reduce(|right, left| node_hash(left, right));
        Bytes(root.map_or_else(|| Sha256::digest([]).into(), |node| node.0))
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree {{ size: {}, root: {} }}", self.size, self.root())
    }
}

#[cfg(test)]
mod tests {
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
        }
    }
}
