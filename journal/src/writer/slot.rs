//! A call's place in the journal, from before its opening until its ending, and what is handed to
//! the committing threads.
//!
//! A [`Slot`] holds everything its ending will need: handing an ending in never waits and never
//! fails for lack of room or places, so that even a `Drop` can do it. Only an ending that is longer
//! than what the slot has of its own, when more calls are open than all could end like that, may
//! find no room (see [`crate::file::room`]); then the call is ended as `unknown`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use custody_schemas::event::Draft;
use custody_schemas::id::{CallId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::MAX_RECORD_BYTES;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::bulk::Load;
use super::pack::{Packed, pack, plain_len, stored_len};
use super::{AppendError, Appended, OutBody, SMALL_BODIES, Shared, is_ending, is_opening};
use crate::file::room::{NoRoom, Room};

/// Room that a record and its leaf in a checkpoint take up at most.
const RECORD_ROOM: u64 = MAX_RECORD_BYTES as u64 + 1024;

/// The answer to an append, once it is durable. Dropping it does not undo the append.
#[derive(Debug)]
pub struct Appending(Answer);

#[derive(Debug)]
enum Answer {
    Coming(oneshot::Receiver<Result<Appended, AppendError>>),
    Failed(Option<AppendError>),
}

impl Appending {
    pub(crate) fn failed(error: AppendError) -> Self {
        Self(Answer::Failed(Some(error)))
    }
}

impl Future for Appending {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Coming(answer) => {
                Pin::new(answer).poll(context).map(|sent| sent.unwrap_or(Err(AppendError::Closed)))
            }
            Answer::Failed(error) => Poll::Ready(Err(error.take().unwrap_or(AppendError::Closed))),
        }
    }
}

/// Room and places that are given back when the job that holds them is done.
#[derive(Debug)]
pub(crate) struct Hold {
    shared: Arc<Shared>,
    room: u64,
    /// What it may still take of the room that is kept in common.
    share: u64,
    bulk: u64,
    place: Option<Place>,
}

/// What is handed in at the end of a call: bytes of bodies, and how many listings before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of the ending's bodies.
    pub ending_bytes: u64,
    /// How many `subjects.listed`.
    pub listings: u64,
}

impl Needs {
    /// The room that it takes up at most.
    const fn room(self) -> u64 {
        let records = RECORD_ROOM.saturating_mul(self.listings.saturating_add(1));
        records.saturating_add(stored_len(self.ending_bytes))
    }
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Slot,
    Append,
}

impl Hold {
    /// What an event without an ending needs.
    pub(crate) fn append(shared: &Arc<Shared>, bodies: &[OutBody]) -> Result<Self, AppendError> {
        let place = Some(Self::take_place(shared, Place::Append)?);
        let mut hold = Self::of(shared, 0, place);
        hold.add(RECORD_ROOM, 0)?;
        hold.take_bodies(bodies, true)?;
        Ok(hold)
    }

    fn of(shared: &Arc<Shared>, room: u64, place: Option<Place>) -> Self {
        Self { shared: Arc::clone(shared), room, share: 0, bulk: 0, place }
    }

    /// One of a limited number of places; those whom nobody awaits any more make way.
    fn take_place(shared: &Shared, place: Place) -> Result<Place, AppendError> {
        let limit = shared.options.queue;
        let taken = match place {
            Place::Slot => &shared.slots,
            Place::Append => &shared.appends,
        };
        for last in [false, true] {
            if taken.fetch_add(1, Ordering::Relaxed) < limit {
                return Ok(place);
            }
            taken.fetch_sub(1, Ordering::Relaxed);
            if !last {
                shared.acks.sweep();
            }
        }
        Err(AppendError::Busy { limit })
    }

    /// Gives back the room, which is counted as used now, but not the place.
    pub(crate) fn give_back_room(&mut self) {
        self.shared.room.give_back(std::mem::take(&mut self.room));
        self.shared.bulk_bytes.fetch_sub(std::mem::take(&mut self.bulk), Ordering::Relaxed);
    }

