//! Archives in the making: what they hold comes in pieces, and one file after the other.

use std::io::{Seek, SeekFrom, Write};

use custody_schemas::id::{Bytes, Hash};
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use sha2::{Digest, Sha256};

use super::{CENTRAL, END, LOCAL, ZipError};

/// 1 January 1980, where ZIP begins to count.
const DATE: u16 = 0x21;
/// What the compressor takes at a time, always: what it makes depends on it. And room for that.
const PIECE: usize = 64 << 10;

/// An archive in the making.
pub struct Writer<W> {
    out: W,
    at: u64,
    directory: Vec<u8>,
    count: u16,
    open: Option<Open>,
    piece: Vec<u8>,
}

/// The file that is being written.
struct Open {
    name: String,
    at: u64,
    crc: Crc,
    sum: Sha256,
    compress: Compress,
    /// What the compressor has not taken yet.
    waiting: Vec<u8>,
}

impl<W: Write + Seek> Writer<W> {
    /// An archive that goes to `out`, from where it stands, which is its beginning.
    pub fn new(out: W) -> Self {
        let piece = Vec::with_capacity(PIECE);
        Self { out, at: 0, directory: Vec::new(), count: 0, open: None, piece }
    }

    /// Begins a file.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn begin(&mut self, name: &str) -> Result<(), ZipError> {
        let at = self.at;
        self.put(&[0; 30])?;
        self.put(name.as_bytes())?;
        self.open = Some(Open::new(name, at));
        Ok(())
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), ZipError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.crc.update(bytes);
        open.sum.update(bytes);
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - open.waiting.len()));
            open.waiting.extend_from_slice(now);
            bytes = later;
            if open.waiting.len() == PIECE {
                self.pack(&mut open)?;
            }
        }
        self.open = Some(open);
        Ok(())
    }

    /// Compresses what waits.
    fn pack(&mut self, open: &mut Open) -> Result<(), ZipError> {
        let waiting = std::mem::take(&mut open.waiting);
        let mut rest = waiting.as_slice();
        while !rest.is_empty() {
            let before = open.compress.total_in();
            self.piece.clear();
            open.pack(rest, &mut self.piece, FlushCompress::None)?;
            let taken = usize::try_from(open.compress.total_in() - before).unwrap_or(0);
            rest = rest.get(taken..).unwrap_or_default();
            self.put_piece()?;
        }
        open.waiting = waiting;
        open.waiting.clear();
        Ok(())
    }

    /// Ends it; its SHA-256.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn end(&mut self) -> Result<Hash, ZipError> {
        let Some(mut open) = self.open.take() else { return Ok(Bytes([0; 32])) };
        self.pack(&mut open)?;
        loop {
            self.piece.clear();
            let status = open.pack(&[], &mut self.piece, FlushCompress::Finish)?;
            self.put_piece()?;
            if status == Status::StreamEnd {
                break;
            }
        }
        let facts = open.facts()?;
        let at = u32::try_from(open.at).map_err(|_| ZipError::TooLarge)?;
        self.out.seek(SeekFrom::Start(open.at))?;
        self.out.write_all(&LOCAL.to_le_bytes())?;
        self.out.write_all(&facts)?;
        self.out.seek(SeekFrom::Start(self.at))?;
        self.directory.extend_from_slice(&CENTRAL.to_le_bytes());
        self.directory.extend_from_slice(&20u16.to_le_bytes());
        self.directory.extend_from_slice(&facts);
        // comment, disk, attributes: nothing
        self.directory.extend_from_slice(&[0; 10]);
        self.directory.extend_from_slice(&at.to_le_bytes());
        self.directory.extend_from_slice(open.name.as_bytes());
        self.count = self.count.checked_add(1).ok_or(ZipError::TooLarge)?;
        Ok(Bytes(open.sum.finalize().into()))
    }

    /// Adds a whole file; its SHA-256.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn add(&mut self, name: &str, content: &[u8]) -> Result<Hash, ZipError> {
        self.begin(name)?;
        self.write(content)?;
        self.end()
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn finish(mut self) -> Result<W, ZipError> {
        let at = u32::try_from(self.at).map_err(|_| ZipError::TooLarge)?;
        let length = u32::try_from(self.directory.len()).map_err(|_| ZipError::TooLarge)?;
        let mut end = std::mem::take(&mut self.directory);
        end.extend_from_slice(&END.to_le_bytes());
        end.extend_from_slice(&[0; 4]);
        end.extend_from_slice(&self.count.to_le_bytes());
        end.extend_from_slice(&self.count.to_le_bytes());
        end.extend_from_slice(&length.to_le_bytes());
        end.extend_from_slice(&at.to_le_bytes());
        end.extend_from_slice(&[0; 2]);
        self.put(&end)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ZipError> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        if self.at > u64::from(u32::MAX) { Err(ZipError::TooLarge) } else { Ok(()) }
    }

    fn put_piece(&mut self) -> Result<(), ZipError> {
        let piece = std::mem::take(&mut self.piece);
        let put = self.put(&piece);
        self.piece = piece;
        put
    }
}

impl Open {
    fn new(name: &str, at: u64) -> Self {
        Self {
            name: name.to_owned(),
            at,
            crc: Crc::new(),
            sum: Sha256::new(),
            compress: Compress::new(Compression::new(6), false),
            waiting: Vec::with_capacity(PIECE),
        }
    }

    fn pack(
        &mut self,
        bytes: &[u8],
        piece: &mut Vec<u8>,
        flush: FlushCompress,
    ) -> Result<Status, ZipError> {
        let packed = self.compress.compress_vec(bytes, piece, flush);
        packed.map_err(|_| ZipError::Damaged(self.name.clone()))
    }

    /// What both headers of a file have in common.
    fn facts(&self) -> Result<Vec<u8>, ZipError> {
        let size = |bytes: u64| u32::try_from(bytes).map_err(|_| ZipError::TooLarge);
        let name = u16::try_from(self.name.len()).map_err(|_| ZipError::TooLarge)?;
        let mut facts = Vec::new();
        // version, flags (the name is UTF-8), method (deflate), time, date
        for word in [20u16, 0x800, 8, 0, DATE] {
            facts.extend_from_slice(&word.to_le_bytes());
        }
        let (packed, plain) = (self.compress.total_out(), self.compress.total_in());
        for number in [self.crc.sum(), size(packed)?, size(plain)?] {
            facts.extend_from_slice(&number.to_le_bytes());
        }
        facts.extend_from_slice(&name.to_le_bytes());
        facts.extend_from_slice(&[0; 2]);
        Ok(facts)
    }
}
