//! A medium that does not answer, does not answer yet, or answers late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use custody_journal::{Entry, Journal, Partition, Read, ReadError};
use custody_lake::{Lake, LakeOptions};
use custody_schemas::words::Status;
use serde_json::json;

use crate::testing::{Deployment, answer, call, lines};
use crate::{Engine, QueryError, Source};

/// A journal behind a network that can be cut.
struct Far {
    journal: Arc<dyn Journal>,
    /// Nothing can be asked or read; errors come at once.
    down: Arc<AtomicBool>,
    /// Questions for an end get no answer for as long as this lasts.
    silent: Arc<AtomicBool>,
    /// Bulk lanes are not there yet.
    small: Arc<AtomicBool>,
}

struct FarReader {
    reader: Box<dyn Read>,
    down: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
}

fn check(down: &AtomicBool) -> Result<(), ReadError> {
    match down.load(Ordering::Acquire) {
        false => Ok(()),
        true => Err(ReadError::Io {
            path: "broker".into(),
            source: std::io::ErrorKind::ConnectionRefused.into(),
        }),
    }
}

impl Journal for Far {
    fn partitions(&self) -> Result<Vec<Partition>, ReadError> {
        check(&self.down)?;
        let mut partitions = self.journal.partitions()?;
        if self.small.load(Ordering::Acquire) {
            partitions.retain(|partition| !partition.name.ends_with(".bulk"));
        }
        Ok(partitions)
    }

    fn reader(&self, partition: &Partition, from: u64) -> Result<Box<dyn Read>, ReadError> {
        check(&self.down)?;
        let reader = self.journal.reader(partition, from)?;
        let (down, silent) = (Arc::clone(&self.down), Arc::clone(&self.silent));
        Ok(Box::new(FarReader { reader, down, silent }))
    }

    fn release(&self, _: &Partition, _: u64) -> Result<(), ReadError> {
        Ok(())
    }
}

impl Read for FarReader {
    fn read(&mut self, n: usize, bytes: usize, wait: Duration) -> Result<Vec<Entry>, ReadError> {
        check(&self.down)?;
        self.reader.read(n, bytes, wait)
    }

    fn seek(&mut self, offset: u64) -> Result<(), ReadError> {
        self.reader.seek(offset)
    }

    fn position(&self) -> u64 {
        self.reader.position()
    }

    fn end(&self) -> Result<u64, ReadError> {
        while self.silent.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        check(&self.down)?;
        self.reader.end()
    }
}

struct Switches {
    down: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    small: Arc<AtomicBool>,
}

impl Drop for Switches {
    /// A test that fails must not leave a thread that waits for ever.
    fn drop(&mut self) {
        self.silent.store(false, Ordering::Release);
    }
}

async fn far(deployment: &Deployment, down: bool) -> (Arc<Engine>, Switches) {
    let switch = |on| Arc::new(AtomicBool::new(on));
    let switches = Switches { down: switch(down), silent: switch(false), small: switch(true) };
    let journal = Arc::new(Far {
        journal: deployment.journal(),
        down: Arc::clone(&switches.down),
        silent: Arc::clone(&switches.silent),
        small: Arc::clone(&switches.small),
    });
    let (lake, writer) = (deployment.lake.clone(), deployment.writer.clone());
    (Engine::open(lake, journal, writer, deployment.options()).await.unwrap(), switches)
}

