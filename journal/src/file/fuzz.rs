//! Foreign bytes in a spool's folder: whatever stands there, opening it is an answer or an error,
//! never a panic, and what is read is what was written.
//!
//! Files that were written in order are changed at random places (bits, bytes, stretches, lengths,
//! numbers that a format may stumble over), thousands of times in a second.
//! `CUSTODY_FUZZ_SECONDS=3600 cargo test --release -p custody-journal fuzz` goes on for an hour;
//! `CUSTODY_SEED` begins elsewhere.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::format::{BatchHeader, SegmentHeader, take_frame};
use super::{FileAppend, FileJournal};
use crate::sim::dice::Dice;
use crate::writer::state::State;
use crate::{Append, EntryKind, Journal, NewEntry, Partition, Topic};

const SEGMENT: u64 = 1 << 20;
/// What is changed lies in the first bytes of a segment.
const USED: usize = 6000;

fn seconds() -> Duration {
    let asked = std::env::var("CUSTODY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(1))
}

fn dice() -> Dice {
    let asked = std::env::var("CUSTODY_SEED").ok().and_then(|text| text.parse().ok());
    Dice::new(asked.unwrap_or(1))
}

/// Changes some of `bytes`.
fn change(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..1 + dice.below(4) {
        let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
        let len = usize::try_from(1 + dice.below(16)).unwrap().min(bytes.len() - at);
        match dice.below(6) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
            2 => bytes[at..at + len].fill(*dice.pick(&[0, 0xff, 0x7f, 0x80])),
            3 => {
                let from = usize::try_from(dice.below((bytes.len() - len) as u64 + 1)).unwrap();
                bytes.copy_within(from..from + len, at);
            }
            4 if bytes.len() > 1 => bytes.truncate(at.max(1)),
            _ => drop(bytes.splice(at..at, [0x5a; 3])),
        }
    }
}

fn event(text: &str) -> NewEntry {
    let value = Bytes::copy_from_slice(text.as_bytes());
    NewEntry { kind: EntryKind::Event, header: Bytes::new(), value }
}

fn written(dir: &Path) -> Vec<String> {
    let mut append = FileAppend::open(dir, "edge-1", SEGMENT).unwrap();
    let texts: Vec<_> = (0..20).map(|n| format!("entry {n} {}", "x".repeat(n * 7))).collect();
    for pair in texts.chunks(2) {
        append.append(&[event(&pair[0]), event(&pair[1])]).unwrap();
    }
    texts
}

#[test]
fn fuzz_a_spool_of_foreign_bytes_is_read_as_it_was_written_or_refused() {
    let (dir, mut dice, mut tries) = (tempfile::tempdir().unwrap(), dice(), 0u64);
    let texts = written(dir.path());
    let path = dir.path().join("edge-1/main").join(super::segment::file_name(0));
    let whole = fs::read(&path).unwrap();
    let (used, rest) = whole.split_at(USED);
    let partition = Partition { topic: Topic::Events, name: "edge-1".to_owned() };
    let begun = Instant::now();
    while begun.elapsed() < seconds() {
        let mut bytes = used.to_vec();
        change(&mut bytes, &mut dice);
        bytes.extend_from_slice(&rest[..usize::try_from(dice.below(9000)).unwrap()]);
        fs::write(&path, &bytes).unwrap();
        tries += 1;
        let Ok(journal) = FileJournal::open(dir.path()) else { continue };
        let Ok(mut reader) = journal.reader(&partition, 0) else { continue };
        let mut read = Vec::new();
        while let Ok(some) = reader.read(100, 1 << 20, Duration::ZERO) {
            if some.is_empty() {
                break;
            }
            read.extend(some.into_iter().map(|e| String::from_utf8(e.value.to_vec()).unwrap()));
        }
        assert!(texts.starts_with(&read), "read what nobody wrote: {read:?}");
    }
    assert!(tries > 20, "{tries} tries are none");
}

#[test]
fn fuzz_headers_frames_and_notes_of_foreign_bytes_are_read_or_refused() {
    let (mut dice, mut tries, mut opened) = (dice(), 0u64, 0u64);
    let segment = SegmentHeader {
        lane: 0,
        base: 7,
        created_at: 1,
        key: 9,
        previous_base: 0,
        previous_end: 4096,
    };
    let note = crate::writer::state::encode(
        None,
        &custody_schemas::seal::Tree::default(),
        &std::collections::HashMap::new(),
    );
    let mut frames = Vec::new();
    super::format::push_frame(&mut frames, super::format::FrameKind::Event, b"head", b"value");
    let seeds = [segment.encode()[..64].to_vec(), note, frames];
    let begun = Instant::now();
    while begun.elapsed() < seconds() {
        let mut bytes = dice.pick(&seeds).clone();
        change(&mut bytes, &mut dice);
        let read = SegmentHeader::decode(&bytes).is_ok_and(|header| header != segment);
        assert!(!read, "a header that nobody wrote");
        assert_eq!(BatchHeader::decode(&bytes, 9, 4096), None);
        opened += u64::from(State::decode(&bytes).is_some());
        let mut body = Bytes::from(bytes);
        let mut taken = 0;
        while let Some(frame) = take_frame(&mut body) {
            taken += frame.header.len() + frame.value.len() + super::format::FRAME_HEAD;
        }
        assert!(taken <= 100, "more came out than went in");
        tries += 1;
    }
    assert!(tries > 1000 && opened < tries, "{tries} tries are none");
}
