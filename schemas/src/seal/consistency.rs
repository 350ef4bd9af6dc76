//! Proof that a tree has only grown: RFC 6962 § 2.1.2.
//!
//! What a proof of two sizes consists of is told as [`ranges`], so that whoever has the tiles looks
//! up no more than it takes; [`holds`] is left to an implementation that is not ours.

use super::proof::cover;
use super::tree::join;
use crate::id::{Bytes, Hash};

/// The most hashes that a proof has.
pub const MAX_HASHES: usize = 63;

/// The runs of entries whose roots prove, in this order, that the first `old` entries of a tree of
/// `new` are those of the tree of size `old`. Nothing when one is empty or both are equal.
#[must_use]
pub fn ranges(old: u64, new: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    if old == 0 || old >= new {
        return found;
    }
    let (mut low, mut high) = (0, new);
    while old != high {
        // the left part is the largest perfect subtree that leaves something on the right
        let middle = low + (1 << (high - low - 1).ilog2());
        if old <= middle {
            found.push((middle, high));
            high = middle;
        } else {
            found.push((low, middle));
            low = middle;
        }
    }
    if low > 0 {
        found.push((low, high));
    }
    found.reverse();
    found
}

/// The perfect subtrees that a range consists of, from the left: level and index of each.
#[must_use]
pub fn subtrees((low, high): (u64, u64)) -> Vec<(u32, u64)> {
    cover(low, high)
}

/// The root over a range of [`ranges`], whose subtrees have these roots.
#[must_use]
pub fn root(subtrees: &[Hash]) -> Option<Hash> {
    let right_to_left = subtrees.iter().rev().map(|node| node.0);
    right_to_left.reduce(|right, left| join(left, right)).map(Bytes)
}

/// Whether the proof leads from one tree to the other.
#[must_use]
pub fn holds(old: (u64, Hash), new: (u64, Hash), proof: &[Hash]) -> bool {
    if old.0 == new.0 {
        return proof.is_empty() && old.1 == new.1;
    }
    if old.0 == 0 {
        return proof.is_empty();
    }
    if old.0 > new.0 || new.0 > u64::MAX >> 1 || proof.len() > MAX_HASHES {
        return false;
    }
    let node = |hash: &Hash| tlog_tiles::Hash(hash.0);
    let proof = proof.iter().map(node).collect();
    tlog_tiles::check_tree(&proof, new.0, node(&new.1), old.0, node(&old.1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::tile::root_of;
    use crate::seal::{Tree, leaf_hash};

    fn leaves(count: u64) -> Vec<[u8; 32]> {
        (0..count).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    fn head(leaves: &[[u8; 32]]) -> (u64, Hash) {
        let mut tree = Tree::new();
        leaves.iter().for_each(|leaf| tree.push_node(*leaf));
        (tree.size(), tree.root())
    }

    fn prove(all: &[[u8; 32]], old: u64, new: u64) -> Vec<Hash> {
        let node = |(level, index): (u32, u64)| {
            let first = usize::try_from(index << level).unwrap();
            Bytes(root_of(&all[first..first + (1 << level)]))
        };
        let of = |range| subtrees(range).into_iter().map(node).collect::<Vec<_>>();
        ranges(old, new).into_iter().map(|range| root(&of(range)).unwrap()).collect()
    }

    #[test]
    fn every_two_sizes_of_a_tree_are_proven_and_no_changed_tree_or_proof_is() {
        let all = leaves(40);
        for new in 1..=40usize {
            for old in 1..=new {
                let proof = prove(&all, old as u64, new as u64);
                let (before, after) = (head(&all[..old]), head(&all[..new]));
                assert!(holds(before, after, &proof), "{old} of {new}");
                let mut other = all[..old].to_vec();
                other[old / 2][0] ^= 1;
                assert!(!holds(head(&other), after, &proof), "{old} of {new}");
                for at in 0..proof.len() {
                    let mut changed = proof.clone();
                    changed[at].0[31] ^= 1;
                    assert!(!holds(before, after, &changed), "{old} of {new}, hash {at}");
                }
                let longer = [&proof[..], &[before.1]].concat();
                assert!(!holds(before, after, &longer), "{old} of {new}");
            }
        }
    }

    #[test]
    fn nothing_needs_no_proof_and_a_tree_does_not_shrink() {
        let all = leaves(9);
        let (empty, some, more) = (head(&[]), head(&all[..4]), head(&all));
        assert!(holds(empty, some, &[]) && holds(empty, empty, &[]));
        assert!(!holds(empty, some, &[some.1]));
        assert!(!holds(more, some, &prove(&all, 4, 9)));
        assert!(ranges(0, 9).is_empty() && ranges(9, 9).is_empty() && ranges(9, 4).is_empty());
    }
}
