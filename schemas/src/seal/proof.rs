//! What an auditor needs beside some entries of a tree to compute its root: the rest of it, as the
//! fewest hashes.
//!
//! A [`Range`] proves a run of entries at once: the perfect subtrees to its left and to its right.
//! A range of one entry is an inclusion proof; an empty range at size m says that the tree of
//! size m, whose frontier the left side is, was the beginning of this one.

use super::tree::{Tree, join};
use crate::id::{Bytes, Hash};

/// The nodes beside the entries `[first, end)` of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Size of the tree.
    pub size: u64,
    /// Index of the first entry.
    pub first: u64,
    /// Index after the last entry.
    pub end: u64,
    /// Roots of the perfect subtrees that cover `[0, first)`, from the left.
    pub left: Vec<Hash>,
    /// Roots of the perfect subtrees that cover `[end, size)`, from the left.
    pub right: Vec<Hash>,
}

/// The perfect, aligned subtrees that cover `[from, to)`, from the left: the level and the index
/// of each among those of its level.
#[must_use]
pub fn cover(from: u64, to: u64) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        let aligned = if at == 0 { 63 } else { at.trailing_zeros() };
        let level = aligned.min((to - at).ilog2());
        found.push((level, at >> level));
        at += 1 << level;
    }
    found
}

/// A tree's nodes do not fit the entries that they are said to stand beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proof does not have the nodes that its numbers ask for")]
pub struct ProofError;

impl Range {
    /// The root of the tree that has `leaves` (their hashes) at this place.
    ///
    /// # Errors
    /// When the number of leaves or nodes is wrong.
    pub fn root(&self, leaves: impl IntoIterator<Item = [u8; 32]>) -> Result<Hash, ProofError> {
        let (left, right) = (cover(0, self.first), cover(self.end, self.size));
        if self.first > self.end
            || self.end > self.size
            || left.len() != self.left.len()
            || right.len() != self.right.len()
        {
            return Err(ProofError);
        }
        let mut stack = Stack::default();
        left.iter().zip(&self.left).for_each(|((level, _), node)| stack.push(*level, node.0));
        let mut count = self.first;
        for leaf in leaves {
            stack.push(0, leaf);
            count += 1;
        }
        if count != self.end {
            return Err(ProofError);
        }
        right.iter().zip(&self.right).for_each(|((level, _), node)| stack.push(*level, node.0));
        Ok(stack.root())
    }

    /// The root of the tree of the first `first` entries, which the left side is the frontier of.
    #[must_use]
    pub fn beginning(&self) -> Hash {
        Tree::from_peaks(self.first, self.left.iter().map(|node| node.0).collect()).root()
    }
}

/// Perfect subtrees from left to right; equal neighbours join.
#[derive(Default)]
struct Stack {
    nodes: Vec<(u32, u64, [u8; 32])>,
    at: u64,
}

impl Stack {
    fn push(&mut self, level: u32, node: [u8; 32]) {
        let (mut level, mut node, mut start) = (level, node, self.at);
        self.at += 1 << level;
        while let Some((left_level, left_start, left)) = self.nodes.last().copied() {
            let joins = left_level == level && left_start.is_multiple_of(1 << (level + 1));
            if !joins {
                break;
            }
            self.nodes.pop();
            (level, start, node) = (level + 1, left_start, join(left, node));
        }
        self.nodes.push((level, start, node));
    }

    fn root(self) -> Hash {
        let nodes = self.nodes.into_iter().rev().map(|(.., node)| node);
        let root = nodes.reduce(|right, left| join(left, right));
        root.map_or_else(|| Tree::new().root(), Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::tile::root_of;

    fn leaves(count: u64) -> Vec<[u8; 32]> {
        (0..count).map(|i| super::super::leaf_hash(&i.to_be_bytes())).collect()
    }

    fn node(leaves: &[[u8; 32]], (level, index): (u32, u64)) -> Hash {
        let first = usize::try_from(index << level).unwrap();
        Bytes(root_of(&leaves[first..first + (1 << level)]))
    }

    fn root(leaves: &[[u8; 32]]) -> Hash {
        let mut tree = Tree::new();
        leaves.iter().for_each(|leaf| tree.push_node(*leaf));
        tree.root()
    }

    #[test]
    fn every_range_of_every_small_tree_leads_to_its_root_and_a_changed_leaf_elsewhere() {
        for size in 1..34u64 {
            let all = leaves(size);
            for first in 0..=size {
                for end in first..=size {
                    let of =
                        |from, to| cover(from, to).into_iter().map(|n| node(&all, n)).collect();
                    let (left, right) = (of(0, first), of(end, size));
                    let range = Range { size, first, end, left, right };
                    let here = usize::try_from(first).unwrap()..usize::try_from(end).unwrap();
                    let mut shown = all[here.clone()].to_vec();
                    assert_eq!(range.root(shown.clone()), Ok(root(&all)), "{first}..{end}/{size}");
                    assert_eq!(range.beginning(), root(&all[..here.start]));
                    if let Some(last) = shown.last_mut() {
                        last[0] ^= 1;
                        assert_ne!(range.root(shown.clone()), Ok(root(&all)));
                        shown.pop();
                        assert_eq!(range.root(shown), Err(ProofError));
                    }
                }
            }
        }
    }
}
