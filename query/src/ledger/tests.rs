//! The ledger over records made by hand.

use custody_schemas::event::{Data, Draft, Outcome};
use custody_schemas::id::{Bytes, CallId, Uint};
use custody_schemas::record::{Place, decode};
use custody_schemas::words::Status;

use super::*;

const SECOND: u64 = 1_000_000;

fn record(writer: &str, seq: u64, at: u64, draft: Draft) -> Vec<u8> {
    let stream = format!("{writer}/0190c8a0-7b1e-7000-8000-000000000001").parse().unwrap();
    let place = Place { stream, seq, at: Uint::new(at), salt: Bytes([1; 16]) };
    draft.seal(place).unwrap().bytes
}

fn fold(ledger: &mut Ledger, bytes: &[u8]) -> Fold {
    ledger.fold(&decode(bytes), bytes)
}

fn alive(writer: &str, seq: u64, at: u64) -> Vec<u8> {
    record(writer, seq, at, Draft::new(Kind::StreamAlive))
}

fn listed(name: &str, from: u64, retired: bool) -> ListedWriter {
    ListedWriter { name: name.to_owned(), from: Uint::new(from), retired }
}

#[test]
fn the_slowest_open_writer_holds_completeness_back_and_a_closed_one_does_not() {
    let mut ledger = Ledger::default();
    fold(&mut ledger, &alive("a", 0, 90 * SECOND));
    fold(&mut ledger, &alive("b", 0, 20 * SECOND));
    let now = Uint::new(100 * SECOND);
    let writers = [listed("a", 0, false), listed("b", 0, false)];
    let judged = ledger.judge(&writers, now, 0);
    assert_eq!(judged.complete_through.as_deref(), Some("1970-01-01T00:00:20Z"));
    assert_eq!(judged.held_back_by.as_deref(), Some("b"));
    assert_eq!(judged.silent, ["b"]);
    fold(&mut ledger, &record("b", 1, 21 * SECOND, Draft::new(Kind::StreamClosed)));
    let judged = ledger.judge(&writers, now, 0);
    assert_eq!(judged.complete_through.as_deref(), Some("1970-01-01T00:01:30Z"));
    assert!(judged.silent.is_empty());
}

#[test]
fn a_listed_writer_that_was_never_heard_holds_back_unless_it_is_retired() {
    let mut ledger = Ledger::default();
    fold(&mut ledger, &alive("a", 0, 90 * SECOND));
    let now = Uint::new(100 * SECOND);
    let judged = ledger.judge(&[listed("a", 0, false), listed("ghost", 5 * SECOND, false)], now, 0);
    assert_eq!(judged.complete_through.as_deref(), Some("1970-01-01T00:00:05Z"));
    assert_eq!(judged.silent, ["ghost"]);
    let judged = ledger.judge(&[listed("a", 0, false), listed("ghost", 0, true)], now, 0);
    assert_eq!(judged.complete_through.as_deref(), Some("1970-01-01T00:01:30Z"));
}

#[test]
fn gaps_fillers_duplicates_and_conflicts_are_told_apart() {
    let mut ledger = Ledger::default();
    for seq in [0, 1, 4] {
        assert_eq!(fold(&mut ledger, &alive("a", seq, SECOND)), Fold::New);
    }
    let gaps = |ledger: &Ledger| ledger.judge(&[], Uint::new(SECOND), 0).gaps;
    assert_eq!(gaps(&ledger), 2);
    assert_eq!(fold(&mut ledger, &alive("a", 2, SECOND)), Fold::New, "a late filler fills");
    assert_eq!(gaps(&ledger), 1);
    assert_eq!(fold(&mut ledger, &alive("a", 4, SECOND)), Fold::Duplicate);
    let other = record("a", 4, SECOND, Draft::new(Kind::StreamAlive).with("x", "y"));
    assert_eq!(fold(&mut ledger, &other), Fold::Conflict);
    assert_eq!(fold(&mut ledger, b"not a record"), Fold::New);
    let judged = ledger.judge(&[], Uint::new(SECOND), 7);
    assert_eq!((judged.duplicates, judged.conflicts, judged.late), (1, 1, 1));
    assert_eq!((judged.undecodable, judged.behind), (1, 7));
    let line = judged.line();
    assert!(line.contains("1 event missing") && line.contains("7 entries behind"), "{line}");
    let header = judged.header();
    assert!(header.is_ascii() && header.len() < 4000, "{header}");
    let read: serde_json::Value = serde_json::from_str(&header).unwrap();
    assert_eq!(read["line"], line, "the header reads back, whatever signs are in the line");
    assert_eq!(read["complete"], false);
}

