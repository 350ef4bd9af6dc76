//! What the lake asks of its store, in requests and time: for each commit, each look at the newest
//! version, each opening.
//!
//! ```text
//! cargo run --release -p custody-lake --example store_cost -- URL [VERSIONS] [DELAY_MS]
//! ```
//! URL is an empty place of a lake; credentials come from the environment. `DELAY_MS` is added to
//! every request, as a store elsewhere would.

#![expect(clippy::print_stdout, reason = "a command that reports on its standard output")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use custody_lake::batch::Rows;
use custody_lake::columns::EVENTS;
use custody_lake::files::FileSet;
use custody_lake::rows::Arrival;
use custody_lake::{Lake, LakeOptions, Storage, TxnStep, app_id, tags};
use custody_schemas::id::Uint;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Counts requests and makes each take longer.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn ObjectStore>,
    delay: Duration,
    gets: AtomicU64,
    puts: AtomicU64,
    lists: AtomicU64,
    read: AtomicU64,
}

impl Counting {
    async fn one(&self, kind: &AtomicU64) {
        kind.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.delay).await;
    }

    fn take(&self) -> String {
        let [g, p, l, r] =
            [&self.gets, &self.puts, &self.lists, &self.read].map(|n| n.swap(0, Ordering::Relaxed));
        format!("{g:>4} get {p:>3} put {l:>3} list {:>8} bytes read", r)
    }
}

impl std::fmt::Display for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "counting {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, at: &Path, payload: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.one(&self.puts).await;
        self.inner.put_opts(at, payload, o).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.one(&self.gets).await;
        let found = self.inner.get_opts(at, options).await?;
        self.read.fetch_add(found.range.end - found.range.start, Ordering::Relaxed);
        Ok(found)
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.one(&self.gets).await;
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        after(self.delay, self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        after(self.delay, self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.one(&self.lists).await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn after(
    delay: Duration,
    list: BoxStream<'static, Result<ObjectMeta>>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let wait = futures::stream::once(tokio::time::sleep(delay));
    wait.filter_map(|()| async { None }).chain(list).boxed()
}

type Any = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> std::result::Result<(), Any> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, rest @ ..] = &arguments[..] else { return Err("URL [VERSIONS] [DELAY_MS]".into()) };
    let number = |i: usize, default: u64| rest.get(i).map_or(Ok(default), |n| n.parse());
    let (versions, delay) = (number(0, 120)?, Duration::from_millis(number(1, 0)?));
    let zero = AtomicU64::default;
    let store = Arc::new(Counting {
        inner: Storage::default().connect(url)?,
        delay,
        gets: zero(),
        puts: zero(),
        lists: zero(),
        read: zero(),
    });
    let mut options = LakeOptions::new("audit.measured");
    options.store = Some(store.clone());
    let told = |what: &str, since: Instant| {
        let ms = since.elapsed().as_secs_f64() * 1e3;
        println!("{what:<44} {ms:>9.1} ms   {}", store.take());
    };
    let start = Instant::now();
    let lake = Lake::open(url, &options).await?;
    told("open a lake that is not there", start);
    let reader = Lake::open(url, &options).await?;
    store.take();
    for version in 0..versions {
        let start = Instant::now();
        commit(&lake, version).await?;
        if [1, 10, 50, 100].contains(&version) || version + 1 == versions {
            told(&format!("commit {version}, file included"), start);
            look(&reader, version + 1, &told).await?;
        }
        store.take();
    }
    let start = Instant::now();
    let fresh = Lake::open(url, &options).await?;
    told("open", start);
    look(&fresh, versions, &told).await?;
    let start = Instant::now();
    println!("{:?}", lake.events().maintain().await?);
    told("maintain", start);
    let start = Instant::now();
    let fresh = Lake::open(url, &options).await?;
    told("open, with a checkpoint of the log", start);
    look(&fresh, versions, &told).await
}

async fn look(
    lake: &Lake,
    end: u64,
    told: &impl Fn(&str, Instant),
) -> std::result::Result<(), Any> {
    let start = Instant::now();
    let snapshot = lake.events().snapshot().await?;
    told("  newest version", start);
    for what in ["  position of a partition", "  position of the other", "  the same again"] {
        let partition = if what.contains("other") { "1" } else { "0" };
        let start = Instant::now();
        let found = snapshot.txn(&app(partition)).await?;
        told(what, start);
        assert!(found.is_none() || found <= Some(end));
    }
    let start = Instant::now();
    lake.events().snapshot().await?;
    told("  newest version, nothing new", start);
    Ok(())
}

fn app(partition: &str) -> String {
    app_id("measured", "custody.events", 1, partition)
}

/// One file of one row, by one partition of two in turn.
async fn commit(lake: &Lake, version: u64) -> std::result::Result<(), Any> {
    let (partition, end) = (version % 2, version / 2 + 1);
    let mut rows = Rows::events();
    let journaled_at = Uint::new(20_000 * 86_400_000_000 + version);
    let name = partition.to_string();
    let arrival = Arrival { partition: &name, offset: end - 1, journaled_at, stored_at: None };
    rows.undecodable(b"measured", "measured", &arrival);
    let mut set = FileSet::new(EVENTS);
    set.append(&rows.finish()?)?;
    let app_id = app(&name);
    let files = set.finish("m", &tags::write(&app_id, []))?;
    let files = lake.events().store(&files).await?;
    let start = (end > 1).then(|| end - 1);
    let step = TxnStep { app_id, start, end };
    lake.events().commit(&files, &[step]).await?;
    Ok(())
}
