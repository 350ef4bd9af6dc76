//! Faults of the file journal: torn tails, damage, newer formats, second handles, lost files.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::format::SEGMENT_HEADER;
use super::{FileAppend, LockError, SpoolError};
use crate::contract::{Subject, suite};
use crate::{Append, EntryKind, Journal, NewEntry, Partition, ReadError, Topic};

const SEGMENT: u64 = 1 << 20;

fn open(dir: &Path) -> Result<FileAppend, SpoolError> {
    FileAppend::open(dir, "edge-1", SEGMENT)
}

fn events() -> Partition {
    Partition { topic: Topic::Events, name: "edge-1".to_owned() }
}

fn event(text: &str) -> NewEntry {
    let value = Bytes::copy_from_slice(text.as_bytes());
    NewEntry { kind: EntryKind::Event, header: Bytes::new(), value }
}

fn texts(append: &FileAppend) -> Result<Vec<String>, ReadError> {
    let mut reader = append.journal().reader(&events(), 0)?;
    let entries = reader.read(1000, usize::MAX, Duration::ZERO)?;
    Ok(entries.iter().map(|e| String::from_utf8(e.value.to_vec()).unwrap()).collect())
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("edge-1/main").join(super::segment::file_name(0))
}

/// Three batches, and where each begins.
fn three_batches(dir: &Path) -> [u64; 4] {
    let mut append = open(dir).unwrap();
    let mut at = [SEGMENT_HEADER; 4];
    for (i, text) in ["first", "second", "third, which is a bit longer"].iter().enumerate() {
        append.append(&[event(text), event("and more")]).unwrap();
        at[i + 1] = append.journal().spools[0].main.last().unwrap().end.position;
    }
    at
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn the_file_journal_keeps_the_contract() {
    suite(&|| {
        let dir = tempfile::tempdir().unwrap().keep();
        let append = open(&dir).unwrap();
        let journal = append.journal();
        let bodies = Partition { topic: Topic::Bodies, ..events() };
        Subject { append: Box::new(append), journal, events: events(), bodies }
    });
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off_and_the_journal_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = three_batches(dir.path());
    let whole = fs::read(first_segment(dir.path())).unwrap();
    let (from, to) = (usize::try_from(at[2]).unwrap(), usize::try_from(at[3]).unwrap());
    // the padding behind the last batch is zero anyway
    let last = (from..to).rev().find(|i| whole[*i] != 0).unwrap();
    for torn_at in from..=last {
        if whole[torn_at..=last].iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut torn = whole.clone();
        torn[torn_at..].fill(0);
        fs::write(first_segment(dir.path()), &torn).unwrap();
        let mut append = open(dir.path()).unwrap();
        assert_eq!(texts(&append).unwrap().len(), 4, "torn at {torn_at}");
        append.append(&[event("after")]).unwrap();
        assert_eq!(texts(&append).unwrap()[4], "after");
    }
}

#[test]
fn bytes_that_never_became_durable_may_stand_there_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let at = three_batches(dir.path());
    let path = first_segment(dir.path());
    write(&path, at[2], &[0; 16]); // the head of the last batch is lost, its rest is not
    let append = open(dir.path()).unwrap();
    assert_eq!(texts(&append).unwrap().len(), 4);
    drop(append);
    let wiped = fs::read(&path).unwrap();
    assert!(wiped[usize::try_from(at[2]).unwrap()..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_flipped_byte_in_the_middle_is_an_error_with_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let at = three_batches(dir.path());
    let path = first_segment(dir.path());
    let whole = fs::read(&path).unwrap();
    for flipped in [at[1], at[1] + 5, at[1] + 20, at[1] + 70, at[0] + 66] {
        let byte = whole[usize::try_from(flipped).unwrap()];
        write(&path, flipped, &[byte ^ 0x10]);
        let expected = if flipped < at[1] { at[0] } else { at[1] };
        match open(dir.path()) {
            Err(SpoolError::Read(ReadError::Corrupt { segment, position, .. })) => {
                assert_eq!((segment, position), (path.clone(), expected), "flipped {flipped}");
            }
            other => panic!("flipped {flipped}: {other:?}"),
        }
        write(&path, flipped, &[byte]);
    }
    assert_eq!(texts(&open(dir.path()).unwrap()).unwrap().len(), 6);
}

#[test]
fn damage_in_an_older_segment_stops_its_reader_there_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut append = open(dir.path()).unwrap();
    let big = "z".repeat(400 << 10);
    for _ in 0..30 {
        append.append(&[event(&big)]).unwrap();
    }
    assert!(append.journal().spools[0].main.all().len() > 2);
    write(&first_segment(dir.path()), SEGMENT_HEADER + (400 << 10) + 500, b"!");
    let mut reader = append.journal().reader(&events(), 0).unwrap();
    assert_eq!(reader.read(1, 1, Duration::ZERO).unwrap().len(), 1);
    for _ in 0..2 {
        let error = reader.read(10, usize::MAX, Duration::ZERO).unwrap_err();
        assert!(matches!(error, ReadError::Corrupt { position, .. } if position > SEGMENT_HEADER));
        assert_eq!(reader.position(), 1);
    }
    reader.seek(29).unwrap();
    assert_eq!(reader.read(10, usize::MAX, Duration::ZERO).unwrap().len(), 1);
}

#[test]
fn a_newer_format_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    three_batches(dir.path());
    write(&first_segment(dir.path()), 8, &9u32.to_le_bytes());
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, SpoolError::Read(ReadError::Newer { found: 9, known: 1, .. })));
    assert!(error.to_string().contains("that version or later"), "{error}");
}

