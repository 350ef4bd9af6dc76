//! Seals as plain files beside the tables: the trees of streams and of the deployment log as tiles,
//! keyrings, and how far ingest has looked.
//!
//! ```text
//! seal/root                            the root's public key
//! seal/keyring/{edition}               each keyring that was in force, as its signed note
//! seal/streams/{writer}/{run}/…        checkpoint, tile/…: one stream, as far as it is verified
//! seal/log/…                           checkpoint, tile/…: the deployment log
//! seal/log/witnessed                   the newest head that enough witnesses have cosigned
//! seal/log/commits/{size}              what each append brought; created once, never changed
//! seal/cursors/{partition}             the offset from which ingest looks again after a start
//! ```
//! Full tiles never change, and files of one size always have the same content, so writing them
//! again does no harm.

mod grown;
mod log;

use std::sync::Arc;

use bytes::Bytes;
use custody_schemas::id::StreamId;
use custody_schemas::seal::tile::{TileError, TileFile, Tiled, edge_paths};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

pub use log::{DeploymentLog, LogError};

/// How many files are written at the same time.
const WRITES: usize = 8;

/// Why seals cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The store does not answer.
    #[error("the lake's seals cannot be read or written: {0}")]
    Store(#[from] Error),
    /// Files do not fit each other.
    #[error(
        "seal/{place}{source}: run `custody verify --lake` to see what else disagrees, and restore \
         the file from a copy"
    )]
    Tile {
        /// The folder, ending with a slash.
        place: String,
        /// What is wrong.
        source: TileError,
    },
}

/// The folder `seal` of a lake.
#[derive(Clone, Debug)]
pub struct Seals {
    store: Arc<dyn ObjectStore>,
}

/// The folder of a stream's tree.
#[must_use]
pub fn stream_folder(stream: &StreamId) -> String {
    format!("streams/{stream}/")
}

/// The folder of the deployment log.
pub const LOG_FOLDER: &str = "log/";

/// The path of the newest head of the log that enough witnesses have cosigned, with their lines.
pub const WITNESSED_PATH: &str = "log/witnessed";

/// The path of the keyring of this edition.
#[must_use]
pub fn keyring_path(edition: u64) -> String {
    format!("keyring/{edition:06}")
}

/// The path of the root's public key.
pub const ROOT_PATH: &str = "root";

impl Seals {
    /// Seals whose paths are names in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// A file's content; `None` when there is none.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>, SealError> {
        match self.store.get(&Path::from(path)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same as text.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn text(&self, path: &str) -> Result<Option<String>, SealError> {
        Ok(self.get(path).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Writes a file, whether or not there is one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn put(&self, path: &str, bytes: impl Into<Bytes>) -> Result<(), SealError> {
        let payload = PutPayload::from_bytes(bytes.into());
        self.store.put(&Path::from(path), payload).await?;
        Ok(())
    }

    /// Creates a file; `false` when there is one, which stays as it is.
    ///
    /// # Errors
    /// When the store does not answer: then it is unknown whether the file was created.
    pub async fn create(&self, path: &str, bytes: impl Into<Bytes>) -> Result<bool, SealError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from_bytes(bytes.into());
        match self.store.put_opts(&Path::from(path), payload, options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of all files below a folder, from the lake's `seal` folder, in order.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, SealError> {
        let found = self.store.list(Some(&Path::from(folder)));
        let mut names: Vec<_> =
            found.map_ok(|meta| meta.location.to_string()).try_collect().await?;
        names.sort();
        Ok(names)
    }

    /// Writes files of the tree in `folder`, then its edge.
    ///
    /// # Errors
    /// When the store does not answer; the same files may be written again.
    pub async fn grow(
        &self,
        folder: &str,
        full: Vec<TileFile>,
        tree: &Tiled,
    ) -> Result<(), SealError> {
        let all = full.into_iter().chain(tree.edge());
        let writes = futures::stream::iter(all).map(|TileFile { path, bytes }| async move {
            self.put(&format!("{folder}{path}"), bytes).await
        });
        writes.buffer_unordered(WRITES).try_collect().await
    }

    /// The tree in `folder` at this size.
    ///
    /// # Errors
    /// When a file is missing or does not fit.
    pub async fn tree(&self, folder: &str, size: u64) -> Result<Tiled, SealError> {
        let tile = |source| SealError::Tile { place: folder.to_owned(), source };
        let mut edge = Vec::new();
        for (path, _) in edge_paths(size) {
            let found = self.get(&format!("{folder}{path}")).await?;
            let missing = || tile(TileError { path: path.clone(), problem: "the file is missing" });
            edge.push(found.ok_or_else(missing)?.to_vec());
        }
        Tiled::resume(size, &edge).map_err(tile)
    }
}
