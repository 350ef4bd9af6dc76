//! The plain form of the file journal's writing end: what the contract suite runs against.
//!
//! The product writes through [`Writer`](crate::Writer), which stands on the same lanes.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::format::FrameKind;
use super::lane::Batch;
use super::spool::{Spool, SpoolError, SpoolOptions};
use super::{FileJournal, Shelves, now};
use crate::{Append, EntryKind, NewEntry};

/// Appends to the spool of one writer, without streams or seals.
#[derive(Debug)]
pub struct FileAppend {
    spool: Spool,
    batch: Batch,
    journal: Arc<FileJournal>,
}

impl FileAppend {
    /// Opens the spool of `writer` under `dir`, with segments of `segment_bytes`.
    ///
    /// # Errors
    /// [`SpoolError`] when it is in use, damaged, or of a later format.
    pub fn open(dir: &Path, writer: &str, segment_bytes: u64) -> Result<Self, SpoolError> {
        let spool = Spool::open(&SpoolOptions {
            dir: dir.join(writer),
            segment_bytes,
            max_bytes: u64::MAX,
            sync: true,
            #[cfg(test)]
            fail: Arc::default(),
            #[cfg(test)]
            fail_bulk: Arc::default(),
        })?;
        let live = Shelves::live(writer, spool.main.shelf(), spool.bulk.shelf(), &spool.room);
        let journal = Arc::new(FileJournal::around(dir, Some(live))?);
        Ok(Self { spool, batch: Batch::new(), journal })
    }

    /// The journal that reads what is appended here.
    #[must_use]
    pub fn journal(&self) -> Arc<FileJournal> {
        Arc::clone(&self.journal)
    }
}

impl Append for FileAppend {
    fn append(&mut self, entries: &[NewEntry]) -> io::Result<Range<u64>> {
        self.batch.clear();
        for entry in entries {
            let kind = match entry.kind {
                EntryKind::Event => FrameKind::Event,
                EntryKind::Checkpoint => FrameKind::Checkpoint,
                EntryKind::Chunk => FrameKind::Chunk,
                EntryKind::Control => FrameKind::Control,
            };
            let pushed = self.batch.push(kind, &entry.header, &entry.value);
            pushed.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        }
        self.spool.main.append(&mut self.batch, now())
    }
}
