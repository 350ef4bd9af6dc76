//! Keyring, log and checkpoints of a package.

use std::io::{Read, Seek};

use custody_schemas::record::hash;
use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::keyring::Keyring;
use custody_schemas::seal::log::{self, Entry, stream_of};
use custody_schemas::seal::{Tree, leaf_hash};

use super::{Check, LOG_ENTRIES, LOG_HEAD, LOG_WITNESSED, Log, MOST, ROOT, Signed, wrong};
use crate::tiles::keyring_path;
use crate::verify::Finding;
use crate::witnessed;

/// The longest log that is read.
const MOST_LOG: u64 = 2 << 30;

impl<R: Read + Seek> Check<'_, R> {
    /// Reads and checks what is signed.
    pub(super) fn log(&mut self) -> Result<Log, Finding> {
        let root = match &self.trust.root {
            Some(root) => root.clone(),
            None => self.text(ROOT)?,
        };
        self.judged.root = root.trim().to_owned();
        self.judged.pinned = self.trust.root.is_some();
        let entries = self.entries()?;
        let mut log = Log::default();
        log.ring = self.keyring(&entries, &mut log)?;
        self.heads(&log.ring, &entries)?;
        self.cosignatures(&log.ring, &entries);
        for (index, entry) in entries.iter().enumerate() {
            let place = format!("{LOG_ENTRIES} {index}");
            match log::read(&self.judged.deployment, entry) {
                Ok(Entry::Keyring { .. }) => {}
                Ok(Entry::Stream { note, .. }) => self.checkpoint(&mut log, &place, &note),
                Err(error) => self.judged.find(place, error.to_string()),
            }
        }
        self.judged.streams = log.streams.len() as u64;
        Ok(log)
    }

    fn entries(&self) -> Result<Vec<Vec<u8>>, Finding> {
        let bytes = self.bytes(LOG_ENTRIES, MOST_LOG)?;
        let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let cut = || wrong(LOG_ENTRIES, "an entry is cut short");
            let (length, behind) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (entry, behind) = behind.split_at_checked(length).ok_or_else(cut)?;
            found.push(entry.to_vec());
            rest = behind;
        }
        Ok(found)
    }

    /// The newest keyring in the log; every one must be signed by the root.
    fn keyring(&mut self, entries: &[Vec<u8>], log: &mut Log) -> Result<Keyring, Finding> {
        let mut newest: Option<Keyring> = None;
        for (index, entry) in entries.iter().enumerate() {
            let Ok(Entry::Keyring { edition, hash: expected }) =
                log::read(&self.judged.deployment, entry)
            else {
                continue;
            };
            let path = keyring_path(edition);
            let note = self.text(&path)?;
            if hash(note.as_bytes()) != expected {
                return Err(wrong(
                    &path,
                    format!("it is not the one that log entry {index} names"),
                ));
            }
            let ring = Keyring::verify(&note, &self.judged.root)
                .map_err(|e| wrong(&path, format!("not signed by the root key: {e}")))?;
            if ring.deployment != self.judged.deployment || ring.edition != edition {
                return Err(wrong(&path, "it is another deployment's or another edition"));
            }
            log.rings.insert(path.clone());
            if newest.as_ref().is_some_and(|known| known.edition > edition) {
                self.judged.find(path, "an older keyring came after a newer one");
                continue;
            }
            newest = Some(ring);
        }
        log.rings.insert(ROOT.to_owned());
        newest.ok_or_else(|| wrong(LOG_ENTRIES, "no keyring stands in the log"))
    }

    /// The log's own head, and the one that the auditor has kept.
    fn heads(&mut self, ring: &Keyring, entries: &[Vec<u8>]) -> Result<(), Finding> {
        let head = log::verify_head(ring, &self.text(LOG_HEAD)?)
            .map_err(|e| wrong(LOG_HEAD, e.to_string()))?;
        let earlier = self.trust.head.as_ref().map(|note| log::verify_head(ring, note)).transpose();
        let earlier = earlier.map_err(|e| wrong("your head", e.to_string()))?;
        let (mut tree, mut grown) = (Tree::new(), earlier.is_none());
        let is =
            |tree: &Tree, head: &Checkpoint| (tree.size(), tree.root()) == (head.size, head.root);
        for entry in entries {
            grown |= earlier.as_ref().is_some_and(|e| e.size == tree.size() && is(&tree, e));
            tree.push_node(leaf_hash(entry));
        }
        grown |= earlier.as_ref().is_some_and(|earlier| is(&tree, earlier));
        if !is(&tree, &head) {
            return Err(wrong(LOG_ENTRIES, "they are not those that the log's head commits to"));
        }
        if !grown {
            let size = earlier.map_or(0, |earlier| earlier.size);
            let problem = format!(
                "it has not grown from your head of {size} entries: it was rolled back, or is another"
            );
            self.judged.find(LOG_ENTRIES, problem);
        } else {
            self.judged.earlier = earlier.map(|earlier| earlier.size);
        }
        self.judged.checkpoints += 1;
        self.judged.log_size = head.size;
        Ok(())
    }

    /// The newest head that witnesses have cosigned.
    fn cosignatures(&mut self, ring: &Keyring, entries: &[Vec<u8>]) {
        let note = match self.archive.bytes(LOG_WITNESSED, MOST) {
            Ok(bytes) => bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => return self.judged.find(LOG_WITNESSED, error.to_string()),
        };
        match witnessed::check(ring, note.as_deref(), entries, self.trust.policy.as_ref()) {
            Ok(witnessed) => self.judged.witnessed = witnessed,
            Err(problem) => self.judged.find(LOG_WITNESSED, problem),
        }
    }

    /// A checkpoint of a stream, which its writer must have signed.
    fn checkpoint(&mut self, log: &mut Log, place: &str, note: &str) {
        let mut opened = log.ring.writers.iter().filter_map(|key| {
            let checkpoint = Checkpoint::verify(note, &[&key.vkey]).ok()?;
            let stream = stream_of(&log.ring.deployment, &checkpoint)?;
            (stream.writer() == key.name).then_some((stream, checkpoint, key.until))
        });
        let Some((stream, checkpoint, until)) = opened.next_back() else {
            return self.judged.find(place, "no key of its writer has signed it");
        };
        self.judged.checkpoints += 1;
        let signed = Signed { root: checkpoint.root, until };
        let sizes = log.streams.entry(stream).or_default();
        if sizes.get(&checkpoint.size).is_some_and(|known| known.root != signed.root) {
            let problem = format!("its stream has two roots at size {}", checkpoint.size);
            return self.judged.find(place, problem);
        }
        sizes.entry(checkpoint.size).or_insert(signed);
    }
}
