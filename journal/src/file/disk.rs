//! What a spool asks of the operating system: files, names, free space.
//!
//! Everything that a spool's durability rests on goes through here. In the product it is the
//! system's own answer; in tests a path below [`sim::ROOT`](crate::sim::ROOT) is answered by the
//! simulated disk of the thread, which fails, tears and forgets as a seed says.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

#[cfg(test)]
use crate::sim::disk as simulated;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it is, to be read.
    Read,
    /// As it is, to be read and written.
    Write,
    /// To be read and written, made if need be.
    Keep,
    /// To be read and written, made if need be, and empty.
    Empty,
}

/// An open file, read and written at positions.
#[derive(Debug)]
pub(crate) struct File(Inner);

#[derive(Debug)]
enum Inner {
    Os(fs::File),
    #[cfg(test)]
    Simulated(simulated::File),
}

impl File {
    /// Opens the file at `path`.
    pub(crate) fn open(path: &Path, mode: Mode) -> io::Result<Self> {
        #[cfg(test)]
        if let Some(disk) = simulated::of(path) {
            return disk.open(path, mode).map(|file| Self(Inner::Simulated(file)));
        }
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            Mode::Read => &mut options,
            Mode::Write => options.write(true),
            Mode::Keep => options.write(true).create(true).truncate(false),
            Mode::Empty => options.write(true).create(true).truncate(true),
        };
        options.open(path).map(|file| Self(Inner::Os(file)))
    }

    /// Writes all of `bytes` at `position`.
    pub(crate) fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        match &self.0 {
            Inner::Os(file) => file.write_all_at(bytes, position),
            #[cfg(test)]
            Inner::Simulated(file) => file.write_all_at(bytes, position),
        }
    }

    /// Fills `bytes` from `position` on.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        match &self.0 {
            Inner::Os(file) => file.read_exact_at(bytes, position),
            #[cfg(test)]
            Inner::Simulated(file) => file.read_exact_at(bytes, position),
        }
    }

    /// Makes what was written durable.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Os(file) => file.sync_data(),
            #[cfg(test)]
            Inner::Simulated(file) => file.sync(),
        }
    }

    /// The same, with everything that the system keeps about the file.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Os(file) => file.sync_all(),
            #[cfg(test)]
            Inner::Simulated(file) => file.sync(),
        }
    }

    /// Its length and its number on the disk.
    pub(crate) fn len_and_inode(&self) -> io::Result<(u64, u64)> {
        match &self.0 {
            Inner::Os(file) => file.metadata().map(|found| (found.len(), found.ino())),
            #[cfg(test)]
            Inner::Simulated(file) => file.len_and_inode(),
        }
    }
}

/// The number of the file that `path` leads to; none when there is no such file.
///
/// Asks for nothing else: once somebody has read a file's times, Linux gives its next write a time
/// of its own, and the next sync has the inode to write as well.
pub(crate) fn inode(path: &Path) -> io::Result<Option<u64>> {
    #[cfg(test)]
    if let Some(disk) = simulated::of(path) {
        return disk.inode(path);
    }
    match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
        Ok(found) => Ok(Some(found.stx_ino)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a folder and those above it.
pub(crate) fn make_folders(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if let Some(disk) = simulated::of(path) {
        return disk.make_folders(path);
    }
    fs::create_dir_all(path)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if let Some(disk) = simulated::of(path) {
        return disk.sync_folder(path);
    }
    fs::File::open(path)?.sync_all()
}

/// Gives a file another name, in place of one that has it.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    if let Some(disk) = simulated::of(from) {
        return disk.rename(from, to);
    }
    fs::rename(from, to)
}

/// Removes a file.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if let Some(disk) = simulated::of(path) {
        return disk.remove(path);
    }
    fs::remove_file(path)
}

/// Everything in a folder.
pub(crate) fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    #[cfg(test)]
    if let Some(disk) = simulated::of(path) {
        return disk.list(path);
    }
    fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

/// Whether there is a folder of this name.
pub(crate) fn is_folder(path: &Path) -> bool {
    #[cfg(test)]
    if let Some(disk) = simulated::of(path) {
        return disk.is_folder(path);
    }
    path.is_dir()
}

/// When a file was last written.
pub(crate) fn modified(path: &Path) -> io::Result<SystemTime> {
    #[cfg(test)]
    if simulated::of(path).is_some() {
        return Ok(SystemTime::UNIX_EPOCH);
    }
    fs::metadata(path).and_then(|found| found.modified())
}

/// How many bytes the disk below a folder has left.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    #[cfg(test)]
    if let Some(disk) = simulated::of(path) {
        return disk.free_bytes();
    }
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Something that a thread of its own does meanwhile.
#[derive(Debug)]
pub(crate) enum Meanwhile<T> {
    /// It is under way.
    Thread(JoinHandle<T>),
    /// It has been done: a simulation has one thread only.
    #[cfg(test)]
    Done(T),
}

impl<T: Send + 'static> Meanwhile<T> {
    /// Does `work`, which concerns `path`, on a thread called `name`.
    pub(crate) fn start(
        name: &str,
        path: &Path,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        #[cfg(test)]
        if simulated::of(path).is_some() {
            return Ok(Self::Done(work()));
        }
        let _ = path;
        thread::Builder::new().name(name.to_owned()).spawn(work).map(Self::Thread)
    }

    /// Waits for it; nothing when its thread broke off.
    pub(crate) fn end(self) -> Option<T> {
        match self {
            Self::Thread(thread) => thread.join().ok(),
            #[cfg(test)]
            Self::Done(done) => Some(done),
        }
    }
}
