//! The sealer: passes over what was stored since the last one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use custody_lake::rows_back::{StoredEntry, StoredRow};
use custody_lake::tiles::{DeploymentLog, ROOT_PATH, Seals, keyring_path, stream_folder};
use custody_lake::{Bound, DataFile, Lake, Snapshot};
use custody_schemas::id::StreamId;
use custody_schemas::seal::checkpoint::Message;
use custody_schemas::seal::log::{keyring_entry, stream_of};

use super::stream::{Step, Unsealed, stated};
use super::witness::Asking;
use super::{Alert, PassError, Sealing, Shared};
use custody_journal::keys::SignedRing;

/// Passes after which a stream of which nothing waits is forgotten; its folder knows it.
const FORGET_AFTER: u64 = 60;

/// A stream that this worker has met.
struct Met {
    unsealed: Unsealed,
    /// The partition it came through.
    partition: String,
    /// The pass that touched it last.
    pass: u64,
    /// A verified checkpoint that is not in the log yet, with the files that go before it.
    due: Step,
}

/// What this worker knows of the seals.
pub(crate) struct Sealer {
    lake: Lake,
    sealing: Sealing,
    status: Arc<Shared>,
    /// Up to which offset each partition's files were read.
    read_to: HashMap<String, u64>,
    streams: BTreeMap<StreamId, Met>,
    log: Option<DeploymentLog>,
    asking: Option<Asking>,
    /// The keyring that the log has.
    edition: Option<u64>,
    passes: u64,
    /// Whether the last pass came to its end.
    whole: bool,
}

impl Sealer {
    pub(crate) fn new(lake: Lake, sealing: Sealing, status: Arc<Shared>) -> Self {
        let asking = sealing.witnesses.clone();
        Self {
            asking: asking.map(|witnesses| Asking::new(witnesses, lake.seals().clone())),
            lake,
            sealing,
            status,
            read_to: HashMap::new(),
            streams: BTreeMap::new(),
            log: None,
            edition: None,
            passes: 0,
            whole: true,
        }
    }

    /// Seals what is new in these partitions. After an error the same may be asked again: what was
    /// read is kept.
    pub(crate) async fn pass(&mut self, partitions: &BTreeSet<String>) -> Result<(), PassError> {
        self.passes += 1;
        if !std::mem::replace(&mut self.whole, false) {
            // Its tree may be ahead of what is written.
            self.log = None;
        }
        let ring = (self.sealing.ring)().ok_or(PassError::NoRing)?;
        let snapshot = self.lake.events().snapshot().await?;
        let mut moved = false;
        for partition in partitions {
            moved |= self.read_new(&snapshot, partition, &ring).await?;
        }
        self.publish(&ring).await?;
        if moved {
            self.remember(partitions).await?;
        }
        let waiting = self.streams.values().map(|met| met.unsealed.waiting()).sum();
        self.status.change(|status| status.waiting = waiting);
        let passes = self.passes;
        self.streams.retain(|_, met| {
            !met.unsealed.is_settled() || met.due.note.is_some() || met.pass + FORGET_AFTER > passes
        });
        self.whole = true;
        Ok(())
    }

    /// Shows the log's head to the witnesses, if there are any.
    pub(crate) async fn witness(&mut self) -> Result<(), PassError> {
        let (Some(asking), Some(log)) = (&mut self.asking, &mut self.log) else { return Ok(()) };
        self.whole = false;
        let passed = asking.pass(log, &self.sealing.log).await;
        let (witnessed, witnesses) = asking.status();
        self.status.change(|status| {
            (status.witnessed, status.witnesses) = (witnessed, witnesses);
        });
        let alerts = passed?;
        self.whole = true;
        for alert in alerts {
            tracing::error!(?alert, "the deployment log is not the one that a witness has seen");
            self.status.change(|status| status.faults += 1);
            (self.sealing.alarm)(alert);
        }
        Ok(())
    }