#[test]
fn a_second_handle_on_the_same_spool_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let second = open(dir.path()).unwrap_err();
    assert!(matches!(second, SpoolError::Lock(LockError::InUse(_))), "{second}");
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn a_removed_file_fails_the_append_at_once_and_the_next_one_begins_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut append = open(dir.path()).unwrap();
    append.append(&[event("lost with its file")]).unwrap();
    fs::remove_file(first_segment(dir.path())).unwrap();
    let error = append.append(&[event("never acknowledged")]).unwrap_err();
    assert!(error.to_string().contains("removed"), "{error}");
    let offsets = append.append(&[event("safe")]).unwrap();
    assert_eq!(offsets, 1..2);
    assert_eq!(texts(&append).unwrap(), ["safe"]);
    drop(append);
    assert_eq!(texts(&open(dir.path()).unwrap()).unwrap(), ["safe"]);
}

#[test]
fn a_reader_is_told_of_the_hole_that_a_removed_file_left_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut append = open(dir.path()).unwrap();
    let big = "h".repeat(600 << 10);
    for _ in 0..3 {
        append.append(&[event(&big)]).unwrap();
    }
    let last = append.journal().spools[0].main.last().unwrap();
    assert_eq!(last.base, 2, "one in each segment");
    fs::remove_file(last.path).unwrap();
    append.append(&[event("fails")]).unwrap_err();
    append.append(&[event("safe")]).unwrap();
    for _ in 0..2 {
        let mut reader = append.journal().reader(&events(), 0).unwrap();
        assert_eq!(reader.read(10, usize::MAX, Duration::ZERO).unwrap().len(), 2);
        let gone = reader.read(10, usize::MAX, Duration::ZERO).unwrap_err();
        assert!(matches!(gone, ReadError::Gone { wanted: 2, first: 3 }), "{gone}");
        reader.seek(3).unwrap();
        assert_eq!(reader.read(10, usize::MAX, Duration::ZERO).unwrap()[0].offset, 3);
        drop((append, reader));
        append = open(dir.path()).unwrap();
    }
}

#[test]
fn old_or_pressing_segments_leave_when_released_and_readers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut append = open(dir.path()).unwrap();
    let big = "w".repeat(400 << 10);
    for _ in 0..40 {
        append.append(&[event(&big)]).unwrap();
    }
    let journal = append.journal();
    let shelf = &journal.spools[0].main;
    let before = shelf.all().len();
    journal.release(&events(), 40).unwrap();
    journal.release(&Partition { topic: Topic::Bodies, ..events() }, 40).unwrap();
    assert_eq!(shelf.all().len(), before, "younger than 72 hours and no pressure");
    shelf.reclaim(0, || true).unwrap();
    assert_eq!(shelf.all().len(), 2, "the newest two stay");
    let first = shelf.first_offset();
    assert!(matches!(
        journal.reader(&events(), 1).err(),
        Some(ReadError::Gone { wanted: 1, first: found }) if found == first
    ));
    let files = fs::read_dir(dir.path().join("edge-1/main")).unwrap().count();
    assert_eq!(files, 3, "two segments and the one prepared");
    let used = journal.spools[0].room.used();
    drop((append, journal));
    let append = open(dir.path()).unwrap();
    assert_eq!(append.journal().spools[0].room.used(), used);
    assert_eq!(append.journal().spools[0].main.first_offset(), first);
}
