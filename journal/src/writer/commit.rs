//! The committer: the one thread that gives events their place and makes them durable.
//!
//! It takes everything that waits, seals it into one batch, writes and syncs that once, and only
//! then wakes those who wait. It never waits for more to come: what comes during a sync is the
//! next batch, and the processor has other calls to carry on with meanwhile. When anything about a
//! batch fails, the run ends: what was in the batch is answered as *maybe recorded* (no reader
//! will see it), and a new run is begun, again and again with growing pauses until the disk takes
//! it. Calls whose ending was in the failed batch are ended as `unknown` by the new run; calls
//! that still hold their slot simply go on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use custody_schemas::event::Draft;
use custody_schemas::id::{CallId, StreamId};
use custody_schemas::kind::Kind;
use custody_schemas::seal::checkpoint::{self, Checkpoint};
use custody_schemas::seal::key::Signer;
use tokio::sync::oneshot;

use super::acks::Waiting;
use super::fill::{Pending, USUAL_RECORD, end_as_unknown};
use super::recovery::{Found, Signed};
use super::run::{Run, opened};
use super::slot::{Message, Purpose, answer};
use super::{
    AppendError, Appended, Durability, OpenError, Previous, Recovery, Shared, WriterOptions, state,
};
use crate::file::format::FrameKind;
use crate::file::lane::{Batch, Lane};
use crate::file::{clock, now};

/// The pauses between attempts to begin a run.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// How a committer's turn ended.
pub(crate) enum Turn {
    /// There may be another.
    More,
    /// The queue is closed and empty.
    Ended,
    /// Somebody asked for the run's end.
    Close(Reply),
}

pub(crate) type Reply = oneshot::Sender<Result<Appended, AppendError>>;

/// The thread's state.
pub(crate) struct Committer {
    pub(super) options: WriterOptions,
    pub(super) signer: Signer,
    pub(super) signed: Signed,
    pub(super) lane: Lane,
    pub(super) batch: Batch,
    pub(super) queue: VecDeque<Message>,
    pub(super) run: Option<Run>,
    /// What the next run says of this one.
    pub(super) previous: Option<Previous>,
    /// Openings of the calls that are open.
    pub(super) open: HashMap<CallId, Vec<u8>>,
    /// Openings of calls that the next run must end as unknown.
    pub(super) orphans: Vec<Vec<u8>>,
    pub(super) pending: Vec<Pending>,
    /// Calls whose ending is in the batch, with their openings.
    pub(super) ending: Vec<(CallId, Vec<u8>)>,
    /// Whether a checkpoint is in the batch.
    pub(super) signs: bool,
    /// The segment in which the run's state has been noted.
    pub(super) noted_in: u64,
    /// The segment being written, and how many leaves were durable when it began.
    pub(super) floor: (u64, u64),
    pub(super) retry: (Instant, Duration),
    pub(super) problem: Arc<io::Error>,
}

impl Committer {
    /// Begins the first run after what was `found`.
    pub(crate) fn open(
        options: WriterOptions,
        signer: Signer,
        lane: Lane,
        found: Found,
    ) -> Result<(Self, Recovery), OpenError> {
        let mut committer = Self {
            options,
            signer,
            signed: found.signed,
            lane,
            batch: Batch::new(),
            queue: VecDeque::new(),
            run: None,
            previous: found.previous.clone(),
            open: HashMap::new(),
            orphans: found.orphans,
            pending: Vec::new(),
            ending: Vec::new(),
            signs: false,
            noted_in: 0,
            floor: (0, 0),
            retry: (clock::instant(), BACKOFF.0),
            problem: Arc::new(io::Error::other("not begun")),
        };
        let orphans = committer.orphans.len() as u64;
        let stream = committer.begin().map_err(OpenError::Begin)?;
        Ok((committer, Recovery { stream, previous: found.previous, orphans }))
    }

    /// The offset that the next entry will have.
    pub(crate) fn next_offset(&self) -> u64 {
        self.lane.next_offset()
    }

    /// Runs until the queue is closed and empty, or the run is closed.
    pub(crate) fn run(mut self, shared: &Shared) {
        loop {
            let until = self.run.as_ref().map_or(self.retry.0, |run| run.next_tick(&self.options));
            match self.turn(shared, until) {
                Turn::More => {}
                Turn::Ended => return,
                Turn::Close(reply) => return self.close(shared, reply),
            }
        }
    }

    /// Waits until `until` for something to do, and does all that is there.
    pub(crate) fn turn(&mut self, shared: &Shared, until: Instant) -> Turn {
        let more = shared.main.take(&mut self.queue, until);
        while self.step(shared) {
            if let Some(reply) = self.close_asked(shared) {
                return Turn::Close(reply);
            }
        }
        if more { Turn::More } else { Turn::Ended }
    }