    /// Reads the files of a partition that were not read yet; whether there were any.
    async fn read_new(
        &mut self,
        snapshot: &Snapshot,
        partition: &str,
        ring: &SignedRing,
    ) -> Result<bool, PassError> {
        let from = match self.read_to.get(partition) {
            Some(read_to) => *read_to,
            None => self.cursor(partition).await?,
        };
        let mut new: Vec<_> = snapshot
            .files()
            .iter()
            .filter(|file| file.partition() == Some(partition))
            .filter_map(|file| Some((offsets(file)?, file)))
            .filter(|((_, last), _)| *last >= from)
            .collect();
        new.sort_by_key(|((first, _), _)| *first);
        let mut rest = new.as_slice();
        while !rest.is_empty() {
            // Files of one commit share a span of offsets: a checkpoint in one of them may cover
            // records in another.
            let (together, behind, end) = overlapping(rest);
            let mut rows = Vec::new();
            for (_, file) in together {
                rows.extend(snapshot.rows_back(file).await?);
            }
            for row in rows.into_iter().filter(|row| row.offset >= from) {
                self.take(row, partition).await?;
            }
            self.step(ring);
            self.read_to.insert(partition.to_owned(), end);
            rest = behind;
        }
        self.read_to.entry(partition.to_owned()).or_insert(from);
        Ok(!new.is_empty())
    }

