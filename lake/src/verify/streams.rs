//! The leaves of every stream in the log: tiles recomputed, roots compared with every checkpoint.

use std::collections::BTreeMap;

use custody_schemas::id::{Hash, StreamId};
use custody_schemas::seal::tile::{TileFile, Tiled, bundles, entries};
use custody_schemas::seal::{Leaf, Tree};
use futures::StreamExt;

use super::log::{Logged, Signed};
use super::{Verdict, VerifyError, unsigned};
use crate::lawful::Lawful;
use crate::tiles::{Seals, stream_folder};

/// How many files are fetched at the same time.
const READS: usize = 16;

/// A stream as its checkpoints prove it, and what has been seen of it in the tables.
#[derive(Debug, Default)]
pub(super) struct Proven {
    /// The leaves under the largest checkpoint in the log.
    pub(super) leaves: Vec<Leaf>,
    /// Which of them have a record.
    pub(super) seen: Vec<bool>,
    /// Leaves of records beyond them.
    pub(super) tail: BTreeMap<u64, Leaf>,
    /// Whether its leaves could be read; without, nothing can be said of its records.
    pub(super) readable: bool,
}

/// What a run says of the one before it.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) by: StreamId,
    pub(super) size: u64,
    pub(super) root: Hash,
}

/// All streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) proven: BTreeMap<StreamId, Proven>,
    /// By the stream that is spoken of.
    pub(super) claims: BTreeMap<StreamId, Vec<Claim>>,
    /// What sealed records say has left.
    pub(super) lawful: Lawful,
}

/// Reads the leaves of all streams in the log.
pub(super) async fn read(
    seals: &Seals,
    logged: &Logged,
    verdict: &mut Verdict,
) -> Result<Streams, VerifyError> {
    let mut streams = Streams::default();
    for (stream, sizes) in &logged.streams {
        verdict.streams += 1;
        let size = sizes.keys().next_back().copied().unwrap_or(0);
        let data = walk(seals, &stream_folder(stream), size, verdict).await?;
        let readable = data.is_some();
        let leaves = leaves(stream, data.unwrap_or_default(), verdict);
        check(stream, sizes, &leaves, verdict);
        own_checkpoint(seals, stream, sizes, verdict).await?;
        verdict.leaves += leaves.len() as u64;
        if let (Some(first), Some(last)) = (leaves.first(), leaves.last()) {
            let (from, to) = verdict.period.unwrap_or((first.at(), last.at()));
            verdict.period = Some((from.min(first.at()), to.max(last.at())));
        }
        let seen = vec![false; leaves.len()];
        let proven = Proven { leaves, seen, readable, ..Proven::default() };
        streams.proven.insert(stream.clone(), proven);
    }
    Ok(streams)
}

/// The checkpoint in a stream's own folder is one of those in the log.
async fn own_checkpoint(
    seals: &Seals,
    stream: &StreamId,
    sizes: &BTreeMap<u64, Signed>,
    verdict: &mut Verdict,
) -> Result<(), VerifyError> {
    let path = format!("{}checkpoint", stream_folder(stream));
    let note = seals.text(&path).await?;
    // Ingest may have been cut off between the log and this.
    let Some(note) = note else { return Ok(()) };
    let known = unsigned(&note)
        .ok()
        .is_some_and(|said| sizes.get(&said.size).is_some_and(|signed| signed.note == note));
    if !known {
        verdict.find(format!("seal/{path}"), "it is no checkpoint that stands in the log");
    }
    Ok(())
}

fn leaves(stream: &StreamId, data: Vec<Vec<u8>>, verdict: &mut Verdict) -> Vec<Leaf> {
    let mut leaves = Vec::with_capacity(data.len());
    for (index, entry) in data.into_iter().enumerate() {
        match <[u8; Leaf::BYTES]>::try_from(entry) {
            Ok(data) => leaves.push(Leaf::from_bytes(data)),
            Err(_) => {
                verdict.find(format!("{stream} leaf {index}"), "it has not 44 bytes");
                break;
            }
        }
    }
    leaves
}

/// Every checkpoint's root, the order of time, and that no key signed after it was closed.
fn check(stream: &StreamId, sizes: &BTreeMap<u64, Signed>, leaves: &[Leaf], verdict: &mut Verdict) {
    let mut tree = Tree::new();
    let mut last = None;
    for leaf in leaves {
        if last.is_some_and(|last| leaf.at() < last) {
            verdict.find(format!("{stream} leaf {}", tree.size()), "time goes backwards");
        }
        last = Some(leaf.at());
        tree.push(leaf);
        let Some(signed) = sizes.get(&tree.size()) else { continue };
        let place = || format!("{stream} checkpoint {}", tree.size());
        if signed.root != tree.root() {
            verdict.find(place(), "its root is not that of the leaves in the tiles");
        }
        if signed.until.is_some_and(|until| leaf.at() >= until) {
            verdict.find(place(), "its key had been closed before its last event");
        }
    }
}

/// The entries of a tree, after its tiles were compared with them; nothing when one is missing.
pub(super) async fn walk(
    seals: &Seals,
    folder: &str,
    size: u64,
    verdict: &mut Verdict,
) -> Result<Option<Vec<Vec<u8>>>, VerifyError> {
    let reads = futures::stream::iter(bundles(size)).map(|(path, count)| async move {
        (seals.get(&format!("{folder}{path}")).await, path, count)
    });
    let mut reads = reads.buffered(READS);
    let (mut tree, mut files, mut all) = (Tiled::default(), Vec::new(), Vec::new());
    while let Some((found, path, count)) = reads.next().await {
        let place = format!("seal/{folder}{path}");
        let Some(bytes) = found? else {
            verdict.find(place, "the file is missing");
            return Ok(None);
        };
        match entries(&path, &bytes, count) {
            Ok(found) => all.extend(found),
            Err(error) => {
                verdict.find(place, error.problem);
                return Ok(None);
            }
        }
    }
    all.iter().for_each(|entry| tree.push(entry, &mut files));
    files.extend(tree.edge());
    files.retain(|file| !file.path.starts_with("tile/entries/"));
    tiles(seals, folder, &files, verdict).await?;
    Ok(Some(all))
}

/// Whether the stored tiles are those that follow from the entries.
async fn tiles(
    seals: &Seals,
    folder: &str,
    files: &[TileFile],
    verdict: &mut Verdict,
) -> Result<(), VerifyError> {
    let reads = futures::stream::iter(files)
        .map(|file| async move { (seals.get(&format!("{folder}{}", file.path)).await, file) });
    let mut reads = reads.buffered(READS);
    while let Some((found, file)) = reads.next().await {
        let place = format!("seal/{folder}{}", file.path);
        match found? {
            None => verdict.find(place, "the file is missing"),
            Some(bytes) if bytes != file.bytes => {
                verdict.find(place, "its hashes do not follow from the entries");
            }
            Some(_) => {}
        }
    }
    Ok(())
}
