//! Entries to rows: the part of the work that needs no memory of what came before.
//!
//! Decoding is most of what ingest does, so it is shared out: every thread turns a run of entries
//! into a record batch as if all its records were new. Where that turns out wrong, the run is
//! built once more with what is known of each record.

use arrow::array::RecordBatch;
use custody_journal::{Entry, EntryKind, Topic};
use custody_lake::batch::Rows;
use custody_lake::files::FileError;
use custody_lake::rows::{Arrival, Standing};
use custody_schemas::decoder::Decoder;
use custody_schemas::id::{Hash, Micros, StreamId};
use custody_schemas::record::{Decoded, hash};

use crate::known::Novelty;
use crate::status::Counts;

/// Threads that build at the same time at most.
const BUILDERS: usize = 4;
/// Fewer entries than this are built by one thread.
const APART: usize = 512;

/// What all entries of one run have in common.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) topic: Topic,
    pub(crate) partition: &'a str,
    pub(crate) stored_at: Micros,
}

/// Whose record it is, and the hash of its bytes.
pub(crate) type Identity = (StreamId, u64, Hash);

/// A run of entries as rows.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) rows: RecordBatch,
    /// One for each entry; nothing for entries without an identity.
    pub(crate) identities: Vec<Option<Identity>>,
    pub(crate) counts: Counts,
}

/// Builds all entries as if their records were new, in order, each part with its entries.
pub(crate) fn build_all<'e>(
    entries: &'e [Entry],
    source: Source<'_>,
) -> Result<Vec<(&'e [Entry], Part)>, FileError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(BUILDERS);
    let share = entries.len().div_ceil(threads).max(APART);
    std::thread::scope(|scope| {
        let mut runs = entries.chunks(share);
        let mine = runs.next();
        let others: Vec<_> =
            runs.map(|run| (run, scope.spawn(move || build(run, source, None)))).collect();
        let mut parts = Vec::with_capacity(others.len() + 1);
        if let Some(run) = mine {
            parts.push((run, build(run, source, None)?));
        }
        for (run, building) in others {
            let part = building.join().unwrap_or_else(|_| build(run, source, None));
            parts.push((run, part?));
        }
        Ok(parts)
    })
}

/// Builds one run with what is known of each entry; without that all are new.
pub(crate) fn build(
    entries: &[Entry],
    source: Source<'_>,
    known: Option<&[Novelty]>,
) -> Result<Part, FileError> {
    let bytes = entries.iter().map(|entry| entry.value.len()).sum();
    let mut rows = match source.topic {
        Topic::Events => Rows::events(),
        Topic::Bodies | Topic::Control => Rows::bodies(),
    }
    .with_room(entries.len(), bytes);
    let mut decoder = Decoder::default();
    let mut identities = Vec::with_capacity(entries.len());
    let mut counts = Counts::default();
    for (i, entry) in entries.iter().enumerate() {
        let novelty = known.and_then(|known| known.get(i)).copied().unwrap_or(Novelty::New);
        identities.push(append(&mut rows, &mut decoder, entry, source, novelty, &mut counts));
    }
    counts.rows = rows.len() as u64;
    Ok(Part { rows: rows.finish()?, identities, counts })
}

fn append(
    rows: &mut Rows,
    decoder: &mut Decoder,
    entry: &Entry,
    source: Source<'_>,
    novelty: Novelty,
    counts: &mut Counts,
) -> Option<Identity> {
    let arrival = Arrival {
        partition: source.partition,
        offset: entry.offset,
        journaled_at: entry.journaled_at,
        stored_at: Some(source.stored_at),
    };
    let read = match (source.topic, entry.kind) {
        (Topic::Events, EntryKind::Event) => {
            let decoded = decoder.decode(&entry.value);
            return event(rows, entry, decoded, &arrival, novelty, counts);
        }
        (Topic::Events, EntryKind::Checkpoint) => rows.checkpoint(&entry.value, &arrival),
        (Topic::Events, EntryKind::Chunk | EntryKind::Control) => {
            rows.undecodable(&entry.value, "it does not belong among events", &arrival);
            false
        }
        (Topic::Bodies | Topic::Control, EntryKind::Chunk) => {
            rows.chunk(&entry.header, &entry.value, &arrival)
        }
        // Without a chunk's header it is stored whole, and said to be unreadable.
        (
            Topic::Bodies | Topic::Control,
            EntryKind::Event | EntryKind::Checkpoint | EntryKind::Control,
        ) => rows.chunk(&[], &entry.value, &arrival),
    };
    counts.undecodable += u64::from(!read);
    None
}

fn event(
    rows: &mut Rows,
    entry: &Entry,
    decoded: Decoded,
    arrival: &Arrival<'_>,
    novelty: Novelty,
    counts: &mut Counts,
) -> Option<Identity> {
    let identity = match &decoded {
        Decoded::Event(event) => Some((event.stream.clone(), event.seq.get())),
        Decoded::Identified { identity, .. } => Some((identity.stream.clone(), identity.seq.get())),
        Decoded::Undecodable { .. } => None,
    };
    counts.undecodable += u64::from(identity.is_none());
    let standing = match novelty {
        Novelty::New => Some(Standing::Event),
        Novelty::Conflict => {
            counts.conflicts += 1;
            Some(Standing::Conflict)
        }
        Novelty::Duplicate => {
            counts.duplicates += 1;
            None
        }
    };
    if let Some(standing) = standing {
        rows.record(&entry.value, &decoded, standing, arrival);
    }
    identity.map(|(stream, seq)| (stream, seq, hash(&entry.value)))
}
