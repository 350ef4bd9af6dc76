//! The auditor's sample: which leaves of the period have to be opened follows from their leaf data
//! and from a word that the auditor chooses.
//!
//! Drawn are those with the smallest SHA-256 of the word and the leaf. All leaves are under signed
//! checkpoints before the word is told, so whoever makes the package cannot choose what is drawn,
//! and whoever reads it can draw again.

use std::collections::BinaryHeap;

use custody_schemas::seal::Leaf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::pieces::Wanted;

/// The largest sample.
pub const MOST: u32 = 10_000;
/// The longest word, in bytes.
pub const LONGEST_SEED: usize = 256;
/// What is hashed before the word.
const DOMAIN: &str = "custody-challenge-1\n";

/// A sample as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The auditor's word, without a newline.
    pub seed: String,
    /// How many leaves are drawn; all where there are fewer.
    pub count: u32,
}

impl Challenge {
    /// What is wrong with it, if anything.
    #[must_use]
    pub fn mistake(&self) -> Option<&'static str> {
        let seed = &self.seed;
        if seed.is_empty() || seed.len() > LONGEST_SEED || seed.contains('\n') {
            return Some("a seed has 1 to 256 bytes and no newline");
        }
        let fits = (1..=MOST).contains(&self.count);
        (!fits).then_some("a sample has 1 to 10,000 records")
    }
}

/// A sample being drawn.
pub(super) struct Draw {
    prefix: Sha256,
    count: usize,
    drawn: BinaryHeap<([u8; 32], Wanted)>,
}

impl Draw {
    /// Nothing is drawn without a challenge.
    pub(super) fn new(challenge: Option<&Challenge>) -> Self {
        let mut prefix = Sha256::new_with_prefix(DOMAIN);
        let seed = challenge.map_or("", |challenge| &challenge.seed);
        prefix.update(seed);
        prefix.update("\n");
        let count = challenge.map_or(0, |challenge| challenge.count.min(MOST));
        Self { prefix, count: count as usize, drawn: BinaryHeap::new() }
    }

    /// Shows a leaf of the period.
    pub(super) fn offer(&mut self, wanted: Wanted) {
        if self.count == 0 {
            return;
        }
        let place = self.place(&wanted.leaf);
        if self.drawn.len() == self.count {
            if self.drawn.peek().is_some_and(|(largest, _)| place >= *largest) {
                return;
            }
            self.drawn.pop();
        }
        self.drawn.push((place, wanted));
    }

    fn place(&self, leaf: &Leaf) -> [u8; 32] {
        self.prefix.clone().chain_update(leaf.as_bytes()).finalize().into()
    }

    /// What was drawn, in the order of streams.
    pub(super) fn end(self) -> Vec<Wanted> {
        let mut drawn: Vec<_> = self.drawn.into_iter().map(|(_, wanted)| wanted).collect();
        drawn.sort_unstable();
        drawn
    }
}

#[cfg(test)]
mod tests {
    use custody_schemas::id::{Bytes, Micros};

    use super::*;

    fn drawn(seed: &str, count: u32, seqs: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut draw = Draw::new(Some(&Challenge { seed: seed.to_owned(), count }));
        for seq in seqs {
            let mut record = [0; 32];
            record[..8].copy_from_slice(&seq.to_be_bytes());
            let leaf = Leaf::new(Bytes(record), Micros::new(seq), 1, 0);
            draw.offer(Wanted { stream: 0, seq, leaf });
        }
        draw.end().into_iter().map(|wanted| wanted.seq).collect()
    }

    #[test]
    fn a_sample_depends_on_the_word_and_the_leaves_and_not_on_their_order() {
        let sample = drawn("dice 4 1 6", 20, 0..1_000);
        assert_eq!(sample.len(), 20);
        assert_eq!(sample, drawn("dice 4 1 6", 20, (0..1_000).rev()));
        assert_ne!(sample, drawn("dice 4 1 5", 20, 0..1_000));
        assert!(sample[0] < 500 && sample[19] >= 500, "{sample:?} are spread over all of them");
        assert_eq!(drawn("x", 20, 0..7).len(), 7);
        assert!(Draw::new(None).end().is_empty());
    }

    #[test]
    fn a_sample_that_cannot_be_drawn_is_refused() {
        let mistake =
            |seed: &str, count| Challenge { seed: seed.to_owned(), count }.mistake().is_some();
        assert!(!mistake("a", 1) && !mistake("a", MOST));
        assert!(mistake("", 1) && mistake("a\nb", 1) && mistake("a", 0) && mistake("a", MOST + 1));
        assert!(mistake(&"x".repeat(257), 1));
    }
}
