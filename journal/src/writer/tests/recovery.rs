//! What the next run makes of a spool that was cut off, damaged, filled up or taken away.

use super::*;

#[tokio::test]
async fn the_next_run_ends_orphans_as_unknown_exactly_once_even_if_it_dies_too() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, first) = open(dir.path());
    assert_eq!((first.previous.clone(), first.orphans), (None, 0));
    let (done, cut) = (call(), call());
    let mut slot = writer.slot(0).unwrap();
    slot.open(opening(done), Vec::new()).await.unwrap();
    slot.end(ending(done, Status::Ok), Vec::new()).await.unwrap();
    let mut slot = writer.slot(0).unwrap();
    let opened = slot.open(opening(cut), Vec::new()).await.unwrap();
    // the process dies here: what it leaves is what is on disk
    let dead = tempfile::tempdir().unwrap();
    copy(dir.path(), dead.path());
    for run in 1..4 {
        let (writer, recovery) = open(dead.path());
        assert_eq!(recovery.orphans, u64::from(run == 1));
        let previous = recovery.previous.unwrap();
        assert_eq!((previous.clean, previous.lost), (false, 0));
        if run == 1 {
            assert_eq!((previous.stream, previous.size), (first.stream.clone(), opened.seq + 1));
        }
        drop(writer); // dies again
    }
    let journal = crate::FileJournal::open(dead.path()).unwrap();
    let events = events(&journal);
    assert_eq!(statuses(&events), [Status::Ok, Status::Unknown]);
    let unknown = of_kind(&events, Kind::CallEnded)[1];
    assert_eq!((unknown.call, unknown.seq.get()), (Some(cut), 1));
    assert_eq!(of_kind(&events, Kind::StreamOpened).len(), 4);
}

#[tokio::test]
async fn a_call_that_is_open_across_segments_is_still_ended_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let long = call();
    let mut slot = writer.slot(0).unwrap();
    slot.open(opening(long), Vec::new()).await.unwrap();
    for _ in 0..300 {
        let relayed = Draft::new(Kind::MessageRelayed);
        writer.append(relayed, vec![body(Part::Request, 60 << 10)]).await.unwrap();
    }
    let dead = tempfile::tempdir().unwrap();
    copy(dir.path(), dead.path());
    let main = dead.path().join("edge-1/main");
    let mut segments: Vec<_> = fs::read_dir(&main).unwrap().map(|e| e.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|e| e == "segment"));
    segments.sort();
    assert!(segments.len() > 5);
    for old in &segments[..segments.len() - 2] {
        fs::remove_file(old).unwrap();
    }
    let (writer, recovery) = open(dead.path());
    assert_eq!(recovery.orphans, 1);
    assert_eq!(recovery.previous.unwrap().size, 302);
    drop(writer);
    let journal = crate::FileJournal::open(dead.path()).unwrap();
    let mut entries = entries(&journal, Topic::Events, "edge-1");
    entries.retain(|entry| entry.kind == EntryKind::Event);
    let last = entries.pop().unwrap();
    let Decoded::Event(event) = decode(&last.value) else { panic!("not an event") };
    assert_eq!((event.kind, event.call), (Kind::CallEnded, Some(long)));
}

#[tokio::test]
async fn a_failed_sync_ends_the_run_and_live_calls_go_on_in_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, first, WriterOptions { fail, .. }) = failing(dir.path()).await;
    let (alive, cut) = (call(), call());
    let mut living = writer.slot(0).unwrap();
    living.open(opening(alive), Vec::new()).await.unwrap();
    let mut ended = writer.slot(0).unwrap();
    ended.open(opening(cut), Vec::new()).await.unwrap();
    fail.store(true, Ordering::SeqCst);
    let failed = ended.end(ending(cut, Status::Ok), Vec::new()).await.unwrap_err();
    assert!(matches!(failed, AppendError::Unavailable { maybe: true, .. }), "{failed}");
    fail.store(true, Ordering::SeqCst); // the first attempt to begin a run fails too
    let (mut never, lost) = (writer.slot(0).unwrap(), call());
    let refused = never.open(opening(lost), Vec::new()).await.unwrap_err();
    assert!(matches!(refused, AppendError::Unavailable { .. }), "{refused}");
    let not_open = never.end(ending(lost, Status::AuditFailed), Vec::new());
    let mut ends = writer.subscribe();
    ends.wait_for(|_| writer.status().problem.is_none()).await.unwrap();
    assert!(matches!(not_open.await, Err(AppendError::NotOpen | AppendError::Unavailable { .. })));
    let after = living.end(ending(alive, Status::Ok), Vec::new()).await.unwrap();
    assert_ne!(after.stream, first.stream);
    writer.close().await.unwrap();
    assert_eq!(writer.status().poisoned, 1);
    let events = events(&*writer.journal());
    let endings: HashMap<_, _> = of_kind(&events, Kind::CallEnded)
        .iter()
        .map(|event| (event.call.unwrap(), event.outcome.clone().unwrap().status))
        .collect();
    assert_eq!(endings, HashMap::from([(cut, Status::Unknown), (alive, Status::Ok)]));
    let opened = of_kind(&events, Kind::StreamOpened)[1];
    let Some(Json::Map(previous)) = opened.detail.get("previous") else { panic!("no previous") };
    assert_eq!(previous["clean"], Json::from(false));
    assert_eq!(previous["size"], Json::from(3u64));
    drop(writer);
    let (_, recovery) = open(dir.path());
    assert_eq!((recovery.orphans, recovery.previous.unwrap().clean), (0, true));
}

