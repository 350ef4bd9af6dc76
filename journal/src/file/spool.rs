//! A spool: the folder of one writer, locked, with its two lanes.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lane::{Lane, LaneOptions, dir_of};
use super::room::Room;
use super::{Lanes, disk};
use crate::ReadError;

/// The name of the lock file.
const LOCK: &str = "spool.lock";

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "{} is in use by another process (or twice by this one): stop that one first, or give \
         this writer another name",
        .0.display()
    )]
    InUse(PathBuf),
    /// The operating system's answer.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

/// Holds a folder for this process; released when dropped, and by the system when it dies.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] Option<File>);

impl Lock {
    /// Locks `dir`, making it if need be.
    pub(crate) fn take(dir: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: dir.to_owned(), source };
        disk::make_folders(dir).map_err(io)?;
        #[cfg(test)]
        if crate::sim::disk::of(dir).is_some() {
            return Ok(Self(None)); // a simulation has one process
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false);
        let file = file.open(dir.join(LOCK)).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(Some(file))),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }
}

/// How a spool is kept.
#[derive(Clone, Debug)]
pub(crate) struct SpoolOptions {
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// Length of a segment.
    pub(crate) segment_bytes: u64,
    /// The most bytes that it may hold.
    pub(crate) max_bytes: u64,
    /// Whether appends wait for the disk.
    pub(crate) sync: bool,
    /// Lets tests make the next append to the main lane fail.
    #[cfg(test)]
    pub(crate) fail: Arc<std::sync::atomic::AtomicBool>,
    /// The same for the bulk lane.
    #[cfg(test)]
    pub(crate) fail_bulk: Arc<std::sync::atomic::AtomicBool>,
}

/// A locked spool.
#[derive(Debug)]
pub(crate) struct Spool {
    /// Records, checkpoints and small bodies.
    pub(crate) main: Lane,
    /// Large bodies.
    pub(crate) bulk: Lane,
    /// The room of both.
    pub(crate) room: Arc<Room>,
    /// Keeps others out.
    pub(crate) lock: Lock,
}

/// Why a spool could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder is not ours.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What is in it cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Spool {
    /// Locks and opens the spool in `options.dir`.
    pub(crate) fn open(options: &SpoolOptions) -> Result<Self, SpoolError> {
        let lock = Lock::take(&options.dir)?;
        let floor = 2 * options.segment_bytes;
        let room = Arc::new(Room::new(&options.dir, options.max_bytes, floor));
        let lane = |lane| {
            let options = LaneOptions {
                dir: dir_of(&options.dir, lane),
                lane,
                segment_bytes: options.segment_bytes,
                sync: options.sync,
                #[cfg(test)]
                fail: match lane {
                    Lanes::Main => Arc::clone(&options.fail),
                    Lanes::Bulk => Arc::clone(&options.fail_bulk),
                    Lanes::Control => Arc::default(),
                },
            };
            Lane::open(options, &room)
        };
        Ok(Self { main: lane(Lanes::Main)?, bulk: lane(Lanes::Bulk)?, room, lock })
    }
}
