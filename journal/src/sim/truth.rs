//! What everybody was told, and what must therefore hold of what is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use custody_schemas::body::{ChunkHeader, commitment};
use custody_schemas::event::Event;
use custody_schemas::id::{BodyId, CallId};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, decode};
use custody_schemas::seal::checkpoint::{Checkpoint, Message};
use custody_schemas::seal::{Leaf, Tree};
use custody_schemas::words::Status;

use super::lake::Lake;
use super::process::signer;
use crate::{Appended, Entry, EntryKind, Topic};

/// What was handed to a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// A call's opening.
    Opening(CallId),
    /// A call's ending.
    Ending(CallId),
    /// A message without a call; the number stands where a call's id would.
    Message(CallId),
}

impl What {
    /// The call, or what stands in its place.
    pub(crate) fn call(self) -> CallId {
        match self {
            Self::Opening(call) | Self::Ending(call) | Self::Message(call) => call,
        }
    }
}

/// What was tried, and what was answered.
#[derive(Default)]
pub(crate) struct Truth {
    attempted: BTreeSet<What>,
    acknowledged: BTreeMap<What, Appended>,
    /// Certainly not recorded.
    refused: BTreeSet<What>,
}

impl Truth {
    pub(crate) fn attempt(&mut self, what: What) {
        assert!(self.attempted.insert(what), "a simulation tries nothing twice");
    }

    pub(crate) fn acknowledge(&mut self, what: What, appended: Appended) {
        self.acknowledged.insert(what, appended);
    }

    pub(crate) fn refuse(&mut self, what: What) {
        self.refused.insert(what);
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// What must hold at any time of what a query reads: `entries` of both topics.
    pub(crate) fn agrees(&self, entries: &BTreeMap<(Topic, String), Vec<Entry>>) -> Found {
        let found = Found::read(entries);
        for (what, appended) in &self.acknowledged {
            let event = found.events.iter().find(|event| what_of(event) == Some(*what));
            let event = event.unwrap_or_else(|| panic!("acknowledged and lost: {what:?}"));
            let place = (&event.stream, event.seq.get());
            assert_eq!(place, (&appended.stream, appended.seq), "{what:?} is elsewhere");
            if matches!(what, What::Ending(_)) {
                assert_eq!(status(event), Some(Status::Ok), "{what:?} has another outcome");
            }
        }
        for what in found.events.iter().filter_map(what_of) {
            let unknown = matches!(what, What::Ending(_)) && !self.attempted.contains(&what);
            let opened = self.attempted.contains(&What::Opening(what.call()));
            assert!(self.attempted.contains(&what) || (unknown && opened), "invented: {what:?}");
        }
        for what in &self.refused {
            let ok = |event: &&Event| match status(event) {
                Some(status) => status == Status::Ok,
                None => true,
            };
            let event = found.events.iter().find(|event| what_of(event) == Some(*what));
            assert!(event.filter(ok).is_none(), "refused and yet recorded: {what:?}");
        }
        found
    }

    /// What must hold when everything has come to rest.
    pub(crate) fn holds(&self, lake: &Lake) {
        let found = self.agrees(lake.rows());
        let mut calls: HashMap<CallId, (u32, u32)> = HashMap::new();
        for what in found.events.iter().filter_map(what_of) {
            match what {
                What::Opening(call) => calls.entry(call).or_default().0 += 1,
                What::Ending(call) => calls.entry(call).or_default().1 += 1,
                What::Message(_) => {}
            }
        }
        for (call, times) in calls {
            assert_eq!(times, (1, 1), "{call}: openings and endings");
        }
    }
}

fn status(event: &Event) -> Option<Status> {
    event.outcome.as_ref().map(|outcome| outcome.status.clone())
}

fn what_of(event: &Event) -> Option<What> {
    let call = event.call?;
    if event.kind == Kind::CallRequested {
        return Some(What::Opening(call));
    }
    if event.kind == Kind::CallEnded {
        return Some(What::Ending(call));
    }
    (event.kind == Kind::MessageRelayed).then_some(What::Message(call))
}

/// What was read.
pub(crate) struct Found {
    pub(crate) events: Vec<Event>,
}

impl Found {
    /// Reads all entries; streams have no holes, trees are the signed ones, bodies are whole.
    fn read(entries: &BTreeMap<(Topic, String), Vec<Entry>>) -> Self {
        let mut bodies: HashMap<BodyId, (ChunkHeader, Vec<u8>)> = HashMap::new();
        for chunk in of(entries, Topic::Bodies) {
            let header = ChunkHeader::decode(&chunk.header).expect("a chunk's header");
            let body = bodies.entry(header.body).or_insert_with(|| (header, Vec::new()));
            body.1.extend_from_slice(&chunk.value);
        }
        let mut trees: HashMap<String, (Tree, Vec<Leaf>)> = HashMap::new();
        let mut events = Vec::new();
        for entry in of(entries, Topic::Events) {
            if entry.kind == EntryKind::Checkpoint {
                verify(&trees, &entry.value);
                continue;
            }
            let Decoded::Event(event) = decode(&entry.value) else { panic!("not an event") };
            let (tree, leaves) = trees.entry(event.stream.to_string()).or_default();
            assert_eq!(event.seq.get(), tree.size(), "{} has a hole or a double", event.stream);
            let leaf = event.identity().leaf(&entry.value);
            tree.push(&leaf);
            leaves.push(leaf);
            for body in [&event.bodies.request, &event.bodies.response].into_iter().flatten() {
                let (header, bytes) = bodies.get(&body.body).expect("a body without its chunks");
                assert_eq!(commitment(&header.nonce, bytes), body.commitment, "another body");
            }
            if event.kind == Kind::StreamOpened {
                lost_nothing(&event);
            }
            events.push(*event);
        }
        Self { events }
    }
}

fn of(
    entries: &BTreeMap<(Topic, String), Vec<Entry>>,
    topic: Topic,
) -> impl Iterator<Item = &Entry> {
    entries.iter().filter(move |((found, _), _)| *found == topic).flat_map(|(_, all)| all)
}

fn verify(trees: &HashMap<String, (Tree, Vec<Leaf>)>, message: &[u8]) {
    let message = Message::decode(message).expect("a checkpoint's message");
    let head = Checkpoint::verify(&message.note, &[signer().vkey()]).expect("a signature");
    let stream = head.origin.strip_prefix("custody.local/").expect("an origin");
    let (tree, leaves) = trees.get(stream).expect("a checkpoint without its stream");
    assert_eq!((head.size, head.root), (tree.size(), tree.root()), "another head was signed");
    assert_eq!(message.leaves, leaves[usize::try_from(message.first).unwrap()..]);
}

/// Nobody removes files here, so no run may report leaves as lost.
fn lost_nothing(opened: &Event) {
    use custody_schemas::json::Json;
    if let Some(Json::Map(previous)) = opened.detail.get("previous") {
        assert_eq!(previous["lost"], Json::from(0u64), "{}: reported as lost", opened.stream);
    }
}
