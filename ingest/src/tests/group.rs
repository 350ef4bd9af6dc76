//! Tests of several partitions and several workers: they come and go, and every entry is stored
//! once. The journal is in memory, the lake a folder.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use custody_journal::{Journal, Partition, Topic};
use custody_lake::Lake;
use custody_lake::store::DurableFileSystem;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::testing::{MemoryJournal, Shared, partition};
use crate::{PartitionStatus, Remedy};

const FOREVER: Duration = Duration::from_secs(3600);

/// A journal of several partitions and the lake that it is carried into.
struct World {
    folder: tempfile::TempDir,
    journal: Arc<MemoryJournal>,
    partitions: Vec<Partition>,
}

impl World {
    fn new(partitions: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = MemoryJournal::new(partitions);
        let partitions = (0..partitions).map(|n| partition(Topic::Events, n)).collect();
        Self { folder, journal, partitions }
    }

    /// The events `seqs` of the stream that lives in this partition.
    fn put(&self, at: usize, seqs: std::ops::Range<u64>) {
        self.journal.put(&self.partitions[at], seqs.map(|seq| of_stream(at, seq)));
    }

    async fn lake(&self) -> Lake {
        open(self.folder.path(), Arc::new(DurableFileSystem::new())).await
    }

    async fn worker(&self, settings: Settings) -> Worker {
        self.worker_over(self.lake().await, settings)
    }

    fn worker_over(&self, lake: Lake, settings: Settings) -> Worker {
        let journal: Arc<dyn Journal> = Arc::new(Shared(Arc::clone(&self.journal)));
        let ingest = Arc::new(Ingest::new(journal, lake, settings));
        let (wanted, shutdown) = (watch::Sender::new(BTreeSet::new()), CancellationToken::new());
        let (assigned, token) = (Assigned::Group(wanted.subscribe()), shutdown.clone());
        let running = Arc::clone(&ingest);
        let task = tokio::spawn(async move { running.run(assigned, token).await });
        Worker { ingest, wanted, shutdown, task }
    }

    /// The records that the table holds as events, each with how often it is there.
    async fn stored(&self) -> BTreeMap<(String, i64), u32> {
        let mut found = BTreeMap::new();
        for batch in batches(self.lake().await.events()).await {
            let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>();
            let seq = batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>();
            for row in (0..batch.num_rows()).filter(|row| text("entry").value(*row) == "event") {
                let identity = (text("stream").value(row).to_owned(), seq.value(row));
                *found.entry(identity).or_default() += 1;
            }
        }
        found
    }
}

/// One process of several.
struct Worker {
    ingest: Arc<Ingest>,
    wanted: watch::Sender<BTreeSet<Partition>>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), IngestError>>,
}

impl Worker {
    fn gets(&self, partitions: &[Partition]) {
        self.wanted.send_replace(partitions.iter().cloned().collect());
    }

    fn of(&self, partition: &Partition) -> Option<PartitionStatus> {
        self.ingest.status().into_iter().find(|s| s.partition == *partition)
    }

