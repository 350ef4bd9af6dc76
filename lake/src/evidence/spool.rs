//! Records on their way into a package: in a file of their own, until all are found and their turn
//! comes.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use custody_schemas::id::CallId;

use super::ExportError;

/// The most that it may hold.
const MOST: u64 = 8 << 30;

/// A record as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    at: u64,
    record: u32,
    lines: u32,
    /// Its call.
    pub(super) call: Option<CallId>,
    /// Whether the ending of its call replaces its lines in the report.
    pub(super) opens: bool,
    /// What of the filter it fits.
    pub(super) fit: u8,
}

/// The file. It has no name, so that nothing of it outlives the process.
pub(super) struct Spool {
    file: BufWriter<File>,
    at: u64,
}

impl Spool {
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: BufWriter::with_capacity(1 << 18, tempfile::tempfile_in(folder)?), at: 0 })
    }

    /// Keeps a record and its lines in the report; the place is to be completed.
    pub(super) fn keep(&mut self, record: &[u8], lines: &str) -> Result<Place, ExportError> {
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (at, record_bytes, line_bytes) = (self.at, length(record.len()), length(lines.len()));
        self.file.write_all(record)?;
        self.file.write_all(lines.as_bytes())?;
        self.at += u64::from(record_bytes) + u64::from(line_bytes);
        if self.at > MOST {
            return Err(ExportError::TooMuch);
        }
        let (record, lines) = (record_bytes, line_bytes);
        Ok(Place { at, record, lines, call: None, opens: false, fit: 0 })
    }

    /// To be read from now on.
    pub(super) fn kept(self) -> io::Result<Kept> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Kept { file, bytes: Vec::new() })
    }
}

/// A spool that is read.
pub(super) struct Kept {
    file: File,
    bytes: Vec<u8>,
}

impl Kept {
    /// A record, and its lines in the report.
    pub(super) fn get(&mut self, place: &Place) -> io::Result<(&[u8], &[u8])> {
        let (record, lines) = (place.record as usize, place.lines as usize);
        self.bytes.resize(record + lines, 0);
        self.file.seek(SeekFrom::Start(place.at))?;
        self.file.read_exact(&mut self.bytes)?;
        Ok(self.bytes.split_at(record))
    }
}
