//! ZIP archives, as far as packages need them: deflated files in order, no dates, below 4 GiB.
//!
//! The same files make the same bytes. Reading bounds what an archive may unfold into.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::Crc;
use flate2::read::{DeflateDecoder, DeflateEncoder};

/// The most that all files of a package may unfold into.
const MAX_BYTES: u64 = 8 << 30;
/// 1 January 1980, where ZIP begins to count.
const DATE: u16 = 0x21;
const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;

/// An archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ZipError {
    /// It has more than the format can say.
    #[error("the package would be larger than 4 GiB: ask for a shorter period")]
    TooLarge,
    /// It is not an archive that packages are.
    #[error("this is no evidence package: {0}")]
    Malformed(&'static str),
    /// A file in it does not unfold.
    #[error("{0} in the package is damaged")]
    Damaged(String),
}

/// Writes an archive.
///
/// # Errors
/// [`ZipError::TooLarge`].
pub fn write(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, ZipError> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let at = u32::try_from(bytes.len()).map_err(|_| ZipError::TooLarge)?;
        let mut packed = Vec::new();
        let level = flate2::Compression::new(6);
        let read = DeflateEncoder::new(content.as_slice(), level).read_to_end(&mut packed);
        read.map_err(|_| ZipError::Damaged(name.clone()))?;
        let facts = facts(name, content, &packed)?;
        bytes.extend_from_slice(&LOCAL.to_le_bytes());
        bytes.extend_from_slice(&facts);
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&packed);
        directory.extend_from_slice(&CENTRAL.to_le_bytes());
        directory.extend_from_slice(&20u16.to_le_bytes());
        directory.extend_from_slice(&facts);
        // comment, disk, attributes: nothing
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let count = u16::try_from(files.len()).map_err(|_| ZipError::TooLarge)?;
    let at = u32::try_from(bytes.len()).map_err(|_| ZipError::TooLarge)?;
    let length = u32::try_from(directory.len()).map_err(|_| ZipError::TooLarge)?;
    bytes.extend_from_slice(&directory);
    bytes.extend_from_slice(&END.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&at.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    Ok(bytes)
}

/// What both headers of a file have in common.
fn facts(name: &str, content: &[u8], packed: &[u8]) -> Result<Vec<u8>, ZipError> {
    let mut crc = Crc::new();
    crc.update(content);
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| ZipError::TooLarge);
    let name = u16::try_from(name.len()).map_err(|_| ZipError::TooLarge)?;
    let mut facts = Vec::new();
    // version, flags (the name is UTF-8), method (deflate), time, date
    for word in [20u16, 0x800, 8, 0, DATE] {
        facts.extend_from_slice(&word.to_le_bytes());
    }
    for number in [crc.sum(), size(packed)?, size(content)?] {
        facts.extend_from_slice(&number.to_le_bytes());
    }
    facts.extend_from_slice(&name.to_le_bytes());
    facts.extend_from_slice(&[0; 2]);
    Ok(facts)
}

/// Reads an archive whole. Two files of one name are refused.
///
/// # Errors
/// [`ZipError`].
pub fn read(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, ZipError> {
    let malformed = ZipError::Malformed("its directory cannot be read");
    let end = bytes.len().checked_sub(22).ok_or(ZipError::Malformed("it is too short"))?;
    if number(bytes, end) != Some(END) {
        return Err(ZipError::Malformed("it does not end as one"));
    }
    let count = half(bytes, end + 10).unwrap_or(0);
    let Some(mut at) = number(bytes, end + 16).map(|at| at as usize) else {
        return Err(malformed);
    };
    let (mut files, mut all) = (BTreeMap::new(), 0);
    for _ in 0..count {
        let file = entry(bytes, at).ok_or(ZipError::Malformed("its directory cannot be read"))?;
        at = file.next;
        all += u64::from(file.size);
        if all > MAX_BYTES {
            return Err(ZipError::TooLarge);
        }
        let content = file.unfold().ok_or_else(|| ZipError::Damaged(file.name.clone()))?;
        if files.insert(file.name, content).is_some() {
            return Err(ZipError::Malformed("two files have one name"));
        }
    }
    if at == end { Ok(files) } else { Err(malformed) }
}

/// A file as the directory names it.
struct Entry<'a> {
    name: String,
    method: u16,
    crc: u32,
    size: u32,
    packed: &'a [u8],
    next: usize,
}

fn entry(bytes: &[u8], at: usize) -> Option<Entry<'_>> {
    if number(bytes, at)? != CENTRAL {
        return None;
    }
    let method = half(bytes, at + 10)?;
    let (crc, packed, size) =
        (number(bytes, at + 16)?, number(bytes, at + 20)?, number(bytes, at + 24)?);
    let name = usize::from(half(bytes, at + 28)?);
    let rest = usize::from(half(bytes, at + 30)?) + usize::from(half(bytes, at + 32)?);
    let local = number(bytes, at + 42)? as usize;
    let text = bytes.get(at + 46..at + 46 + name)?;
    let skipped = usize::from(half(bytes, local + 26)?) + usize::from(half(bytes, local + 28)?);
    let begin = local.checked_add(30 + skipped)?;
    Some(Entry {
        name: String::from_utf8(text.to_vec()).ok()?,
        method,
        crc,
        size,
        packed: bytes.get(begin..begin.checked_add(packed as usize)?)?,
        next: at + 46 + name + rest,
    })
}

impl Entry<'_> {
    fn unfold(&self) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        match self.method {
            0 => content.extend_from_slice(self.packed),
            8 => {
                let decoder = DeflateDecoder::new(self.packed);
                decoder.take(u64::from(self.size) + 1).read_to_end(&mut content).ok()?;
            }
            _ => return None,
        }
        let mut crc = Crc::new();
        crc.update(&content);
        (content.len() == self.size as usize && crc.sum() == self.crc).then_some(content)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_reads_back_is_the_same_every_time_and_damage_is_noticed() {
        let files = BTreeMap::from([
            ("a/ä.txt".to_owned(), b"text".repeat(500)),
            ("empty".to_owned(), Vec::new()),
        ]);
        let bytes = write(&files).unwrap();
        assert_eq!(bytes, write(&files).unwrap());
        assert_eq!(read(&bytes).unwrap(), files);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            // dates and attributes say nothing; what is read is never other content
            assert!(read(&damaged).map_or(true, |read| read.values().eq(files.values())), "{at}");
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
