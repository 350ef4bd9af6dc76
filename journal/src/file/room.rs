//! Room on disk, accounted for before anything takes effect.
//!
//! A spool may hold `max` bytes. What begins something new (an opening, an event without an
//! ending) fits into nine tenths of it; the last tenth is for the endings of calls that are open.
//! Every reservation is given back when its bytes are durable and counted as used, or will never
//! be written. The disk itself is asked too, at most every tenth of a second.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{clock, disk};

/// How old the disk's answer may be.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom {
    /// Bytes that were asked for.
    pub(crate) needed: u64,
    /// Bytes that are there for this purpose.
    pub(crate) left: u64,
}

/// The room of one spool.
#[derive(Debug)]
pub(crate) struct Room {
    dir: PathBuf,
    max: u64,
    /// Bytes of disk that must stay free, so that the next segment of each lane can be prepared.
    floor: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: u64,
    reserved: u64,
    disk_free: u64,
    asked_at: Option<Instant>,
}

impl Room {
    /// The room of the spool in `dir`.
    pub(crate) fn new(dir: &Path, max: u64, floor: u64) -> Self {
        let state = State { used: 0, reserved: 0, disk_free: u64::MAX, asked_at: None };
        Self { dir: dir.to_owned(), max, floor, state: Mutex::new(state) }
    }

    /// Sets aside `opening` bytes for something new and `ending` bytes for its end.
    pub(crate) fn reserve(&self, opening: u64, ending: u64) -> Result<(), NoRoom> {
        let mut state = self.state.lock();
        self.ask_disk(&mut state);
        let taken = state.used.saturating_add(state.reserved);
        let disk = state.disk_free.saturating_sub(state.reserved).saturating_sub(self.floor);
        let left = self.max.saturating_sub(taken).min(disk);
        let left_for_new = (self.max - self.max / 10).saturating_sub(state.used).min(left);
        let needed = opening.saturating_add(ending);
        if needed > left || opening > left_for_new {
            return Err(NoRoom { needed, left: left.min(left_for_new) });
        }
        state.reserved += needed;
        Ok(())
    }

    /// Gives back what [`reserve`](Self::reserve) set aside.
    pub(crate) fn give_back(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.reserved = state.reserved.saturating_sub(bytes);
    }

    /// Counts `bytes` as used.
    pub(crate) fn grew(&self, bytes: u64) {
        self.state.lock().used += bytes;
    }

    /// Notes that a file of `bytes` is being made on the disk, whose own answer may not show it yet.
    pub(crate) fn takes(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.disk_free = state.disk_free.saturating_sub(bytes);
    }

    /// Counts `bytes` as free again.
    pub(crate) fn shrank(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
        state.asked_at = None;
    }

    /// Bytes that the spool holds.
    pub(crate) fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Bytes that the spool may hold.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// Whether released segments should go early: four fifths are taken, or the disk is short.
    pub(crate) fn is_short(&self) -> bool {
        let mut state = self.state.lock();
        self.ask_disk(&mut state);
        let taken = state.used.saturating_add(state.reserved);
        taken > self.max - self.max / 5
            || state.disk_free < self.floor.saturating_mul(2).saturating_add(state.reserved)
    }

    fn ask_disk(&self, state: &mut State) {
        if state.asked_at.is_some_and(|at| clock::instant() < at + ASK_AGAIN) {
            return;
        }
        state.asked_at = Some(clock::instant());
        match disk::free_bytes(&self.dir) {
            Ok(free) => state.disk_free = free,
            Err(error) => {
                tracing::error!(dir = %self.dir.display(), %error, "cannot ask for free space");
                state.disk_free = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tenth_is_for_endings_and_what_is_given_back_can_be_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), 1000, 0);
        room.grew(850);
        assert_eq!(room.reserve(60, 0), Err(NoRoom { needed: 60, left: 50 }));
        room.reserve(50, 100).unwrap();
        assert_eq!(room.reserve(1, 0), Err(NoRoom { needed: 1, left: 0 }));
        room.give_back(150);
        room.reserve(0, 150).unwrap();
        assert!(room.is_short());
    }

    #[test]
    fn a_vanished_folder_leaves_no_room() {
        let room = Room::new(Path::new("/nowhere/at/all"), 1000, 0);
        assert_eq!(room.reserve(1, 0), Err(NoRoom { needed: 1, left: 0 }));
    }
}
