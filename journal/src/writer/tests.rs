//! The writer's promises, and the ways in which a disk or a process tries to break them.

mod recovery;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use custody_schemas::body::{ChunkHeader, commitment};
use custody_schemas::event::{Draft, Event, Outcome, Subject};
use custody_schemas::id::{Bytes as Bytes16, CallId, Uint};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, Place, decode};
use custody_schemas::seal::checkpoint::{Checkpoint, Message};
use custody_schemas::seal::key::Signer;
use custody_schemas::seal::{Leaf, Tree};
use custody_schemas::words::Status;

use super::{AppendError, Needs, OpenError, OutBody, Part, Recovery, Writer, WriterOptions};
use crate::file::{LockError, SpoolError};
use crate::{Entry, EntryKind, Journal, Partition, Topic};

fn signer() -> Signer {
    Signer::from_seed("audit.example/edge-1", &[3; 32]).unwrap().0
}

fn options(dir: &Path) -> WriterOptions {
    WriterOptions {
        origin: "audit.example".to_owned(),
        segment_bytes: 1 << 20,
        spool_max_bytes: 1 << 30,
        queue: 256,
        ..WriterOptions::new(dir, "edge-1")
    }
}

fn open(dir: &Path) -> (Writer, Recovery) {
    Writer::open(options(dir), signer()).unwrap()
}

/// A writer whose appends can be made to fail, and that appends nothing of its own accord.
async fn failing(dir: &Path) -> (Writer, Recovery, WriterOptions) {
    let options = WriterOptions { checkpoint_after: Duration::from_secs(3600), ..options(dir) };
    let (writer, recovery) = Writer::open(options.clone(), signer()).unwrap();
    // the first checkpoint is due at once
    writer.subscribe().wait_for(|_| writer.status().commits > 0).await.unwrap();
    (writer, recovery, options)
}

fn call() -> CallId {
    CallId::from_uuid(uuid::Uuid::now_v7())
}

fn opening(call: CallId) -> Draft {
    Draft { call: Some(call), ..Draft::new(Kind::CallRequested) }
}

fn ending(call: CallId, status: Status) -> Draft {
    let outcome = Some(Outcome { status, ..Outcome::default() });
    Draft { call: Some(call), outcome, ..Draft::new(Kind::CallEnded) }
}

fn body(part: Part, len: usize) -> OutBody {
    OutBody { part, bytes: Bytes::from(vec![0x5a; len]) }
}

fn partition(topic: Topic, name: &str) -> Partition {
    Partition { topic, name: name.to_owned() }
}