    /// Stores one batch; whether more messages wait.
    fn step(&mut self, shared: &Shared) -> bool {
        if self.run.as_ref().is_some_and(|run| run.owes_roll(self.options.roll_after)) {
            self.roll(shared);
        }
        if self.run.is_none() && !self.begin_again(shared) {
            self.refuse_all();
            return false;
        }
        if self.close_is_next() {
            return true;
        }
        let committed = self.fill().and_then(|()| self.commit(shared));
        if let Err(error) = committed {
            self.fail(shared, error);
        }
        !self.queue.is_empty()
    }

    fn close_is_next(&self) -> bool {
        matches!(self.queue.front(), Some(Message::Close(_)))
    }

    fn close_asked(&mut self, shared: &Shared) -> Option<Reply> {
        if !self.close_is_next() {
            return None;
        }
        let message = self.queue.pop_front();
        shared.main.close();
        match message {
            Some(Message::Close(reply)) => Some(reply),
            Some(Message::Append(_) | Message::Abandon(..)) | None => None,
        }
    }

    /// Writes and syncs the batch, then wakes those who wait.
    fn commit(&mut self, shared: &Shared) -> io::Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if self.batch.is_empty() || (self.pending.is_empty() && !self.signs && !run.has_grown()) {
            return Ok(());
        }
        let noted_in = self.lane.begun();
        let offsets = self.lane.append(&mut self.batch, now())?;
        self.noted_in = noted_in;
        if self.floor.0 != self.lane.begun() {
            self.floor = (self.lane.begun(), run.durable_size());
        }
        shared.events.fetch_add(run.settle(), Ordering::Relaxed);
        shared.commits.fetch_add(1, Ordering::Relaxed);
        for pending in self.pending.drain(..) {
            let Pending { reply, seq, at, place, hold, .. } = pending;
            let stream = run.stream.clone();
            let appended = Appended { stream, seq, at, offset: offsets.start + place };
            match self.options.durability {
                Durability::Local => {
                    drop(hold); // whoever hears the answer finds the place free
                    answer(reply, Ok(appended));
                }
                Durability::Replicated => shared.acks.wait(Waiting { reply, appended, hold }),
            }
        }
        self.ending.clear();
        if std::mem::take(&mut self.signs) {
            let (size, root) = run.durable();
            self.signed.write(&run.stream, size, root);
        }
        shared.ends.send_modify(|ends| ends.main = offsets.end);
        Ok(())
    }

    /// Ends the run that could not be written.
    fn fail(&mut self, shared: &Shared, error: io::Error) {
        tracing::error!(%error, "the journal cannot be written; this run ends");
        let vanished = error.kind() == io::ErrorKind::NotFound;
        self.problem = Arc::new(error);
        if let Some(run) = self.run.take() {
            let (size, root) = run.durable();
            let kept = if vanished { self.floor.1.min(size) } else { size };
            let (stream, lost) = (run.stream, size - kept);
            self.previous = Some(Previous { stream, size, root, clean: false, lost });
        }
        let mut never_opened = HashSet::new();
        for Pending { reply, purpose, hold, .. } in self.pending.drain(..) {
            drop(hold);
            let source = Arc::clone(&self.problem);
            answer(reply, Err(AppendError::Unavailable { maybe: true, source }));
            if let Purpose::Opening(call) = purpose {
                self.open.remove(&call);
                never_opened.insert(call);
            }
        }
        for (call, opening) in self.ending.drain(..) {
            if !never_opened.contains(&call) {
                self.orphans.push(opening);
            }
        }
        self.signs = false;
        self.retry = (clock::instant(), BACKOFF.0);
        shared.poisoned.fetch_add(1, Ordering::Relaxed);
        shared.present.lock().problem = Some(self.problem.to_string());
    }

    /// Answers everything that waits: nothing can be recorded at the moment.
    fn refuse_all(&mut self) {
        for message in self.queue.drain(..) {
            let source = Arc::clone(&self.problem);
            let error = AppendError::Unavailable { maybe: false, source };
            match message {
                Message::Append(job) => {
                    if let Purpose::Ending(call) = job.purpose {
                        self.orphans.extend(self.open.remove(&call));
                    }
                    job.fail(error);
                }
                Message::Abandon(call, _hold) => self.orphans.extend(self.open.remove(&call)),
                Message::Close(reply) => answer(reply, Err(error)),
            }
        }
    }

    /// Begins a run: `stream.opened` and the endings of orphaned calls in one batch.
    fn begin(&mut self) -> Result<StreamId, AppendError> {
        let unavailable =
            |error| AppendError::Unavailable { maybe: false, source: Arc::new(error) };
        let stream = Run::name(&self.options.name)
            .map_err(|_| AppendError::Invalid("the writer's name cannot stand in a stream"))?;
        self.batch.clear();
        self.lane.make_way((self.orphans.len() + 1) * USUAL_RECORD).map_err(unavailable)?;
        let noted_in = self.lane.begun();
        if !self.open.is_empty() && self.noted_in != noted_in {
            let note = state::encode(None, &custody_schemas::seal::Tree::default(), &self.open);
            self.batch.push(FrameKind::State, &[], &note);
        }
        let mut run = Run::new(stream.clone());
        let first = opened(&self.options, self.signer.vkey(), self.previous.as_ref());
        let at = now();
        let first = run.seal(first, at).map_err(|e| AppendError::Seal(Arc::new(e)))?;
        self.batch.extend_events(Some(first));
        if let Some(last) = self.previous.as_ref().and_then(|previous| self.last_word(previous)) {
            self.batch.push(FrameKind::Checkpoint, &[], &last);
        }
        for opening in &self.orphans {
            self.batch.extend_events(end_as_unknown(&mut run, opening, at));
        }
        self.lane.append(&mut self.batch, at).map_err(unavailable)?;
        run.settle();
        self.noted_in = noted_in;
        self.floor = (self.lane.begun(), 0);
        self.orphans.clear();
        self.run = Some(run);
        Ok(stream)
    }

    /// The last checkpoint of a run that broke off before it could sign one: no leaf is added to
    /// it, but what it held is under a signature like everything else.
    fn last_word(&self, previous: &Previous) -> Option<Vec<u8>> {
        if previous.clean || previous.lost > 0 || previous.size == 0 {
            return None;
        }
        let (size, root) = (previous.size, previous.root);
        let origin = checkpoint::origin(&self.options.origin, &previous.stream);
        match (Checkpoint { origin, size, root }).sign(&self.signer) {
            Ok(note) => {
                Some(checkpoint::Message { note, first: size, leaves: Vec::new() }.encode())
            }
            Err(error) => {
                tracing::error!(%error, "the last run's checkpoint cannot be signed");
                None
            }
        }
    }

    /// Tries to begin a run if it is time to; whether there is one.
    fn begin_again(&mut self, shared: &Shared) -> bool {
        if clock::instant() < self.retry.0 {
            return false;
        }
        match self.begin() {
            Ok(stream) => {
                let mut present = shared.present.lock();
                present.stream = stream;
                present.problem = None;
                drop(present);
                let end = self.lane.next_offset();
                shared.ends.send_modify(|ends| ends.main = end);
                true
            }
            Err(error) => {
                let pause = self.retry.1;
                tracing::error!(%error, ?pause, "no new run can be begun");
                self.retry = (clock::instant() + pause, (pause * 2).min(BACKOFF.1));
                false
            }
        }
    }

    /// Ends the run in order: `stream.closed` and the last checkpoint.
    fn end_run(&mut self, shared: &Shared) -> Result<Appended, AppendError> {
        let ended = self.start_batch(USUAL_RECORD).and_then(|()| {
            let record = self.seal(Draft::new(Kind::StreamClosed), now());
            let record = record.map_err(|error| io::Error::other(error.to_string()))?;
            let place = self.batch.push(FrameKind::Event, &[], &record.bytes).unwrap_or(0);
            self.sign();
            let base = self.lane.next_offset();
            self.commit(shared)?;
            let event = record.event;
            let (seq, offset) = (event.seq.get(), base + place);
            Ok(Appended { stream: event.stream, seq, at: event.at, offset })
        });
        ended.map_err(|error| {
            self.fail(shared, error);
            AppendError::Unavailable { maybe: true, source: Arc::clone(&self.problem) }
        })
    }

    /// Ends this run and begins the next.
    fn roll(&mut self, shared: &Shared) {
        let Ok(closed) = self.end_run(shared) else { return };
        if let Some(run) = self.run.take() {
            let (size, root) = run.durable();
            let stream = closed.stream;
            self.previous = Some(Previous { stream, size, root, clean: true, lost: 0 });
        }
        if let Some(signer) = self.options.rotation.next() {
            tracing::info!(vkey = signer.vkey(), "a new key from this run on");
            self.signer = signer;
        }
        self.begin_again(shared);
    }

    /// Ends the last run of this writer.
    pub(crate) fn close(mut self, shared: &Shared, reply: Reply) {
        let closed = match self.run {
            Some(_) => self.end_run(shared),
            None => {
                let source = Arc::clone(&self.problem);
                Err(AppendError::Unavailable { maybe: false, source })
            }
        };
        shared.main.take(&mut self.queue, clock::instant());
        for message in self.queue.drain(..) {
            if let Message::Append(job) = message {
                job.fail(AppendError::Closed);
            }
        }
        answer(reply, closed);
    }
}
