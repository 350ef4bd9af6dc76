//! What every journal must do, as a function that each implementation's tests call.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{Append, Entry, EntryKind, Journal, NewEntry, Partition, ReadError, Topic};

/// One journal under test: where to append, where to read, and its partition of events.
pub(crate) struct Subject {
    pub(crate) append: Box<dyn Append>,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) events: Partition,
    pub(crate) bodies: Partition,
}

const NO_WAIT: Duration = Duration::ZERO;

fn event(text: &str) -> NewEntry {
    let value = Bytes::copy_from_slice(text.as_bytes());
    NewEntry { kind: EntryKind::Event, header: Bytes::new(), value }
}

fn chunk(header: &str, text: &str) -> NewEntry {
    let header = Bytes::copy_from_slice(header.as_bytes());
    NewEntry { kind: EntryKind::Chunk, header, ..event(text) }
}

fn texts(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| std::str::from_utf8(&entry.value).unwrap()).collect()
}

/// Runs the whole suite; `make` makes an empty journal each time.
pub(crate) fn suite(make: &dyn Fn() -> Subject) {
    what_is_appended_is_read_in_order_by_topic(make());
    a_reader_goes_on_from_any_offset(make());
    limits_bound_what_one_read_returns(make());
    a_waiting_reader_sees_an_append_at_once(make());
    a_reader_moves_past_what_is_not_for_it_without_waiting(make());
    offsets_beyond_the_end_are_refused(make());
    an_unknown_partition_is_an_error(make());
    large_and_empty_entries_read_back(make());
    releasing_never_takes_what_is_not_released(make());
}

fn what_is_appended_is_read_in_order_by_topic(mut subject: Subject) {
    let first = subject.append.append(&[chunk("h", "body"), event("one")]).unwrap();
    let second = subject.append.append(&[event("two")]).unwrap();
    assert_eq!(first.end, second.start);
    let mut events = subject.journal.reader(&subject.events, 0).unwrap();
    let entries = events.read(10, 1000, NO_WAIT).unwrap();
    assert_eq!(texts(&entries), ["one", "two"]);
    assert_eq!([entries[0].offset, entries[1].offset], [first.end - 1, second.start]);
    assert!(
        entries[0].journaled_at.get() > 0 && entries[0].journaled_at <= entries[1].journaled_at
    );
    assert_eq!((events.position(), events.end().unwrap()), (second.end, second.end));
    let mut bodies = subject.journal.reader(&subject.bodies, 0).unwrap();
    let entries = bodies.read(10, 1000, NO_WAIT).unwrap();
    assert_eq!((texts(&entries), &entries[0].header[..]), (vec!["body"], &b"h"[..]));
    assert_eq!(bodies.read(10, 1000, NO_WAIT).unwrap(), []);
}

fn a_reader_goes_on_from_any_offset(mut subject: Subject) {
    let mut expected = Vec::new();
    for batch in 0..20 {
        let texts: Vec<_> = (0..batch % 4 + 1).map(|i| format!("{batch}.{i}")).collect();
        let entries: Vec<_> = texts.iter().map(|text| event(text)).collect();
        let offsets = subject.append.append(&entries).unwrap();
        expected.extend(offsets.zip(texts));
    }
    for (i, (offset, _)) in expected.iter().enumerate() {
        let mut reader = subject.journal.reader(&subject.events, *offset).unwrap();
        let rest = reader.read(1000, 100_000, NO_WAIT).unwrap();
        let want: Vec<_> = expected[i..].iter().map(|(_, text)| text.as_str()).collect();
        // offset 0 stands for the oldest entry
        assert_eq!(texts(&rest), if *offset == 0 { texts(&rest) } else { want });
        reader.seek(*offset).unwrap();
        assert_eq!(reader.read(1, 1000, NO_WAIT).unwrap()[0].offset, *offset);
        reader.seek(expected[0].0).unwrap();
        assert_eq!(reader.read(1000, 100_000, NO_WAIT).unwrap().len(), expected.len());
    }
}

