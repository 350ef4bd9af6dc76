//! One run: the stream it writes, from `stream.opened` to `stream.closed`.
//!
//! It gives each draft its place and keeps the tree; it knows nothing of disks. What it has given
//! out counts only once the batch is durable ([`Run::settle`]).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use custody_schemas::event::Draft;
use custody_schemas::id::{Bytes, Hash, StreamId, Uint};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::record::{Place, Record, SealError};
use custody_schemas::seal::Leaf;
use custody_schemas::seal::checkpoint::{Checkpoint, MAX_LEAVES, Message, origin};
use custody_schemas::seal::key::{KeyError, Signer};
use uuid::Uuid;

use super::{Previous, WriterOptions};
use crate::file::clock;
use custody_schemas::seal::Tree;

/// The stream that is being written.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its name.
    pub(crate) stream: StreamId,
    tree: Tree,
    durable: Tree,
    last_at: u64,
    /// Leaves since the last checkpoint, or the newest of them: as many as one message holds.
    since: VecDeque<Leaf>,
    started: Instant,
    last_event: Instant,
    last_checkpoint: Option<Instant>,
    /// Whether the last attempt to sign one failed.
    unsigned: bool,
}

/// How long a signer that has failed is not asked for the sake of room.
const RETRY: Duration = Duration::from_secs(1);

impl Run {
    /// A run of a new stream.
    pub(crate) fn new(stream: StreamId) -> Self {
        let now = clock::instant();
        Self {
            stream,
            tree: Tree::default(),
            durable: Tree::default(),
            last_at: 0,
            since: VecDeque::new(),
            started: now,
            last_event: now,
            last_checkpoint: None,
            unsigned: false,
        }
    }

    /// The name of a new stream of `writer`.
    pub(crate) fn name(writer: &str) -> Result<StreamId, custody_schemas::id::ParseIdError> {
        StreamId::new(writer, Uuid::now_v7())
    }

    /// Gives `draft` its place. A draft that cannot be sealed takes none.
    pub(crate) fn seal(&mut self, draft: Draft, now: u64) -> Result<Record, SealError> {
        let at = now.max(self.last_at);
        let record = draft.seal(Place {
            stream: self.stream.clone(),
            seq: self.tree.size(),
            at: Uint::new(at),
            salt: Bytes(rand::random()),
        })?;
        self.last_at = at;
        self.tree.push(&record.leaf);
        if self.since.len() >= MAX_LEAVES {
            // nobody has signed for long: these will be verified from the stored records
            self.since.pop_front();
        }
        self.since.push_back(record.leaf);
        self.last_event = clock::instant();
        Ok(record)
    }

    /// Whether a checkpoint is due: its time has come, or one message holds no more leaves.
    pub(crate) fn owes_checkpoint(&self, after: Duration) -> bool {
        let time = self.last_checkpoint.is_none_or(|last| clock::instant() >= last + after);
        time && !self.since.is_empty()
    }

    /// Whether one more event needs a checkpoint before it.
    pub(crate) fn is_full(&self) -> bool {
        let last = self.last_checkpoint.filter(|_| self.unsigned);
        let again = last.is_none_or(|last| clock::instant() >= last + RETRY);
        self.since.len() >= MAX_LEAVES && again
    }

    /// Signs the tree's head; the message to be stored. When nobody signs, the next attempt has
    /// its time.
    pub(crate) fn checkpoint(
        &mut self,
        deployment: &str,
        signer: &Signer,
    ) -> Result<Vec<u8>, KeyError> {
        let head = Checkpoint {
            origin: origin(deployment, &self.stream),
            size: self.tree.size(),
            root: self.tree.root(),
        };
        self.last_checkpoint = Some(clock::instant());
        let signed = head.sign(signer);
        self.unsigned = signed.is_err();
        let note = signed?;
        let first = self.tree.size() - self.since.len() as u64;
        let leaves = std::mem::take(&mut self.since).into();
        Ok(Message { note, first, leaves }.encode())
    }

    /// Whether places were given out that are not durable yet.
    pub(crate) fn has_grown(&self) -> bool {
        self.tree.size() > self.durable.size()
    }

