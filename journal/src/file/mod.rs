//! The journal on local disk: segmented append-only logs with group commit.
//!
//! A spool is the folder of one writer, `{data}/journal/{writer}`, with two lanes: `main` holds
//! records, signed checkpoints and small bodies, `bulk` the chunks of large bodies. Each lane is
//! one sequence of offsets; a partition is a lane seen through a topic, so its offsets have holes.
//! The format is in `format.rs`, what survives what in `lane.rs` and `segment.rs`.

mod append;
pub(crate) mod clock;
pub(crate) mod disk;
pub(crate) mod format;
#[cfg(test)]
mod fuzz;
pub(crate) mod lane;
pub(crate) mod reader;
pub(crate) mod room;
pub(crate) mod segment;
pub(crate) mod shelf;
pub(crate) mod spool;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use append::FileAppend;
pub(crate) use clock::now;
pub use spool::{LockError, SpoolError};

use crate::{Journal, Partition, Read, ReadError, Topic};
use lane::dir_of;
use reader::Reader;
use room::Room;
use shelf::Shelf;
use spool::Lock;

/// How long released segments are kept unless the disk needs the room.
pub const RETAIN: Duration = Duration::from_secs(72 * 3600);

/// What stands behind a writer's name in the partition of its large bodies.
const BULK: &str = ".bulk";

/// The lanes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// Records, checkpoints and small bodies.
    Main,
    /// Chunks of large bodies.
    Bulk,
    /// Control state.
    Control,
}

/// Every spool under one folder: that of the writer in this process, and those of writers that no
/// longer run, so that what they left is still carried to the lake.
#[derive(Debug)]
pub struct FileJournal {
    spools: Vec<Shelves>,
    retain: Duration,
}

#[derive(Debug)]
pub(crate) struct Shelves {
    writer: String,
    main: Arc<Shelf>,
    bulk: Arc<Shelf>,
    room: Arc<Room>,
    _lock: Option<Lock>,
}

impl Shelves {
    /// The shelves of a spool that this process writes.
    pub(crate) fn live(
        writer: &str,
        main: &Arc<Shelf>,
        bulk: &Arc<Shelf>,
        room: &Arc<Room>,
    ) -> Self {
        Self {
            writer: writer.to_owned(),
            main: Arc::clone(main),
            bulk: Arc::clone(bulk),
            room: Arc::clone(room),
            _lock: None,
        }
    }

    /// Whose spool it is.
    #[cfg(feature = "kafka")]
    pub(crate) fn writer(&self) -> &str {
        &self.writer
    }

    /// Records, checkpoints and small bodies.
    #[cfg(feature = "kafka")]
    pub(crate) fn main(&self) -> &Arc<Shelf> {
        &self.main
    }

    /// Large bodies.
    #[cfg(feature = "kafka")]
    pub(crate) fn bulk(&self) -> &Arc<Shelf> {
        &self.bulk
    }

    /// The shelves of the spool in `dir` as they are at this moment, whoever writes it.
    #[cfg(feature = "kafka")]
    pub(crate) fn glimpsed(writer: &str, dir: &Path) -> Result<Self, ReadError> {
        Self::load(writer, dir, None)
    }

    /// The shelves of the spool in `dir`, which nobody writes as long as this exists.
    pub(crate) fn resting(writer: &str, dir: &Path) -> Result<Self, SpoolError> {
        Ok(Self::load(writer, dir, Some(Lock::take(dir)?))?)
    }

    fn load(writer: &str, dir: &Path, lock: Option<Lock>) -> Result<Self, ReadError> {
        let room = Arc::new(Room::new(dir, u64::MAX, 0));
        let ours = lock.is_some();
        let shelf = |lane: Lanes| {
            let shelf = Shelf::new(&dir_of(dir, lane), lane.topics(), Arc::clone(&room));
            shelf.load(ours).map(|_| Arc::new(shelf))
        };
        let (main, bulk) = (shelf(Lanes::Main)?, shelf(Lanes::Bulk)?);
        Ok(Self { writer: writer.to_owned(), main, bulk, room, _lock: lock })
    }
}

impl FileJournal {
    /// Opens every spool under `dir` for reading.
    ///
    /// # Errors
    /// [`SpoolError`] when one is in use or damaged.
    pub fn open(dir: &Path) -> Result<Self, SpoolError> {
        Self::around(dir, None)
    }

