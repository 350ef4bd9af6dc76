//! The deployment log and the keyring: every entry, every tile, the head, the auditor's own head.

use std::collections::BTreeMap;

use custody_schemas::id::{Hash, Micros, StreamId};
use custody_schemas::record::hash;
use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::keyring::Keyring;
use custody_schemas::seal::log::{self, Entry};
use custody_schemas::seal::{Tree, leaf_hash};

use super::streams::walk;
use super::{Request, Verdict, VerifyError, unsigned};
use crate::tiles::{LOG_FOLDER, ROOT_PATH, Seals, WITNESSED_PATH, keyring_path};
use crate::witnessed;

/// What the log says of a stream at one size.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    pub(super) root: Hash,
    pub(super) note: String,
    /// Until when the key that signed it was in force.
    pub(super) until: Option<Micros>,
}

/// What the log says.
#[derive(Debug)]
pub(super) struct Logged {
    /// The checkpoints of each stream by size.
    pub(super) streams: BTreeMap<StreamId, BTreeMap<u64, Signed>>,
}

/// Reads and checks all of it; nothing when not even a keyring can be trusted.
pub(super) async fn read(
    seals: &Seals,
    request: &Request,
    verdict: &mut Verdict,
) -> Result<Option<Logged>, VerifyError> {
    let note = seals.text(&format!("{LOG_FOLDER}checkpoint")).await?;
    let note = note.ok_or(VerifyError::Unsealed)?;
    let Ok(head) = unsigned(&note) else {
        verdict.find("seal/log/checkpoint", "it is no checkpoint");
        return Ok(None);
    };
    let Some(entries) = walk(seals, LOG_FOLDER, head.size, verdict).await? else {
        return Ok(None);
    };
    let read = entries.iter().enumerate().filter_map(|(index, entry)| {
        let entry = log::read(&verdict.deployment, entry);
        let place = format!("seal/log entry {index}");
        match entry {
            Ok(entry) => Some((place, entry)),
            Err(error) => {
                verdict.findings.push(super::Finding { place, problem: error.to_string() });
                verdict.found += 1;
                None
            }
        }
    });
    let read: Vec<_> = read.collect();
    let Some(ring) = keyring(seals, request, &read, verdict).await? else { return Ok(None) };
    check_heads(&ring, &note, request, &entries, verdict)?;
    check_witnessed(seals, &ring, request, &entries, verdict).await?;
    Ok(Some(Logged { streams: streams(&ring, &read, verdict) }))
}

/// The newest keyring in the log, under the root's key.
async fn keyring(
    seals: &Seals,
    request: &Request,
    entries: &[(String, Entry)],
    verdict: &mut Verdict,
) -> Result<Option<Keyring>, VerifyError> {
    let root = match &request.root {
        Some(root) => Some(root.clone()),
        None => seals.text(ROOT_PATH).await?,
    };
    let Some(root) = root.map(|root| root.trim().to_owned()) else {
        verdict.find("seal/root", "there is no root key; name it with --root");
        return Ok(None);
    };
    (verdict.root, verdict.pinned) = (root, request.root.is_some());
    let mut newest: Option<Keyring> = None;
    for (place, entry) in entries {
        let Entry::Keyring { edition, hash: expected } = entry else { continue };
        let path = keyring_path(*edition);
        let note = seals.text(&path).await?.unwrap_or_default();
        let at = format!("seal/{path}");
        if hash(note.as_bytes()) != *expected {
            verdict.find(at, format!("it is not the one that {place} names"));
            continue;
        }
        match Keyring::verify(&note, &verdict.root) {
            Ok(ring) if ring.deployment != verdict.deployment || ring.edition != *edition => {
                verdict.find(at, "it is another deployment's or another edition");
            }
            Ok(ring) if newest.as_ref().is_some_and(|known| known.edition > ring.edition) => {
                verdict.find(place.as_str(), "an older keyring came after a newer one");
            }
            Ok(ring) => newest = Some(ring),
            Err(error) => verdict.find(at, format!("not signed by the root key: {error}")),
        }
    }
    match &newest {
        Some(ring) => {
            verdict.edition = ring.edition;
            verdict.writers = ring.writers.len() as u64;
        }
        None => verdict.find("seal/keyring", "no keyring in the log is signed by the root key"),
    }
    Ok(newest)
}

