//! Answers that wait for more than the disk: for a shipper to say that Kafka has their events.
//!
//! * An answer is given when everything up to its event is acknowledged, in the spool's order.
//! * Whoever gives up waiting frees its place, at the latest when somebody else needs one; the
//!   event stays where it is, and is shipped.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::commit::Reply;
use super::slot::{Hold, answer};
use super::{AppendError, Appended};

/// How many wait before it is looked for those who have given up.
const LOOK: usize = 64;

/// What waits for acknowledgement.
#[derive(Debug, Default)]
pub(crate) struct Acks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The offset after the last acknowledged entry.
    reached: u64,
    waiting: VecDeque<Waiting>,
    /// How many may wait before it is looked again.
    look_at: usize,
}

/// An answer that is ready but for the acknowledgement.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Who asked.
    pub(crate) reply: Reply,
    /// What the answer will be.
    pub(crate) appended: Appended,
    /// The place that is taken until then.
    pub(crate) hold: Hold,
}

impl Waiting {
    fn answer(self) {
        let Self { reply, appended, hold } = self;
        drop(hold); // whoever hears the answer finds the place free
        answer(reply, Ok(appended));
    }

    fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }
}

impl Acks {
    /// Answers `waiting` as soon as its event is acknowledged. To be called in the order of events.
    pub(crate) fn wait(&self, mut waiting: Waiting) {
        waiting.hold.give_back_room();
        let mut state = self.0.lock();
        if waiting.appended.offset < state.reached {
            drop(state);
            return waiting.answer();
        }
        state.waiting.push_back(waiting);
        if state.waiting.len() >= state.look_at.max(LOOK) {
            let given_up = state.take_given_up();
            drop(state);
            drop(given_up);
        }
    }

    /// Answers everything below `offset`.
    #[cfg(feature = "kafka")]
    pub(crate) fn reached(&self, offset: u64) {
        let mut state = self.0.lock();
        state.reached = offset.max(state.reached);
        let done = state.waiting.partition_point(|waiting| waiting.appended.offset < offset);
        let done: Vec<_> = state.waiting.drain(..done).collect();
        drop(state);
        done.into_iter().for_each(Waiting::answer);
    }

    /// Whether anybody waits.
    #[cfg(feature = "kafka")]
    pub(crate) fn is_awaited(&self) -> bool {
        !self.0.lock().waiting.is_empty()
    }

    /// Frees the places of those who have given up.
    pub(crate) fn sweep(&self) {
        let given_up = self.0.lock().take_given_up();
        drop(given_up);
    }

    /// The writer goes: whoever waits is told that it is not known.
    pub(crate) fn end(&self) {
        let left = std::mem::take(&mut self.0.lock().waiting);
        for Waiting { reply, hold, .. } in left {
            drop(hold);
            answer(reply, Err(AppendError::Closed));
        }
    }
}

impl State {
    fn take_given_up(&mut self) -> VecDeque<Waiting> {
        let all = std::mem::take(&mut self.waiting).into_iter();
        let (given_up, waiting) = all.partition(Waiting::is_given_up);
        self.waiting = waiting;
        self.look_at = 2 * self.waiting.len();
        given_up
    }
}

#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests {
    use std::path::Path;

    use custody_schemas::event::Draft;
    use custody_schemas::kind::Kind;
    use custody_schemas::seal::key::Signer;

    use super::super::{AppendError, Appending, Durability, Writer, WriterOptions};

    const QUEUE: usize = 8;

    fn writer(dir: &Path) -> Writer {
        let signer = Signer::from_seed("audit.example/edge-1", &[3; 32]).unwrap().0;
        let options = WriterOptions {
            durability: Durability::Replicated,
            segment_bytes: 1 << 20,
            queue: QUEUE,
            ..WriterOptions::new(dir, "edge-1")
        };
        Writer::open(options, signer).unwrap().0
    }

    fn append(writer: &Writer) -> Appending {
        writer.append(Draft::new(Kind::ControlChanged), Vec::new())
    }

    /// Waits until `events` events more than the first are on disk.
    async fn stored(writer: &Writer, events: u64) {
        let mut ends = writer.subscribe();
        ends.wait_for(|_| writer.status().events >= events).await.unwrap();
    }

    #[tokio::test]
    async fn an_append_is_answered_when_it_is_acknowledged_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let writer = writer(dir.path());
        let mut appending = append(&writer);
        stored(&writer, 1).await;
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut appending);
        assert!(early.await.is_err(), "it is on disk only");
        let end = writer.subscribe().borrow().main;
        writer.acks().reached(end);
        let appended = appending.await.unwrap();
        assert!(appended.offset < end);
        // what is acknowledged before the committer hands it over is answered at once
        writer.acks().reached(end + 100);
        append(&writer).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_frees_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let writer = writer(dir.path());
        let mut waiting: Vec<_> = (0..QUEUE).map(|_| append(&writer)).collect();
        stored(&writer, QUEUE as u64).await;
        assert!(matches!(append(&writer).await, Err(AppendError::Busy { limit: QUEUE })));
        waiting.truncate(QUEUE - 1);
        let last = append(&writer);
        stored(&writer, QUEUE as u64 + 1).await;
        assert!(matches!(append(&writer).await, Err(AppendError::Busy { .. })));
        writer.acks().reached(u64::MAX);
        last.await.unwrap();
    }

    #[tokio::test]
    async fn a_writer_that_goes_leaves_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let writer = writer(dir.path());
        let appending = append(&writer);
        stored(&writer, 1).await;
        writer.close().await.unwrap();
        drop(writer);
        assert!(matches!(appending.await, Err(AppendError::Closed)));
    }
}
