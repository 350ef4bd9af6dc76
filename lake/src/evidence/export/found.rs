//! Finding in the tables what a package opens, and what says that something has left lawfully.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use custody_schemas::id::{CallId, Micros, StreamId};
use custody_schemas::record::{Decoded, decode, hash};

use super::{ExportError, Filter, Leaves, Making, Order};
use crate::evidence::cite::Cited;
use crate::evidence::pieces::Wanted;
use crate::evidence::spool::{Kept, Place, Spool};
use crate::evidence::{LAWFUL, LAWFUL_PROOFS, Proof, report};
use crate::lawful::says_so;
use crate::rows_back::Stored;
use crate::snapshot::{Bound, DataFile, Snapshot};

/// What was found of the leaves that are wanted.
pub(super) struct Found {
    pub(super) places: Vec<Option<Place>>,
    pub(super) records: Kept,
    pub(super) ended: HashSet<CallId>,
    pub(super) cited: Cited,
}

impl Making<'_> {
    /// The stored records that have the leaves that are wanted.
    pub(super) async fn find(&self, snapshot: &Snapshot) -> Result<Found, ExportError> {
        let none = Filter::default();
        let filter = self.order.filter.as_ref().unwrap_or(&none);
        let names: HashMap<&str, u32> =
            self.streams.keys().map(StreamId::as_str).zip(0..).collect();
        let mut spool = Spool::new(&self.order.scratch)?;
        let mut places = vec![None; self.wanted.len()];
        let (mut ended, mut cited) = (HashSet::new(), Cited::default());
        let mut keep = |stored: Stored<'_>| -> Result<(), ExportError> {
            let Some(stream) = names.get(stored.stream) else { return Ok(()) };
            let key = (*stream, stored.seq);
            let Ok(index) = self.wanted.binary_search_by_key(&key, Wanted::key) else {
                return Ok(());
            };
            if places[index].is_some() || hash(stored.bytes) != self.wanted[index].leaf.record() {
                return Ok(());
            }
            let mut place = match decode(stored.bytes) {
                Decoded::Event(event) => {
                    let mut place = spool.keep(stored.bytes, &report::lines(&event))?;
                    (place.call, place.fit) = (event.call, filter.fit(&event));
                    place.opens = report::opens(&event).is_some();
                    ended.extend(report::ends(&event));
                    place
                }
                Decoded::Identified { .. } | Decoded::Undecodable { .. } => {
                    spool.keep(stored.bytes, "")?
                }
            };
            place.fit |= filter.nothing();
            cited.note(place.call, place.fit);
            places[index] = Some(place);
            Ok(())
        };
        for file in snapshot.files().iter().filter(|file| overlaps(file, self.order)) {
            let mut kept = Ok(());
            let each = |stored: Stored<'_>| {
                if kept.is_ok() {
                    kept = keep(stored);
                }
            };
            snapshot.records_back(file, each).await?;
            kept?;
        }
        let records = spool.kept()?;
        Ok(Found { places, records, ended, cited })
    }

    /// What retention and erasure say, with the way from each such record to its stream's last
    /// checkpoint.
    pub(super) async fn lawful(&mut self, snapshot: &Snapshot) -> Result<(), ExportError> {
        let mut found = BTreeMap::new();
        for file in snapshot.files() {
            let each = |stored: Stored<'_>| {
                if says_so(&stored.kind.to_owned().into())
                    && let Some(identity) = stored.identity()
                {
                    found.insert(identity, stored.bytes.to_vec());
                }
            };
            snapshot.records_back(file, each).await?;
        }
        let (mut lines, mut proofs) = (Vec::new(), Vec::new());
        for ((stream, seq), record) in found {
            let size = self.streams.get(&stream).and_then(BTreeSet::last).copied().unwrap_or(0);
            if seq >= size {
                continue;
            }
            let mut leaves = Leaves::new(self.seals, &stream, size);
            if leaves.get(seq).await?.record() != hash(&record) {
                continue;
            }
            let none = BTreeSet::new();
            let left = leaves.nodes(0, seq, &none).await?;
            let right = leaves.nodes(seq + 1, size, &none).await?;
            proofs.push(Proof { stream: stream.to_string(), seq, left, right });
            lines.extend_from_slice(&record);
            lines.push(b'\n');
        }
        if proofs.is_empty() {
            return Ok(());
        }
        self.put(LAWFUL, &lines)?;
        self.put(LAWFUL_PROOFS, &serde_json::to_vec_pretty(&proofs).unwrap_or_default())
    }
}

fn overlaps(file: &DataFile, order: &Order) -> bool {
    let micros = |at: Micros| i64::try_from(at.get()).unwrap_or(i64::MAX);
    match file.ranges.get("at") {
        Some((Bound::Moment(first), Bound::Moment(last))) => {
            *first < micros(order.to) && *last >= micros(order.from)
        }
        _ => true,
    }
}
