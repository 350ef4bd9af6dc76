//! The end of a verification: what is missing, and the runs that ended without a last checkpoint.
//!
//! A run that was killed leaves records that nobody signed. The writer's next run says in its first
//! record where the old one ended, under its own signature: that attests them.

use custody_schemas::id::StreamId;
use custody_schemas::seal::Tree;

use super::Verdict;
use super::streams::{Claim, Proven, Streams};
use crate::lawful::{Gone, Lawful};

/// Judges what the tables have shown of every stream.
pub(super) fn conclude(streams: &Streams, verdict: &mut Verdict) {
    for (stream, proven) in &streams.proven {
        if proven.readable {
            gaps(stream, proven, &streams.lawful, verdict);
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

/// Leaves without a record: expired, erased, or missing.
fn gaps(stream: &StreamId, proven: &Proven, lawful: &Lawful, verdict: &mut Verdict) {
    let mut since = None;
    for (seq, (leaf, seen)) in (0..).zip(proven.leaves.iter().zip(&proven.seen)) {
        let gone = if *seen { None } else { lawful.event(stream, seq, leaf.at()) };
        verdict.expired += u64::from(gone == Some(Gone::Expired));
        verdict.erased += u64::from(gone == Some(Gone::Erased));
        if !seen && gone.is_none() {
            since.get_or_insert(seq);
        } else if let Some(first) = since.take() {
            verdict.miss(stream.as_str(), first, seq);
        }
    }
    if let Some(first) = since {
        verdict.miss(stream.as_str(), first, proven.leaves.len() as u64);
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
