//! Tests of the lake as its users see it: opening, the fenced commit under faults, snapshots.

use std::sync::Arc;

use custody_schemas::event::Draft;
use custody_schemas::id::{Bytes, StreamId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Place, decode, hash};

use crate::batch::Rows;
use crate::columns::EVENTS;
use crate::faults::{Fault, FaultyStore};
use crate::files::{FileSet, NewFile};
use crate::rows::{Arrival, Standing};
use crate::store::DurableFileSystem;
use crate::{Bound, Lake, LakeError, LakeOptions, Outcome, Table, TxnStep, tags};

const DAY_US: u64 = 86_400_000_000;
const APP: &str = "file/custody.events@1/edge-1";
const STREAM: &str = "edge-1/0190c8a0-7b1e-7000-8000-000000000001";

struct Site {
    folder: tempfile::TempDir,
    store: Arc<FaultyStore>,
}

impl Site {
    fn new() -> Self {
        let store = FaultyStore::new(Arc::new(DurableFileSystem::new()));
        Self { folder: tempfile::tempdir().unwrap(), store }
    }

    async fn open(&self) -> Result<Lake, LakeError> {
        self.open_as("audit.example").await
    }

    async fn open_as(&self, deployment: &str) -> Result<Lake, LakeError> {
        let mut options = LakeOptions::new(deployment);
        options.store = Some(self.store.clone());
        Lake::open(self.folder.path().to_str().unwrap(), &options).await
    }

    fn log(&self, version: u64) -> std::path::PathBuf {
        self.folder.path().join(format!("events/_delta_log/{version:020}.json"))
    }
}

fn record(seq: u64) -> Vec<u8> {
    let place = Place {
        stream: STREAM.parse().unwrap(),
        seq,
        at: Uint::new(20_000 * DAY_US + seq),
        salt: Bytes([7; 16]),
    };
    Draft::new(Kind::StreamAlive).seal(place).unwrap().bytes
}

/// Stores the records with these numbers; nothing is committed.
async fn stored(table: &Table, seqs: std::ops::Range<u64>) -> Vec<NewFile> {
    let mut rows = Rows::events();
    for seq in seqs.clone() {
        let bytes = record(seq);
        let journaled_at = Uint::new(20_000 * DAY_US + seq);
        let arrival = Arrival { partition: "edge-1", offset: seq, journaled_at, stored_at: None };
        rows.record(&bytes, &decode(&bytes), Standing::Event, &arrival);
    }
    let mut set = FileSet::new(EVENTS);
    set.append(&rows.finish().unwrap()).unwrap();
    let stream: StreamId = STREAM.parse().unwrap();
    let spans = [(seqs.start, seqs.end)];
    let tags = tags::write(APP, [(&stream, &spans[..])]);
    let encoded = set.finish("t", &tags).unwrap();
    table.store(&encoded).await.unwrap()
}

fn step(start: Option<u64>, end: u64) -> [TxnStep; 1] {
    [TxnStep { app_id: APP.to_owned(), start, end }]
}

