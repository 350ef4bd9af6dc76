//! The frontier of a run's RFC 6962 tree, in a form that can be written down.
//!
//! `custody_schemas::seal::Tree` is the same tree; this one is kept because a segment begins with
//! a note of the run's state, so that the next run need not read all records since its beginning.
//! The test holds the two together.

use custody_schemas::id::{Bytes, Hash};
use custody_schemas::seal::Leaf;
use sha2::{Digest, Sha256};

/// A growing tree: its size and the roots of its perfect subtrees, largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frontier {
    size: u64,
    nodes: Vec<[u8; 32]>,
}

impl Frontier {
    /// Number of leaves.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf on the right.
    pub(crate) fn push(&mut self, leaf: &Leaf) {
        let mut node = Sha256::new().chain_update([0]).chain_update(leaf.as_bytes()).finalize();
        // one bit of the size that goes from 1 to 0 is one pair of equal subtrees that join
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.nodes.pop() {
                node = Sha256::new()
                    .chain_update([1])
                    .chain_update(left)
                    .chain_update(node)
                    .finalize();
            }
        }
        self.nodes.push(node.into());
        self.size += 1;
    }

    /// The root.
    pub(crate) fn root(&self) -> Hash {
        let join = |right: [u8; 32], left: [u8; 32]| -> [u8; 32] {
            Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
        };
        let root = self.nodes.iter().rev().copied().reduce(join);
        Bytes(root.unwrap_or_else(|| Sha256::digest([]).into()))
    }

    /// Size, then the nodes, largest subtree first; their number follows from the size.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.size.to_le_bytes());
        for node in &self.nodes {
            bytes.extend_from_slice(node);
        }
    }

    /// The reverse of [`encode`](Self::encode), and what stands behind it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (size, mut rest) = bytes.split_first_chunk::<8>()?;
        let size = u64::from_le_bytes(*size);
        let mut nodes = Vec::new();
        for _ in 0..size.count_ones() {
            let (node, behind) = rest.split_first_chunk::<32>()?;
            nodes.push(*node);
            rest = behind;
        }
        Some((Self { size, nodes }, rest))
    }
}

#[cfg(test)]
mod tests {
    use custody_schemas::seal::Tree;

    use super::*;

    #[test]
    fn the_frontier_is_the_tree_of_schemas_at_every_size_and_reads_back() {
        let (mut frontier, mut tree) = (Frontier::default(), Tree::new());
        for i in 0..200u8 {
            assert_eq!((frontier.root(), frontier.size()), (tree.root(), tree.size()));
            let mut bytes = Vec::new();
            frontier.encode(&mut bytes);
            bytes.push(i);
            assert_eq!(Frontier::decode(&bytes), Some((frontier.clone(), &[i][..])));
            assert_eq!(Frontier::decode(&bytes[..bytes.len() - 2]), None);
            let leaf = Leaf::from_bytes([i; Leaf::BYTES]);
            frontier.push(&leaf);
            tree.push(&leaf);
        }
    }
}