    async fn cursor(&self, partition: &str) -> Result<u64, PassError> {
        let text = self.lake.seals().text(&cursor_path(partition)).await?;
        Ok(text.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
    }

    async fn take(&mut self, row: StoredRow, partition: &str) -> Result<(), PassError> {
        match row.entry {
            StoredEntry::Record { stream, seq, leaf, conflict: _ } => {
                let met = self.met(&stream, partition).await?;
                met.unsealed.record(seq, leaf, row.offset);
            }
            StoredEntry::Checkpoint(bytes) => {
                let Ok(message) = Message::decode(&bytes) else { return Ok(()) };
                let Some(ring) = (self.sealing.ring)() else { return Ok(()) };
                let Some(checkpoint) = stated(&message.note) else { return Ok(()) };
                let Some(stream) = stream_of(&ring.ring.deployment, &checkpoint) else {
                    return Ok(());
                };
                let met = self.met(&stream, partition).await?;
                met.unsealed.checkpoint(checkpoint.size, message, row.offset);
            }
            StoredEntry::Other => {}
        }
        Ok(())
    }

    /// A stream, as far as its folder says it is sealed.
    async fn met(&mut self, stream: &StreamId, partition: &str) -> Result<&mut Met, PassError> {
        let pass = self.passes;
        if !self.streams.contains_key(stream) {
            let unsealed = load(self.lake.seals(), stream).await?;
            let partition = partition.to_owned();
            let met = Met { unsealed, partition, pass, due: Step::default() };
            self.streams.insert(stream.clone(), met);
        }
        let met = self.streams.entry(stream.clone()).or_insert_with(|| Met {
            unsealed: Unsealed::default(),
            partition: partition.to_owned(),
            pass,
            due: Step::default(),
        });
        met.pass = pass;
        Ok(met)
    }

    /// Moves every stream on as far as its checkpoints reach.
    fn step(&mut self, ring: &SignedRing) {
        for (stream, met) in &mut self.streams {
            let step = met.unsealed.step(stream, &ring.ring);
            for fault in &step.faults {
                tracing::error!(%stream, ?fault, "what is stored is not what was signed");
                (self.sealing.alarm)(Alert::of(stream, fault));
            }
            self.status.change(|status| {
                status.leaves += step.leaves;
                status.missing += step.missing;
                status.faults += step.faults.len() as u64;
            });
            met.due.full.extend(step.full);
            met.due.note = step.note.or(met.due.note.take());
        }
    }

    /// Writes the tiles of what was verified, enters it into the log, then says how far it is.
    async fn publish(&mut self, ring: &SignedRing) -> Result<(), PassError> {
        let seals = self.lake.seals().clone();
        let mut new = self.keyring(&seals, ring).await?;
        let mut notes = Vec::new();
        for (stream, met) in &self.streams {
            let Some(note) = &met.due.note else { continue };
            seals.grow(&stream_folder(stream), met.due.full.clone(), met.unsealed.tree()).await?;
            new.push(note.clone());
            notes.push((stream.clone(), note.clone()));
        }
        let log = match &mut self.log {
            Some(log) => log,
            None => {
                let log = DeploymentLog::open(seals.clone(), &ring.ring.deployment).await?;
                self.log.insert(log)
            }
        };
        if new.is_empty() {
            return Ok(());
        }
        let size = log.append(&new, &self.sealing.log).await?;
        self.edition = Some(ring.ring.edition);
        for (stream, note) in notes {
            seals.put(&format!("{}checkpoint", stream_folder(&stream)), note).await?;
            if let Some(met) = self.streams.get_mut(&stream) {
                met.due = Step::default();
            }
        }
        self.status.change(|status| status.log_size = size);
        Ok(())
    }

    /// The log's entry for a keyring that it does not have, after the keyring was put beside it.
    async fn keyring(&self, seals: &Seals, ring: &SignedRing) -> Result<Vec<String>, PassError> {
        if self.edition == Some(ring.ring.edition) {
            return Ok(Vec::new());
        }
        seals.put(&keyring_path(ring.ring.edition), ring.note.clone()).await?;
        seals.put(ROOT_PATH, ring.root_vkey.clone()).await?;
        Ok(vec![keyring_entry(&ring.ring, &ring.note)])
    }

    /// Notes from where on each partition has to be read after a start. What an older run of a
    /// writer left unsigned does not hold it back: nothing will sign it any more.
    async fn remember(&self, partitions: &BTreeSet<String>) -> Result<(), PassError> {
        let mut newest: HashMap<&str, &StreamId> = HashMap::new();
        for stream in self.streams.keys() {
            let known = newest.entry(stream.writer()).or_insert(stream);
            *known = (*known).max(stream);
        }
        for partition in partitions {
            let Some(read_to) = self.read_to.get(partition) else { continue };
            let open = self.streams.iter().filter(|(stream, met)| {
                met.partition == *partition && newest.get(stream.writer()) == Some(stream)
            });
            let oldest = open.filter_map(|(_, met)| met.unsealed.oldest()).min();
            let cursor = oldest.unwrap_or(*read_to).min(*read_to);
            self.lake.seals().put(&cursor_path(partition), format!("{cursor}\n")).await?;
        }
        Ok(())
    }
}

async fn load(seals: &Seals, stream: &StreamId) -> Result<Unsealed, PassError> {
    let folder = stream_folder(stream);
    let note = seals.text(&format!("{folder}checkpoint")).await?;
    let size = note.as_deref().and_then(stated).map_or(0, |checkpoint| checkpoint.size);
    Ok(Unsealed::new(seals.tree(&folder, size).await?))
}

fn cursor_path(partition: &str) -> String {
    format!("cursors/{partition}")
}

/// The smallest and the largest offset in a file.
fn offsets(file: &DataFile) -> Option<(u64, u64)> {
    match file.ranges.get("journal_offset")? {
        (Bound::Int(first), Bound::Int(last)) => {
            Some((u64::try_from(*first).ok()?, u64::try_from(*last).ok()?))
        }
        _ => None,
    }
}

type Span<'a> = ((u64, u64), &'a Arc<DataFile>);

/// The first files whose offsets overlap, the others, and the offset after the former.
fn overlapping<'s, 'a>(files: &'s [Span<'a>]) -> (&'s [Span<'a>], &'s [Span<'a>], u64) {
    let mut end = 0;
    let mut count = 0;
    for ((first, last), _) in files {
        if count > 0 && *first >= end {
            break;
        }
        end = end.max(last + 1);
        count += 1;
    }
    let (together, behind) = files.split_at(count);
    (together, behind, end)
}