    async fn until(&self, partition: &Partition, is_so: impl Fn(&PartitionStatus) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.of(partition).is_some_and(|status| is_so(&status)) {
            assert!(Instant::now() < deadline, "{:?}", self.ingest.status());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn stream(at: usize) -> String {
    format!("edge-{at}/0190c8a0-7b1e-7000-8000-{at:012}")
}

fn of_stream(at: usize, seq: u64) -> NewEntry {
    let at_us = Uint::new(20_000 * DAY_US + seq);
    let salt = Bytes([u8::try_from(at).unwrap(); 16]);
    let place = Place { stream: stream(at).parse().unwrap(), seq, at: at_us, salt };
    entry(EntryKind::Event, Draft::new(Kind::StreamAlive).seal(place).unwrap().bytes)
}

fn all_once(counts: &[i64]) -> BTreeMap<(String, i64), u32> {
    let of = |(at, count): (usize, &i64)| (0..*count).map(move |seq| ((stream(at), seq), 1));
    counts.iter().enumerate().flat_map(of).collect()
}

fn kafka() -> Settings {
    Settings { cluster: "k1".to_owned(), ..settings() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_taken_away_is_committed_as_far_as_it_was_read_and_goes_on_elsewhere() {
    let world = World::new(2);
    let [first, second] = [world.partitions[0].clone(), world.partitions[1].clone()];
    let lazy = Settings { flush_after: FOREVER, ..kafka() };
    let (one, two) = (world.worker(lazy.clone()).await, world.worker(lazy).await);
    world.put(0, 0..10);
    world.put(1, 0..20);
    one.gets(&[first.clone(), second.clone()]);
    one.until(&first, |s| s.read_to == 10).await;
    one.until(&second, |s| s.read_to == 20).await;
    assert_eq!(world.stored().await, BTreeMap::new(), "nothing is due yet");

    one.gets(std::slice::from_ref(&first));
    one.until(&second, |s| !s.assigned && s.stored_to == 20).await;
    assert_eq!(world.stored().await.len(), 20, "the other partition is not disturbed");
    world.put(1, 20..30);
    two.gets(std::slice::from_ref(&second));
    two.until(&second, |s| s.read_to == 30).await;
    let status = two.of(&second).unwrap();
    assert_eq!((status.stored_to, status.lag(), status.fenced), (20, Some(10), 0));

    two.stop().await;
    one.stop().await;
    assert_eq!(world.stored().await, all_once(&[10, 30]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_that_are_shuffled_and_believe_in_the_same_partitions_store_everything_once() {
    for seed in 0..3 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let world = World::new(3);
        let workers = [world.worker(kafka()).await, world.worker(kafka()).await];
        let mut counts = [0u64; 3];
        for _ in 0..12 {
            for worker in &workers {
                let mut some = world.partitions.clone();
                some.retain(|_| random.random_range(0..3) > 0);
                worker.gets(&some);
            }
            for (at, count) in counts.iter_mut().enumerate() {
                let more = random.random_range(0..40);
                world.put(at, *count..*count + more);
                *count += more;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..80))).await;
        }
        workers[0].gets(&world.partitions);
        workers[1].gets(&[]);
        for (partition, count) in world.partitions.iter().zip(counts) {
            workers[0].until(partition, |s| s.assigned && s.stored_to == count).await;
        }
        for worker in workers {
            worker.stop().await;
        }
        let counts = counts.map(|count| i64::try_from(count).unwrap());
        assert_eq!(world.stored().await, all_once(&counts), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_back_while_it_is_still_being_committed_goes_on_afterwards() {
    let world = World::new(1);
    let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&reached), Arc::clone(&go_on));
    let store = Halt::Before("events/_delta_log/0").store(Box::pin(async move {
        tell.notify_one();
        wait.notified().await;
    }));
    world.lake().await;
    let worker = world.worker_over(open(world.folder.path(), store).await, kafka());
    world.put(0, 0..10);
    worker.gets(&world.partitions);
    reached.notified().await;
    worker.gets(&[]);
    worker.gets(&world.partitions);
    world.put(0, 10..20);
    go_on.notify_one();
    worker.until(&world.partitions[0], |s| s.stored_to == 20).await;
    worker.stop().await;
    assert_eq!(world.stored().await, all_once(&[20]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_no_member_any_more_commits_and_says_so() {
    let world = World::new(1);
    let Worker { ingest, wanted, task, .. } =
        world.worker(Settings { flush_after: FOREVER, ..kafka() }).await;
    world.put(0, 0..5);
    wanted.send_replace(world.partitions.iter().cloned().collect());
    let deadline = Instant::now() + Duration::from_secs(30);
    while ingest.status().first().is_none_or(|s| s.read_to < 5) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    drop(wanted);
    let error = task.await.unwrap().unwrap_err();
    assert!(matches!(error, IngestError::Membership), "{error}");
    assert_eq!(world.stored().await, all_once(&[5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_refused_until_the_epoch_is_raised_and_then_nothing_is_stored_twice() {
    // Empty, shorter, and filled again beyond the old end.
    for (refilled, told) in [(0u64, "ends at 0"), (4, "ends at 4"), (9, "another entry there")] {
        let world = World::new(1);
        world.put(0, 0..6);
        let all = |settings| async {
            let journal: Arc<dyn Journal> = Arc::new(Shared(Arc::clone(&world.journal)));
            let ingest = Ingest::new(journal, world.lake().await, settings);
            ingest.run(Assigned::All, stopped()).await.map(|()| ingest.status()[0].counts)
        };
        all(kafka()).await.unwrap();
        world.journal.recreate(&world.partitions[0]);
        // The writer sends the last two again, then goes on.
        world.put(0, 4..4 + refilled);
        let error = all(kafka()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(told) && text.contains("Set [journal] epoch = 2"), "{text}");
        let counts = all(Settings { epoch: 2, ..kafka() }).await.unwrap();
        let resent = refilled.min(2);
        assert_eq!((counts.duplicates, counts.rows), (resent, refilled - resent));
        let end = i64::try_from(6.max(4 + refilled)).unwrap();
        assert_eq!(world.stored().await, all_once(&[end]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_a_group_waits_for_a_topic_made_anew_and_says_so() {
    let world = World::new(2);
    let [first, second] = [world.partitions[0].clone(), world.partitions[1].clone()];
    world.put(0, 0..5);
    let before = world.worker(kafka()).await;
    before.gets(std::slice::from_ref(&first));
    before.until(&first, |s| s.stored_to == 5).await;
    before.stop().await;
    world.journal.recreate(&first);
    world.put(1, 0..3);
    let worker = world.worker(kafka()).await;
    worker.gets(&world.partitions);
    worker.until(&first, |s| s.problem.as_ref().is_some_and(|p| p.contains("epoch = 2"))).await;
    worker.until(&second, |s| s.stored_to == 3).await;
    worker.stop().await;
    assert_eq!(world.stored().await, all_once(&[5, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_deleted_before_they_were_stored_are_never_passed_over_and_the_others_go_on() {
    let world = World::new(2);
    let [first, second] = [world.partitions[0].clone(), world.partitions[1].clone()];
    let worker = world.worker(kafka()).await;
    world.put(0, 0..5);
    worker.gets(std::slice::from_ref(&first));
    worker.until(&first, |s| s.stored_to == 5).await;
    worker.gets(&[]);
    worker.until(&first, |s| !s.assigned).await;
    world.put(0, 5..20);
    world.journal.delete_before(&first, 12);
    world.put(1, 0..7);
    worker.gets(&world.partitions);
    worker.until(&second, |s| s.stored_to == 7).await;
    worker.until(&first, |s| s.problem.is_some()).await;
    let problem = worker.of(&first).unwrap().problem.unwrap();
    assert!(problem.contains("7 offsets of k1/custody.events@1/0, from 5"), "{problem}");
    assert!(problem.contains("go on from offset 12"), "{problem}");
    worker.stop().await;

    let next = world.worker(Settings { epoch: 2, ..kafka() }).await;
    next.gets(&world.partitions);
    next.until(&first, |s| s.stored_to == 20).await;
    next.until(&second, |s| s.stored_to == 7 && s.counts.duplicates == 7).await;
    next.stop().await;
    let mut expected = all_once(&[20, 7]);
    expected.retain(|(name, seq), _| *name != stream(0) || !(5..12).contains(seq));
    assert_eq!(world.stored().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_does_not_answer_is_a_problem_that_passes() {
    let world = World::new(1);
    let partition = world.partitions[0].clone();
    let worker = world.worker(kafka()).await;
    world.journal.be_silent(true);
    worker.gets(&world.partitions);
    worker.until(&partition, |s| s.problem.is_some()).await;
    world.put(0, 0..3);
    world.journal.be_silent(false);
    worker.until(&partition, |s| s.stored_to == 3 && s.problem.is_none()).await;
    world.journal.be_silent(true);
    worker.until(&partition, |s| s.problem.is_some()).await;
    world.put(0, 3..6);
    world.journal.be_silent(false);
    worker.until(&partition, |s| s.stored_to == 6 && s.problem.is_none()).await;
    worker.stop().await;
    assert_eq!(world.stored().await, all_once(&[6]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_sent_again_to_another_partition_is_dropped() {
    let world = World::new(2);
    let worker = world.worker(kafka()).await;
    world.put(0, 0..5);
    worker.gets(&world.partitions[..1]);
    worker.until(&world.partitions[0], |s| s.stored_to == 5).await;
    world.journal.put(&world.partitions[1], (3..8).map(|seq| of_stream(0, seq)));
    worker.gets(&world.partitions);
    worker.until(&world.partitions[1], |s| s.stored_to == 5).await;
    assert_eq!(worker.of(&world.partitions[1]).unwrap().counts.duplicates, 2);
    worker.stop().await;
    assert_eq!(world.stored().await, all_once(&[8]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_stored_whole_whichever_topic_it_stands_in() {
    let world = World::new(1);
    let bodies = partition(Topic::Bodies, 0);
    let foreign = || entry(EntryKind::Event, &b"hello"[..]);
    let chunk = NewEntry { header: "{}".into(), ..entry(EntryKind::Chunk, &b"hello"[..]) };
    world.journal.put(&world.partitions[0], [foreign(), chunk]);
    world.journal.put(&bodies, [foreign(), entry(EntryKind::Checkpoint, &b"hello"[..])]);
    let worker = world.worker(kafka()).await;
    worker.gets(&[world.partitions[0].clone(), bodies.clone()]);
    for of in [&world.partitions[0], &bodies] {
        worker.until(of, |s| s.stored_to == 2 && s.counts.undecodable == 2).await;
    }
    worker.stop().await;
    let lake = world.lake().await;
    for (table, column) in [(lake.events(), "raw"), (lake.bodies(), "bytes")] {
        let rows = batches(table).await;
        let raw = rows[0].column_by_name(column).unwrap().as_binary::<i32>();
        assert_eq!(raw.iter().collect::<Vec<_>>(), [Some(&b"hello"[..]); 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_how_far_behind_the_table_is_and_how_long_commits_take() {
    let world = World::new(1);
    let partition = world.partitions[0].clone();
    let worker = world.worker(Settings { flush_after: FOREVER, ..kafka() }).await;
    world.put(0, 0..4);
    worker.gets(&world.partitions);
    worker.until(&partition, |s| s.lag() == Some(4) && s.unread() == Some(0)).await;
    let waiting = worker.of(&partition).unwrap().waiting.unwrap();
    assert!(waiting > Duration::from_secs(3600), "the entries are years old: {waiting:?}");
    worker.gets(&[]);
    worker.until(&partition, |s| !s.assigned).await;
    let status = worker.of(&partition).unwrap();
    assert_eq!((status.waiting, status.lag(), status.commits.count), (None, Some(0), 1));
    assert_eq!(status.commits.classes.iter().sum::<u64>(), 1);
    worker.stop().await;
}

#[test]
fn what_to_do_depends_on_the_journal() {
    assert_eq!(settings().remedy(), Remedy::Writer);
    assert_eq!(Settings { epoch: 3, ..kafka() }.remedy(), Remedy::Epoch(4));
}
