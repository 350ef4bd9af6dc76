//! Two writers on one log, whose answers get lost: every offset is stored once, whatever happens.

use std::sync::Arc;

use super::{APP, Site, stored_as};
use crate::faults::Fault;
use crate::{Lake, Outcome, Table, TxnStep};

/// Offsets of one partition.
const END: u64 = 24;
/// Offsets of one commit.
const BATCH: u64 = 3;

/// Numbers that look like chance and are the same each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Carries a partition to its end as a worker does: from where the table stands, dropping what it
/// has when somebody else was there first, offering the same files again when nothing is known.
async fn carry(table: Arc<Table>, app: String) {
    loop {
        let start = table.snapshot().await.unwrap().txn(&app).await.unwrap();
        let from = start.unwrap_or(0);
        if from >= END {
            return;
        }
        let end = (from + BATCH).min(END);
        let files = stored_as(&table, &app, from..end).await;
        let step = [TxnStep { app_id: app.clone(), start, end }];
        loop {
            match table.commit(&files, &step).await {
                Ok(Outcome::Committed { .. } | Outcome::AlreadyDone | Outcome::Fenced { .. }) => {
                    break;
                }
                Err(crate::CommitError::Unknown { .. }) => {}
                Err(refused) => panic!("{refused}"),
            }
        }
    }
}

/// The offsets of each partition that the table's files say they hold, sorted.
async fn offsets(lake: &Lake, app: &str) -> Vec<u64> {
    let snapshot = lake.events().snapshot().await.unwrap();
    let mut all = Vec::new();
    for file in snapshot.files().iter().filter(|f| f.partition() == Some(app)) {
        for batch in snapshot.read(file).await.unwrap() {
            let column = batch.column_by_name("journal_offset").unwrap();
            let column =
                column.as_any().downcast_ref::<arrow::array::Int64Array>().unwrap().clone();
            all.extend(column.values().iter().map(|offset| u64::try_from(*offset).unwrap()));
        }
    }
    all.sort_unstable();
    all
}

/// Workers `one` and `two` both believe that both partitions are theirs.
async fn race(seed: u64) {
    let site = Site::bucket();
    let (one, two) = (site.open().await.unwrap(), site.open().await.unwrap());
    let mut dice = Dice(seed);
    site.store.push((0..60).map(|_| match dice.next(5) {
        0 => Fault::Before,
        1 | 2 => Fault::After,
        3 => Fault::Conflict,
        _ => Fault::None,
    }));
    let other = APP.replace("edge-1", "edge-2");
    let workers = [(&one, APP), (&two, APP), (&one, &other), (&two, &other)];
    let workers =
        workers.map(|(lake, app)| tokio::spawn(carry(Arc::clone(lake.events()), app.to_owned())));
    for worker in workers {
        worker.await.unwrap();
    }
    let fresh = site.open().await.unwrap();
    for app in [APP, other.as_str()] {
        assert_eq!(offsets(&fresh, app).await, (0..END).collect::<Vec<_>>(), "seed {seed}, {app}");
        let snapshot = fresh.events().snapshot().await.unwrap();
        assert_eq!(snapshot.txn(app).await.unwrap(), Some(END), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_that_race_and_lose_answers_store_every_offset_once() {
    for seed in [1, 2, 3] {
        race(seed).await;
    }
}
