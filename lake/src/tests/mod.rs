//! Tests of the lake as its users see it: opening, the fenced commit under faults, snapshots; in a
//! folder and in a bucket.

mod bucket;
mod contract;
mod minio;
mod race;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use custody_schemas::event::Draft;
use custody_schemas::id::{Bytes, StreamId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Place, decode};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::batch::Rows;
use crate::columns::EVENTS;
use crate::faults::FaultyStore;
use crate::files::{FileSet, NewFile};
use crate::rows::{Arrival, Standing};
use crate::{Lake, LakeError, LakeOptions, Storage, Table, TxnStep, tags};

const DAY_US: u64 = 86_400_000_000;
const APP: &str = "file/custody.events@1/edge-1";
const STREAM: &str = "edge-1/0190c8a0-7b1e-7000-8000-000000000001";

/// A new place for a lake, with faults before it.
struct Site {
    url: String,
    store: Arc<FaultyStore>,
    /// Only there to be removed at the end.
    _folder: Option<tempfile::TempDir>,
}

impl Site {
    /// In a folder of this machine.
    fn folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().to_str().unwrap().to_owned();
        Self::over(url, &Storage::default(), Some(folder))
    }

    /// In a bucket of a real object store.
    fn bucket() -> Self {
        let minio = minio::shared();
        Self::over(minio.new_url(), &minio.storage(), None)
    }

    fn over(url: String, storage: &Storage, folder: Option<tempfile::TempDir>) -> Self {
        let store = FaultyStore::new(storage.connect(&url).unwrap());
        Self { url, store, _folder: folder }
    }

    async fn open(&self) -> Result<Lake, LakeError> {
        self.open_as("audit.example").await
    }

    async fn open_as(&self, deployment: &str) -> Result<Lake, LakeError> {
        let mut options = LakeOptions::new(deployment);
        options.store = Some(self.store.clone());
        Lake::open(&self.url, &options).await
    }

    /// Where the log of `events` has this version.
    fn log(&self, version: u64) -> Path {
        let place = crate::place::Place::parse(&self.url).unwrap();
        let root = Path::from_url_path(place.root.path()).unwrap();
        Path::from(format!("{root}/events/_delta_log/{version:020}.json"))
    }

    async fn read(&self, path: &Path) -> Option<String> {
        let bytes = self.store.get(path).await.ok()?.bytes().await.unwrap();
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn write(&self, path: &Path, text: String) {
        self.store.put(path, text.into()).await.unwrap();
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
async fn stored(table: &Table, seqs: Range<u64>) -> Vec<NewFile> {
    stored_as(table, APP, seqs).await
}

async fn stored_as(table: &Table, app: &str, seqs: Range<u64>) -> Vec<NewFile> {
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
    let tags = tags::write(app, [(&stream, &spans[..])]);
    let encoded = set.finish("t", &tags).unwrap();
    table.store(&encoded).await.unwrap()
}

fn step(start: Option<u64>, end: u64) -> [TxnStep; 1] {
    [TxnStep { app_id: APP.to_owned(), start, end }]
}

async fn rows_in(table: &Table) -> u64 {
    table.snapshot().await.unwrap().files().iter().map(|f| f.rows.unwrap()).sum()
}

/// Where this crate lies.
fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_names_nothing_is_refused_with_what_to_write_instead() {
    for url in ["ftp://host/prefix", "s3://", "file:", ""] {
        let error = Lake::open(url, &LakeOptions::new("d")).await.unwrap_err();
        assert!(error.to_string().contains("file:./"), "{error}");
    }
}