async fn rows_in(table: &Table) -> u64 {
    table.snapshot().await.unwrap().files().iter().map(|f| f.rows.unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_is_made_once_and_opens_again_in_the_plainest_delta_protocol() {
    let place = Site::new();
    place.open().await.unwrap();
    let lake = place.open().await.unwrap();
    assert_eq!(lake.events().snapshot().await.unwrap().version(), 0);
    let log = std::fs::read_to_string(place.log(0)).unwrap();
    assert!(log.contains("\"minReaderVersion\":1,\"minWriterVersion\":2"), "{log}");
    assert!(log.contains("\"delta.appendOnly\":\"true\""), "{log}");
    assert!(log.contains("\"partitionColumns\":[\"event_date\"]"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_may_open_a_new_lake_at_once() {
    let place = Site::new();
    let (a, b, c) = tokio::join!(place.open(), place.open(), place.open());
    for lake in [a, b, c] {
        assert_eq!(lake.unwrap().bodies().snapshot().await.unwrap().version(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_of_another_deployment_or_a_newer_format_or_of_a_stranger_is_refused() {
    let place = Site::new();
    place.open().await.unwrap();
    let foreign = place.open_as("other.example").await.unwrap_err();
    assert!(foreign.to_string().contains("belongs to deployment \"audit.example\""), "{foreign}");
    let ours = std::fs::read_to_string(place.log(0)).unwrap();
    let newer = ours.replace("\"custody.format\":\"1\"", "\"custody.format\":\"2\"");
    std::fs::write(place.log(0), newer).unwrap();
    let newer = place.open().await.unwrap_err();
    assert!(newer.to_string().contains("upgrade custody"), "{newer}");
    let stranger = ours.replace("custody.format", "something.else");
    std::fs::write(place.log(0), stranger).unwrap();
    assert!(matches!(place.open().await, Err(LakeError::Unusable { .. })));
    let fewer = ours.replace("\\\"name\\\":\\\"tool\\\"", "\\\"name\\\":\\\"tol\\\"");
    assert_ne!(fewer, ours);
    std::fs::write(place.log(0), fewer).unwrap();
    let fewer = place.open().await.unwrap_err();
    assert!(fewer.to_string().contains("has no column tool"), "{fewer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_a_newer_version_takes_over_while_we_run_gets_nothing_more_from_us() {
    let place = Site::new();
    let lake = place.open().await.unwrap();
    let files = stored(lake.events(), 0..3).await;
    let first = std::fs::read_to_string(place.log(0)).unwrap();
    let metadata = first.lines().find(|line| line.contains("\"metaData\"")).unwrap();
    let newer = metadata.replace("\"custody.format\":\"1\"", "\"custody.format\":\"2\"");
    std::fs::write(place.log(1), newer).unwrap();
    let refused = lake.events().commit(&files, &step(None, 3)).await.unwrap_err();
    assert!(matches!(refused, crate::CommitError::Refused(LakeError::Newer { .. })), "{refused}");
    assert!(!place.log(2).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_names_nothing_is_refused_with_what_to_write_instead() {
    for url in ["ftp://host/prefix", "s3://", "file:", ""] {
        let error = Lake::open(url, &LakeOptions::new("d")).await.unwrap_err();
        assert!(error.to_string().contains("file:./"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_keeps_its_files_and_positions_while_the_table_goes_on() {
    let place = Site::new();
    let lake = place.open().await.unwrap();
    let table = lake.events();
    let files = stored(table, 0..3).await;
    let outcome = table.commit(&files, &step(None, 3)).await.unwrap();
    assert_eq!(outcome, Outcome::Committed { version: 1 });
    let pinned = table.snapshot().await.unwrap();
    let more = stored(table, 3..5).await;
    table.commit(&more, &step(Some(3), 5)).await.unwrap();
    assert_eq!(pinned.txn(APP).await.unwrap(), Some(3));
    assert_eq!(pinned.txn("file/custody.events@1/other").await.unwrap(), None);
    assert_eq!(pinned.files().len(), 1);
    let now = table.snapshot().await.unwrap();
    assert_eq!((now.txn(APP).await.unwrap(), now.files().len()), (Some(5), 2));
    let file = &pinned.files()[0];
    assert_eq!((file.rows, file.event_date), (Some(3), Some(20_000)));
    assert_eq!(file.ranges["seq"], (Bound::Int(0), Bound::Int(2)));
    let day = i64::try_from(20_000 * DAY_US).unwrap();
    assert_eq!(file.ranges["at"], (Bound::Moment(day), Bound::Moment(day + 1000)));
    assert_eq!((file.partition(), file.nulls["user_subject"]), (Some(APP), 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_the_write_of_a_commit_its_rows_are_there_once() {
    let cases: [(&str, Vec<Fault>, Outcome); 5] = [
        ("lost response", vec![Fault::After], Outcome::AlreadyDone),
        ("error before", vec![Fault::Before, Fault::Before], Outcome::Committed { version: 1 }),
        ("said to exist", vec![Fault::Conflict], Outcome::Committed { version: 1 }),
        ("both", vec![Fault::Before, Fault::After], Outcome::AlreadyDone),
        ("none", vec![], Outcome::Committed { version: 1 }),
    ];
    for (name, faults, expected) in cases {
        let place = Site::new();
        let lake = place.open().await.unwrap();
        let files = stored(lake.events(), 0..4).await;
        place.store.push(faults);
        let outcome = lake.events().commit(&files, &step(None, 4)).await.unwrap();
        assert_eq!(outcome, expected, "{name}");
        let again = lake.events().commit(&files, &step(None, 4)).await.unwrap();
        assert_eq!(again, Outcome::AlreadyDone, "{name}");
        assert_eq!(rows_in(lake.events()).await, 4, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_position_has_moved_is_fenced_and_adds_nothing() {
    let place = Site::new();
    let (one, two) = (place.open().await.unwrap(), place.open().await.unwrap());
    let files = stored(one.events(), 0..4).await;
    one.events().commit(&files, &step(None, 4)).await.unwrap();
    for start in [None, Some(2)] {
        let late = stored(two.events(), 0..3).await;
        let outcome = two.events().commit(&late, &step(start, 3)).await.unwrap();
        assert_eq!(outcome, Outcome::Fenced { app_id: APP.to_owned(), found: Some(4) });
    }
    assert_eq!(rows_in(two.events()).await, 4);
}

/// Between the check and the write of the second owner, the first one commits.
async fn race(other: &'static str) -> (Outcome, u64) {
    let place = Site::new();
    let (one, two) = (place.open().await.unwrap(), place.open().await.unwrap());
    let first = stored(one.events(), 0..4).await;
    let second = stored(two.events(), 0..3).await;
    let overtaking = Box::pin(async move {
        let step = [TxnStep { app_id: other.to_owned(), start: None, end: 4 }];
        one.events().commit(&first, &step).await.unwrap();
    });
    place.store.push([Fault::First(overtaking)]);
    let outcome = two.events().commit(&second, &step(None, 3)).await.unwrap();
    (outcome, rows_in(two.events()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_overtaken_by_another_owner_after_its_check_is_fenced() {
    let (outcome, rows) = race(APP).await;
    assert_eq!(outcome, Outcome::Fenced { app_id: APP.to_owned(), found: Some(4) });
    assert_eq!(rows, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_overtaken_by_another_partition_lands_behind_it() {
    let (outcome, rows) = race("file/custody.events@1/edge-2").await;
    assert_eq!(outcome, Outcome::Committed { version: 2 });
    assert_eq!(rows, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_never_answers_is_given_up_on_and_the_same_call_succeeds_later() {
    let place = Site::new();
    let lake = place.open().await.unwrap();
    let files = stored(lake.events(), 0..2).await;
    place.store.push((0..8).map(|_| Fault::Before));
    let error = lake.events().commit(&files, &step(None, 2)).await.unwrap_err();
    assert!(error.to_string().contains("after 8 attempts"), "{error}");
    lake.events().commit(&files, &step(None, 2)).await.unwrap();
    assert_eq!(rows_in(lake.events()).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_the_log_loses_no_position_no_statistics_and_no_tag() {
    let place = Site::new();
    let lake = place.open().await.unwrap();
    let table = lake.events();
    assert_eq!(table.maintain_every(1).await.unwrap().checkpoint, None);
    for seq in 0..3u64 {
        let files = stored(table, seq..seq + 1).await;
        table.commit(&files, &step(seq.checked_sub(1).map(|s| s + 1), seq + 1)).await.unwrap();
    }
    assert_eq!(table.maintain_every(1).await.unwrap().checkpoint, Some(3));
    assert_eq!(table.maintain_every(1).await.unwrap().checkpoint, None);
    for version in 0..3 {
        std::fs::remove_file(place.log(version)).unwrap();
    }
    let fresh = place.open().await.unwrap();
    let after = fresh.events().snapshot().await.unwrap();
    assert_eq!(after.txn(APP).await.unwrap(), Some(3));
    assert_eq!(after.files(), table.snapshot().await.unwrap().files());
    let mut spans: Vec<_> = after.files().iter().flat_map(|f| f.streams().unwrap()).collect();
    spans.sort();
    assert_eq!(spans[2], (STREAM.parse().unwrap(), vec![(2, 3)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identities_of_stored_records_can_be_read_back() {
    let place = Site::new();
    let lake = place.open().await.unwrap();
    let files = stored(lake.events(), 5..8).await;
    lake.events().commit(&files, &step(None, 8)).await.unwrap();
    let snapshot = lake.events().snapshot().await.unwrap();
    let found = snapshot.identities(&snapshot.files()[0]).await.unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[&(STREAM.parse().unwrap(), 6)], hash(&record(6)));
}