#[tokio::test]
async fn leaves_below_the_last_signed_size_that_are_missing_are_reported_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let before = tempfile::tempdir().unwrap();
    copy(dir.path(), before.path());
    for _ in 0..5 {
        writer.append(Draft::new(Kind::CallDenied), Vec::new()).await.unwrap();
    }
    let closed = writer.close().await.unwrap();
    fs::copy(dir.path().join("edge-1/signed"), before.path().join("edge-1/signed")).unwrap();
    let (writer, recovery) = open(before.path());
    let previous = recovery.previous.unwrap();
    assert_eq!((previous.size, previous.lost), (1, closed.seq));
    let opened = events(&*writer.journal()).pop().unwrap();
    let Some(Json::Map(previous)) = opened.detail.get("previous") else { panic!("no previous") };
    assert_eq!(previous["lost"], Json::from(closed.seq));
}

#[tokio::test]
async fn a_silent_stream_says_that_it_lives_and_an_old_run_rolls() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        alive_after: Duration::from_millis(5),
        checkpoint_after: Duration::from_millis(5),
        roll_after: Duration::from_millis(60),
        ..options(dir.path())
    };
    let (writer, first) = Writer::open(options, signer()).unwrap();
    let call = call();
    let mut slot = writer.slot(0).unwrap();
    slot.open(opening(call), Vec::new()).await.unwrap();
    let mut ends = writer.subscribe();
    ends.wait_for(|_| writer.status().stream != first.stream).await.unwrap();
    slot.end(ending(call, Status::Ok), Vec::new()).await.unwrap();
    writer.close().await.unwrap();
    let events = events(&*writer.journal());
    assert!(!of_kind(&events, Kind::StreamAlive).is_empty());
    let opened = of_kind(&events, Kind::StreamOpened);
    assert!(opened.len() >= 2);
    assert_eq!(of_kind(&events, Kind::StreamClosed).len(), opened.len());
    let Some(Json::Map(previous)) = opened[1].detail.get("previous") else { panic!("no previous") };
    assert_eq!(previous["clean"], Json::from(true));
    assert_eq!(statuses(&events), [Status::Ok]);
}

#[tokio::test]
async fn a_removed_spool_is_seen_at_once_and_what_it_held_is_reported_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    writer.append(Draft::new(Kind::CallDenied), Vec::new()).await.unwrap();
    let main = dir.path().join("edge-1/main");
    for entry in fs::read_dir(&main).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            fs::remove_file(path).unwrap();
        }
    }
    let failed = writer.append(Draft::new(Kind::CallDenied), Vec::new()).await.unwrap_err();
    assert!(matches!(failed, AppendError::Unavailable { maybe: true, .. }), "{failed}");
    let mut ends = writer.subscribe();
    ends.wait_for(|_| writer.status().problem.is_none()).await.unwrap();
    writer.append(Draft::new(Kind::CallDenied), Vec::new()).await.unwrap();
    let events = events(&*writer.journal());
    assert_eq!(events[0].kind, Kind::StreamOpened);
    let Some(Json::Map(previous)) = events[0].detail.get("previous") else { panic!("no previous") };
    assert_eq!(previous["lost"], Json::from(2u64));
}

