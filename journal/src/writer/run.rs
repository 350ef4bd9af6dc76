//! One run: the stream it writes, from `stream.opened` to `stream.closed`.
//!
//! It gives each draft its place and keeps the tree; it knows nothing of disks. What it has given
//! out counts only once the batch is durable ([`Run::settle`]).

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
    /// Leaves since the last checkpoint.
    since: Vec<Leaf>,
    started: Instant,
    last_event: Instant,
    last_checkpoint: Option<Instant>,
}

impl Run {
    /// A run of a new stream.
    pub(crate) fn new(stream: StreamId) -> Self {
        let now = clock::instant();
        Self {
            stream,
            tree: Tree::default(),
            durable: Tree::default(),
            last_at: 0,
            since: Vec::new(),
            started: now,
            last_event: now,
            last_checkpoint: None,
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
        self.since.push(record.leaf);
        self.last_event = clock::instant();
        Ok(record)
    }

    /// Whether a checkpoint is due: its time has come, or one message holds no more leaves.
    pub(crate) fn owes_checkpoint(&self, after: Duration) -> bool {
        let time = self.last_checkpoint.is_none_or(|last| clock::instant() >= last + after);
        self.since.len() >= MAX_LEAVES || (time && !self.since.is_empty())
    }

    /// Whether one more event needs a checkpoint before it.
    pub(crate) fn is_full(&self) -> bool {
        self.since.len() >= MAX_LEAVES
    }

    /// Signs the tree's head; the message to be stored.
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
        let note = head.sign(signer)?;
        let first = self.tree.size() - self.since.len() as u64;
        let leaves = std::mem::take(&mut self.since);
        self.last_checkpoint = Some(clock::instant());
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
