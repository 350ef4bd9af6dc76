//! Carries one spool to Kafka: attempt after attempt, each with a producer of its own.
//!
//! Within an attempt one thread reads and sends bodies, the other waits for them, sends the
//! records and moves the mark. Whatever goes wrong ends the attempt; the next one begins at the
//! mark, after a pause.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::Trouble;
use super::marks::{Mark, Marks};
use super::status::Tally;
use super::stop::Stop;
use super::window::{Source, Window, send};
use crate::file::shelf::Shelf;
use crate::file::{FileJournal, Shelves};
use crate::kafka::KafkaSettings;
use crate::kafka::producer::{Batch, Producer};
use crate::writer::acks::Acks;
use crate::{Journal, Partition, Topic};

/// How many windows' bodies may be under way beside the window whose records are.
const AHEAD: usize = 2;
/// How often a waiting thread looks around.
const TURN: Duration = Duration::from_millis(200);
/// After how long a silence the cluster is asked what is wrong.
const SILENCE: Duration = Duration::from_secs(3);
/// The pauses between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Carries one spool.
pub(crate) struct Carrier {
    writer: String,
    shelves: (Arc<Shelf>, Arc<Shelf>),
    journal: Arc<FileJournal>,
    settings: KafkaSettings,
    marks: Marks,
    tally: Arc<Tally>,
    stop: Arc<Stop>,
    /// Whom to tell; none where nobody writes any more.
    acks: Option<Arc<Acks>>,
}

impl Carrier {
    /// A carrier of `spool`; `acks` where its writer runs in this process.
    pub(crate) fn new(
        spool: &Shelves,
        journal: &Arc<FileJournal>,
        settings: &KafkaSettings,
        stop: &Arc<Stop>,
        acks: Option<Arc<Acks>>,
    ) -> Self {
        let shelves = (Arc::clone(spool.main()), Arc::clone(spool.bulk()));
        let dir = spool.main().dir().parent().unwrap_or(Path::new("."));
        let (marks, noted) = Marks::open(dir);
        let tally = Tally::new(spool, beginning(spool, noted), acks.is_some());
        Self {
            writer: spool.writer().to_owned(),
            shelves,
            journal: Arc::clone(journal),
            settings: settings.clone(),
            marks,
            tally: Arc::new(tally),
            stop: Arc::clone(stop),
            acks,
        }
    }

    /// What it tells of itself.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Carries until the end is asked for, or nothing is left of a spool that nobody writes.
    pub(crate) fn run(mut self) {
        let mut pause = BACKOFF.0;
        // what was acknowledged in an earlier life of this process may go
        self.settle();
        while !self.is_finished() {
            let before = self.tally.mark();
            match self.attempt() {
                Ok(()) | Err(Trouble::Over) => {}
                Err(trouble) => {
                    tracing::warn!(writer = self.writer, %trouble, "shipping begins again");
                    self.tally.failed(&trouble.to_string());
                    if self.tally.mark() != before {
                        pause = BACKOFF.0;
                    }
                    self.stop.pause(pause);
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
        self.note(true);
    }

    fn is_finished(&self) -> bool {
        self.stop.is_due() || (self.tally.is_done() && (self.is_resting() || self.stop.is_asked()))
    }

    fn is_resting(&self) -> bool {
        self.acks.is_none()
    }

    /// Carries on from the mark until something goes wrong or there is nothing more to come.
    fn attempt(&mut self) -> Result<(), Trouble> {
        let broken = AtomicBool::new(false);
        let (tally, stop, acks) =
            (Arc::clone(&self.tally), Arc::clone(&self.stop), self.acks.clone());
        let shelves = (Arc::clone(&self.shelves.0), Arc::clone(&self.shelves.1));
        let shelves = (&shelves.0, &shelves.1);
        let source = Source::open(shelves, &tally, &stop, &broken, acks.as_deref())?;
        let producer = Producer::new(&self.settings, &tally.link)?;
        thread::scope(|scope| {
            let (send, receive) = sync_channel(AHEAD);
            let read = || source.run(&producer, &{ send });
            let reading = thread::Builder::new().name("ship-read".to_owned());
            let reading = reading.spawn_scoped(scope, read).map_err(Trouble::Thread)?;
            let carried = self.carry(&producer, receive);
            broken.store(true, Ordering::Relaxed);
            let read = reading.join().unwrap_or(Err(Trouble::Panic));
            self.note(true);
            carried.and(read)
        })
    }

    /// Delivers window by window; takes the channel so that the other thread sees its end.
    fn carry(&mut self, producer: &Producer, windows: Receiver<Window>) -> Result<(), Trouble> {
        loop {
            match windows.recv_timeout(TURN) {
                Ok(window) => self.deliver(producer, window)?,
                Err(RecvTimeoutError::Timeout) => {
                    self.note(false);
                    if let Some(broken) = producer.fatal() {
                        return Err(broken.into());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn deliver(&mut self, producer: &Producer, window: Window) -> Result<(), Trouble> {
        let Window { bodies, records, up_to, entries, bytes } = window;
        self.wait(producer, &bodies)?;
        let batch = Arc::default();
        for record in &records {
            send(producer, &batch, record, &|| self.stop.is_due())?;
        }
        drop(records);
        self.wait(producer, &batch)?;
        self.tally.acknowledged(up_to, entries, bytes);
        self.settle();
        self.note(false);
        Ok(())
    }

    fn wait(&self, producer: &Producer, batch: &Batch) -> Result<(), Trouble> {
        let mut since = Instant::now();
        while !batch.wait(TURN)? {
            if self.stop.is_due() {
                return Err(Trouble::Over);
            }
            if let Some(broken) = producer.fatal() {
                return Err(broken.into());
            }
            if since.elapsed() > SILENCE {
                producer.diagnose()?;
                since = Instant::now();
            }
        }
        Ok(())
    }

    /// Answers who waits for what is acknowledged, and lets it go.
    fn settle(&self) {
        let Mark { main, bulk } = self.tally.mark();
        if let Some(acks) = &self.acks {
            acks.reached(main);
        }
        let of = |topic, name: &str| Partition { topic, name: name.to_owned() };
        let released = [
            (of(Topic::Events, &self.writer), main),
            (of(Topic::Bodies, &self.writer), main),
            (of(Topic::Bodies, &format!("{}.bulk", self.writer)), bulk),
        ];
        for (partition, up_to) in released {
            if let Err(error) = self.journal.release(&partition, up_to) {
                tracing::warn!(%error, "what is shipped cannot be released");
            }
        }
    }

    /// Notes the mark, now or if it is time to. Without a note more is sent again, no more.
    fn note(&mut self, now: bool) {
        let mark = self.tally.mark();
        let noted = if now { self.marks.write(mark) } else { self.marks.note(mark) };
        if let Err(error) = noted {
            tracing::warn!(writer = self.writer, %error, "cannot note what is shipped");
        }
    }
}

/// Where shipping of `spool` begins. A mark beyond its end is of a spool that was replaced.
fn beginning(spool: &Shelves, noted: Option<Mark>) -> Mark {
    let end = Mark { main: spool.main().end_offset(), bulk: spool.bulk().end_offset() };
    let first = Mark { main: spool.main().first_offset(), bulk: spool.bulk().first_offset() };
    match noted {
        Some(mark) if mark.main <= end.main && mark.bulk <= end.bulk => {
            Mark { main: mark.main.max(first.main), bulk: mark.bulk.max(first.bulk) }
        }
        Some(_) => {
            let writer = spool.writer();
            tracing::warn!(writer, "the spool is not the one that was shipped; all of it is sent");
            first
        }
        None => first,
    }
}