    /// Adds room for something new and for an ending.
    fn add(&mut self, opening: u64, ending: u64) -> Result<(), AppendError> {
        self.find(|room| room.reserve(opening, ending))?;
        self.room += opening + ending;
        Ok(())
    }

    /// Sets aside in common what an ending may need beyond what it has of its own.
    fn add_share(&mut self, most: u64) -> Result<(), AppendError> {
        self.find(|room| room.share(most))?;
        self.share += most;
        Ok(())
    }

    /// Takes room that was set aside in common, for another hold, and gives up as much of the share.
    fn draw(&mut self, bytes: u64) -> Result<(), AppendError> {
        let share = self.share.min(bytes);
        self.find(|room| room.draw(share, bytes))?;
        self.share -= share;
        Ok(())
    }

    fn find(&self, take: impl Fn(&Room) -> Result<(), NoRoom>) -> Result<(), AppendError> {
        let found = take(&self.shared.room).or_else(|_| {
            // perhaps something that was released can go now
            self.shared.journal.reclaim();
            take(&self.shared.room)
        });
        found.map_err(|no| AppendError::Full { needed: no.needed, left: no.left })
    }

    /// Adds room for bodies, and counts large ones as under way; `limited` ones are refused when
    /// too many are.
    fn take_bodies(&mut self, bodies: &[OutBody], limited: bool) -> Result<(), AppendError> {
        let plain = plain_len(bodies);
        if limited && plain > 0 {
            self.add(stored_len(plain), 0)?;
        }
        if plain > SMALL_BODIES {
            let max = self.shared.options.bulk_in_flight_bytes;
            let before = self.shared.bulk_bytes.fetch_add(plain, Ordering::Relaxed);
            self.bulk = plain;
            if limited && before.saturating_add(plain) > max {
                return Err(AppendError::Full { needed: plain, left: max.saturating_sub(before) });
            }
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.room > 0 {
            self.shared.room.give_back(self.room);
        }
        if self.share > 0 {
            self.shared.room.forgo(self.share);
        }
        if self.bulk > 0 {
            self.shared.bulk_bytes.fetch_sub(self.bulk, Ordering::Relaxed);
        }
        match self.place {
            Some(Place::Slot) => self.shared.slots.fetch_sub(1, Ordering::Relaxed),
            Some(Place::Append) => self.shared.appends.fetch_sub(1, Ordering::Relaxed),
            None => 0,
        };
    }
}

/// Why something is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It neither opens nor ends a call.
    Plain,
    /// It opens the call.
    Opening(CallId),
    /// It says more of the open call.
    Listing(CallId),
    /// It ends the call.
    Ending(CallId),
}

/// One event on its way to disk.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) purpose: Purpose,
    pub(crate) draft: Draft,
    pub(crate) chunks: Vec<Packed>,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
    pub(crate) hold: Hold,
}

impl Job {
    /// A job and the answer to it.
    pub(crate) fn new(
        purpose: Purpose,
        mut draft: Draft,
        bodies: Vec<OutBody>,
        hold: Hold,
    ) -> (Box<Self>, Appending) {
        let discard = hold.shared.options.discard;
        let chunks = if discard { Vec::new() } else { pack(&mut draft, bodies) };
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Self { purpose, draft, chunks, reply, hold });
        (job, Appending(Answer::Coming(answer)))
    }

    /// Answers that it failed.
    pub(crate) fn fail(self, error: AppendError) {
        drop(self.hold);
        answer(self.reply, Err(error));
    }
}

/// Sends an answer; nobody may be there to hear it.
pub(crate) fn answer<T>(to: oneshot::Sender<T>, answer: T) {
    if to.send(answer).is_err() {
        tracing::trace!("nobody waits for this append any more");
    }
}

