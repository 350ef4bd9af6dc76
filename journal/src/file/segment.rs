//! One segment file: made, opened, walked batch by batch, its end found.
//!
//! A file is filled with zeros and synced before it becomes a segment, so that a later `fdatasync`
//! has no metadata to write. Walking never returns bytes whose checksum is wrong; whether a broken
//! batch is a torn tail or damage is decided in [`Segment::find_end`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::format::{
    BATCH_HEADER, BatchHeader, FORMAT, HeaderProblem, SEGMENT_HEADER, SegmentHeader, batch_len,
};
use crate::ReadError;

const WINDOW: u64 = 1 << 20;
const SYNC_EVERY: u64 = 8 << 20;
const NEXT: &str = "next";

/// An open segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// The file, read and (by its lane only) written.
    pub(crate) file: Arc<File>,
    /// What it says of itself.
    pub(crate) header: SegmentHeader,
    /// Length of the file.
    pub(crate) size: u64,
    /// Its inode, to see that nobody has removed the file.
    inode: u64,
}

/// Where a segment's valid batches end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The first byte behind them.
    pub(crate) position: u64,
    /// The offset after the last frame.
    pub(crate) offset: u64,
}

/// The name of the segment that begins with `base`.
pub(crate) fn file_name(base: u64) -> String {
    format!("{base:020}.segment")
}

