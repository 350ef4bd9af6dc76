//! The local object store, made durable: what a write has returned for survives a loss of power.
//!
//! `LocalFileSystem` never syncs. Here the bytes of every file are synced before its name appears,
//! and the folder that holds the name (with every folder made for it) before the call returns, so
//! that no commit of the table's log can be there without its content, or before the data files it
//! names. Readers and listings are `LocalFileSystem`'s own; it hides the staged files too.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
    RenameTargetMode, Result, UploadPart,
};

const STORE: &str = "durable local store";

/// A local file system whose writes are synced, files and folders.
#[derive(Clone, Debug)]
pub struct DurableFileSystem {
    inner: Arc<LocalFileSystem>,
}

impl Default for DurableFileSystem {
    fn default() -> Self {
        Self::new()
    }
}

impl DurableFileSystem {
    /// A store whose paths are those of the whole file system.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(LocalFileSystem::new()) }
    }

    fn file(&self, location: &Path) -> Result<PathBuf> {
        self.inner.path_to_filesystem(location)
    }
}

impl std::fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(STORE)
    }
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                let operation = "replacing a file only if it is unchanged".to_owned();
                return Err(Error::NotImplemented { operation, implementer: STORE.to_owned() });
            }
        };
        let target = self.file(location)?;
        blocking(move || put(&target, &payload, create)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let target = self.file(location)?;
        let made = target.clone();
        // The folders are made and synced first, so that only the name is left to sync.
        blocking(move || make_folder_of(&made)).await?;
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(DurableUpload { inner, target }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
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

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let create = match options.mode {
            CopyMode::Create => true,
            CopyMode::Overwrite => false,
        };
        let (from, to) = (self.file(from)?, self.file(to)?);
        blocking(move || {
            let bytes = std::fs::read(&from).map_err(|e| failed(&from, e))?;
            put(&to, &PutPayload::from(bytes), create)
        })
        .await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        blocking(move || {
            make_folder_of(&to)?;
            File::open(&from).and_then(|file| file.sync_all()).map_err(|e| failed(&from, e))?;
            match options.target_mode {
                RenameTargetMode::Overwrite => {
                    std::fs::rename(&from, &to).map_err(|e| failed(&to, e))?;
                }
                RenameTargetMode::Create => {
                    std::fs::hard_link(&from, &to).map_err(|e| failed(&to, e))?;
                    std::fs::remove_file(&from).map_err(|e| failed(&from, e))?;
                }
            }
            sync_folder_of(&to)
        })
        .await
    }
}

/// A large file that arrives in parts.
#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    target: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let target = self.target.clone();
        blocking(move || {
            File::open(&target).and_then(|f| f.sync_all()).map_err(|e| failed(&target, e))?;
            sync_folder_of(&target)
        })
        .await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Writes `payload` beside `target`, syncs it, gives it its name and syncs the folder.
fn put(target: &FsPath, payload: &PutPayload, create: bool) -> Result<()> {
    make_folder_of(target)?;
    let staged = staged(target);
    let written = write_synced(&staged, payload).map_err(|e| failed(&staged, e));
    let named = written.and_then(|()| {
        let name = if create { std::fs::hard_link } else { std::fs::rename };
        name(&staged, target).map_err(|e| failed(target, e))
    });
    if create || named.is_err() {
        match std::fs::remove_file(&staged) {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, file = %staged.display(), "staged file stays"),
        }
    }
    named?;
    sync_folder_of(target)?;
    // The folder may have been made by another thread that has not synced its name yet.
    target.parent().map_or(Ok(()), sync_folder_of)
}

fn write_synced(path: &FsPath, payload: &PutPayload) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    for part in payload.iter() {
        file.write_all(part)?;
    }
    file.sync_all()
}

/// A name beside `target` of the form that listings hide: `name#digits`.
fn staged(target: &FsPath) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!("#{}", uuid::Uuid::new_v4().as_u128()));
    PathBuf::from(name)
}

/// Makes the folder of `path` and syncs the parent of each folder it had to make.
fn make_folder_of(path: &FsPath) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    if folder.is_dir() {
        return Ok(());
    }
    let missing: Vec<_> = folder.ancestors().take_while(|f| !f.is_dir()).collect();
    std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    for made in missing {
        sync_folder_of(made)?;
    }
    Ok(())
}

fn sync_folder_of(path: &FsPath) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed(folder, e))
}

fn failed(path: &FsPath, error: io::Error) -> Error {
    let (kind, path) = (error.kind(), path.display().to_string());
    let source = Box::new(error);
    if kind == ErrorKind::AlreadyExists {
        return Error::AlreadyExists { path, source };
    }
    if kind == ErrorKind::NotFound {
        return Error::NotFound { path, source };
    }
    Error::Generic { store: STORE, source: format!("{path}: {source}").into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    fn at(folder: &tempfile::TempDir, name: &str) -> Path {
        Path::from_absolute_path(folder.path().join(name)).unwrap()
    }

    fn create() -> PutOptions {
        PutOptions { mode: PutMode::Create, ..PutOptions::default() }
    }

    #[tokio::test]
    async fn creating_a_file_that_exists_is_refused_and_leaves_it_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableFileSystem::new();
        let path = at(&folder, "log/0.json");
        store.put_opts(&path, "first".into(), create()).await.unwrap();
        let second = store.put_opts(&path, "second".into(), create()).await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first");
        store.put(&path, "third".into()).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "third");
        let names = std::fs::read_dir(folder.path().join("log")).unwrap().count();
        assert_eq!(names, 1, "nothing staged is left");
    }

    #[tokio::test]
    async fn a_file_staged_by_a_killed_process_is_never_listed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(staged(&folder.path().join("0.json")), "half").unwrap();
        let store = DurableFileSystem::new();
        let prefix = Path::from_absolute_path(folder.path()).unwrap();
        let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await.unwrap();
        assert!(listed.is_empty(), "{listed:?}");
    }

    #[tokio::test]
    async fn a_rename_does_not_replace_what_must_not_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableFileSystem::new();
        let (a, b) = (at(&folder, "a"), at(&folder, "new/b"));
        store.put(&a, "a".into()).await.unwrap();
        store.rename_if_not_exists(&a, &b).await.unwrap();
        store.put(&a, "other".into()).await.unwrap();
        let again = store.rename_if_not_exists(&a, &b).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        let copied = store.copy_if_not_exists(&a, &b).await;
        assert!(matches!(copied, Err(Error::AlreadyExists { .. })), "{copied:?}");
        assert_eq!(store.get(&b).await.unwrap().bytes().await.unwrap(), "a");
    }
}
