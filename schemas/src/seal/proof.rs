//! What an auditor needs beside some entries of a tree to compute its root: the rest of it, as the
//! fewest hashes.
//!
//! A [`Range`] proves a run of entries at once: the perfect subtrees to its left and to its right.
//! A range of one entry is an inclusion proof; an empty range at size m says that the tree of
//! size m, whose frontier the left side is, was the beginning of this one. Where the sides are cut
//! at earlier sizes of the tree, the same nodes give the root that it had at each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::Excluded;

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
    /// Roots of the perfect subtrees that cover `[0, first)`, from the left, see [`cover_cut`].
    pub left: Vec<Hash>,
    /// Roots of the perfect subtrees that cover `[end, size)`, likewise.
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

/// The same, where no subtree reaches across one of `cuts`.
#[must_use]
pub fn cover_cut(from: u64, to: u64, cuts: &BTreeSet<u64>) -> Vec<(u32, u64)> {
    if from >= to {
        return Vec::new();
    }
    let mut borders = vec![from];
    borders.extend(cuts.range((Excluded(from), Excluded(to))));
    borders.push(to);
    borders.windows(2).flat_map(|pair| cover(pair[0], pair[1])).collect()
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
        let mut roots = self.roots(leaves, &BTreeSet::new())?;
        roots.remove(&self.size).ok_or(ProofError)
    }

    /// The root that the tree had at each of the sizes `cuts`, and has at its own, where the sides
    /// are cut there.
    ///
    /// # Errors
    /// When the number of leaves or nodes is wrong.
    pub fn roots(
        &self,
        leaves: impl IntoIterator<Item = [u8; 32]>,
        cuts: &BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, Hash>, ProofError> {
        let left = cover_cut(0, self.first, cuts);
        let right = cover_cut(self.end, self.size, cuts);
        if self.first > self.end
            || self.end > self.size
            || left.len() != self.left.len()
            || right.len() != self.right.len()
        {
            return Err(ProofError);
        }
        let (mut stack, mut roots) = (Stack::default(), BTreeMap::new());
        let mut push = |level, node| {
            stack.push(level, node);
            if stack.at == self.size || cuts.contains(&stack.at) {
                roots.insert(stack.at, stack.root());
            }
        };
        left.iter().zip(&self.left).for_each(|((level, _), node)| push(*level, node.0));
        let mut count = self.first;
        for leaf in leaves {
            count += 1;
            if count > self.end {
                return Err(ProofError);
            }
            push(0, leaf);
        }
        if count != self.end {
            return Err(ProofError);
        }
        right.iter().zip(&self.right).for_each(|((level, _), node)| push(*level, node.0));
        if self.size == 0 {
            roots.insert(0, Tree::new().root());
        }
        Ok(roots)
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

    fn root(&self) -> Hash {
        let nodes = self.nodes.iter().rev().map(|(.., node)| *node);
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

    #[test]
    fn cut_at_earlier_sizes_a_range_gives_the_root_that_the_tree_had_at_each() {
        let all = leaves(70);
        for (first, end, size) in [(0, 70, 70), (20, 41, 70), (64, 65, 67), (33, 33, 33), (0, 0, 9)]
        {
            for cuts in [&[1, 7, 20, 40, 66][..], &[3, 32, 33, 64, 65], &[]] {
                let cuts: BTreeSet<u64> = cuts.iter().copied().collect();
                let of = |from, to| {
                    cover_cut(from, to, &cuts).into_iter().map(|n| node(&all, n)).collect()
                };
                let range = Range { size, first, end, left: of(0, first), right: of(end, size) };
                let at = |i: u64| usize::try_from(i).unwrap();
                let roots = range.roots(all[at(first)..at(end)].to_vec(), &cuts).unwrap();
                let expected: BTreeMap<_, _> = cuts
                    .iter()
                    .copied()
                    .filter(|cut| *cut < size)
                    .chain([size])
                    .map(|cut| (cut, root(&all[..at(cut)])))
                    .collect();
                assert_eq!(roots, expected, "{first}..{end}/{size} cut at {cuts:?}");
            }
        }
    }
}