fn entries(journal: &dyn Journal, topic: Topic, name: &str) -> Vec<Entry> {
    let mut reader = journal.reader(&partition(topic, name), 0).unwrap();
    let mut all = Vec::new();
    loop {
        let some = reader.read(100, 1 << 20, Duration::ZERO).unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// Every event in the journal, its streams' `seq` and trees checked against the checkpoints.
fn events(journal: &dyn Journal) -> Vec<Event> {
    let mut trees: HashMap<String, (Tree, Vec<Leaf>)> = HashMap::new();
    let mut events = Vec::new();
    for entry in entries(journal, Topic::Events, "edge-1") {
        if entry.kind == EntryKind::Checkpoint {
            let message = Message::decode(&entry.value).unwrap();
            let head = Checkpoint::verify(&message.note, &[signer().vkey()]).unwrap();
            let stream = head.origin.strip_prefix("audit.example/").unwrap();
            let (tree, leaves) = &trees[stream];
            assert_eq!((head.size, head.root), (tree.size(), tree.root()));
            assert_eq!(message.leaves, leaves[usize::try_from(message.first).unwrap()..]);
            continue;
        }
        let Decoded::Event(event) = decode(&entry.value) else { panic!("not an event") };
        let (tree, leaves) = trees.entry(event.stream.to_string()).or_default();
        assert_eq!(event.seq.get(), tree.size(), "seq is gapless");
        let leaf = event.identity().leaf(&entry.value);
        tree.push(&leaf);
        leaves.push(leaf);
        events.push(*event);
    }
    events
}

fn of_kind(events: &[Event], kind: Kind) -> Vec<&Event> {
    events.iter().filter(|event| event.kind == kind).collect()
}

fn statuses(events: &[Event]) -> Vec<Status> {
    let ended = of_kind(events, Kind::CallEnded);
    ended.iter().map(|event| event.outcome.clone().unwrap().status).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn seq_is_gapless_across_group_commits_of_many_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let mut tasks = Vec::new();
    for _ in 0..64 {
        let writer = writer.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..20 {
                let call = call();
                let mut slot = writer.slot(100).unwrap();
                let opened = slot.open(opening(call), vec![body(Part::Request, 50)]).await.unwrap();
                let ended = slot.end(ending(call, Status::Ok), vec![body(Part::Response, 70)]);
                let ended = ended.await.unwrap();
                assert!(ended.seq > opened.seq && ended.offset > opened.offset);
                assert!(ended.at >= opened.at);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let status = writer.status();
    assert_eq!((status.slots, status.problem), (0, None));
    assert!(status.commits < 2 * 64 * 20, "commits are shared");
    let closed = writer.close().await.unwrap();
    let events = events(&*writer.journal());
    assert_eq!(events.len(), 2 * 64 * 20 + 2);
    assert_eq!(closed.seq + 1, events.len() as u64);
    assert!(events.is_sorted_by_key(|event| event.at));
    assert!(matches!(writer.slot(1), Err(AppendError::Closed)));
    assert!(matches!(writer.close().await, Err(AppendError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_stored_before_their_record_and_match_its_commitment() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let call = call();
    let mut slot = writer.slot(3 << 20).unwrap();
    let small = slot.open(opening(call), vec![body(Part::Request, 60 << 10)]).await.unwrap();
    let large = vec![body(Part::Response, 3 << 20), body(Part::Edits, 0)];
    slot.end(ending(call, Status::Ok), large).await.unwrap();
    let journal = writer.journal();
    let main = entries(&*journal, Topic::Bodies, "edge-1");
    assert_eq!((main.len(), main[0].offset + 1), (1, small.offset));
    let bulk = entries(&*journal, Topic::Bodies, "edge-1.bulk");
    assert_eq!(bulk.len(), 7);
    let events = events(&*journal);
    for reference in
        [&events[1].bodies.request, &events[2].bodies.response, &events[2].bodies.edits]
    {
        let reference = reference.as_ref().unwrap();
        let header = |entry: &Entry| ChunkHeader::decode(&entry.header).unwrap();
        let chunks: Vec<_> =
            main.iter().chain(&bulk).filter(|e| header(e).body == reference.body).collect();
        let bytes: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.value.to_vec()).collect();
        assert_eq!(bytes.len() as u64, reference.bytes.get());
        assert_eq!(commitment(&header(chunks[0]).nonce, &bytes), reference.commitment);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ending_stays_behind_an_opening_whose_large_body_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let mut answers = Vec::new();
    for _ in 0..20 {
        let call = call();
        let mut slot = writer.slot(0).unwrap();
        // nobody waits for the opening
        drop(slot.open(opening(call), vec![body(Part::Request, 1 << 20)]));
        answers.push(slot.end(ending(call, Status::NotForwarded), Vec::new()));
    }
    for answer in answers {
        answer.await.unwrap();
    }
    assert_eq!(statuses(&events(&*writer.journal())), vec![Status::NotForwarded; 20]);
}

#[tokio::test]
async fn endings_handed_in_by_drops_are_never_lost_however_full_the_queue_is() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let mut slots = Vec::new();
    for _ in 0..256 {
        let call = call();
        let mut slot = writer.slot(0).unwrap();
        drop(slot.open(opening(call), Vec::new()));
        slots.push((call, slot));
    }
    assert!(matches!(writer.slot(0), Err(AppendError::Busy { limit: 256 })));
    for (i, (call, slot)) in slots.into_iter().enumerate() {
        if i % 2 == 0 {
            drop(slot.end(ending(call, Status::Abandoned), Vec::new()));
        } else {
            drop(slot);
        }
    }
    writer.close().await.unwrap();
    let statuses = statuses(&events(&*writer.journal()));
    assert_eq!(statuses.iter().filter(|status| **status == Status::Abandoned).count(), 128);
    assert_eq!(statuses.iter().filter(|status| **status == Status::Unknown).count(), 128);
    assert_eq!(writer.status().slots, 0);
}

#[tokio::test]
async fn an_append_that_fails_before_it_is_stored_takes_no_seq() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let unknown = writer.append(Draft::new(Kind::Unknown("x".into())), Vec::new());
    assert!(matches!(unknown.await, Err(AppendError::Seal(_))));
    let misplaced = writer.append(opening(call()), Vec::new());
    assert!(matches!(misplaced.await, Err(AppendError::Invalid(_))));
    let good = writer.append(Draft::new(Kind::CallDenied), Vec::new()).await.unwrap();
    assert_eq!(good.seq, 1);
    events(&*writer.journal());
}

#[tokio::test]
async fn a_second_writer_on_the_same_spool_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let second = Writer::open(options(dir.path()), signer()).unwrap_err();
    assert!(matches!(second, OpenError::Spool(SpoolError::Lock(LockError::InUse(_)))), "{second}");
    drop(writer);
    open(dir.path());
}

#[tokio::test]
async fn a_full_spool_refuses_before_the_effect_and_still_takes_the_endings_of_open_calls() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions { spool_max_bytes: 12 << 20, ..options(dir.path()) };
    let (writer, _) = Writer::open(options, signer()).unwrap();
    let mut open = Vec::new();
    for _ in 0..2 {
        let call = call();
        let mut slot = writer.slot(1 << 20).unwrap();
        slot.open(opening(call), Vec::new()).await.unwrap();
        open.push((call, slot));
    }
    let big = || vec![body(Part::Request, 1 << 20)];
    let full = loop {
        match writer.append(Draft::new(Kind::MessageRelayed), big()).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::Full { .. }), "{full}");
    assert!(matches!(writer.slot(1 << 20), Err(AppendError::Full { .. })));
    for (call, slot) in open {
        slot.end(ending(call, Status::Ok), vec![body(Part::Response, 1 << 20)]).await.unwrap();
    }
    assert!(writer.status().spool_used_bytes <= 12 << 20);
    assert_eq!(statuses(&events(&*writer.journal())), [Status::Ok, Status::Ok]);
}

#[tokio::test]
async fn of_many_open_calls_every_short_ending_fits_and_as_many_long_ones_as_an_eighth_holds() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions { spool_max_bytes: 64 << 20, queue: 512, ..options(dir.path()) };
    let (writer, _) = Writer::open(options, signer()).unwrap();
    let own = Needs { ending_bytes: 4 << 10, listings: 0 };
    let most = Needs { ending_bytes: 3 << 20, listings: 0 };
    let mut open = Vec::new();
    for _ in 0..200 {
        let call = call();
        let mut slot = writer.slot_with_share(own, most).unwrap();
        slot.open(opening(call), Vec::new()).await.unwrap();
        open.push((call, slot));
    }
    // whoever comes now takes what is left, in ever smaller pieces
    let mut taken = Vec::new();
    for bytes in [8 << 20, 1 << 20, 64 << 10, 0] {
        while let Ok(slot) = writer.slot(bytes) {
            taken.push(slot);
        }
    }
    let mut results = Vec::new();
    for (call, slot) in open.drain(..4) {
        let long = vec![body(Part::Response, 3 << 20)];
        results.push(slot.end(ending(call, Status::Ok), long).await);
    }
    let fitted = results.iter().take_while(|result| result.is_ok()).count();
    assert_eq!(fitted, 2, "an eighth is 8 MiB: {results:?}");
    let no_room = |result: &Result<_, _>| matches!(result, Err(AppendError::TooLarge { .. }));
    assert!(results[fitted..].iter().all(no_room), "{results:?}");
    assert!(writer.slot_with_share(own, most).is_err(), "nothing new before there is room again");
    for (call, slot) in open {
        slot.end(ending(call, Status::Ok), vec![body(Part::Response, 4 << 10)]).await.unwrap();
    }
    drop(taken);
    writer.slot_with_share(own, most).unwrap();
    let ended = statuses(&events(&*writer.journal()));
    let of = |status: &Status| ended.iter().filter(|other| *other == status).count();
    assert_eq!((of(&Status::Ok), of(&Status::Unknown)), (198, 2));
}

#[tokio::test]
async fn listings_of_open_calls_fit_into_a_spool_that_takes_nothing_else_and_stay_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let small = WriterOptions { spool_max_bytes: 8 << 20, queue: 4, ..options(dir.path()) };
    let (writer, _) = Writer::open(small, signer()).unwrap();
    let id = call();
    let mut slot = {
        let needs = Needs { ending_bytes: 1 << 10, listings: 3 };
        writer.slot_with_share(needs, needs).unwrap()
    };
    let opened = slot.open(opening(id), vec![body(Part::Request, 300 << 10)]);
    let listing = || Draft { call: Some(id), ..Draft::new(Kind::SubjectsListed) };
    let first = slot.list(listing());
    opened.await.unwrap();
    first.await.unwrap();
    let filler = || Draft::new(Kind::MessageRelayed);
    while writer.append(filler(), vec![body(Part::Request, 60 << 10)]).await.is_ok() {}
    // ever smaller, until not even a record fits
    while writer.append(filler(), Vec::new()).await.is_ok() {}
    assert!(writer.append(listing(), Vec::new()).await.is_err(), "there is room after all");
    let listed = [slot.list(listing()), slot.list(listing())];
    let ended = slot.end(ending(id, Status::Ok), Vec::new());
    for listing in listed {
        listing.await.unwrap();
    }
    ended.await.unwrap();
    let events = events(&*writer.journal());
    let of_call = events.iter().filter(|event| event.call == Some(id));
    let kinds: Vec<_> = of_call.map(|event| event.kind.clone()).collect();
    let listed = Kind::SubjectsListed;
    let expected = [Kind::CallRequested, listed.clone(), listed.clone(), listed, Kind::CallEnded];
    assert_eq!(kinds, expected);
}

