//! Tells a resent record from another record under the same identity.
//!
//! Which records the table holds does not depend on the partition they came through: what is sent
//! again after topics were made anew, or were given more partitions, is noticed as well. The
//! hashes of what is on its way to the table are kept until it is there; older ones are read back
//! from the files that hold them, a few of which stay in memory, because a resend names many
//! records of one file.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError};

use custody_lake::identities::Identities;
use custody_lake::{DataFile, Table};
use custody_schemas::id::{Hash, StreamId};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};

use crate::IngestError;
use crate::streams::Streams;

/// How many files' identities stay in memory.
const FILES: usize = 4;

/// How a record stands to what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Novelty {
    /// Nothing was known under its identity.
    New,
    /// The same record again.
    Duplicate,
    /// Another record under a known identity.
    Conflict,
}

/// The records that a table holds. Every file is looked at once, whoever asks.
pub(crate) struct Stored {
    table: Arc<Table>,
    seen: Mutex<Seen>,
    /// The partitions of events that this worker has carried.
    carried: std::sync::Mutex<BTreeSet<String>>,
    /// Told of every commit.
    pub(crate) landed: Notify,
}

#[derive(Default)]
struct Seen {
    files: HashSet<String>,
    streams: Streams,
}

impl Stored {
    pub(crate) fn new(table: Arc<Table>) -> Self {
        let (seen, carried) = (Mutex::default(), std::sync::Mutex::default());
        Self { table, seen, carried, landed: Notify::new() }
    }

    /// This worker carries the partition of events with this app id.
    pub(crate) fn carries(&self, app_id: &str) {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        if !carried.contains(app_id) {
            carried.insert(app_id.to_owned());
            self.landed.notify_one();
        }
    }

    pub(crate) fn carried(&self) -> BTreeSet<String> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ranges of every stream at the newest version: from the files' tags, or by reading
    /// files without tags.
    async fn streams(&self) -> Result<Streams, IngestError> {
        let snapshot = self.table.snapshot().await?;
        let mut seen = self.seen.lock().await;
        for file in snapshot.files() {
            if seen.files.contains(file.path.as_ref()) {
                continue;
            }
            if let Some(tagged) = file.streams() {
                tagged.iter().for_each(|(stream, spans)| seen.streams.extend(stream, spans));
            } else {
                for (stream, seq) in snapshot.identities(file).await?.into_keys() {
                    seen.streams.insert(&stream, seq);
                }
            }
            seen.files.insert(file.path.to_string());
        }
        Ok(seen.streams.clone())
    }
}

/// What is known of the records that one partition may bring.
pub(crate) struct Known {
    table: Arc<Table>,
    runtime: Handle,
    streams: Streams,
    pending: VecDeque<Pending>,
    read_back: VecDeque<(String, Arc<Identities>)>,
}

/// Records on their way to the table.
#[derive(Default)]
struct Pending {
    /// The offset after the last.
    end: u64,
    hashes: Vec<((StreamId, u64), Hash)>,
    /// Filled from `hashes` when somebody asks.
    index: HashMap<(StreamId, u64), Hash>,
}

impl Pending {
    fn get(&mut self, identity: &(StreamId, u64)) -> Option<Hash> {
        self.index.extend(self.hashes.drain(..));
        self.index.get(identity).copied()
    }
}

impl Known {
    /// What the table holds.
    pub(crate) async fn load(stored: &Stored) -> Result<Self, IngestError> {
        Ok(Self {
            streams: stored.streams().await?,
            table: Arc::clone(&stored.table),
            runtime: Handle::current(),
            pending: VecDeque::from([Pending::default()]),
            read_back: VecDeque::new(),
        })
    }

    /// Judges a record and remembers it. Blocks when a file must be read back.
    pub(crate) fn judge(
        &mut self,
        stream: &StreamId,
        seq: u64,
        hash: Hash,
    ) -> Result<Novelty, IngestError> {
        if self.streams.insert(stream, seq) {
            if let Some(pending) = self.pending.back_mut() {
                pending.hashes.push(((stream.clone(), seq), hash));
            }
            return Ok(Novelty::New);
        }
        let identity = (stream.clone(), seq);
        let waiting = self.pending.iter_mut().rev().find_map(|pending| pending.get(&identity));
        let known = match waiting {
            Some(known) => Some(known),
            None => self.stored_hash(&identity)?,
        };
        // A record whose file has left by retention cannot be compared: it was stored once.
        Ok(match known {
            Some(known) if known != hash => Novelty::Conflict,
            Some(_) | None => Novelty::Duplicate,
        })
    }

    /// Everything judged so far lies before `end`.
    pub(crate) fn sent(&mut self, end: u64) {
        if let Some(pending) = self.pending.back_mut() {
            pending.end = end;
        }
        self.pending.push_back(Pending::default());
    }

    /// Everything before `end` is in the table.
    pub(crate) fn committed(&mut self, end: u64) {
        while self.pending.len() > 1 && self.pending.front().is_some_and(|p| p.end <= end) {
            self.pending.pop_front();
        }
    }

    fn stored_hash(&mut self, identity: &(StreamId, u64)) -> Result<Option<Hash>, IngestError> {
        let remembered = self.read_back.iter().find_map(|(_, found)| found.get(identity));
        if let Some(hash) = remembered {
            return Ok(Some(*hash));
        }
        let snapshot = self.runtime.block_on(self.table.snapshot())?;
        for file in snapshot.files() {
            let path = file.path.as_ref();
            if self.read_back.iter().any(|(known, _)| known == path) || !may_hold(file, identity) {
                continue;
            }
            let found = Arc::new(self.runtime.block_on(snapshot.identities(file))?);
            let hash = found.get(identity).copied();
            self.read_back.push_back((path.to_owned(), found));
            if self.read_back.len() > FILES {
                self.read_back.pop_front();
            }
            if hash.is_some() {
                return Ok(hash);
            }
        }
        Ok(None)
    }
}

fn may_hold(file: &DataFile, identity: &(StreamId, u64)) -> bool {
    let Some(streams) = file.streams() else { return true };
    let holds = |spans: &[(u64, u64)]| spans.iter().any(|s| (s.0..s.1).contains(&identity.1));
    streams.iter().any(|(stream, spans)| *stream == identity.0 && holds(spans))
}
