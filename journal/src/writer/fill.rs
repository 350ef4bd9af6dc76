//! Filling a batch: what waits and what is due gets its place in the stream.
//!
//! Nothing of it counts before the batch is durable; the disk is touched only to begin a segment.

use std::io;
use std::sync::Arc;

use custody_schemas::event::Draft;
use custody_schemas::id::{CallId, Micros};
use custody_schemas::kind::Kind;
use custody_schemas::record::Record;

use super::commit::{Committer, Reply};
use super::recovery::unknown_ending;
use super::run::Run;
use super::slot::{Hold, Job, Message, Purpose, answer};
use super::{AppendError, state};
use crate::file::format::FrameKind;
use crate::file::lane::Batch;
use crate::file::now;

/// After so many bytes a batch takes no further event.
const BATCH_BYTES: usize = 8 << 20;
/// After so many events, likewise.
const BATCH_EVENTS: usize = 8192;
/// What a record is expected to take up; a larger batch begins a segment of its own accord.
pub(super) const USUAL_RECORD: usize = 2048;
/// An event that is in the batch.
pub(super) struct Pending {
    pub(super) reply: Reply,
    pub(super) purpose: Purpose,
    pub(super) seq: u64,
    pub(super) at: Micros,
    pub(super) place: u64,
    pub(super) hold: Hold,
}

impl Committer {
    /// Fills the batch with what waits and what is due.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        let (count, bytes) = self.portion();
        let at = now();
        self.start_batch(bytes)?;
        for _ in 0..count {
            match self.queue.pop_front() {
                Some(Message::Append(job)) => self.place(*job, at),
                Some(Message::Abandon(call, _hold)) => self.abandon(call, at),
                Some(close @ Message::Close(_)) => {
                    self.queue.push_front(close);
                    break;
                }
                None => break,
            }
        }
        self.tick(at);
        Ok(())
    }

    /// How many messages the next batch takes, and about how many bytes that is.
    fn portion(&self) -> (usize, usize) {
        let mut bytes = 0;
        let mut count = 0;
        for message in &self.queue {
            if bytes >= BATCH_BYTES || count >= BATCH_EVENTS {
                break;
            }
            count += 1;
            bytes += USUAL_RECORD;
            if let Message::Append(job) = message {
                bytes += job.chunks.iter().map(|chunk| chunk.value.len() + 128).sum::<usize>();
            }
        }
        (count, bytes)
    }

    /// Empties the batch; in a new segment it begins with a note of the state.
    pub(super) fn start_batch(&mut self, bytes: usize) -> io::Result<()> {
        self.batch.clear();
        self.lane.make_way(bytes)?;
        if self.noted_in == self.lane.begun() {
            return Ok(());
        }
        if let Some(run) = &self.run {
            let note = state::encode(Some(&run.stream), run.durable_tree(), &self.open);
            self.batch.push(FrameKind::State, &[], &note);
        }
        Ok(())
    }

    fn place(&mut self, job: Job, now: u64) {
        let misplaced = match job.purpose {
            Purpose::Ending(call) | Purpose::Listing(call) if !self.open.contains_key(&call) => {
                Some(AppendError::NotOpen)
            }
            Purpose::Opening(call) if self.open.contains_key(&call) => {
                Some(AppendError::Invalid("the call is open already"))
            }
            Purpose::Plain | Purpose::Opening(_) | Purpose::Listing(_) | Purpose::Ending(_) => None,
        };
        if let Some(error) = misplaced {
            return job.fail(error);
        }
        let Job { purpose, draft, chunks, reply, hold } = job;
        let record = match self.seal(draft, now) {
            Ok(record) => record,
            Err(error) => {
                answer(reply, Err(error));
                if let Purpose::Ending(call) = purpose {
                    self.abandon(call, now);
                }
                return;
            }
        };
        for chunk in &chunks {
            self.batch.push(FrameKind::Chunk, &chunk.header, &chunk.value);
        }
        let place = self.batch.push(FrameKind::Event, &[], &record.bytes).unwrap_or(0);
        let (seq, at) = (record.event.seq.get(), record.event.at);
        match purpose {
            Purpose::Plain | Purpose::Listing(_) => {}
            Purpose::Opening(call) => {
                self.open.insert(call, record.bytes);
            }
            Purpose::Ending(call) => self.ending.extend(self.open.remove_entry(&call)),
        }
        self.pending.push(Pending { reply, purpose, seq, at, place, hold });
    }

    /// Ends a call whose slot is gone.
    fn abandon(&mut self, call: CallId, now: u64) {
        let Some((call, opening)) = self.open.remove_entry(&call) else { return };
        if let Some(run) = &mut self.run {
            self.batch.extend_events(end_as_unknown(run, &opening, now));
            self.ending.push((call, opening));
        }
    }

    pub(super) fn seal(&mut self, draft: Draft, now: u64) -> Result<Record, AppendError> {
        if self.run.as_ref().is_some_and(Run::is_full) {
            self.sign();
        }
        let Some(run) = &mut self.run else { return Err(AppendError::Closed) };
        run.seal(draft, now).map_err(|error| AppendError::Seal(Arc::new(error)))
    }

    /// Adds what time asks for: a sign of life, a checkpoint.
    fn tick(&mut self, now: u64) {
        let Some(run) = &self.run else { return };
        if run.owes_alive(self.options.alive_after) {
            match self.seal(Draft::new(Kind::StreamAlive), now) {
                Ok(record) => self.batch.extend_events(Some(record)),
                Err(error) => tracing::error!(%error, "no sign of life"),
            }
        }
        if self.run.as_ref().is_some_and(|run| run.owes_checkpoint(self.options.checkpoint_after)) {
            self.sign();
        }
    }

    pub(super) fn sign(&mut self) {
        let Some(run) = &mut self.run else { return };
        match run.checkpoint(&self.options.origin, &self.signer) {
            Ok(message) => {
                self.batch.push(FrameKind::Checkpoint, &[], &message);
                self.signs = true;
            }
            Err(error) => tracing::error!(%error, "a checkpoint cannot be signed"),
        }
    }
}

impl Batch {
    pub(super) fn extend_events(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            self.push(FrameKind::Event, &[], &record.bytes);
        }
    }
}

/// The ending `unknown` of the call with this opening.
pub(super) fn end_as_unknown(run: &mut Run, opening: &[u8], now: u64) -> Option<Record> {
    let mut problem = None;
    for draft in unknown_ending(opening).into_iter().flatten() {
        match run.seal(draft, now) {
            Ok(record) => return Some(record),
            Err(error) => problem = Some(error),
        }
    }
    tracing::error!(?problem, "a call cannot be ended as unknown: its opening cannot be used");
    None
}
