//! One segment file: made, opened, walked batch by batch, its end found.
//!
//! A file is filled with zeros and synced before it becomes a segment, so that a later `fdatasync`
//! has no metadata to write. Walking never returns bytes whose checksum is wrong; whether a broken
//! batch is a torn tail or damage is decided in [`Segment::find_end`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{self, File, Mode};
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
    let file = File::open(&dir.join(NEXT), Mode::Empty)?;
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

impl Segment {
    /// Turns the prepared file into the segment with `header`, replacing one of the same base,
    /// which then never held anything durable.
    pub(crate) fn begin(dir: &Path, file: File, header: SegmentHeader) -> io::Result<Self> {
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        let path = dir.join(file_name(header.base));
        disk::rename(&dir.join(NEXT), &path)?;
        disk::sync_folder(dir)?;
        let (size, inode) = file.len_and_inode()?;
        Ok(Self { path, file: Arc::new(file), header, size, inode })
    }

    /// Opens the segment at `path`, for writing too where `write` is set.
    pub(crate) fn open(path: &Path, write: bool) -> Result<Self, ReadError> {
        let io = |source| ReadError::io(path, source);
        let mode = if write { Mode::Write } else { Mode::Read };
        let file = File::open(path, mode).map_err(io)?;
        let (size, inode) = file.len_and_inode().map_err(io)?;
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
        Ok(Self { path: path.to_owned(), file: Arc::new(file), header, size, inode })
    }

    /// Whether the name still leads to this file; an error when that cannot be told, which is no
    /// sign that the file is gone.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        Ok(disk::inode(&self.path)? == Some(self.inode))
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
        self.find_tail().map(|(_, end)| end)
    }

    /// Where the last valid batch begins, and where it ends.
    fn find_tail(&self) -> Result<(u64, End), ReadError> {
        let mut walk = self.walk();
        let mut end = End { position: SEGMENT_HEADER, offset: self.header.base };
        let mut last_at = end.position;
        loop {
            match walk.batch(end.position, self.size)? {
                Step::Batch(header, _) if header.base == end.offset => {
                    last_at = end.position;
                    end.position = header.next_position();
                    end.offset += u64::from(header.count);
                }
                Step::Batch(..) => return Err(self.corrupt(end.position, "offsets do not follow")),
                Step::Broken(reason) => {
                    return if self.was_synced_beyond(end.position)? {
                        Err(self.corrupt(end.position, reason))
                    } else {
                        Ok((last_at, end))
                    };
                }
            }
        }
    }

    /// Makes a segment that another process wrote what it seems to be: the last batch durable,
    /// nothing behind it. That process may have died before its last sync, or because of it, and
    /// what a sync could not write can still be read as long as the machine runs: so that batch is
    /// written once more.
    pub(crate) fn settle(&self) -> Result<End, ReadError> {
        let (last_at, end) = self.find_tail()?;
        let io = |error| ReadError::io(&self.path, error);
        let len = end.position.min(self.size).saturating_sub(last_at);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, last_at).map_err(io)?;
        self.file.write_all_at(&bytes, last_at).map_err(io)?;
        self.each_window(end.position, |at, bytes| {
            self.file.write_all_at(&vec![0; bytes.len()], at)
        })?;
        self.file.sync_data().map_err(io)?;
        Ok(end)
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
