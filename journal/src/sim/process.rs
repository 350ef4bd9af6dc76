//! One life of a process: its writer, whoever calls it, and the ingest beside it, in turns that
//! the seed decides.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_schemas::event::{Draft, Outcome};
use custody_schemas::id::CallId;
use custody_schemas::kind::Kind;
use custody_schemas::seal::key::Signer;
use custody_schemas::words::Status;
use tokio::sync::oneshot;

use super::dice::Dice;
use super::disk::Disk;
use super::lake::Lake;
use super::truth::{Truth, What};
use crate::writer::bulk::Carrier;
use crate::writer::commit::{Committer, Turn};
use crate::writer::{AppendError, OpenError, Opened, Shared};
use crate::{Appending, FileJournal, Needs, OutBody, Part, Slot, Writer, WriterOptions};

/// What stays the same for a whole history.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) disk_bytes: u64,
    options: WriterOptions,
}

impl Setting {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let options = WriterOptions {
            segment_bytes: *dice.pick(&[8 << 10, 16 << 10, 64 << 10]),
            spool_max_bytes: *dice.pick(&[1 << 30, 1 << 30, 600 << 10]),
            queue: *dice.pick(&[4, 64]),
            roll_after: Duration::from_secs(*dice.pick(&[20, 24 * 3600])),
            ..WriterOptions::new(super::ROOT, "edge-1")
        };
        let disk_bytes = *dice.pick(&[1 << 40, 1 << 40, 1 << 20]);
        Self { disk_bytes, options }
    }
}

/// Whoever signs.
pub(crate) fn signer() -> Signer {
    Signer::from_seed("custody.local/edge-1", &[3; 32]).unwrap().0
}

/// A call that holds its slot.
struct Call {
    id: CallId,
    slot: Slot,
    ending_bytes: u64,
    opened: bool,
    /// More calls were open with it than could all have had long endings.
    crowded: bool,
}

/// An append that has not been answered.
struct Waiting {
    what: What,
    appending: Appending,
    /// It may find no room although it ends a call.
    may_be_too_large: bool,
}

/// A process that is alive.
pub(crate) struct Process {
    writer: Writer,
    shared: Arc<Shared>,
    journal: Arc<FileJournal>,
    committer: Committer,
    carrier: Carrier,
    calls: Vec<Call>,
    waiting: Vec<Waiting>,
}

impl Process {
    /// Opens the spool, without threads.
    pub(crate) fn start(setting: &Setting) -> Result<Self, OpenError> {
        let (opened, _) = Opened::new(setting.options.clone(), signer())?;
        let (writer, committer, carrier) = opened.unthreaded();
        let shared = Arc::clone(writer.shared());
        let journal = writer.journal();
        let (calls, waiting) = (Vec::new(), Vec::new());
        Ok(Self { writer, shared, journal, committer, carrier, calls, waiting })
    }

    /// Lets things happen until the process dies, or enough has happened. Then it is dropped, as a
    /// killed one is: nothing that it still does reaches the disk.
    pub(crate) fn live(
        mut self,
        steps: u64,
        dice: &mut Dice,
        disk: &Disk,
        truth: &mut Truth,
        lake: &mut Lake,
    ) {
        for _ in 0..dice.below(steps) {
            match dice.below(10) {
                0..=2 => self.open_call(dice, truth),
                3 | 4 => self.end_call(dice, truth),
                5 => self.relay(dice, truth),
                6 => disk.pass(Duration::from_millis(dice.below(3000))),
                7 if !disk.is_dead() => lake.carry(&*self.journal, dice),
                _ => self.commit(dice),
            }
            self.hear(truth, disk);
            let status = self.writer.status();
            let (used, most) = (status.spool_used_bytes, status.spool_max_bytes);
            assert!(used <= most, "{used} bytes in a spool that may hold {most}");
            if disk.is_dead() {
                break;
            }
            if dice.chance(100) {
                lake.ask(&*self.journal, truth);
            }
        }
        disk.threaten(super::Odds::default(), Some(1));
    }

    /// Everything comes to rest, and all of it goes to the lake.
    pub(crate) fn end(mut self, truth: &mut Truth, lake: &mut Lake) {
        let (reply, mut closed) = oneshot::channel();
        assert!(self.shared.bulk_queue().push(crate::writer::bulk::Load::Close(reply)).is_none());
        self.carrier.turn(&self.shared, Instant::now());
        match self.committer.turn(&self.shared, Instant::now()) {
            Turn::Close(reply) => self.committer.close(&self.shared, reply),
            Turn::More | Turn::Ended => panic!("asked to close, it did not"),
        }
        closed.try_recv().expect("an answer").expect("an undisturbed end");
        let everything = lake.query(&*self.journal).expect("an undisturbed query");
        truth.agrees(&everything);
        lake.settle(everything);
    }

