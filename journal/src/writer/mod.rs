//! The only way into a stream: a writer that places, seals, stores and signs events.
//!
//! * What [`Appending`] answers with `Ok` is on disk, its bodies first; with
//!   [`Durability::Replicated`] it is in Kafka as well.
//! * Events of one stream have gapless `seq` from 0 and times that never decrease; one that fails
//!   before it is stored takes no `seq`.
//! * A call that was opened gets exactly one ending in the journal: the one its [`Slot`] hands in,
//!   or `unknown` from the slot's drop, from the next run, or from the run after that.
//! * Nothing here waits for room: a refusal comes at once, before any effect. Of an ending the room
//!   is set aside before its opening, see [`Writer::slot`] and [`Writer::slot_with_share`].

pub(crate) mod acks;
pub(crate) mod bulk;
pub(crate) mod commit;
mod error;
mod facts;
mod fill;
mod options;
mod pack;
mod queue;
mod recovery;
mod run;
mod slot;
pub(crate) mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use custody_schemas::event::Draft;
use custody_schemas::id::StreamId;
use custody_schemas::kind::Kind;
use custody_schemas::seal::key::Signer;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::file::room::Room;
use crate::file::spool::{Lock, Spool, SpoolOptions};
use crate::file::{FileJournal, Shelves};

pub use error::{AppendError, OpenError};
pub use facts::{Appended, Ends, OutBody, Part, Previous, Recovery, Status};
pub use options::{Durability, Rotation, WriterOptions};
pub use slot::{Appending, Needs, Slot};

use queue::Queue;
use slot::{Hold, Job, Message, Purpose};

/// Bodies of one event that together are no longer than this are stored beside the record.
pub const SMALL_BODIES: u64 = 64 * 1024;

/// The shortest segment. Simulations pass through many.
const MIN_SEGMENT: u64 = if cfg!(test) { 8 << 10 } else { 1 << 20 };

/// What the handle, the slots and the committing threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    main: Queue<Message>,
    bulk: Queue<bulk::Load>,
    room: Arc<Room>,
    journal: Arc<FileJournal>,
    ends: watch::Sender<Ends>,
    acks: Arc<acks::Acks>,
    present: Mutex<Present>,
    slots: AtomicUsize,
    appends: AtomicUsize,
    bulk_bytes: AtomicU64,
    events: AtomicU64,
    commits: AtomicU64,
    poisoned: AtomicU64,
    options: WriterOptions,
}

#[derive(Debug)]
struct Present {
    stream: StreamId,
    problem: Option<String>,
    closing: bool,
}

/// Writes one stream after the other into a spool of its own. Cheap to clone; when the last clone
/// goes, what was handed over is stored and the threads end, without `stream.closed`.
#[derive(Clone, Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    _threads: Arc<Threads>,
}

impl Writer {
    /// Opens the spool, ends what the last run left open, begins a run.
    ///
    /// # Errors
    /// [`OpenError`] when the spool is in use, damaged, of a later format or cannot be written.
    pub fn open(options: WriterOptions, signer: Signer) -> Result<(Self, Recovery), OpenError> {
        let (Opened { shared, committer, bulk, lock }, recovery) = Opened::new(options, signer)?;
        let threads = Threads::start(&shared, committer, bulk, lock)?;
        Ok((Self { shared, _threads: Arc::new(threads) }, recovery))
    }

    /// Sets aside what a call needs: places in the queue for its opening and its ending, and room
    /// for both, the ending's bodies having at most `ending_bytes`. Never waits.
    ///
    /// # Errors
    /// [`AppendError::Full`] and [`AppendError::Busy`]: nothing has happened yet, refuse the call.
    /// [`AppendError::Closed`] likewise.
    pub fn slot(&self, ending_bytes: u64) -> Result<Slot, AppendError> {
        let all = Needs { ending_bytes, listings: 0 };
        self.slot_with_share(all, all)
    }