fn check_heads(
    ring: &Keyring,
    note: &str,
    request: &Request,
    entries: &[Vec<u8>],
    verdict: &mut Verdict,
) -> Result<(), VerifyError> {
    match log::verify_head(ring, note) {
        Ok(head) => {
            verdict.checkpoints += 1;
            (verdict.log_size, verdict.log_root) = (head.size, head.root.to_string());
        }
        Err(error) => verdict.find("seal/log/checkpoint", error.to_string()),
    }
    let Some(earlier) = &request.head else { return Ok(()) };
    let earlier = log::verify_head(ring, earlier).map_err(VerifyError::Given)?;
    let size = entries.len() as u64;
    if earlier.size > size {
        let problem = format!(
            "your head is of size {}, the log has only {size}: it was rolled back",
            earlier.size
        );
        verdict.find("seal/log", problem);
    } else if root_at(entries, &earlier) != earlier.root {
        let problem = format!("its first {} entries are not those of your head", earlier.size);
        verdict.find("seal/log", problem);
    } else {
        verdict.earlier = Some(earlier.size);
    }
    Ok(())
}

/// The newest head that witnesses have cosigned.
async fn check_witnessed(
    seals: &Seals,
    ring: &Keyring,
    request: &Request,
    entries: &[Vec<u8>],
    verdict: &mut Verdict,
) -> Result<(), VerifyError> {
    let note = seals.text(WITNESSED_PATH).await?;
    match witnessed::check(ring, note.as_deref(), entries, request.policy.as_ref()) {
        Ok(witnessed) => verdict.witnessed = witnessed,
        Err(problem) => verdict.find(format!("seal/{WITNESSED_PATH}"), problem),
    }
    Ok(())
}

fn root_at(entries: &[Vec<u8>], earlier: &Checkpoint) -> Hash {
    let mut tree = Tree::new();
    let size = usize::try_from(earlier.size).unwrap_or(usize::MAX);
    entries.iter().take(size).for_each(|entry| tree.push_node(leaf_hash(entry)));
    tree.root()
}

/// Each stream's checkpoints that its writer has signed.
fn streams(
    ring: &Keyring,
    entries: &[(String, Entry)],
    verdict: &mut Verdict,
) -> BTreeMap<StreamId, BTreeMap<u64, Signed>> {
    let mut found: BTreeMap<StreamId, BTreeMap<u64, Signed>> = BTreeMap::new();
    for (place, entry) in entries {
        let Entry::Stream { stream, note, .. } = entry else { continue };
        let keys = ring.writers.iter().filter(|key| key.name == stream.writer());
        let mut signed =
            keys.filter_map(|key| Some((Checkpoint::verify(note, &[&key.vkey]).ok()?, key)));
        let Some((checkpoint, key)) = signed.next_back() else {
            verdict.find(place.as_str(), format!("no key of {} has signed it", stream.writer()));
            continue;
        };
        verdict.checkpoints += 1;
        let sizes = found.entry(stream.clone()).or_default();
        let signed = Signed { root: checkpoint.root, note: note.clone(), until: key.until };
        match sizes.get(&checkpoint.size) {
            Some(known) if known.root != checkpoint.root => {
                let problem = format!("{stream} has two roots at size {}", checkpoint.size);
                verdict.find(place.as_str(), problem);
            }
            Some(_) => {}
            None => drop(sizes.insert(checkpoint.size, signed)),
        }
    }
    found
}