#[tokio::test]
async fn an_ending_whose_large_body_cannot_be_stored_leaves_the_call_ended_as_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _, WriterOptions { fail_bulk: fail, .. }) = failing(dir.path()).await;
    let call = call();
    let mut slot = writer.slot(1 << 20).unwrap();
    slot.open(opening(call), Vec::new()).await.unwrap();
    fail.store(true, Ordering::SeqCst);
    let large = || vec![body(Part::Response, 1 << 20)];
    let failed = slot.end(ending(call, Status::Ok), large()).await.unwrap_err();
    assert!(matches!(failed, AppendError::Unavailable { maybe: false, .. }), "{failed}");
    writer.append(Draft::new(Kind::MessageRelayed), large()).await.unwrap();
    assert_eq!(statuses(&events(&*writer.journal())), [Status::Unknown]);
    assert_eq!(writer.status().poisoned, 0);
}

#[tokio::test]
async fn an_opening_too_long_to_be_repeated_is_still_ended_as_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let subject = |len: usize| Subject { id: "7".repeat(len), ..Subject::default() };
    let mut draft = opening(call());
    // as many subjects as fit, then one more that just fits
    let many = (1..400).map(|n| vec![subject(200); n]);
    let fits = |subjects: &Vec<Subject>| {
        let mut draft = Draft::new(Kind::CallRequested);
        draft.call = Some(call());
        draft.data.subjects.clone_from(subjects);
        let place = Place {
            stream: "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap(),
            seq: 100,
            at: Uint::new(1_767_225_600_000_000),
            salt: Bytes16([0; 16]),
        };
        draft.seal(place).is_ok()
    };
    let most = many.take_while(fits).last().unwrap();
    let with_one_more = |len| most.iter().cloned().chain([subject(len)]).collect::<Vec<_>>();
    let longest = (1..200).map(with_one_more).take_while(fits).last();
    draft.data.subjects = longest.unwrap_or(most);
    draft.data.labels = Vec::new();
    writer.slot(0).unwrap().open(draft.clone(), Vec::new()).await.unwrap();
    writer.close().await.unwrap();
    let journal = writer.journal();
    let ended = events(&*journal).into_iter().rfind(|event| event.kind == Kind::CallEnded).unwrap();
    assert_eq!((ended.call, ended.data.subjects.len()), (draft.call, 0));
}

#[tokio::test]
async fn a_call_whose_opening_was_not_stored_gets_no_ending_either() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _, WriterOptions { fail, .. }) = failing(dir.path()).await;
    let call = call();
    let mut slot = writer.slot(0).unwrap();
    fail.store(true, Ordering::SeqCst);
    let failed = slot.open(opening(call), Vec::new()).await.unwrap_err();
    assert!(matches!(failed, AppendError::Unavailable { maybe: true, .. }), "{failed}");
    let refused = slot.end(ending(call, Status::NotForwarded), Vec::new()).await.unwrap_err();
    assert!(matches!(refused, AppendError::NotOpen), "{refused}");
    writer.close().await.unwrap();
    let events = events(&*writer.journal());
    assert!(events.iter().all(|event| event.call.is_none()), "{events:?}");
}

#[tokio::test]
async fn what_was_released_while_there_was_room_goes_when_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions { spool_max_bytes: 12 << 20, ..options(dir.path()) };
    let (writer, _) = Writer::open(options, signer()).unwrap();
    let relay = || {
        let relayed = Draft::new(Kind::MessageRelayed);
        writer.append(relayed, vec![body(Part::Request, 1 << 20)])
    };
    for _ in 0..8 {
        relay().await.unwrap();
    }
    let used = writer.status().spool_used_bytes;
    let bulk = writer.subscribe().borrow().bulk;
    writer.journal().release(&partition(Topic::Bodies, "edge-1.bulk"), bulk).unwrap();
    assert_eq!(writer.status().spool_used_bytes, used, "kept: there is room, and it is young");
    for _ in 0..5 {
        relay().await.unwrap();
    }
    assert!(writer.status().spool_used_bytes <= 12 << 20);
}

