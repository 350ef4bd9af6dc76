//! A store that fails on demand: before a write, after it (a lost response), or while another
//! writer is let through. For tests of everything that promises to survive that.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Something that happens instead of a write, or around it.
pub enum Fault {
    /// The write takes place as if nothing were.
    None,
    /// The write fails and leaves nothing.
    Before,
    /// The write takes place and its answer is lost.
    After,
    /// The file is said to be there already, though it is not.
    Conflict,
    /// This runs first, then the write takes place.
    First(BoxFuture<'static, ()>),
    /// The write takes place, then this runs, then the answer comes.
    Then(BoxFuture<'static, ()>),
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Before => "Before",
            Self::After => "After",
            Self::Conflict => "Conflict",
            Self::First(_) => "First",
            Self::Then(_) => "Then",
        })
    }
}

/// A store in which writes of files whose path contains a given text meet faults, in order.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    path_has: &'static str,
    faults: Mutex<VecDeque<Fault>>,
    reads: AtomicU64,
}

impl FaultyStore {
    /// A store before `inner`. Writes of the table logs' commits are what faults apply to.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Self::on(inner, "_delta_log/0")
    }

    /// A store in which faults apply to paths that contain `path_has`.
    #[must_use]
    pub fn on(inner: Arc<dyn ObjectStore>, path_has: &'static str) -> Arc<Self> {
        Arc::new(Self { inner, path_has, faults: Mutex::default(), reads: AtomicU64::new(0) })
    }

    /// Adds faults for the next writes.
    pub fn push(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).extend(faults);
    }

    /// How many requests have read from it.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn next(&self, location: &Path) -> Fault {
        if !location.as_ref().contains(self.path_has) {
            return Fault::None;
        }
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.pop_front().unwrap_or(Fault::None)
    }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "faults before {}", self.inner)
    }
}

fn lost() -> Error {
    Error::Generic { store: "faulty", source: "injected: no answer".into() }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        match self.next(location) {
            Fault::None => self.inner.put_opts(location, payload, opts).await,
            Fault::Before => Err(lost()),
            Fault::After => {
                self.inner.put_opts(location, payload, opts).await?;
                Err(lost())
            }
            Fault::Conflict => {
                let source = "injected: said to exist".into();
                Err(Error::AlreadyExists { path: location.to_string(), source })
            }
            Fault::First(other) => {
                other.await;
                self.inner.put_opts(location, payload, opts).await
            }
            Fault::Then(other) => {
                let result = self.inner.put_opts(location, payload, opts).await;
                other.await;
                result
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
