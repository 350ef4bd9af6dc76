//! The lane of large bodies: chunks of several events in turn, then their records.
//!
//! Each batch takes one chunk of every event that waits, again and again up to about 4 MiB: a
//! body of 16 MiB does not hold up one of 100 KiB. When all chunks of an event are durable its
//! record goes on to the main lane.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::slot::{Job, Message, Order, Purpose};
use super::{AppendError, Appended, Shared};
use crate::file::format::FrameKind;
use crate::file::lane::{Batch, Lane};
use crate::file::now;

/// Bytes after which a batch takes no further chunk.
const BATCH_BYTES: usize = 4 << 20;
/// How long the thread sleeps at most.
const IDLE: Duration = Duration::from_secs(60);

/// What is handed to this lane.
#[derive(Debug)]
pub(crate) enum Load {
    /// An event with large bodies.
    Bodies {
        /// The event.
        job: Box<Job>,
        /// What keeps its call's ending behind its opening.
        order: Option<Arc<Order>>,
    },
    /// Hand on what is here, then end the run.
    Close(oneshot::Sender<Result<Appended, AppendError>>),
}

/// An event whose chunks are being stored.
struct Carried {
    job: Box<Job>,
    order: Option<Arc<Order>>,
    /// How many chunks are in a batch already.
    taken: usize,
}

/// The thread's state.
pub(crate) struct Carrier {
    lane: Lane,
    batch: Batch,
    carried: VecDeque<Carried>,
    close: Option<oneshot::Sender<Result<Appended, AppendError>>>,
}

impl Carrier {
    /// A carrier that writes to `lane`.
    pub(crate) fn new(lane: Lane) -> Self {
        Self { lane, batch: Batch::new(), carried: VecDeque::new(), close: None }
    }

    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self, shared: &Shared) {
        let mut open = true;
        while open || !self.carried.is_empty() {
            let wait = if self.carried.is_empty() { IDLE } else { Duration::ZERO };
            open = self.turn(shared, Instant::now() + wait);
        }
    }

    /// Waits until `until` for something to do, and stores one batch; whether the queue is open.
    pub(crate) fn turn(&mut self, shared: &Shared, until: Instant) -> bool {
        let mut loads = Vec::new();
        let open = shared.bulk.take(&mut loads, until);
        for load in loads {
            match load {
                Load::Bodies { job, order } => {
                    self.carried.push_back(Carried { job, order, taken: 0 });
                }
                Load::Close(reply) => self.close = Some(reply),
            }
        }
        self.store(shared);
        if self.carried.is_empty()
            && let Some(reply) = self.close.take()
        {
            shared.forward(Message::Close(reply), None);
        }
        open
    }

    /// Stores one batch and hands on the events that are complete with it.
    fn store(&mut self, shared: &Shared) {
        self.batch.clear();
        self.fill();
        if self.batch.is_empty() {
            return;
        }
        match self.lane.append(&mut self.batch, now()) {
            Ok(offsets) => {
                shared.ends.send_modify(|ends| ends.bulk = offsets.end);
                let complete = |carried: &Carried| carried.taken == carried.job.chunks.len();
                let (done, rest) = self.carried.drain(..).partition(complete);
                self.carried = rest;
                hand_on(shared, done);
            }
            Err(error) => {
                tracing::error!(%error, "large bodies cannot be stored");
                refuse(shared, self.carried.drain(..), Arc::new(error));
            }
        }
    }

    /// Takes chunks in turn.
    fn fill(&mut self) {
        let mut took = true;
        while took && self.batch.len() < BATCH_BYTES {
            took = false;
            for carried in &mut self.carried {
                let Some(chunk) = carried.job.chunks.get(carried.taken) else { continue };
                self.batch.push(FrameKind::Chunk, &chunk.header, &chunk.value);
                carried.taken += 1;
                took = true;
                if self.batch.len() >= BATCH_BYTES {
                    break;
                }
            }
        }
        // whoever got less this time is first the next time
        if let Some(least) = (0..self.carried.len()).min_by_key(|i| self.carried[*i].taken) {
            self.carried.rotate_left(least);
        }
    }
}

fn hand_on(shared: &Shared, done: VecDeque<Carried>) {
    for Carried { mut job, order, .. } in done {
        job.chunks = Vec::new();
        shared.forward(Message::Append(job), order.as_deref());
    }
}

/// Nothing of these events is recorded. Their calls, if open, are ended as unknown.
fn refuse(shared: &Shared, carried: impl Iterator<Item = Carried>, source: Arc<io::Error>) {
    for Carried { job, order, .. } in carried {
        let Job { purpose, reply, hold, .. } = *job;
        let error = AppendError::Unavailable { maybe: false, source: Arc::clone(&source) };
        super::slot::answer(reply, Err(error));
        match purpose {
            Purpose::Ending(call) => {
                shared.forward(Message::Abandon(call, hold), order.as_deref());
            }
            Purpose::Opening(_) => {
                if let Some(order) = order {
                    shared.let_pass(&order);
                }
            }
            Purpose::Plain | Purpose::Listing(_) => {}
        }
    }
}
