//! Archives that are read: nothing of one is held but its directory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::{CENTRAL, END, MAX_BYTES, ZipError};

/// The longest directory that is read.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Length of a local header without the name.
const LOCAL_BYTES: u64 = 30;
/// Length of what stands at the end.
const END_BYTES: u64 = 22;

/// An archive that is read; several of its files may be read at the same time.
pub struct Archive<R> {
    inner: RefCell<R>,
    entries: BTreeMap<String, Entry>,
}

/// A file as the directory names it.
#[derive(Clone, Debug)]
struct Entry {
    method: u16,
    crc: u32,
    packed: u32,
    size: u32,
    /// Where its local header stands.
    at: u64,
}

impl<R: Read + Seek> Archive<R> {
    /// Reads the directory. Two files of one name are refused.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn open(mut inner: R) -> Result<Self, ZipError> {
        let length = inner.seek(SeekFrom::End(0))?;
        let end = length.checked_sub(END_BYTES).ok_or(ZipError::Malformed("it is too short"))?;
        let last = piece(&mut inner, end, END_BYTES)?;
        if number(&last, 0) != Some(END) {
            return Err(ZipError::Malformed("it does not end as one"));
        }
        let malformed = || ZipError::Malformed("its directory cannot be read");
        let count = half(&last, 10).unwrap_or(0);
        let at = number(&last, 16).map(u64::from).ok_or_else(malformed)?;
        let size = end.checked_sub(at).filter(|s| *s <= MAX_DIRECTORY).ok_or_else(malformed)?;
        let directory = piece(&mut inner, at, size)?;
        let (mut entries, mut place, mut all) = (BTreeMap::new(), 0, 0);
        for _ in 0..count {
            let (name, entry, next) = entry(&directory, place).ok_or_else(malformed)?;
            all += u64::from(entry.size);
            if all > MAX_BYTES {
                return Err(ZipError::TooLarge);
            }
            if entries.insert(name, entry).is_some() {
                return Err(ZipError::Malformed("two files have one name"));
            }
            place = next;
        }
        if place != directory.len() {
            return Err(malformed());
        }
        Ok(Self { inner: RefCell::new(inner), entries })
    }

    /// The names of its files, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Length of a file's content, if there is such a file.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|entry| u64::from(entry.size))
    }

    /// A file's content, to be read to its end: only then it is known to be undamaged. Nothing
    /// when there is no such file.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn content(&self, name: &str) -> Result<Option<Content<Window<'_, R>>>, ZipError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let header = piece(&mut *self.inner.borrow_mut(), entry.at, LOCAL_BYTES)?;
        let skipped = [26, 28].iter().map(|at| u64::from(half(&header, *at).unwrap_or(0)));
        let at = entry.at + LOCAL_BYTES + skipped.sum::<u64>();
        let packed = Window { inner: &self.inner, at, left: u64::from(entry.packed) };
        let plain = match entry.method {
            0 => Plain::Stored(packed),
            8 => Plain::Deflated(DeflateDecoder::new(packed)),
            _ => return Err(ZipError::Damaged(name.to_owned())),
        };
        let left = u64::from(entry.size);
        Ok(Some(Content { plain, crc: Crc::new(), expected: entry.crc, left }))
    }

    /// A file's content, whole, if it is not longer than `most`.
    ///
    /// # Errors
    /// [`ZipError`].
    pub fn bytes(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, ZipError> {
        if self.size(name).is_some_and(|size| size > most) {
            return Err(ZipError::TooLarge);
        }
        let Some(mut content) = self.content(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = content.read_to_end(&mut bytes);
        read.map_err(|_| ZipError::Damaged(name.to_owned()))?;
        Ok(Some(bytes))
    }
}

/// What a file holds. Reading it ends with an error where it is not what its headers say.
pub struct Content<R: Read> {
    plain: Plain<R>,
    crc: Crc,
    expected: u32,
    left: u64,
}

enum Plain<R: Read> {
    Stored(R),
    Deflated(DeflateDecoder<R>),
}

/// A part of what is read, with a place of its own.
pub struct Window<'a, R> {
    inner: &'a RefCell<R>,
    at: u64,
    left: u64,
}

impl<R: Read + Seek> Read for Window<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let mut inner = self.inner.borrow_mut();
        inner.seek(SeekFrom::Start(self.at))?;
        let read = inner.read(out.get_mut(..most).unwrap_or_default())?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let read = match &mut self.plain {
            Plain::Stored(plain) => plain.read(out)?,
            Plain::Deflated(plain) => plain.read(out)?,
        };
        let bytes = out.get(..read).unwrap_or_default();
        self.crc.update(bytes);
        let left = self.left.checked_sub(read as u64);
        self.left = left.ok_or(io::ErrorKind::InvalidData)?;
        if read == 0 && (self.left > 0 || self.crc.sum() != self.expected) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(read)
    }
}

/// So many bytes from a place on.
fn piece(inner: &mut (impl Read + Seek), at: u64, length: u64) -> Result<Vec<u8>, ZipError> {
    inner.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    inner.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(ZipError::Malformed("it is cut")) }
}

/// The entry at this place of the directory, with its name, and where the next one stands.
fn entry(bytes: &[u8], at: usize) -> Option<(String, Entry, usize)> {
    if number(bytes, at)? != CENTRAL {
        return None;
    }
    let name = usize::from(half(bytes, at + 28)?);
    let rest = usize::from(half(bytes, at + 30)?) + usize::from(half(bytes, at + 32)?);
    let text = bytes.get(at + 46..at + 46 + name)?;
    let entry = Entry {
        method: half(bytes, at + 10)?,
        crc: number(bytes, at + 16)?,
        packed: number(bytes, at + 20)?,
        size: number(bytes, at + 24)?,
        at: u64::from(number(bytes, at + 42)?),
    };
    Some((String::from_utf8(text.to_vec()).ok()?, entry, at + 46 + name + rest))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}
