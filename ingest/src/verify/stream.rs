//! One stream on its way to being sealed: stored leaves against the writer's signed checkpoints.
//! Pure.
//!
//! A checkpoint's message brings the leaves since the one before, so the tree grows also across
//! records that are not there. Whatever *is* stored must be what was signed: a record that is not,
//! or a root that does not follow, stops the stream at its last good checkpoint for good.

use std::collections::BTreeMap;

use custody_schemas::id::{Micros, StreamId};
use custody_schemas::seal::Leaf;
use custody_schemas::seal::checkpoint::{Checkpoint, Message};
use custody_schemas::seal::keyring::Keyring;
use custody_schemas::seal::log::stream_of;
use custody_schemas::seal::tile::{TileFile, Tiled};

/// The most checkpoints of one stream that wait; later ones hold the tree, too.
const WAITING: usize = 64;

/// What is wrong with a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A stored record is not the one that was signed.
    Altered(u64),
    /// The leaves do not lead to the root that was signed at this size.
    Root(u64),
    /// No key of its writer has signed the checkpoint of this size.
    Unsigned(u64),
    /// The checkpoint of this size was signed by a key that had been closed before.
    Closed(u64),
}

/// A stored record below no verified checkpoint yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    leaf: Leaf,
    offset: u64,
}

/// A stream as far as it is verified, and what waits to be.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    tree: Tiled,
    waiting: BTreeMap<u64, Vec<Waiting>>,
    checkpoints: BTreeMap<u64, (u64, Message)>,
    fault: Option<Fault>,
}

/// What a step has brought.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// The files that became full.
    pub(crate) full: Vec<TileFile>,
    /// The newest verified checkpoint.
    pub(crate) note: Option<String>,
    /// Leaves without a stored record.
    pub(crate) missing: u64,
    /// Leaves that were verified.
    pub(crate) leaves: u64,
    /// What was found wrong.
    pub(crate) faults: Vec<Fault>,
}

impl Unsealed {
    /// Goes on from a verified tree.
    pub(crate) fn new(tree: Tiled) -> Self {
        Self { tree, ..Self::default() }
    }

    pub(crate) const fn tree(&self) -> &Tiled {
        &self.tree
    }

    /// Takes a stored record.
    pub(crate) fn record(&mut self, seq: u64, leaf: Leaf, offset: u64) {
        if seq >= self.tree.size() && self.fault.is_none() {
            self.waiting.entry(seq).or_default().push(Waiting { leaf, offset });
        }
    }

    /// Takes a stored checkpoint.
    pub(crate) fn checkpoint(&mut self, size: u64, message: Message, offset: u64) {
        if size > self.tree.size() && self.fault.is_none() && self.checkpoints.len() < WAITING {
            self.checkpoints.entry(size).or_insert((offset, message));
        }
    }