/// What is handed to the committing thread of the main lane.
#[derive(Debug)]
pub(crate) enum Message {
    /// An event.
    Append(Box<Job>),
    /// The call's slot is gone: end it as unknown if it is open.
    Abandon(CallId, Hold),
    /// End the run.
    Close(oneshot::Sender<Result<Appended, AppendError>>),
}

/// Keeps a call's ending behind its opening while that one's bodies are on their way.
#[derive(Debug, Default)]
pub(crate) struct Order(Mutex<Stage>);

#[derive(Debug, Default)]
enum Stage {
    /// The opening has been handed over, or never was held up.
    #[default]
    Passed,
    /// The opening is held up, and so is what must come after it.
    Held(Vec<Message>),
}

impl Order {
    fn held() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Stage::Held(Vec::new()))))
    }

    /// Lets pass what waited for the opening.
    fn pass(&self) -> Vec<Message> {
        match std::mem::take(&mut *self.0.lock()) {
            Stage::Passed => Vec::new(),
            Stage::Held(messages) => messages,
        }
    }

    /// Gives the message back when it may go on.
    fn hold_back(&self, message: Message) -> Option<Message> {
        match &mut *self.0.lock() {
            Stage::Passed => Some(message),
            Stage::Held(messages) => {
                messages.push(message);
                None
            }
        }
    }
}

impl Shared {
    /// Hands a job to the lane where its bodies go.
    pub(crate) fn submit(&self, job: Box<Job>, order: Option<Arc<Order>>) {
        if self.options.discard {
            let stream = self.present.lock().stream.clone();
            let nowhere = Appended { stream, seq: 0, at: Uint::new(0), offset: 0 };
            return answer(job.reply, Ok(nowhere));
        }
        let plain: usize = job.chunks.iter().map(|chunk| chunk.value.len()).sum();
        if plain as u64 <= SMALL_BODIES {
            return self.forward(Message::Append(job), order.as_deref());
        }
        if let Some(Load::Bodies { job, .. }) = self.bulk.push(Load::Bodies { job, order }) {
            job.fail(AppendError::Closed);
        }
    }

    /// Hands a message to the committer, in the call's order.
    pub(crate) fn forward(&self, message: Message, order: Option<&Order>) {
        let is_opening =
            matches!(&message, Message::Append(job) if matches!(job.purpose, Purpose::Opening(_)));
        let Some(order) = order else { return self.push(message) };
        if is_opening {
            self.push(message);
            self.let_pass(order);
        } else if let Some(message) = order.hold_back(message) {
            self.push(message);
        }
    }

    /// Lets pass what waited for an opening, which has gone on or will never come.
    pub(crate) fn let_pass(&self, order: &Order) {
        for message in order.pass() {
            self.push(message);
        }
    }

    fn push(&self, message: Message) {
        match self.main.push(message) {
            None | Some(Message::Abandon(..)) => {}
            Some(Message::Append(job)) => job.fail(AppendError::Closed),
            Some(Message::Close(reply)) => answer(reply, Err(AppendError::Closed)),
        }
    }
}

/// A call's place in the journal.
///
/// Dropped unopened it gives everything back; dropped after its opening it ends the call as
/// `unknown`.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    opening: Option<Hold>,
    ending: Option<Hold>,
    /// Bytes that the ending's bodies may have before they need a share of what is kept in common.
    ending_bytes: u64,
    /// The same for listings.
    listings: u64,
    call: Option<CallId>,
    order: Option<Arc<Order>>,
}

impl Slot {
    pub(crate) fn reserve(
        shared: &Arc<Shared>,
        own: Needs,
        most: Needs,
    ) -> Result<Self, AppendError> {
        let place = Some(Hold::take_place(shared, Place::Slot)?);
        let mut ending = Hold::of(shared, 0, place);
        let ending_room = own.room();
        ending.add(RECORD_ROOM, ending_room)?;
        // the opening's part is given back by the opening
        ending.room -= RECORD_ROOM;
        let opening = Hold::of(shared, RECORD_ROOM, None);
        match most.room().saturating_sub(ending_room) {
            0 => {}
            more => ending.add_share(more)?,
        }
        Ok(Self {
            shared: Arc::clone(shared),
            opening: Some(opening),
            ending: Some(ending),
            ending_bytes: own.ending_bytes,
            listings: own.listings,
            call: None,
            order: None,
        })
    }