#[test]
fn calls_are_open_until_they_end_and_counted_by_how() {
    let mut ledger = Ledger::default();
    let call = Some(CallId::from_uuid(uuid::Uuid::now_v7()));
    let data = Data { labels: vec!["phi".to_owned()], ..Data::default() };
    let opening = Draft { call, data: data.clone(), ..Draft::new(Kind::CallRequested) };
    fold(&mut ledger, &record("a", 0, SECOND, opening));
    let judged = ledger.judge(&[], Uint::new(SECOND), 0);
    assert_eq!((judged.open_calls, judged.phi_calls, judged.phi_calls_without_patient), (1, 1, 0));
    let outcome = Some(Outcome { status: Status::Unknown, ..Outcome::default() });
    let ending = Draft { call, data, outcome, ..Draft::new(Kind::CallEnded) };
    fold(&mut ledger, &record("a", 1, SECOND, ending));
    let judged = ledger.judge(&[], Uint::new(SECOND), 0);
    assert_eq!((judged.open_calls, judged.phi_calls, judged.phi_calls_without_patient), (0, 1, 1));
    assert_eq!(judged.unknown_outcomes, 1);
}

#[test]
fn an_ending_whose_listed_patients_are_missing_is_counted_until_they_come() {
    let call = Some(CallId::from_uuid(uuid::Uuid::now_v7()));
    let subject = |i: usize| custody_schemas::event::Subject {
        id: format!("synthetic-{i}"),
        system: "patient".to_owned(),
        direction: custody_schemas::words::Direction::Received,
        categories: Vec::new(),
        records: None,
        aliases: Vec::new(),
    };
    let subjects: Vec<_> = (0..700).map(subject).collect();
    let count = Some(Uint::new(700));
    let (own, parts) = custody_schemas::split_subjects(subjects);
    let opening = Draft { call, ..Draft::new(Kind::CallRequested) };
    let part = |i: usize| {
        let data = Data { subjects: parts[i].clone(), ..Data::default() };
        Draft { call, data, ..Draft::new(Kind::SubjectsListed) }
    };
    let data = Data { subjects: own, subject_count: count, ..Data::default() };
    let ending = Draft { call, data, ..Draft::new(Kind::CallEnded) };
    let partly = |order: Vec<Draft>| {
        let mut ledger = Ledger::default();
        for (seq, draft) in (0u64..).zip(order) {
            fold(&mut ledger, &record("a", seq, SECOND, draft));
        }
        assert!(ledger.listed.is_empty());
        let judged = ledger.judge(&[], Uint::new(SECOND), 0);
        assert_eq!(judged.is_complete(), judged.calls_partly_listed == 0, "{}", judged.line());
        judged.calls_partly_listed
    };
    assert!(parts.len() >= 2);
    let all = |ending_at: usize| {
        let mut order: Vec<_> = (0..parts.len()).map(part).collect();
        order.insert(ending_at, ending.clone());
        order.insert(0, opening.clone());
        order
    };
    assert_eq!(partly(all(parts.len())), 0);
    assert_eq!(partly(all(1)), 0, "a part may come late");
    let mut without = all(parts.len());
    without.remove(1);
    assert_eq!(partly(without), 1);
}

#[test]
fn events_missing_at_the_end_of_a_run_and_lost_ones_are_told_by_the_next_run() {
    let mut ledger = Ledger::default();
    fold(&mut ledger, &alive("a", 0, SECOND));
    let before = ledger.judge(&[], Uint::new(SECOND), 0);
    assert!(before.is_complete(), "{}", before.line());
    let previous = Json::Map(
        [
            ("stream", Json::from("a/0190c8a0-7b1e-7000-8000-000000000001")),
            ("size", Json::from(4_u64)),
            ("lost", Json::from(2_u64)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    );
    let opened = Draft::new(Kind::StreamOpened).with("previous", previous);
    let stream = "a/0190c8a0-7b1e-7000-8000-000000000002".parse().unwrap();
    let place = Place { stream, seq: 0, at: Uint::new(SECOND), salt: Bytes([1; 16]) };
    fold(&mut ledger, &opened.seal(place).unwrap().bytes);
    let judged = ledger.judge(&[], Uint::new(SECOND), 0);
    assert_eq!((judged.gaps, judged.lost), (3, 2));
    assert!(!judged.is_complete());
    assert!(judged.line().contains("2 lost after they were signed"), "{}", judged.line());
    assert!(judged.header().contains("\"lost\":2"));
}
