//! How far a spool has been shipped, noted beside it.
//!
//! The note is replaced as a whole, synced, at most once a second. It may say too little, after a
//! crash or when it cannot be read: then entries are sent again, which is always safe. It never
//! says too much: it is written after the acknowledgement.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NAME: &str = "shipped";
const NEW: &str = "shipped.new";
/// Stands before the numbers; another version begins otherwise.
const BEGINNING: &str = "custody-shipped-1";
/// The least time between two notes.
const EVERY: Duration = Duration::from_secs(1);

/// The offsets below which every entry is acknowledged, lane by lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of records, checkpoints and small bodies.
    pub(crate) main: u64,
    /// Of large bodies.
    pub(crate) bulk: u64,
}

impl Mark {
    fn encode(self) -> String {
        let text = format!("{BEGINNING} {} {}", self.main, self.bulk);
        format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
    }

    fn decode(text: &str) -> Option<Self> {
        let (text, crc) = text.trim_end().rsplit_once(' ')?;
        if crc != format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
            return None;
        }
        let mut words = text.split(' ');
        let (beginning, main, bulk) = (words.next()?, words.next()?, words.next()?);
        (beginning == BEGINNING)
            .then_some(Self { main: main.parse().ok()?, bulk: bulk.parse().ok()? })
    }
}

/// The note of the spool in a folder.
#[derive(Debug)]
pub(crate) struct Marks {
    dir: PathBuf,
    noted: Option<Mark>,
    noted_at: Option<Instant>,
}

impl Marks {
    /// The note in the spool `dir`, and what it says.
    pub(crate) fn open(dir: &Path) -> (Self, Option<Mark>) {
        let noted = read(dir);
        (Self { dir: dir.to_owned(), noted, noted_at: None }, noted)
    }

    /// Notes `mark` if it is time to.
    pub(crate) fn note(&mut self, mark: Mark) -> io::Result<()> {
        if self.noted_at.is_some_and(|at| at.elapsed() < EVERY) {
            return Ok(());
        }
        self.write(mark)
    }

    /// Notes `mark`, unless it has been.
    pub(crate) fn write(&mut self, mark: Mark) -> io::Result<()> {
        if self.noted == Some(mark) {
            return Ok(());
        }
        self.noted_at = Some(Instant::now());
        let new = self.dir.join(NEW);
        let mut file = File::create(&new)?;
        file.write_all(mark.encode().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(NAME))?;
        self.noted = Some(mark);
        Ok(())
    }
}

/// What the note in the spool `dir` says.
pub(crate) fn read(dir: &Path) -> Option<Mark> {
    let text = fs::read_to_string(dir.join(NAME)).ok()?;
    let mark = Mark::decode(&text);
    if mark.is_none() {
        tracing::warn!(dir = %dir.display(), "the note of what is shipped cannot be read");
    }
    mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_one_that_is_damaged_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut marks, nothing) = Marks::open(dir.path());
        assert_eq!(nothing, None);
        let mark = Mark { main: 1_234_567, bulk: 89 };
        marks.write(mark).unwrap();
        assert_eq!(Marks::open(dir.path()).1, Some(mark));
        let text = fs::read_to_string(dir.path().join(NAME)).unwrap();
        for cut in 0..text.len() - 1 {
            fs::write(dir.path().join(NAME), &text[..cut]).unwrap();
            assert_eq!(read(dir.path()), None, "cut at {cut}");
        }
        fs::write(dir.path().join(NAME), text.replace("567", "568")).unwrap();
        assert_eq!(read(dir.path()), None);
    }

    #[test]
    fn notes_are_written_once_a_second_and_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut marks, _) = Marks::open(dir.path());
        let mark = |main| Mark { main, bulk: 0 };
        marks.note(mark(1)).unwrap();
        marks.note(mark(2)).unwrap();
        assert_eq!(read(dir.path()), Some(mark(1)));
        marks.write(mark(2)).unwrap();
        assert_eq!(read(dir.path()), Some(mark(2)));
    }
}