    /// The same for a call that needs `most` at most, and usually no more than `own`. Room for `own`
    /// is set aside for it alone; room for the rest in common with other calls, an eighth of the
    /// spool at most. While what open calls may need fits into that, all of it is there; else an
    /// ending (or [`Slot::list`]) that needs more than its own may be refused when the spool is
    /// full, as may new calls as long as there is no room for that eighth.
    ///
    /// # Errors
    /// As [`slot`](Self::slot).
    pub fn slot_with_share(&self, own: Needs, most: Needs) -> Result<Slot, AppendError> {
        self.shared.is_open()?;
        Slot::reserve(&self.shared, own, most)
    }

    /// Appends an event that neither opens nor ends a call.
    pub fn append(&self, draft: Draft, bodies: Vec<OutBody>) -> Appending {
        let hold = match self.shared.is_open().and_then(|()| Hold::append(&self.shared, &bodies)) {
            Ok(hold) => hold,
            Err(error) => return Appending::failed(error),
        };
        if is_opening(&draft.kind) || is_ending(&draft.kind) {
            return Appending::failed(AppendError::Invalid("openings and endings need a slot"));
        }
        let (job, appending) = Job::new(Purpose::Plain, draft, bodies, hold);
        self.shared.submit(job, None);
        appending
    }

    /// The durable ends, whenever they move.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Ends> {
        self.shared.ends.subscribe()
    }

    /// The journal that holds this writer's partitions and those of earlier writers in the folder.
    #[must_use]
    pub fn journal(&self) -> Arc<FileJournal> {
        Arc::clone(&self.shared.journal)
    }

    /// The writer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.options.name
    }

    /// What waits for a shipper's acknowledgement.
    #[cfg(feature = "kafka")]
    pub(crate) fn acks(&self) -> Arc<acks::Acks> {
        Arc::clone(&self.shared.acks)
    }

    /// How the writer is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// What outlives no writer.
    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Ends the run: takes nothing new, stores what was handed over, then `stream.closed` and the
    /// last checkpoint. Calls that are still open are ended as `unknown` by the next run.
    ///
    /// # Errors
    /// [`AppendError::Unavailable`] when the end could not be stored; [`AppendError::Closed`] when
    /// the writer was closed before.
    pub async fn close(&self) -> Result<Appended, AppendError> {
        if std::mem::replace(&mut self.shared.present.lock().closing, true) {
            return Err(AppendError::Closed);
        }
        let (reply, closed) = oneshot::channel();
        let refused = self.shared.bulk.push(bulk::Load::Close(reply));
        if refused.is_some() {
            return Err(AppendError::Closed);
        }
        closed.await.unwrap_or(Err(AppendError::Closed))
    }
}

/// An open spool whose run has begun, before its threads are started.
pub(crate) struct Opened {
    pub(crate) shared: Arc<Shared>,
    pub(crate) committer: commit::Committer,
    pub(crate) bulk: crate::file::lane::Lane,
    pub(crate) lock: Lock,
}

impl Opened {
    /// Opens the spool and begins a run.
    pub(crate) fn new(
        options: WriterOptions,
        signer: Signer,
    ) -> Result<(Self, Recovery), OpenError> {
        if !custody_schemas::id::is_writer_name(&options.name) {
            return Err(OpenError::Name(options.name));
        }
        let spool = Spool::open(&SpoolOptions {
            dir: options.dir.join(&options.name),
            segment_bytes: options.segment_bytes.max(MIN_SEGMENT),
            max_bytes: options.spool_max_bytes,
            sync: options.sync,
            #[cfg(test)]
            fail: Arc::clone(&options.fail),
            #[cfg(test)]
            fail_bulk: Arc::clone(&options.fail_bulk),
        })?;
        let Spool { main, bulk, room, lock } = spool;
        let live = Shelves::live(&options.name, main.shelf(), bulk.shelf(), &room);
        let journal = Arc::new(FileJournal::around(&options.dir, Some(live))?);
        let found = recovery::read_back(&options.dir.join(&options.name), main.shelf())?;
        let ends = Ends { main: main.next_offset(), bulk: bulk.next_offset() };
        let (committer, recovery) = commit::Committer::open(options.clone(), signer, main, found)?;
        let shared = Arc::new(Shared {
            main: Queue::new(),
            bulk: Queue::new(),
            room,
            journal,
            ends: watch::Sender::new(Ends { main: committer.next_offset(), ..ends }),
            acks: Arc::default(),
            present: Mutex::new(Present {
                stream: recovery.stream.clone(),
                problem: None,
                closing: false,
            }),
            slots: AtomicUsize::new(0),
            appends: AtomicUsize::new(0),
            bulk_bytes: AtomicU64::new(0),
            events: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            poisoned: AtomicU64::new(0),
            options,
        });
        Ok((Self { shared, committer, bulk, lock }, recovery))
    }