    /// The same, around the spool that this process writes.
    pub(crate) fn around(dir: &Path, live: Option<Shelves>) -> Result<Self, SpoolError> {
        let mut spools: Vec<_> = live.into_iter().collect();
        let io = |error| SpoolError::Read(ReadError::io(dir, error));
        for path in disk::list(dir).map_err(io)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let known = spools.iter().any(|spool| spool.writer == name);
            let has = |lane| disk::is_folder(&dir_of(&path, lane));
            if !known && has(Lanes::Main) && has(Lanes::Bulk) {
                spools.push(Shelves::resting(name, &path)?);
            }
        }
        spools.sort_by(|a, b| a.writer.cmp(&b.writer));
        Ok(Self { spools, retain: RETAIN })
    }

    /// Every spool, by its writer's name.
    #[cfg(feature = "kafka")]
    pub(crate) fn spools(&self) -> &[Shelves] {
        &self.spools
    }

    /// Deletes what was released and is old, or all of it where room is short.
    pub(crate) fn reclaim(&self) {
        for spool in &self.spools {
            for shelf in [&spool.main, &spool.bulk] {
                if let Err(error) = self.reclaim_from(spool, shelf) {
                    tracing::warn!(%error, "a released segment cannot be deleted");
                }
            }
        }
    }

    fn reclaim_from(&self, spool: &Shelves, shelf: &Shelf) -> Result<(), ReadError> {
        let retain = u64::try_from(self.retain.as_micros()).unwrap_or(u64::MAX);
        shelf.reclaim(now().saturating_sub(retain), || spool.room.is_short())
    }

    /// What is kept and has not been released since the process started.
    pub(crate) fn backlog(&self) -> Backlog {
        let mut backlog = Backlog::default();
        let lanes = |spool: &Shelves| [Arc::clone(&spool.main), Arc::clone(&spool.bulk)];
        for shelf in self.spools.iter().flat_map(lanes) {
            let from = shelf.released().max(shelf.first_offset());
            let entries = shelf.end_offset().saturating_sub(from);
            backlog.entries += entries;
            if entries > 0 {
                let oldest = oldest_at(shelf, from);
                backlog.oldest_at = [backlog.oldest_at, oldest].into_iter().flatten().min();
            }
        }
        backlog
    }

    fn shelf(&self, partition: &Partition) -> Result<(&Shelves, &Arc<Shelf>), ReadError> {
        for spool in &self.spools {
            let bulk = partition.name.strip_suffix(BULK) == Some(spool.writer.as_str());
            match partition.topic {
                Topic::Bodies if bulk => return Ok((spool, &spool.bulk)),
                Topic::Events | Topic::Bodies if partition.name == spool.writer => {
                    return Ok((spool, &spool.main));
                }
                Topic::Events | Topic::Bodies | Topic::Control => {}
            }
        }
        Err(ReadError::NoPartition(partition.clone()))
    }
}

impl Journal for FileJournal {
    fn partitions(&self) -> Result<Vec<Partition>, ReadError> {
        let of = |spool: &Shelves| {
            let name = spool.writer.clone();
            let bulk = format!("{name}{BULK}");
            [
                Partition { topic: Topic::Events, name: name.clone() },
                Partition { topic: Topic::Bodies, name },
                Partition { topic: Topic::Bodies, name: bulk },
            ]
        };
        Ok(self.spools.iter().flat_map(of).collect())
    }

    fn reader(&self, partition: &Partition, from: u64) -> Result<Box<dyn Read>, ReadError> {
        let (_, shelf) = self.shelf(partition)?;
        Ok(Box::new(Reader::new(Arc::clone(shelf), partition.topic, from)?))
    }

    fn release(&self, partition: &Partition, up_to: u64) -> Result<(), ReadError> {
        let (spool, shelf) = self.shelf(partition)?;
        shelf.release(partition.topic, up_to);
        self.reclaim_from(spool, shelf)
    }
}

/// What waits in spools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Entries.
    pub(crate) entries: u64,
    /// When the oldest of them was written, µs since 1970.
    pub(crate) oldest_at: Option<u64>,
}

/// When the first entry at or after `from` was written.
fn oldest_at(shelf: Arc<Shelf>, from: u64) -> Option<u64> {
    let mut reader = Reader::of_all(shelf, from).ok()?;
    let entries = crate::Read::read(&mut reader, 1, 1, Duration::ZERO).ok()?;
    entries.first().map(|entry| entry.journaled_at.get())
}