const CALLS: &str = "SELECT count(*) AS n FROM calls";

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_cannot_begin_says_so_and_begins_when_it_can() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let begun = Instant::now();
    let (engine, switches) = far(&deployment, true).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "whoever listens need not wait");
    let told = async || engine.ready().is_err_and(|problem| problem.contains("broker"));
    until("readiness names what is in the way", told).await;
    let error = answer(&engine, CALLS).await.expect_err("nothing to answer from");
    assert!(matches!(error, QueryError::Starting(_)), "{error}");
    assert_eq!(error.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    switches.down.store(false, Ordering::Release);
    until("it is ready", async || engine.ready().is_ok()).await;
    assert_eq!(lines(&engine, CALLS).await, [json!({ "n": 1 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_comes_before_the_lake_waits_for_it_and_makes_nothing() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let place = tempfile::tempdir().unwrap();
    let (url, options) = (format!("file:{}", place.path().display()), LakeOptions::new("a.test"));
    let source = Source::for_reading(&url, options.clone()).await.unwrap();
    assert!(matches!(source, Source::Awaited { .. }), "{source:?}");
    let (journal, writer) = (deployment.journal(), deployment.writer.clone());
    let engine = Engine::open(source, journal, writer, deployment.options()).await.unwrap();
    let told = async || engine.ready().is_err_and(|problem| problem.contains("custody ingest"));
    until("readiness says who makes it", told).await;
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "whoever asks makes nothing");
    Lake::open(&url, &options).await.unwrap();
    until("it is ready", async || engine.ready().is_ok()).await;
    assert_eq!(lines(&engine, CALLS).await, [json!({ "n": 1 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_does_not_answer_makes_no_question_hang_and_every_answer_says_so() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let (engine, switches) = far(&deployment, false).await;
    let before = engine.completeness().await.unwrap();
    assert!(before.unheard_since.is_none(), "{}", before.line());
    switches.silent.store(true, Ordering::Release);
    let asked = Instant::now();
    let questions = (0..8).map(|_| lines(&engine, CALLS));
    for rows in futures::future::join_all(questions).await {
        assert_eq!(rows, [json!({ "n": 1 })], "what was read is there");
    }
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    let during = engine.completeness().await.unwrap();
    assert!(!during.is_complete() && during.unheard_since.is_some());
    assert!(during.line().contains("the journal has not said"), "{}", during.line());
    let through = during.complete_through.as_deref().expect("it was heard before");
    assert!(through <= before.as_of.as_str(), "{} {}", during.line(), before.as_of);
    until("it is not ready", async || engine.ready().is_err()).await;
    switches.silent.store(false, Ordering::Release);
    until("answers are whole again", async || {
        engine.completeness().await.unwrap().unheard_since.is_none()
    })
    .await;
    until("it is ready", async || engine.ready().is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_the_journal_was_away_is_there_once_when_it_is_back() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let (engine, switches) = far(&deployment, false).await;
    assert_eq!(lines(&engine, CALLS).await, [json!({ "n": 1 })]);
    switches.down.store(true, Ordering::Release);
    until("the tail notices", async || engine.ready().is_err()).await;
    deployment.run(&call("bob", "read", &["p2"]), Status::Ok).await;
    assert_eq!(lines(&engine, CALLS).await, [json!({ "n": 1 })]);
    assert!(engine.completeness().await.unwrap().unheard_since.is_some());
    switches.down.store(false, Ordering::Release);
    until("everything is there", async || lines(&engine, CALLS).await == [json!({ "n": 2 })]).await;
    let after = engine.completeness().await.unwrap();
    assert!(after.unheard_since.is_none() && after.duplicates == 0, "{}", after.line());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_shorter_than_what_the_lake_holds_of_it_is_no_whole_answer() {
    let deployment = Deployment::new().await;
    deployment.run(&call("ann", "read", &["p1"]), Status::Ok).await;
    let app_id = "file/custody.events@1/edge-1".to_owned();
    let step = custody_lake::TxnStep { app_id, start: None, end: 1_000_000 };
    deployment.lake.events().commit(&[], &[step]).await.unwrap();
    let engine = deployment.engine().await;
    let judged = engine.completeness().await.unwrap();
    assert!(!judged.is_complete() && judged.unheard_since.is_some(), "{}", judged.line());
    // It was never heard: then no moment is named, least of all one in 1970.
    assert_eq!(judged.complete_through, None);
    assert!(judged.line().starts_with("What is missing is not known"), "{}", judged.line());
    assert!(!judged.header().contains("1970"), "{}", judged.header());
    until("readiness says why", async || {
        engine.ready().is_err_and(|problem| problem.contains("beyond the journal's end"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_added_later_is_followed_too() {
    let deployment = Deployment::new().await;
    let (engine, switches) = far(&deployment, false).await;
    let cut = engine.completeness().await.unwrap().cut;
    assert!(!cut.contains(".bulk"), "{cut}");
    switches.small.store(false, Ordering::Release);
    until("it is in the cut", async || {
        engine.completeness().await.unwrap().cut.contains("bodies/edge-1.bulk")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_cannot_record_questions_is_not_ready() {
    let deployment = Deployment::new().await;
    let engine = deployment.engine().await;
    assert_eq!(engine.ready(), Ok(()));
    deployment.writer.close().await.unwrap();
    assert!(engine.ready().is_err());
}