    /// A writer whose threads' turns somebody else takes.
    #[cfg(test)]
    pub(crate) fn unthreaded(self) -> (Writer, commit::Committer, bulk::Carrier) {
        let Self { shared, committer, bulk, lock } = self;
        let threads = Threads { shared: Arc::clone(&shared), main: None, bulk: None, _lock: lock };
        let writer = Writer { shared, _threads: Arc::new(threads) };
        (writer, committer, bulk::Carrier::new(bulk))
    }
}

impl Shared {
    /// How the writer is doing.
    pub(crate) fn status(&self) -> Status {
        let (stream, problem) = {
            let present = self.present.lock();
            (present.stream.clone(), present.problem.clone())
        };
        Status {
            stream,
            problem,
            slots: self.slots.load(Ordering::Relaxed),
            spool_used_bytes: self.room.used(),
            spool_max_bytes: self.room.max(),
            events: self.events.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            poisoned: self.poisoned.load(Ordering::Relaxed),
        }
    }

    /// The journal that holds its partitions.
    pub(crate) fn journal(&self) -> &FileJournal {
        &self.journal
    }

    /// What waits for the lane of large bodies.
    #[cfg(test)]
    pub(crate) fn bulk_queue(&self) -> &Queue<bulk::Load> {
        &self.bulk
    }

    /// Whether more calls are open than could all have long endings.
    #[cfg(test)]
    pub(crate) fn is_crowded(&self) -> bool {
        self.room.is_crowded()
    }

    fn is_open(&self) -> Result<(), AppendError> {
        if self.present.lock().closing { Err(AppendError::Closed) } else { Ok(()) }
    }
}

/// Whether an event of this kind opens a call or query.
pub(crate) fn is_opening(kind: &Kind) -> bool {
    [Kind::CallRequested, Kind::QueryRequested].contains(kind)
}

/// Whether an event of this kind ends one.
pub(crate) fn is_ending(kind: &Kind) -> bool {
    [Kind::CallEnded, Kind::QueryEnded].contains(kind)
}

/// The two committing threads; dropping this waits for them.
#[derive(Debug)]
struct Threads {
    shared: Arc<Shared>,
    main: Option<JoinHandle<()>>,
    bulk: Option<JoinHandle<()>>,
    /// Let go after both threads have ended.
    _lock: Lock,
}

impl Threads {
    fn start(
        shared: &Arc<Shared>,
        committer: commit::Committer,
        bulk: crate::file::lane::Lane,
        lock: Lock,
    ) -> Result<Self, OpenError> {
        let mut threads = Self { shared: Arc::clone(shared), main: None, bulk: None, _lock: lock };
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(body).map_err(OpenError::Thread)
        };
        let for_main = Ending(Arc::clone(shared), |shared| shared.main.end());
        let main = move || committer.run(&for_main.0);
        threads.main = Some(spawn("journal-main", Box::new(main))?);
        let for_bulk = Ending(Arc::clone(shared), |shared| shared.bulk.end());
        let bulk = move || bulk::Carrier::new(bulk).run(&for_bulk.0);
        threads.bulk = Some(spawn("journal-bulk", Box::new(bulk))?);
        Ok(threads)
    }
}

/// Ends a thread's queue with the thread, however that ends: nobody waits for an answer that
/// cannot come.
struct Ending(Arc<Shared>, fn(&Shared));

impl Drop for Ending {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut present = self.0.present.lock();
            present.closing = true;
            present.problem = Some("a committing thread broke off".to_owned());
        }
        (self.1)(&self.0);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.present.lock().closing = true;
        // bulk first: it hands over to main
        self.shared.bulk.close();
        end(self.bulk.take());
        self.shared.main.close();
        end(self.main.take());
        self.shared.acks.end();
    }
}

fn end(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("a committing thread of the journal panicked");
    }
}
