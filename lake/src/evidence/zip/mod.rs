//! ZIP archives, as far as packages need them: deflated files in order, no dates, below 4 GiB.
//!
//! The same files make the same bytes. An archive is written and read in pieces, so a large one
//! takes no memory; reading bounds what it may unfold into, and notices damage.

mod archive;
mod writer;

use std::collections::BTreeMap;
use std::io::{self, Cursor};

pub use archive::{Archive, Content, Window};
pub use writer::Writer;

/// The most that all files of a package may unfold into.
const MAX_BYTES: u64 = 32 << 30;
const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;

/// An archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ZipError {
    /// It has more than the format can say.
    #[error("the package would have more than 4 GiB or 65,535 files: ask for a shorter period")]
    TooLarge,
    /// It is not an archive that packages are.
    #[error("this is no evidence package: {0}")]
    Malformed(&'static str),
    /// A file in it does not unfold.
    #[error("{0} in the package is damaged")]
    Damaged(String),
    /// It cannot be read or written at all.
    #[error("the package cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// Writes an archive of files in memory.
///
/// # Errors
/// [`ZipError`].
pub fn write(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, ZipError> {
    let mut writer = Writer::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        writer.add(name, content)?;
    }
    Ok(writer.finish()?.into_inner())
}

/// Reads an archive whole into memory.
///
/// # Errors
/// [`ZipError`].
pub fn read(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, ZipError> {
    let archive = Archive::open(Cursor::new(bytes))?;
    let names: Vec<_> = archive.names().map(str::to_owned).collect();
    let mut files = BTreeMap::new();
    for name in names {
        let content = archive.bytes(&name, MAX_BYTES)?.unwrap_or_default();
        files.insert(name, content);
    }
    Ok(files)
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

    #[test]
    fn pieces_of_any_length_make_the_same_archive() {
        let content: Vec<u8> = (0..300_000u32).flat_map(|i| (i % 1_000).to_le_bytes()).collect();
        let whole = write(&BTreeMap::from([("f".to_owned(), content.clone())])).unwrap();
        for length in [1_000, 65_537, 299_999] {
            let mut writer = Writer::new(Cursor::new(Vec::new()));
            writer.begin("f").unwrap();
            for piece in content.chunks(length) {
                writer.write(piece).unwrap();
            }
            writer.end().unwrap();
            let pieces = writer.finish().unwrap().into_inner();
            assert!(pieces == whole, "in pieces of {length}");
        }
    }
}
