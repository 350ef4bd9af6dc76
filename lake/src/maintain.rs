//! Care of a table's log: checkpoints, so that opening stays quick, and the clean-up of entries
//! that are older than the table keeps.
//!
//! Never in the commit path: a commit that fails after it has landed would look like one that has
//! not. A pass that fails is tried again later; nothing depends on it.

use deltalake_core::DeltaTable;
use deltalake_core::checkpoints::{cleanup_metadata, create_checkpoint};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::tables::{LakeError, Table};

/// A checkpoint is written when this many versions have been made since the last.
const CHECKPOINT_EVERY: u64 = 50;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// The version that was checkpointed.
    pub checkpoint: Option<u64>,
    /// How many entries of the log were deleted.
    pub deleted: usize,
}

impl Table {
    /// One pass.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub async fn maintain(&self) -> Result<Maintained, LakeError> {
        self.maintain_every(CHECKPOINT_EVERY).await
    }

    pub(crate) async fn maintain_every(&self, versions: u64) -> Result<Maintained, LakeError> {
        let version = self.snapshot().await?.version();
        let last = self.last_checkpoint().await?;
        if version.saturating_sub(last.unwrap_or(0)) < versions {
            return Ok(Maintained::default());
        }
        let mut table = DeltaTable::new(self.log_store());
        table.load_version(version).await?;
        create_checkpoint(&table, None).await?;
        let deleted = cleanup_metadata(&table, None).await?;
        tracing::debug!(table = self.name(), version, deleted, "log checkpointed");
        Ok(Maintained { checkpoint: Some(version), deleted })
    }

    /// The version of the newest checkpoint, by the hint that readers follow.
    async fn last_checkpoint(&self) -> Result<Option<u64>, LakeError> {
        let path = Path::from("_delta_log/_last_checkpoint");
        let hint = match self.log_store().object_store(None).get(&path).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let hint: serde_json::Value = serde_json::from_slice(&hint).unwrap_or_default();
        Ok(hint.get("version").and_then(serde_json::Value::as_u64))
    }
}