    /// The offset of the oldest thing that waits.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let records = self.waiting.values().flatten().map(|waiting| waiting.offset);
        records.chain(self.checkpoints.values().map(|(offset, _)| *offset)).min()
    }

    /// How many records wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Whether nothing waits.
    pub(crate) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.checkpoints.is_empty()
    }

    /// Verifies every checkpoint that waits and whose turn it is.
    pub(crate) fn step(&mut self, stream: &StreamId, ring: &Keyring) -> Step {
        let mut step = Step::default();
        while let Some((size, (offset, message))) = self.checkpoints.pop_first() {
            if size <= self.tree.size() {
                continue;
            }
            let Some(leaves) = self.leaves(size, &message) else {
                // What came before it is not here yet.
                self.checkpoints.insert(size, (offset, message));
                break;
            };
            let last = leaves.last().map_or(Micros::new(0), Leaf::at);
            match signed(stream, ring, &message.note, last) {
                Ok(checkpoint) => self.grow(&checkpoint, &leaves, message, &mut step),
                Err(Fault::Unsigned(_)) if !lists(ring, stream) => {
                    // The keyring may be older than the writer.
                    self.checkpoints.insert(size, (offset, message));
                    break;
                }
                // Anybody can bring a message that nobody signed: it does not stop the stream.
                Err(fault) => step.faults.push(fault),
            }
        }
        step
    }

    /// The leaves from the tree's end to `size`: from the message, and before it from what is
    /// stored.
    fn leaves(&self, size: u64, message: &Message) -> Option<Vec<Leaf>> {
        let mut leaves = Vec::new();
        for seq in self.tree.size()..message.first.min(size) {
            leaves.push(self.waiting.get(&seq)?.first()?.leaf);
        }
        let known = usize::try_from(self.tree.size().saturating_sub(message.first)).ok()?;
        leaves.extend_from_slice(message.leaves.get(known..)?);
        (self.tree.size() + leaves.len() as u64 == size).then_some(leaves)
    }

    fn grow(
        &mut self,
        checkpoint: &Checkpoint,
        leaves: &[Leaf],
        message: Message,
        step: &mut Step,
    ) {
        let (mut tree, mut full) = (self.tree.clone(), Vec::new());
        leaves.iter().for_each(|leaf| tree.push(leaf.as_bytes(), &mut full));
        if tree.root() != checkpoint.root {
            return self.stop(Fault::Root(checkpoint.size), step);
        }
        let mut missing = 0;
        for (seq, leaf) in (self.tree.size()..).zip(leaves) {
            match self.waiting.get(&seq) {
                None => missing += 1,
                // The record that is shown is the first; one that came later is a conflict.
                Some(stored) if stored.first().is_some_and(|first| first.leaf == *leaf) => {}
                Some(_) => return self.stop(Fault::Altered(seq), step),
            }
        }
        self.waiting = self.waiting.split_off(&checkpoint.size);
        self.tree = tree;
        step.full.extend(full);
        step.missing += missing;
        step.leaves += leaves.len() as u64;
        step.note = Some(message.note);
    }

    fn stop(&mut self, fault: Fault, step: &mut Step) {
        step.faults.push(fault.clone());
        self.waiting.clear();
        self.checkpoints.clear();
        self.fault = Some(fault);
    }
}

fn lists(ring: &Keyring, stream: &StreamId) -> bool {
    ring.writers.iter().any(|key| key.name == stream.writer())
}

/// The checkpoint that a note says, if a key of the stream's writer signed it while in force.
fn signed(
    stream: &StreamId,
    ring: &Keyring,
    note: &str,
    last: Micros,
) -> Result<Checkpoint, Fault> {
    let size = stated(note).map_or(0, |checkpoint| checkpoint.size);
    let keys = ring.writers.iter().filter(|key| key.name == stream.writer());
    let mut opened =
        keys.filter_map(|key| Some((Checkpoint::verify(note, &[&key.vkey]).ok()?, key)));
    let Some((checkpoint, key)) = opened.next_back() else { return Err(Fault::Unsigned(size)) };
    if stream_of(&ring.deployment, &checkpoint).as_ref() != Some(stream) {
        return Err(Fault::Unsigned(size));
    }
    match key.until {
        Some(until) if last >= until => Err(Fault::Closed(size)),
        _ => Ok(checkpoint),
    }
}

/// What a note says, its signature unseen.
pub(crate) fn stated(note: &str) -> Option<Checkpoint> {
    let text = note.split("\n\n").next().unwrap_or_default();
    Checkpoint::parse(&format!("{text}\n")).ok()
}

#[cfg(test)]
mod tests {
    use custody_schemas::seal::checkpoint::origin;
    use custody_schemas::seal::key::Signer;
    use custody_schemas::seal::keyring::WriterKey;
    use custody_schemas::seal::{Tree, tile};

    use super::*;

    const STREAM: &str = "edge-1/0190c8a0-7b1e-7000-8000-000000000001";

    fn stream() -> StreamId {
        STREAM.parse().unwrap()
    }

    fn signer(seed: u8) -> Signer {
        Signer::from_seed("a.example/edge-1", &[seed; 32]).unwrap().0
    }

    fn ring(until: Option<u64>) -> Keyring {
        let key = WriterKey {
            name: "edge-1".into(),
            vkey: signer(1).vkey().to_owned(),
            from: Micros::new(0),
            until: until.map(Micros::new),
            retired: false,
        };
        Keyring { deployment: "a.example".into(), writers: vec![key], ..Keyring::default() }
    }

    fn leaf(seq: u64) -> Leaf {
        Leaf::new(custody_schemas::record::hash(&seq.to_be_bytes()), Micros::new(seq), 1, 0)
    }

