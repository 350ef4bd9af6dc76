//! What making and checking a package have in common: the leaves that are to be opened.

use std::cmp::Ordering;

use custody_schemas::seal::Leaf;

/// A leaf whose record is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The stream, as its place among all.
    pub(super) stream: u32,
    /// Its index there.
    pub(super) seq: u64,
    /// Its data.
    pub(super) leaf: Leaf,
}

impl Wanted {
    pub(super) const fn key(&self) -> (u32, u64) {
        (self.stream, self.seq)
    }
}

impl Ord for Wanted {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Wanted {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