    fn open_call(&mut self, dice: &mut Dice, truth: &mut Truth) {
        let ending_bytes = size(dice);
        let most = Needs { ending_bytes, listings: 0 };
        // some have all of their room alone
        let own = if dice.chance(500) { most } else { Needs::default() };
        let Ok(mut slot) = self.writer.slot_with_share(own, most) else { return };
        let id = call();
        let what = What::Opening(id);
        truth.attempt(what);
        let draft = Draft { call: Some(id), ..Draft::new(Kind::CallRequested) };
        let appending = slot.open(draft, body(Part::Request, size(dice)));
        self.waiting.push(Waiting { what, appending, may_be_too_large: false });
        self.calls.push(Call { id, slot, ending_bytes, opened: false, crowded: false });
        if self.shared.is_crowded() {
            self.calls.iter_mut().for_each(|call| call.crowded = true);
        }
    }

    /// Ends a call, or forgets it as a client that leaves does.
    fn end_call(&mut self, dice: &mut Dice, truth: &mut Truth) {
        let opened: Vec<_> = (0..self.calls.len()).filter(|i| self.calls[*i].opened).collect();
        if opened.is_empty() {
            return;
        }
        let call = self.calls.swap_remove(*dice.pick(&opened));
        if dice.chance(200) {
            return drop(call.slot);
        }
        let what = What::Ending(call.id);
        truth.attempt(what);
        let outcome = Some(Outcome { status: Status::Ok, ..Outcome::default() });
        let draft = Draft { call: Some(call.id), outcome, ..Draft::new(Kind::CallEnded) };
        let appending = call.slot.end(draft, body(Part::Response, call.ending_bytes));
        self.waiting.push(Waiting { what, appending, may_be_too_large: call.crowded });
    }

    fn relay(&mut self, dice: &mut Dice, truth: &mut Truth) {
        let id = call();
        let what = What::Message(id);
        truth.attempt(what);
        let draft = Draft { call: Some(id), ..Draft::new(Kind::MessageRelayed) };
        let appending = self.writer.append(draft, body(Part::Request, size(dice)));
        self.waiting.push(Waiting { what, appending, may_be_too_large: false });
    }

    /// The committing threads' turns, in either order.
    fn commit(&mut self, dice: &mut Dice) {
        if dice.chance(700) {
            self.carrier.turn(&self.shared, Instant::now());
        }
        if dice.chance(900) {
            self.committer.turn(&self.shared, Instant::now());
        }
    }

    /// Hears what has been answered.
    fn hear(&mut self, truth: &mut Truth, disk: &Disk) {
        let mut context = Context::from_waker(Waker::noop());
        let mut still = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            let what = waiting.what;
            match Pin::new(&mut waiting.appending).poll(&mut context) {
                Poll::Pending => still.push(waiting),
                Poll::Ready(Ok(appended)) => {
                    truth.acknowledge(what, appended);
                    let call = self.calls.iter_mut().find(|call| call.id == what.call());
                    call.into_iter().for_each(|call| call.opened = true);
                }
                Poll::Ready(Err(error)) => {
                    self.calls.retain(|call| call.id != what.call());
                    judge(what, &error, disk, waiting.may_be_too_large);
                    if certainly_not(&error) {
                        truth.refuse(what);
                    }
                }
            }
        }
        self.waiting = still;
    }
}

/// Whether an append may fail like this.
fn judge(what: What, error: &AppendError, disk: &Disk, may_be_too_large: bool) {
    let troubled = disk.faults() > 0 || disk.is_dead();
    let fine = match error {
        // The ending's room was set aside before its call was opened.
        AppendError::Full { .. } | AppendError::Busy { .. } => !matches!(what, What::Ending(_)),
        AppendError::Unavailable { .. } | AppendError::NotOpen => troubled,
        AppendError::TooLarge { .. } => may_be_too_large,
        AppendError::Closed | AppendError::Invalid(_) | AppendError::Seal(_) => false,
    };
    assert!(fine, "{what:?} fails on a disk with {} faults: {error}", disk.faults());
}

fn certainly_not(error: &AppendError) -> bool {
    !matches!(error, AppendError::Unavailable { maybe: true, .. })
}

fn call() -> CallId {
    CallId::from_uuid(uuid::Uuid::now_v7())
}

/// The length of a body: mostly small, sometimes too large to stand beside its record.
fn size(dice: &mut Dice) -> u64 {
    *dice.pick(&[0, 100, 100, 3000, 70 << 10])
}

fn body(part: Part, len: u64) -> Vec<OutBody> {
    let bytes = Bytes::from(vec![0x5a; usize::try_from(len).unwrap()]);
    vec![OutBody { part, bytes }]
}
