//! The end of a verification: what is missing, and the runs that ended without a last checkpoint.
//!
//! A run that was killed leaves records that nobody signed. The writer's next run says in its first
//! record where the old one ended, under its own signature: that attests them.

use custody_schemas::id::StreamId;
use custody_schemas::seal::Tree;

use super::Verdict;
use super::streams::{Claim, Proven, Streams};

/// Judges what the tables have shown of every stream.
pub(super) fn conclude(streams: &Streams, verdict: &mut Verdict) {
    for (stream, proven) in &streams.proven {
        if proven.readable {
            gaps(stream, proven, verdict);
        }
        let claims = streams.claims.get(stream).map_or(&[][..], Vec::as_slice);
        let attested = claims.iter().map(|claim| attest(stream, proven, claim, verdict)).max();
        let sealed = proven.leaves.len() as u64;
        let attested = attested.unwrap_or(0).max(sealed);
        verdict.attested += attested - sealed;
        verdict.unsealed += proven.tail.range(attested..).count() as u64;
    }
    for (stream, claims) in &streams.claims {
        if let [first, second, ..] = claims.as_slice() {
            let problem = format!(
                "{} and {} both say that they follow it: its disk was cloned, or its folder \
                 restored from a copy",
                first.by, second.by
            );
            verdict.find(stream.as_str(), problem);
        }
        if !streams.proven.contains_key(stream) {
            let size = claims.iter().map(|claim| claim.size).max().unwrap_or(0);
            verdict.miss(stream.as_str(), 0, size);
        }
    }
}

fn gaps(stream: &StreamId, proven: &Proven, verdict: &mut Verdict) {
    let mut since = None;
    for (seq, seen) in proven.seen.iter().copied().chain([true]).enumerate() {
        match (since, seen) {
            (None, false) => since = Some(seq),
            (Some(first), true) => {
                verdict.miss(stream.as_str(), first as u64, seq as u64);
                since = None;
            }
            _ => {}
        }
    }
}

/// Compares a stream with what the next run says of it; up to where that attests it.
fn attest(stream: &StreamId, proven: &Proven, claim: &Claim, verdict: &mut Verdict) -> u64 {
    let sealed = proven.leaves.len() as u64;
    let mut tree = Tree::new();
    for leaf in proven.leaves.iter().chain(proven.tail.values()) {
        if tree.size() == claim.size {
            break;
        }
        if tree.size() >= sealed && !proven.tail.contains_key(&tree.size()) {
            break;
        }
        tree.push(leaf);
    }
    if tree.size() < claim.size {
        verdict.miss(stream.as_str(), tree.size(), claim.size);
        return tree.size().min(sealed);
    }
    if tree.root() != claim.root {
        let problem = format!("{} says another root of its first {}", claim.by, claim.size);
        verdict.find(stream.as_str(), problem);
        return sealed;
    }
    claim.size
}
