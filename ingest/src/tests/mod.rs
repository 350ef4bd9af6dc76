//! Tests of the way from a file journal into a lake: everything once, whatever happens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use custody_journal::file::FileAppend;
use custody_journal::{Append, EntryKind, Journal, NewEntry};
use custody_lake::faults::{Fault, FaultyStore};
use custody_lake::store::DurableFileSystem;
use custody_lake::{Lake, LakeOptions, Table};
use custody_schemas::body;
use custody_schemas::event::Draft;
use custody_schemas::id::{Bytes, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::Place;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Assigned, Counts, Ingest, IngestError, Settings};

mod group;

const STREAM: &str = "edge-1/0190c8a0-7b1e-7000-8000-000000000001";
const DAY_US: u64 = 86_400_000_000;

struct Site {
    folder: tempfile::TempDir,
    append: FileAppend,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let append = FileAppend::open(&folder.path().join("journal"), "edge-1", 4 << 20).unwrap();
        Self { folder, append }
    }

    fn put(&mut self, entries: &[NewEntry]) {
        self.append.append(entries).unwrap();
    }

    fn journal(&self) -> Arc<dyn Journal> {
        self.append.journal()
    }

    async fn lake(&self) -> Lake {
        self.lake_over(Arc::new(DurableFileSystem::new())).await
    }

    async fn lake_over(&self, store: Arc<dyn ObjectStore>) -> Lake {
        open(&self.folder.path().join("lake"), store).await
    }

    /// An ingest of its own over `lake`, as another process would have it.
    fn ingest(&self, lake: &Lake) -> Ingest {
        Ingest::new(self.journal(), lake.clone(), settings())
    }

    /// Stores everything that is durable now and returns what was counted for events.
    async fn store_all(&self) -> Counts {
        let ingest = self.ingest(&self.lake().await);
        ingest.run(Assigned::All, stopped()).await.unwrap();
        ingest.status()[0].counts
    }
}

async fn open(folder: &Path, store: Arc<dyn ObjectStore>) -> Lake {
    let mut options = LakeOptions::new("audit.example");
    options.store = Some(store);
    Lake::open(folder.to_str().unwrap(), &options).await.unwrap()
}

fn settings() -> Settings {
    Settings { flush_after: Duration::from_millis(20), ..Settings::default() }
}

fn stopped() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

fn entry(kind: EntryKind, value: impl Into<bytes::Bytes>) -> NewEntry {
    NewEntry { kind, header: bytes::Bytes::new(), value: value.into() }
}

fn event(seq: u64) -> NewEntry {
    event_saying(seq, "first")
}

fn event_saying(seq: u64, note: &str) -> NewEntry {
    let stream = STREAM.parse().unwrap();
    let at = Uint::new(20_000 * DAY_US + seq);
    let place = Place { stream, seq, at, salt: Bytes([7; 16]) };
    let record = Draft::new(Kind::StreamAlive).with("note", note).seal(place).unwrap();
    entry(EntryKind::Event, record.bytes)
}

async fn batches(table: &Table) -> Vec<RecordBatch> {
    let snapshot = table.snapshot().await.unwrap();
    let mut all = Vec::new();
    for file in snapshot.files() {
        all.extend(snapshot.read(file).await.unwrap());
    }
    all
}

/// Each stored offset with how often it is there.
async fn offsets(table: &Table) -> BTreeMap<i64, u32> {
    let mut found = BTreeMap::new();
    for batch in batches(table).await {
        let column = batch.column_by_name("journal_offset").unwrap();
        for offset in column.as_primitive::<Int64Type>().values() {
            *found.entry(*offset).or_default() += 1;
        }
    }
    found
}