    /// Notes that all that was given out is durable; how many events that is.
    pub(crate) fn settle(&mut self) -> u64 {
        let events = self.tree.size() - self.durable.size();
        self.durable.clone_from(&self.tree);
        events
    }

    /// Size and root of what is durable.
    pub(crate) fn durable(&self) -> (u64, Hash) {
        (self.durable.size(), self.durable.root())
    }

    /// The tree of what is durable.
    pub(crate) fn durable_tree(&self) -> &Tree {
        &self.durable
    }

    /// How many leaves are durable.
    pub(crate) fn durable_size(&self) -> u64 {
        self.durable.size()
    }

    /// Whether the stream has been silent for as long.
    pub(crate) fn owes_alive(&self, after: Duration) -> bool {
        clock::instant() >= self.last_event + after
    }

    /// Whether the run has lasted as long.
    pub(crate) fn owes_roll(&self, after: Duration) -> bool {
        clock::instant() >= self.started + after
    }

    /// When the next of these is due.
    pub(crate) fn next_tick(&self, options: &WriterOptions) -> Instant {
        let alive = self.last_event + options.alive_after;
        let roll = self.started + options.roll_after;
        let checkpoint = match self.last_checkpoint {
            _ if self.since.is_empty() => alive,
            Some(last) => last + options.checkpoint_after,
            None => clock::instant(),
        };
        alive.min(roll).min(checkpoint)
    }
}

/// The draft of leaf 0.
pub(crate) fn opened(options: &WriterOptions, vkey: &str, previous: Option<&Previous>) -> Draft {
    let mut draft = Draft::new(Kind::StreamOpened)
        .with("vkey", vkey)
        .with("build", options.build.as_str())
        .with("clock", "system");
    if let Some(hash) = options.config_hash {
        draft = draft.with("config", hash.to_string());
    }
    if let Some(version) = &options.policy_version {
        draft = draft.with("policy_version", version.as_str());
    }
    match previous {
        None => draft,
        Some(previous) => draft.with(
            "previous",
            Json::from([
                ("stream", Json::from(previous.stream.as_str())),
                ("size", Json::from(previous.size)),
                ("root", Json::from(previous.root.to_string())),
                ("clean", Json::from(previous.clean)),
                ("lost", Json::from(previous.lost)),
            ]),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A signer that fails until it is told to work.
    fn moody() -> (Signer, Arc<AtomicBool>) {
        let here = Signer::from_seed("audit.example/edge-1", &[3; 32]).unwrap().0;
        let (vkey, works) = (here.vkey().to_owned(), Arc::new(AtomicBool::new(false)));
        let asked = Arc::clone(&works);
        let ask = move |text: &str| {
            if !asked.load(Ordering::Relaxed) {
                return Err("not today".to_owned());
            }
            let note = here.sign(text).map_err(|error| error.to_string())?;
            Ok(note.lines().last().unwrap_or_default().to_owned())
        };
        (Signer::elsewhere(&vkey, Box::new(ask)).unwrap(), works)
    }

    #[test]
    fn what_nobody_signed_for_long_is_signed_whole_and_its_message_stays_readable() {
        let mut run = Run::new(Run::name("edge-1").unwrap());
        let (signer, works) = moody();
        let events = MAX_LEAVES as u64 + 100;
        for at in 0..events {
            run.seal(Draft::new(Kind::StreamAlive), at).unwrap();
            if run.is_full() {
                run.checkpoint("audit.example", &signer).unwrap_err();
                assert!(!run.is_full(), "a signer that has failed is not asked for each event");
            }
        }
        assert!(run.checkpoint("audit.example", &signer).is_err());
        works.store(true, Ordering::Relaxed);
        let message = Message::decode(&run.checkpoint("audit.example", &signer).unwrap()).unwrap();
        assert_eq!((message.first, message.leaves.len()), (100, MAX_LEAVES));
        let head = Checkpoint::verify(&message.note, &[signer.vkey()]).unwrap();
        assert_eq!((head.size, head.root), (events, run.tree.root()));
        assert!(!run.is_full() && run.since.is_empty());
    }
}