#[tokio::test]
async fn whatever_prefix_of_the_spool_survives_the_next_run_goes_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    let mut held = Vec::new();
    for i in 0..30 {
        let call = call();
        let mut slot = writer.slot(100).unwrap();
        slot.open(opening(call), vec![body(Part::Request, 40)]).await.unwrap();
        if i % 3 == 0 {
            held.push(slot);
        } else {
            slot.end(ending(call, Status::Ok), Vec::new()).await.unwrap();
        }
    }
    let dead = tempfile::tempdir().unwrap();
    copy(dir.path(), dead.path());
    let segment = Path::new("edge-1/main").join(crate::file::segment::file_name(0));
    let whole = fs::read(dead.path().join(&segment)).unwrap();
    let filled = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let before = records(&whole_journal(dead.path()));
    for cut in (4096..filled + 2).step_by(filled / 60) {
        let torn = tempfile::tempdir().unwrap();
        copy(dead.path(), torn.path());
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        fs::write(torn.path().join(&segment), bytes).unwrap();
        let (writer, recovery) = open(torn.path());
        drop(writer);
        let journal = whole_journal(torn.path());
        let after = records(&journal);
        let kept = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
        assert_eq!(kept as u64, recovery.previous.as_ref().map_or(0, |p| p.size), "cut at {cut}");
        let events = events(&journal);
        let open = of_kind(&events[..kept], Kind::CallRequested).len()
            - of_kind(&events[..kept], Kind::CallEnded).len();
        assert_eq!(recovery.orphans, open as u64, "cut at {cut}");
        assert_eq!(of_kind(&events[kept..], Kind::CallEnded).len(), open, "cut at {cut}");
    }
}

fn whole_journal(dir: &Path) -> crate::FileJournal {
    crate::FileJournal::open(dir).unwrap()
}

fn records(journal: &dyn Journal) -> Vec<Bytes> {
    let entries = entries(journal, Topic::Events, "edge-1");
    let events = entries.into_iter().filter(|entry| entry.kind == EntryKind::Event);
    events.map(|entry| entry.value).collect()
}

#[tokio::test]
async fn a_damaged_spool_is_refused_untouched_and_put_aside_it_lets_a_writer_of_another_name_start()
{
    let dir = tempfile::tempdir().unwrap();
    let (writer, _) = open(dir.path());
    for _ in 0..2 {
        writer.append(Draft::new(Kind::CallDenied), Vec::new()).await.unwrap();
    }
    drop(writer);
    let damaged = dir.path().join("edge-1/main").join(crate::file::segment::file_name(0));
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[4096 + 100] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    let other = || WriterOptions { name: "edge-2".to_owned(), ..options(dir.path()) };
    for options in [options(dir.path()), other()] {
        let refused = Writer::open(options, signer()).unwrap_err().to_string();
        let said = [damaged.to_str().unwrap(), "byte 4096", "another name"];
        assert!(said.iter().all(|word| refused.contains(word)), "{refused}");
        assert!(fs::read(&damaged).unwrap() == bytes, "not a byte of it is changed");
    }
    let aside = tempfile::tempdir().unwrap();
    fs::rename(dir.path().join("edge-1"), aside.path().join("edge-1")).unwrap();
    let (writer, recovery) = Writer::open(other(), signer()).unwrap();
    assert_eq!(recovery.previous, None);
    writer.append(Draft::new(Kind::CallDenied), Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_new_key_is_taken_into_use_between_two_runs_and_never_within_one() {
    let dir = tempfile::tempdir().unwrap();
    let new = || Signer::from_seed("audit.example/edge-1", &[4; 32]).unwrap().0;
    let offered = std::sync::Mutex::new(Some(new()));
    let options = WriterOptions {
        roll_after: Duration::from_millis(60),
        rotation: crate::writer::Rotation::new(move || offered.lock().unwrap().take()),
        ..options(dir.path())
    };
    let (writer, first) = Writer::open(options, signer()).unwrap();
    let mut ends = writer.subscribe();
    ends.wait_for(|_| writer.status().stream != first.stream).await.unwrap();
    writer.close().await.unwrap();
    let mut signed = HashMap::new();
    for entry in entries(&*writer.journal(), Topic::Events, "edge-1") {
        if entry.kind == EntryKind::Checkpoint {
            let note = Message::decode(&entry.value).unwrap().note;
            let (old, new) = (signer(), new());
            let by_old = Checkpoint::verify(&note, &[old.vkey()]);
            let by_new = Checkpoint::verify(&note, &[new.vkey()]).is_ok();
            let origin = note.lines().next().unwrap().to_owned();
            assert_eq!(*signed.entry(origin).or_insert(by_new), by_new, "one key for each run");
            assert_ne!(by_old.is_ok(), by_new);
        }
    }
    assert!(!signed[&format!("audit.example/{}", first.stream)]);
    assert_eq!(signed.values().filter(|by_new| !**by_new).count(), 1, "all later ones");
    assert!(signed.len() >= 2);
}