    /// Appends the call's opening.
    pub fn open(&mut self, draft: Draft, bodies: Vec<OutBody>) -> Appending {
        let (Some(mut hold), Some(call)) = (self.opening.take(), draft.call) else {
            return Appending::failed(AppendError::Invalid("one opening per slot, with a call id"));
        };
        if !is_opening(&draft.kind) {
            return Appending::failed(AppendError::Invalid("this kind opens no call"));
        }
        if let Err(error) = hold.take_bodies(&bodies, true) {
            return Appending::failed(error);
        }
        self.call = Some(call);
        if hold.bulk > 0 {
            self.order = Some(Order::held());
        }
        let (job, appending) = Job::new(Purpose::Opening(call), draft, bodies, hold);
        self.shared.submit(job, self.order.clone());
        appending
    }

    /// Appends a `subjects.listed` of the open call, behind its opening and before its ending.
    /// Hands it over before it returns, like an ending, and takes neither place nor room that
    /// others could have taken, up to the number of listings that the slot was made for, as far as
    /// an ending does.
    pub fn list(&mut self, draft: Draft) -> Appending {
        let (Some(call), true) = (self.call, draft.kind == Kind::SubjectsListed) else {
            return Appending::failed(AppendError::Invalid("a listing follows an opening"));
        };
        if draft.call != Some(call) {
            return Appending::failed(AppendError::Invalid("the listing names another call"));
        }
        let Some(ending) = &mut self.ending else {
            return Appending::failed(AppendError::NotOpen);
        };
        match self.listings.checked_sub(1) {
            Some(left) => {
                self.listings = left;
                ending.room -= RECORD_ROOM;
            }
            None => {
                if let Err(error) = ending.draw(RECORD_ROOM) {
                    return Appending::failed(error);
                }
            }
        }
        let hold = Hold::of(&self.shared, RECORD_ROOM, None);
        let (job, appending) = Job::new(Purpose::Listing(call), draft, Vec::new(), hold);
        self.shared.submit(job, self.order.clone());
        appending
    }

    /// Appends the call's ending. Hands it over before it returns, so that the answer need not be
    /// awaited.
    pub fn end(mut self, draft: Draft, bodies: Vec<OutBody>) -> Appending {
        let (Some(call), true) = (self.call, is_ending(&draft.kind)) else {
            return Appending::failed(AppendError::Invalid("an ending follows an opening"));
        };
        if draft.call != Some(call) {
            return Appending::failed(AppendError::Invalid("the ending names another call"));
        }
        let Some(mut hold) = self.ending.take() else {
            return Appending::failed(AppendError::NotOpen);
        };
        let fits = hold.take_ending(&bodies, self.ending_bytes);
        if let Err(error) = fits {
            self.ending = Some(hold); // the drop of `self` ends the call as unknown
            return Appending::failed(error);
        }
        self.call = None;
        let (job, appending) = Job::new(Purpose::Ending(call), draft, bodies, hold);
        self.shared.submit(job, self.order.take());
        appending
    }
}

impl Hold {
    /// Takes room beyond `reserved` for an ending that is longer than its slot was made for.
    fn take_ending(&mut self, bodies: &[OutBody], reserved: u64) -> Result<(), AppendError> {
        let bytes = plain_len(bodies);
        if bytes > reserved {
            let more = stored_len(bytes) - stored_len(reserved);
            self.draw(more).map_err(|_| AppendError::TooLarge { bytes, reserved })?;
            self.room += more;
        }
        self.take_bodies(bodies, false)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let (Some(call), Some(hold)) = (self.call, self.ending.take()) {
            self.shared.forward(Message::Abandon(call, hold), self.order.as_deref());
        }
    }
}