#[tokio::test]
async fn only_subjects_of_the_open_call_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let id = call();
    let listing = |call| Draft { call: Some(call), ..Draft::new(Kind::SubjectsListed) };
    let mut slot = {
        let needs = Needs { ending_bytes: 0, listings: 1 };
        writer.slot_with_share(needs, needs).unwrap()
    };
    let refused = |answer| matches!(answer, Err(AppendError::Invalid(_)));
    assert!(refused(slot.list(listing(id)).await), "not open yet");
    slot.open(opening(id), Vec::new()).await.unwrap();
    assert!(refused(slot.list(listing(call())).await), "another call");
    let other = Draft { call: Some(id), ..Draft::new(Kind::MessageRelayed) };
    assert!(refused(slot.list(other).await), "another kind");
    slot.list(listing(id)).await.unwrap();
    slot.list(listing(id)).await.unwrap();
}

#[tokio::test]
async fn what_is_released_makes_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions { spool_max_bytes: 12 << 20, ..options(dir.path()) };
    let (writer, _) = Writer::open(options, signer()).unwrap();
    let journal = writer.journal();
    for _ in 0..60 {
        let relayed = Draft::new(Kind::MessageRelayed);
        let appended = writer.append(relayed, vec![body(Part::Request, 1 << 20)]).await.unwrap();
        let bulk = writer.subscribe().borrow().bulk;
        journal.release(&partition(Topic::Bodies, "edge-1.bulk"), bulk).unwrap();
        for topic in [Topic::Events, Topic::Bodies] {
            journal.release(&partition(topic, "edge-1"), appended.offset + 1).unwrap();
        }
    }
    assert!(writer.status().spool_used_bytes <= 12 << 20);
}
