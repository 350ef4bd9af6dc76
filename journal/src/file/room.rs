//! Room on disk, accounted for before anything takes effect.
//!
//! A spool may hold `max` bytes. What begins something new (an opening, an event without an
//! ending) fits into nine tenths of it; the last tenth is for the endings of calls that are open.
//! Every reservation is given back when its bytes are durable and counted as used, or will never
//! be written. The disk itself is asked too, at most every tenth of a second.
//!
//! What few endings need is set aside in common: a call has a *share* of as much as it may need at
//! most, and as much is kept for all of them as they may need together, but no more than an eighth
//! of the spool (or what one of them needs, if that is more). So whatever the open calls need is there
//! while their shares fit into that eighth. When they do not, and endings have taken of it what the
//! spool has no other room for, nothing new begins until it has been filled up again.

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

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// What is set aside; `kept` is a part of it.
    reserved: u64,
    /// What open calls may need of what is set aside in common.
    shares: u64,
    /// The largest share there ever was.
    largest: u64,
    /// What is set aside in common.
    kept: u64,
    disk_free: u64,
    asked_at: Option<Instant>,
}

impl Room {
    /// The room of the spool in `dir`.
    pub(crate) fn new(dir: &Path, max: u64, floor: u64) -> Self {
        let state = State { disk_free: u64::MAX, ..State::default() };
        Self { dir: dir.to_owned(), max, floor, state: Mutex::new(state) }
    }

    /// Sets aside `opening` bytes for something new and `ending` bytes for its end.
    pub(crate) fn reserve(&self, opening: u64, ending: u64) -> Result<(), NoRoom> {
        let mut state = self.state.lock();
        self.ask_disk(&mut state);
        let left = self.left(&state);
        let left_for_new = (self.max - self.max / 10).saturating_sub(state.used).min(left);
        let needed = opening.saturating_add(ending);
        if needed > left || opening > left_for_new {
            return Err(NoRoom { needed, left: left.min(left_for_new) });
        }
        state.reserved += needed;
        Ok(())
    }

    /// Sets aside, in common with others, what the end of something new may need at most.
    pub(crate) fn share(&self, most: u64) -> Result<(), NoRoom> {
        let mut state = self.state.lock();
        self.ask_disk(&mut state);
        let largest = state.largest.max(most);
        let shares = state.shares.saturating_add(most);
        let needed = shares.min(self.in_common(largest)).saturating_sub(state.kept);
        let left = self.left(&state);
        if needed > left {
            return Err(NoRoom { needed, left });
        }
        (state.largest, state.shares) = (largest, shares);
        state.kept += needed;
        state.reserved += needed;
        Ok(())
    }

    /// Gives up `share` and takes `bytes` for it: out of what was kept for this share alone, then
    /// of what is free, and at last of what is kept for others, but no more than the share.
    pub(crate) fn draw(&self, share: u64, bytes: u64) -> Result<(), NoRoom> {
        let mut state = self.state.lock();
        let shares = state.shares.saturating_sub(share);
        let surplus = self.surplus(&state, shares);
        let own = surplus.min(bytes);
        let rest = bytes - own;
        if rest > 0 {
            self.ask_disk(&mut state);
        }
        let free = self.left(&state).min(rest);
        let from_others = rest - free;
        let most = (state.kept - surplus).min(share.saturating_sub(own));
        if from_others > most {
            return Err(NoRoom { needed: bytes, left: own + free + most });
        }
        state.shares = shares;
        state.kept -= surplus + from_others;
        state.reserved = state.reserved + own + free - surplus;
        Ok(())
    }

    /// Gives up `share`.
    pub(crate) fn forgo(&self, share: u64) {
        let mut state = self.state.lock();
        let shares = state.shares.saturating_sub(share);
        let surplus = self.surplus(&state, shares);
        state.shares = shares;
        state.kept -= surplus;
        state.reserved -= surplus;
    }

    /// What is kept in common beyond what is kept for `shares`.
    fn surplus(&self, state: &State, shares: u64) -> u64 {
        state.kept.saturating_sub(shares.min(self.in_common(state.largest)))
    }

    /// The most that is kept in common.
    fn in_common(&self, largest: u64) -> u64 {
        (self.max / 8).max(largest)
    }

    /// What is neither used nor set aside, nor missing on the disk.
    fn left(&self, state: &State) -> u64 {
        let taken = state.used.saturating_add(state.reserved);
        let disk = state.disk_free.saturating_sub(state.reserved).saturating_sub(self.floor);
        self.max.saturating_sub(taken).min(disk)
    }

    /// Whether the open calls may need more than is kept for them in common.
    #[cfg(test)]
    pub(crate) fn is_crowded(&self) -> bool {
        let state = self.state.lock();
        state.shares > self.in_common(state.largest)
    }

    /// Gives back what [`reserve`](Self::reserve) set aside or [`draw`](Self::draw) took.
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
    fn shares_that_fit_into_an_eighth_are_all_there_when_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), 800, 0);
        for _ in 0..5 {
            room.share(20).unwrap();
        }
        room.reserve(0, 700).unwrap();
        assert_eq!(room.reserve(0, 1), Err(NoRoom { needed: 1, left: 0 }));
        for _ in 0..5 {
            room.draw(20, 20).unwrap();
        }
        assert_eq!(room.draw(0, 1), Err(NoRoom { needed: 1, left: 0 }));
        room.give_back(800);
        room.reserve(0, 800).unwrap();
    }

    #[test]
    fn of_more_shares_some_are_there_and_nothing_new_begins_until_there_is_room_for_as_many() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), 800, 0);
        for _ in 0..50 {
            room.share(20).unwrap();
        }
        room.reserve(0, 700).unwrap();
        assert!(room.is_crowded());
        for _ in 0..5 {
            room.draw(20, 20).unwrap();
        }
        assert_eq!(room.draw(20, 20), Err(NoRoom { needed: 20, left: 0 }));
        assert_eq!(room.share(20), Err(NoRoom { needed: 100, left: 0 }));
        room.forgo(20);
        room.give_back(700);
        room.share(20).unwrap();
        room.draw(20, 30).unwrap();
        assert_eq!(room.reserve(0, 571), Err(NoRoom { needed: 571, left: 570 }));
    }

    #[test]
    fn one_share_may_be_larger_than_an_eighth_and_nobody_takes_more_than_its_share_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(dir.path(), 800, 0);
        room.share(500).unwrap();
        room.share(500).unwrap();
        room.reserve(0, 300).unwrap();
        assert_eq!(room.draw(20, 21), Err(NoRoom { needed: 21, left: 20 }));
        room.draw(500, 500).unwrap();
        assert!(room.draw(480, 1).is_err());
        room.forgo(480);
        room.give_back(800);
        room.reserve(0, 800).unwrap();
    }

    #[test]
    fn a_vanished_folder_leaves_no_room() {
        let room = Room::new(Path::new("/nowhere/at/all"), 1000, 0);
        assert_eq!(room.reserve(1, 0), Err(NoRoom { needed: 1, left: 0 }));
    }
}