    /// The message that a writer with this key makes after `size` leaves, the last at `first`.
    fn message(first: u64, size: u64, seed: u8) -> Message {
        let mut tree = Tree::new();
        (0..size).for_each(|seq| tree.push(&leaf(seq)));
        let note = Checkpoint::of(origin("a.example", &stream()), &tree).sign(&signer(seed));
        Message { note: note.unwrap(), first, leaves: (first..size).map(leaf).collect() }
    }

    fn with(records: impl IntoIterator<Item = u64>) -> Unsealed {
        let mut unsealed = Unsealed::default();
        records.into_iter().for_each(|seq| unsealed.record(seq, leaf(seq), seq));
        unsealed
    }

    #[test]
    fn what_is_stored_as_it_was_signed_is_sealed_and_the_rest_waits() {
        let mut unsealed = with(0..400);
        unsealed.checkpoint(100, message(0, 100, 1), 100);
        unsealed.checkpoint(300, message(100, 300, 1), 301);
        let step = unsealed.step(&stream(), &ring(None));
        assert_eq!((step.leaves, step.missing, step.faults.as_slice()), (300, 0, &[][..]));
        assert_eq!(step.full[0].path, tile::bundle_path(0, 256));
        assert_eq!(unsealed.tree().size(), 300);
        assert_eq!(unsealed.oldest(), Some(300));
    }

    #[test]
    fn the_tree_grows_across_records_that_are_missing_and_counts_them() {
        let mut unsealed = with((0..40).chain(50..100));
        unsealed.checkpoint(100, message(0, 100, 1), 100);
        let step = unsealed.step(&stream(), &ring(None));
        assert_eq!((step.leaves, step.missing), (100, 10));
    }

    #[test]
    fn a_checkpoint_whose_predecessor_is_missing_is_verified_from_the_records() {
        let mut unsealed = with(0..100);
        unsealed.checkpoint(100, message(60, 100, 1), 100);
        assert_eq!(unsealed.step(&stream(), &ring(None)).leaves, 100);
        let mut unsealed = with(10..100);
        unsealed.checkpoint(100, message(60, 100, 1), 100);
        assert_eq!(unsealed.step(&stream(), &ring(None)).leaves, 0);
        (0..10).for_each(|seq| unsealed.record(seq, leaf(seq), 200 + seq));
        assert_eq!(unsealed.step(&stream(), &ring(None)).leaves, 100);
    }

    #[test]
    fn a_changed_record_or_root_stops_the_stream_where_it_was_last_good() {
        let mut unsealed = with((0..150).filter(|seq| *seq != 120));
        unsealed.record(120, leaf(7), 120);
        unsealed.checkpoint(100, message(0, 100, 1), 150);
        unsealed.checkpoint(150, message(100, 150, 1), 151);
        let step = unsealed.step(&stream(), &ring(None));
        assert_eq!((step.leaves, step.faults.as_slice()), (100, &[Fault::Altered(120)][..]));
        assert_eq!(unsealed.tree().size(), 100);
        let mut unsealed = with(0..50);
        let mut wrong = message(0, 50, 1);
        wrong.leaves[9] = leaf(8);
        unsealed.checkpoint(50, wrong, 50);
        assert_eq!(unsealed.step(&stream(), &ring(None)).faults, [Fault::Root(50)]);
    }

    #[test]
    fn a_message_that_no_key_in_force_has_signed_does_not_count_and_does_not_stop_the_others() {
        let mut unsealed = with(0..60);
        unsealed.checkpoint(50, message(0, 50, 2), 50);
        unsealed.checkpoint(60, message(50, 60, 1), 61);
        let step = unsealed.step(&stream(), &ring(None));
        assert_eq!((step.leaves, step.faults.as_slice()), (60, &[Fault::Unsigned(50)][..]));
        let mut unsealed = with(0..60);
        unsealed.checkpoint(60, message(0, 60, 1), 60);
        assert_eq!(unsealed.step(&stream(), &ring(Some(59))).faults, [Fault::Closed(60)]);
        let mut unsealed = with(0..60);
        unsealed.checkpoint(60, message(0, 60, 1), 60);
        assert!(unsealed.step(&stream(), &Keyring::default()).faults.is_empty());
        assert_eq!(unsealed.step(&stream(), &ring(None)).leaves, 60);
    }
}