fn limits_bound_what_one_read_returns(mut subject: Subject) {
    subject.append.append(&[event("aaaa"), event("bbbb"), event("cccc"), event("dd")]).unwrap();
    let mut reader = subject.journal.reader(&subject.events, 0).unwrap();
    assert_eq!(texts(&reader.read(1, 1000, NO_WAIT).unwrap()), ["aaaa"]);
    assert_eq!(texts(&reader.read(9, 1, NO_WAIT).unwrap()), ["bbbb"]);
    assert_eq!(texts(&reader.read(9, 6, NO_WAIT).unwrap()), ["cccc", "dd"]);
}

fn a_waiting_reader_sees_an_append_at_once(mut subject: Subject) {
    let mut reader = subject.journal.reader(&subject.events, 0).unwrap();
    let waiting = thread::spawn(move || {
        let started = Instant::now();
        (reader.read(1, 1000, Duration::from_secs(60)).unwrap(), started.elapsed())
    });
    subject.append.append(&[event("now")]).unwrap();
    let (entries, waited) = waiting.join().unwrap();
    assert_eq!(texts(&entries), ["now"]);
    assert!(waited < Duration::from_secs(50));
}

fn a_reader_moves_past_what_is_not_for_it_without_waiting(mut subject: Subject) {
    let mut reader = subject.journal.reader(&subject.events, 0).unwrap();
    let end = subject.append.append(&[chunk("h", "not for you")]).unwrap().end;
    if reader.end().unwrap() == reader.position() {
        return; // bodies have offsets of their own: there is nothing to move past
    }
    let started = Instant::now();
    assert_eq!(reader.read(1, 1000, Duration::from_secs(60)).unwrap(), []);
    assert!(started.elapsed() < Duration::from_secs(50));
    assert_eq!(reader.position(), end);
    subject.append.append(&[event("for you")]).unwrap();
    assert_eq!(texts(&reader.read(1, 1000, NO_WAIT).unwrap()), ["for you"]);
}

fn offsets_beyond_the_end_are_refused(mut subject: Subject) {
    let end = subject.append.append(&[event("x")]).unwrap().end;
    assert!(subject.journal.reader(&subject.events, end).is_ok());
    let beyond = subject.journal.reader(&subject.events, end + 1);
    assert!(matches!(beyond.err(), Some(ReadError::Beyond { wanted, end: found })
        if (wanted, found) == (end + 1, end)));
}

fn an_unknown_partition_is_an_error(subject: Subject) {
    let partitions = subject.journal.partitions().unwrap();
    assert!(partitions.contains(&subject.events) && partitions.contains(&subject.bodies));
    let unknown = Partition { topic: Topic::Events, name: "nobody".to_owned() };
    assert!(matches!(subject.journal.reader(&unknown, 0).err(), Some(ReadError::NoPartition(_))));
    assert!(matches!(subject.journal.release(&unknown, 0), Err(ReadError::NoPartition(_))));
}

fn large_and_empty_entries_read_back(mut subject: Subject) {
    let large = "x".repeat(3 << 20);
    subject.append.append(&[event(""), event(&large), event("after")]).unwrap();
    let mut reader = subject.journal.reader(&subject.events, 0).unwrap();
    let entries = reader.read(10, 10 << 20, NO_WAIT).unwrap();
    assert_eq!(texts(&entries), ["", large.as_str(), "after"]);
}

fn releasing_never_takes_what_is_not_released(mut subject: Subject) {
    let big = "y".repeat(300 << 10);
    let offsets: Vec<_> =
        (0..20).map(|_| subject.append.append(&[event(&big)]).unwrap().start).collect();
    subject.journal.release(&subject.events, offsets[10]).unwrap();
    subject.journal.release(&subject.bodies, offsets[10]).unwrap();
    let mut reader = subject.journal.reader(&subject.events, offsets[10]).unwrap();
    assert_eq!(reader.read(100, 100 << 20, NO_WAIT).unwrap().len(), 10);
}