/// `entry` and `problem` of each row, in the order of their offsets.
async fn entries(table: &Table) -> Vec<String> {
    let mut rows = BTreeMap::new();
    for batch in batches(table).await {
        let offsets = batch.column_by_name("journal_offset").unwrap().clone();
        let offsets = offsets.as_primitive::<Int64Type>();
        let entry = batch.column_by_name("entry").unwrap().as_string::<i32>();
        for row in 0..batch.num_rows() {
            rows.insert(offsets.value(row), entry.value(row).to_owned());
        }
    }
    rows.into_values().collect()
}

fn once(range: std::ops::Range<i64>) -> BTreeMap<i64, u32> {
    range.map(|offset| (offset, 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_entry_becomes_a_row_and_a_stop_commits_at_once() {
    let mut site = Site::new();
    let bytes = bytes::Bytes::from_static(b"{\"jsonrpc\":\"2.0\"}");
    let (_, chunks) = body::split(Bytes([1; 16]), Bytes([2; 32]), &bytes);
    let header = chunks[0].header.encode();
    let chunk = NewEntry { kind: EntryKind::Chunk, header, value: bytes };
    let unreadable = entry(EntryKind::Event, &b"\xff\x00"[..]);
    let no_message = entry(EntryKind::Checkpoint, &b"?"[..]);
    site.put(&[chunk, event(0), unreadable, event(1), no_message]);
    let ingest = site.ingest(&site.lake().await);
    ingest.run(Assigned::All, stopped()).await.unwrap();
    let lake = site.lake().await;
    let told = entries(lake.events()).await;
    assert_eq!(told, ["event", "undecodable", "event", "undecodable"]);
    assert_eq!(offsets(lake.bodies()).await, once(0..1));
    let status = &ingest.status()[0];
    assert_eq!((status.stored_to, status.commits.count), (5, 1));
    assert_eq!(status.counts, Counts { rows: 4, undecodable: 2, ..Counts::default() });
    let app_id = custody_lake::file_app_id("custody.events", "edge-1");
    let snapshot = lake.events().snapshot().await.unwrap();
    assert_eq!(snapshot.txn(&app_id).await.unwrap(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_where_the_table_stands() {
    let mut site = Site::new();
    for start in [0u64, 5, 10] {
        site.put(&(start..start + 5).map(event).collect::<Vec<_>>());
        assert_eq!(site.store_all().await.rows, 5);
        assert_eq!(site.store_all().await.rows, 0, "nothing new");
    }
    let lake = site.lake().await;
    assert_eq!(offsets(lake.events()).await, once(0..15));
    assert_eq!(lake.events().snapshot().await.unwrap().version(), 3, "no empty commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resent_record_is_dropped_a_late_one_fills_its_gap_and_another_one_is_a_conflict() {
    let mut site = Site::new();
    site.put(&[event(0), event(1), event(5), event(1), event_saying(5, "other")]);
    let first = site.store_all().await;
    assert_eq!(first, Counts { rows: 4, duplicates: 1, conflicts: 1, undecodable: 0 });
    // The same after a restart, when the hashes have to be read back from files.
    site.put(&[event(3), event(5), event(0), event_saying(1, "other"), event(3)]);
    let second = site.store_all().await;
    assert_eq!(second, Counts { rows: 2, duplicates: 3, conflicts: 1, undecodable: 0 });
    let told = entries(site.lake().await.events()).await;
    assert_eq!(told, ["event", "event", "event", "conflict", "event", "conflict"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stretch_that_is_resent_is_dropped_record_by_record_and_what_is_new_in_it_is_kept() {
    let mut site = Site::new();
    site.put(&(0..3_000).filter(|seq| seq % 100 != 7).map(event).collect::<Vec<_>>());
    site.store_all().await;
    let mut again: Vec<_> = (0..3_100).map(event).collect();
    again[2_500] = event_saying(2_500, "other");
    site.put(&again);
    let counts = site.store_all().await;
    assert_eq!(counts, Counts { rows: 131, duplicates: 2_969, conflicts: 1, undecodable: 0 });
    assert_eq!(site.store_all().await, Counts::default(), "and nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_another_program_has_rewritten_without_our_tags_are_read_instead() {
    let mut site = Site::new();
    site.put(&[event(0), event(2)]);
    site.store_all().await;
    let log = site.folder.path().join("lake/events/_delta_log/00000000000000000001.json");
    let plain = std::fs::read_to_string(&log).unwrap();
    let untagged = plain.replace("custody.streams", "x").replace("custody.partition", "y");
    assert_ne!(untagged, plain);
    std::fs::write(&log, untagged).unwrap();
    site.put(&[event(0), event(1), event_saying(2, "other")]);
    let counts = site.store_all().await;
    assert_eq!(counts, Counts { rows: 2, duplicates: 1, conflicts: 1, undecodable: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_nothing_but_duplicates_still_moves_the_position() {
    let mut site = Site::new();
    site.put(&[event(0)]);
    site.store_all().await;
    site.put(&[event(0), event(0)]);
    assert_eq!(site.store_all().await.duplicates, 2);
    assert_eq!(site.store_all().await.duplicates, 0, "they are not read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_ahead_of_the_journal_is_refused_with_what_to_do() {
    let mut site = Site::new();
    site.put(&[event(0), event(1)]);
    site.store_all().await;
    let other = tempfile::tempdir().unwrap();
    let mut younger = FileAppend::open(other.path(), "edge-1", 4 << 20).unwrap();
    younger.append(&[event(0)]).unwrap();
    let journal: Arc<dyn Journal> = younger.journal();
    let ingest = Ingest::new(journal, site.lake().await, settings());
    let error = ingest.run(Assigned::All, stopped()).await.unwrap_err();
    assert!(matches!(error, IngestError::Beyond { stored: 2, end: 1, .. }), "{error}");
    assert!(error.to_string().contains("Give the writer a new name"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_large_enough_does_not_wait_for_the_clock() {
    let mut site = Site::new();
    for start in 0..4u64 {
        site.put(&(start * 9_000..(start + 1) * 9_000).map(event).collect::<Vec<_>>());
    }
    let lake = site.lake().await;
    let forever = Duration::from_secs(3600);
    let settings = Settings { flush_bytes: 1000, flush_after: forever, ..settings() };
    let ingest = Ingest::new(site.journal(), lake.clone(), settings);
    ingest.run(Assigned::All, stopped()).await.unwrap();
    assert!(ingest.status()[0].commits.count >= 4, "{:?}", ingest.status());
    assert_eq!(offsets(lake.events()).await, once(0..36_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_taken_over_stops_ingest_even_when_nothing_arrives_any_more() {
    let mut site = Site::new();
    site.put(&[event(0)]);
    site.lake().await;
    let first = site.folder.path().join("lake/events/_delta_log/00000000000000000000.json");
    let metadata = std::fs::read_to_string(&first).unwrap();
    let newer = metadata.replace("\"custody.format\":\"1\"", "\"custody.format\":\"2\"");
    let newer = newer.lines().find(|line| line.contains("metaData")).unwrap().to_owned();
    let second = first.with_file_name("00000000000000000001.json");
    let store = FaultyStore::on(Arc::new(DurableFileSystem::new()), ".parquet");
    store.push([Fault::First(Box::pin(async move { std::fs::write(second, newer).unwrap() }))]);
    let ingest = site.ingest(&site.lake_over(store).await);
    let error = ingest.run(Assigned::All, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("upgrade custody"), "{error}");
}

/// Where the first owner stops for a while, and whether its write has taken place by then.
#[derive(Clone, Copy, Debug)]
enum Halt {
    Before(&'static str),
    After(&'static str),
}

impl Halt {
    /// A store in which the first such write meets `halt`.
    fn store(self, halt: BoxFuture<'static, ()>) -> Arc<FaultyStore> {
        let inner = Arc::new(DurableFileSystem::new());
        let (store, fault) = match self {
            Self::Before(path) => (FaultyStore::on(inner, path), Fault::First(halt)),
            Self::After(path) => (FaultyStore::on(inner, path), Fault::Then(halt)),
        };
        store.push([fault]);
        store
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_falls_silent_at_any_step_and_wakes_up_later_stores_nothing_twice() {
    let (file, commit) = (".parquet", "events/_delta_log/0");
    for halt in [Halt::Before(file), Halt::After(file), Halt::Before(commit), Halt::After(commit)] {
        let mut site = Site::new();
        site.put(&(0..50).map(event).collect::<Vec<_>>());
        site.lake().await;
        let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (Arc::clone(&reached), Arc::clone(&go_on));
        let silence = Box::pin(async move {
            tell.notify_one();
            wait.notified().await;
        });
        let store = halt.store(silence);
        let silent = site.ingest(&site.lake_over(store).await);
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let running = tokio::spawn(async move { silent.run(Assigned::All, token).await });
        reached.notified().await;

        // The second owner comes, takes over and goes further.
        site.store_all().await;
        site.put(&(50..60).map(event).collect::<Vec<_>>());
        site.store_all().await;
        let lake = site.lake().await;
        assert_eq!(offsets(lake.events()).await, once(0..60), "{halt:?}");

        go_on.notify_one();
        shutdown.cancel();
        running.await.unwrap().unwrap();
        assert_eq!(offsets(lake.events()).await, once(0..60), "{halt:?}, woken");
    }
}

fn faults(random: &mut impl Rng) -> Vec<Fault> {
    let one = |random: &mut dyn rand::RngCore| match random.random_range(0..6) {
        0 => Fault::Before,
        1 => Fault::After,
        2 => Fault::Conflict,
        _ => Fault::None,
    };
    (0..40).map(|_| one(random)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_owners_of_one_partition_with_a_bad_store_store_every_entry_once() {
    for seed in 0..4u64 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut site = Site::new();
        site.lake().await;
        let mut owners = Vec::new();
        let shutdown = CancellationToken::new();
        for path in ["_delta_log/0", "events/"] {
            let store = FaultyStore::on(Arc::new(DurableFileSystem::new()), path);
            let lake = site.lake_over(store.clone()).await;
            store.push(faults(&mut random));
            let (ingest, token) = (site.ingest(&lake), shutdown.clone());
            owners.push(tokio::spawn(async move { ingest.run(Assigned::All, token).await }));
        }
        let mut next = 0;
        while next < 300 {
            let more = random.random_range(1..40);
            site.put(&(next..next + more).map(event).collect::<Vec<_>>());
            next += more;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
        }
        shutdown.cancel();
        for owner in owners {
            owner.await.unwrap().unwrap();
        }
        let stored = offsets(site.lake().await.events()).await;
        assert_eq!(stored, once(0..i64::try_from(next).unwrap()), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_killed_between_any_two_steps_loses_nothing() {
    let (file, commit) = (".parquet", "events/_delta_log/0");
    for halt in [Halt::Before(file), Halt::After(file), Halt::Before(commit), Halt::After(commit)] {
        let mut site = Site::new();
        site.put(&(0..20).map(event).collect::<Vec<_>>());
        site.lake().await;
        let reached = Arc::new(Notify::new());
        let tell = Arc::clone(&reached);
        let forever = Box::pin(async move {
            tell.notify_one();
            std::future::pending::<()>().await;
        });
        let store = halt.store(forever);
        let killed = site.ingest(&site.lake_over(store).await);
        let dying =
            tokio::spawn(async move { killed.run(Assigned::All, CancellationToken::new()).await });
        reached.notified().await;
        dying.abort();
        assert!(dying.await.unwrap_err().is_cancelled());
        site.store_all().await;
        assert_eq!(offsets(site.lake().await.events()).await, once(0..20), "{halt:?}");
    }
}