/// Fills a new file with zeros; it becomes a segment by [`Segment::begin`].
pub(crate) fn prepare(dir: &Path, size: u64) -> io::Result<File> {
    let path = dir.join(NEXT);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let zeros = vec![0; usize::try_from(WINDOW).unwrap_or(1 << 20)];
    let mut written = 0;
    while written < size {
        let len = usize::try_from((size - written).min(WINDOW)).unwrap_or(zeros.len());
        file.write_all_at(&zeros[..len], written)?;
        written += len as u64;
        if written.is_multiple_of(SYNC_EVERY) {
            file.sync_data()?;
        }
    }
    file.sync_all()?;
    Ok(file)
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Segment {
    /// Turns the prepared file into the segment with `header`, replacing one of the same base,
    /// which then never held anything durable.
    pub(crate) fn begin(dir: &Path, file: File, header: SegmentHeader) -> io::Result<Self> {
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        let path = dir.join(file_name(header.base));
        fs::rename(dir.join(NEXT), &path)?;
        sync_dir(dir)?;
        let metadata = file.metadata()?;
        let (size, inode) = (metadata.len(), metadata.ino());
        Ok(Self { path, file: Arc::new(file), header, size, inode })
    }

    /// Opens the segment at `path`, for writing too where `write` is set.
    pub(crate) fn open(path: &Path, write: bool) -> Result<Self, ReadError> {
        let io = |source| ReadError::io(path, source);
        let file = OpenOptions::new().read(true).write(write).open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let mut bytes = vec![0; 64];
        let header = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => SegmentHeader::decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(HeaderProblem::Damaged)
            }
            Err(error) => return Err(io(error)),
        };
        let header = header.map_err(|problem| match problem {
            HeaderProblem::Newer(found) => {
                ReadError::Newer { segment: path.into(), found, known: FORMAT }
            }
            HeaderProblem::Damaged => ReadError::Corrupt {
                segment: path.into(),
                position: 0,
                reason: "no segment header",
            },
        })?;
        let (size, inode) = (metadata.len(), metadata.ino());
        Ok(Self { path: path.to_owned(), file: Arc::new(file), header, size, inode })
    }

    /// Whether the name still leads to this file.
    ///
    /// Asks for the inode's number and nothing else: once somebody has read a file's times, Linux
    /// gives its next write a time of its own, and the next sync has the inode to write as well.
    pub(crate) fn is_in_place(&self) -> bool {
        let found = statx(CWD, &self.path, AtFlags::empty(), StatxFlags::INO);
        found.is_ok_and(|found| found.stx_ino == self.inode)
    }

    /// A walk over the batches up to the byte `limit`.
    pub(crate) fn walk(&self) -> Walk {
        Walk { segment: self.clone(), window: Bytes::new(), window_at: 0 }
    }

    /// Finds where the valid batches end.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when a batch is broken although a later one proves that it was
    /// durable, or when offsets do not follow each other.
    pub(crate) fn find_end(&self) -> Result<End, ReadError> {
        let mut walk = self.walk();
        let mut end = End { position: SEGMENT_HEADER, offset: self.header.base };
        loop {
            match walk.batch(end.position, self.size)? {
                Step::Batch(header, _) if header.base == end.offset => {
                    end.position = header.next_position();
                    end.offset += u64::from(header.count);
                }
                Step::Batch(..) => return Err(self.corrupt(end.position, "offsets do not follow")),
                Step::Broken(reason) => {
                    return if self.was_synced_beyond(end.position)? {
                        Err(self.corrupt(end.position, reason))
                    } else {
                        Ok(end)
                    };
                }
            }
        }
    }

    /// The error for damage at `position`.
    pub(crate) fn corrupt(&self, position: u64, reason: &'static str) -> ReadError {
        ReadError::Corrupt { segment: self.path.clone(), position, reason }
    }

    /// Whether a batch behind `position` says that what stands at `position` was on disk.
    fn was_synced_beyond(&self, position: u64) -> Result<bool, ReadError> {
        let mut found = false;
        self.each_window(position, |at, bytes| {
            let last = bytes.len().saturating_sub(BATCH_HEADER);
            for i in (0..=last).step_by(8) {
                let header = BatchHeader::decode(&bytes[i..], self.header.key, at + i as u64);
                found |= header.is_some_and(|header| header.synced_through > position);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Overwrites whatever stands behind `position` with zeros.
    pub(crate) fn wipe(&self, position: u64) -> Result<(), ReadError> {
        let mut wiped = false;
        self.each_window(position, |at, bytes| {
            wiped = true;
            self.file.write_all_at(&vec![0; bytes.len()], at)
        })?;
        if wiped {
            self.file.sync_data().map_err(|error| ReadError::io(&self.path, error))?;
        }
        Ok(())
    }

    /// Hands every window behind `position` that is not all zeros to `each`. Windows overlap by
    /// the length of a batch header.
    fn each_window(
        &self,
        position: u64,
        mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), ReadError> {
        let io = |error| ReadError::io(&self.path, error);
        let zeros = vec![0; usize::try_from(WINDOW).unwrap_or(1 << 20) + BATCH_HEADER];
        let mut at = position;
        while at < self.size {
            let len = (self.size - at).min(zeros.len() as u64);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(zeros.len())];
            self.file.read_exact_at(&mut bytes, at).map_err(io)?;
            if bytes != zeros[..bytes.len()] {
                each(at, &bytes).map_err(io)?;
            }
            at += WINDOW;
        }
        Ok(())
    }
}

/// What a walk finds at a position.
pub(crate) enum Step {
    /// A whole batch and its frames.
    Batch(BatchHeader, Bytes),
    /// Anything else.
    Broken(&'static str),
}

/// Reads a segment's batches through windows of about a megabyte, so that small batches cost no
/// system call each and entries can borrow from the window.
pub(crate) struct Walk {
    segment: Segment,
    window: Bytes,
    window_at: u64,
}

impl Walk {
    /// The segment that is walked.
    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The batch at `position` of the bytes before `limit`.
    pub(crate) fn batch(&mut self, position: u64, limit: u64) -> Result<Step, ReadError> {
        let Some(head) = self.bytes(position, BATCH_HEADER as u64, limit)? else {
            return Ok(Step::Broken("the batch header is cut off"));
        };
        let Some(header) = BatchHeader::decode(&head, self.segment.header.key, position) else {
            return Ok(Step::Broken("no batch header where one should be"));
        };
        let body_at = position + BATCH_HEADER as u64;
        let Some(body) = self.bytes(body_at, u64::from(header.body_len), limit)? else {
            return Ok(Step::Broken("the batch is cut off"));
        };
        if crc32c::crc32c(&body) != header.body_crc {
            return Ok(Step::Broken("the batch's checksum is wrong"));
        }
        Ok(Step::Batch(header, body))
    }

    /// The header of the batch at `position`, its frames unread.
    pub(crate) fn header(
        &mut self,
        position: u64,
        limit: u64,
    ) -> Result<Option<BatchHeader>, ReadError> {
        let head = self.bytes(position, BATCH_HEADER as u64, limit)?;
        Ok(head.and_then(|head| BatchHeader::decode(&head, self.segment.header.key, position)))
    }

    fn bytes(&mut self, at: u64, len: u64, limit: u64) -> Result<Option<Bytes>, ReadError> {
        if len > limit.saturating_sub(at) {
            return Ok(None);
        }
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if at < held.start || at + len > held.end {
            self.fill(at, batch_len(usize::try_from(len).unwrap_or(0)).max(WINDOW), limit)?;
        }
        let start = usize::try_from(at - self.window_at).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        Ok((end <= self.window.len()).then(|| self.window.slice(start..end)))
    }

    fn fill(&mut self, at: u64, len: u64, limit: u64) -> Result<(), ReadError> {
        let len = len.min(limit - at);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = self.segment.file.read_exact_at(&mut bytes, at);
        read.map_err(|error| ReadError::io(&self.segment.path, error))?;
        self.window = Bytes::from(bytes);
        self.window_at = at;
        Ok(())
    }
}
