//! A disk that keeps only what was synced, and fails when a seed says so.
//!
//! * What is written is visible at once and durable sector by sector (512 bytes), in any order,
//!   when the system likes; for certain only after a sync of the file has succeeded.
//! * A sync that fails forgets what it had to write: some of it is on disk, the rest never will be,
//!   and the next sync succeeds all the same, as Linux does it.
//! * A name is durable, after those made before it, when the system likes; for certain only after
//!   a sync of its folder.
//! * When the process dies the visible state stays; when power goes only what is durable does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::dice::Dice;
use crate::file::disk::Mode;

const SECTOR: usize = 512;
/// When simulated time begins, µs since 1970.
const BEGIN: u64 = 1_767_225_600_000_000;

thread_local! {
    static CURRENT: RefCell<Option<Disk>> = const { RefCell::new(None) };
}

/// The disk of this thread's simulation, when `path` lies on it.
pub(crate) fn of(path: &Path) -> Option<Disk> {
    let simulated = path.as_os_str().as_encoded_bytes().starts_with(super::ROOT.as_bytes());
    if simulated { CURRENT.with_borrow(Clone::clone) } else { None }
}

/// The clocks of this thread's simulation.
pub(crate) fn clock() -> Option<(u64, Instant)> {
    CURRENT.with_borrow(|disk| {
        disk.as_ref().map(|disk| {
            let state = disk.0.lock();
            let passed = state.passed;
            let micros = u64::try_from(passed.as_micros()).unwrap();
            (BEGIN + micros, state.origin + passed)
        })
    })
}

/// How often what happens, of 1024 times.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Odds {
    /// A read, a listing or a look at a name fails.
    pub(crate) reads: u64,
    /// A write fails, having written something.
    pub(crate) writes: u64,
    /// A sync fails.
    pub(crate) syncs: u64,
    /// A change of names fails.
    pub(crate) names: u64,
}

/// A disk, the clocks of the machine that it is in, and the process that uses it.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    dice: Dice,
    odds: Odds,
    capacity: u64,
    /// Operations until the process dies.
    fuse: Option<u64>,
    dead: bool,
    origin: Instant,
    passed: Duration,
    files: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    /// Changes of names that are not durable yet, in their order.
    changes: Vec<Change>,
    folders: BTreeSet<PathBuf>,
    made: u64,
    faults: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Put(PathBuf, u64),
    Move(PathBuf, PathBuf, u64),
    Take(PathBuf),
}

impl Change {
    /// The file that may come to light by it.
    fn inode(&self) -> Option<u64> {
        match self {
            Self::Put(_, inode) | Self::Move(_, _, inode) => Some(*inode),
            Self::Take(_) => None,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    visible: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Content {
    fn write(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        if self.visible.len() < end {
            self.visible.resize(end, 0);
        }
        self.visible[at..end].copy_from_slice(bytes);
        self.dirty.extend(at / SECTOR..end.div_ceil(SECTOR));
    }

    /// Writes one sector to the platters.
    fn persist(&mut self, sector: usize) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.visible.len());
        if from >= to {
            return;
        }
        if self.durable.len() < to {
            self.durable.resize(to, 0);
        }
        self.durable[from..to].copy_from_slice(&self.visible[from..to]);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.persist(sector);
        }
        let len = self.visible.len();
        self.durable.resize(len, 0);
    }

    /// Writes some of what is dirty and forgets the rest.
    fn lose(&mut self, dice: &mut Dice) {
        for sector in std::mem::take(&mut self.dirty) {
            if dice.chance(512) {
                self.persist(sector);
            }
        }
    }
}

impl Disk {
    /// An empty disk, of the calling thread from now on.
    pub(crate) fn install(seed: u64, capacity: u64) -> Self {
        let state = State {
            dice: Dice::new(seed),
            odds: Odds::default(),
            capacity,
            fuse: None,
            dead: false,
            origin: Instant::now(),
            passed: Duration::ZERO,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            changes: Vec::new(),
            folders: BTreeSet::from([PathBuf::from(super::ROOT)]),
            made: 0,
            faults: 0,
        };
        let disk = Self(Arc::new(Mutex::new(state)));
        CURRENT.set(Some(disk.clone()));
        disk
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, time: Duration) {
        self.0.lock().passed += time;
    }

    /// From now on things fail this often, and after `fuse` more operations the process dies.
    pub(crate) fn threaten(&self, odds: Odds, fuse: Option<u64>) {
        let mut state = self.0.lock();
        (state.odds, state.fuse) = (odds, fuse);
    }

    /// Whether the process has died.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// How many operations have failed so far.
    pub(crate) fn faults(&self) -> u64 {
        self.0.lock().faults
    }

    /// The process is gone and another one may start; `power` says whether power was lost too.
    pub(crate) fn restart(&self, power: bool) {
        let mut state = self.0.lock();
        let State { dice, files, names, durable, changes, .. } = &mut *state;
        if power {
            let kept = usize::try_from(dice.below(changes.len() as u64 + 1)).unwrap();
            changes.drain(..).take(kept).for_each(|change| apply(durable, change));
            names.clone_from(durable);
            for content in files.values_mut() {
                content.lose(dice);
                content.visible.clone_from(&content.durable);
            }
        }
        let changed = changes.iter().filter_map(Change::inode);
        let used: BTreeSet<u64> =
            names.values().chain(durable.values()).copied().chain(changed).collect();
        files.retain(|inode, _| used.contains(inode));
        state.dead = false;
        state.fuse = None;
        state.odds = Odds::default();
    }

    pub(crate) fn open(&self, path: &Path, mode: Mode) -> io::Result<File> {
        let mut state = self.0.lock();
        let creates = matches!(mode, Mode::Keep | Mode::Empty);
        state.enter(if creates { Operation::Name } else { Operation::Read })?;
        let inode = match state.names.get(path) {
            Some(inode) => *inode,
            None if creates => state.create(path),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if mode == Mode::Empty {
            // A new file under the old name: what the old one held is never seen again.
            let inode = state.create(path);
            return Ok(File { disk: self.clone(), inode });
        }
        Ok(File { disk: self.clone(), inode })
    }

    pub(crate) fn inode(&self, path: &Path) -> io::Result<Option<u64>> {
        let mut state = self.0.lock();
        state.enter(Operation::Read)?;
        Ok(state.names.get(path).copied())
    }

    pub(crate) fn make_folders(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.enter(Operation::Name)?;
        state.folders.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    pub(crate) fn is_folder(&self, path: &Path) -> bool {
        self.0.lock().folders.contains(path)
    }

    pub(crate) fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.enter(Operation::Sync)?;
        let State { durable, changes, .. } = &mut *state;
        changes.drain(..).for_each(|change| apply(durable, change));
        Ok(())
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.enter(Operation::Name)?;
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Move(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.enter(Operation::Name)?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Take(path.to_owned()));
        Ok(())
    }

    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.0.lock();
        state.enter(Operation::Read)?;
        let all = state.names.keys().chain(&state.folders);
        Ok(all.filter(|name| name.parent() == Some(path)).cloned().collect())
    }

    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let mut state = self.0.lock();
        state.enter(Operation::Read)?;
        Ok(state.free())
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: Change) {
    match change {
        Change::Put(path, inode) => drop(names.insert(path, inode)),
        Change::Move(from, to, inode) => {
            names.remove(&from);
            names.insert(to, inode);
        }
        Change::Take(path) => drop(names.remove(&path)),
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
    Sync,
    Name,
}

impl State {
    /// Begins an operation, unless it fails or is the process's last.
    fn enter(&mut self, operation: Operation) -> io::Result<()> {
        if let Some(left) = &mut self.fuse {
            *left = left.saturating_sub(1);
            self.dead |= *left == 0;
        }
        if self.dead {
            return Err(io::Error::other("the process is dead"));
        }
        let odds = match operation {
            Operation::Read => self.odds.reads,
            Operation::Write => self.odds.writes,
            Operation::Sync => self.odds.syncs,
            Operation::Name => self.odds.names,
        };
        if self.dice.chance(odds) {
            self.faults += 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn create(&mut self, path: &Path) -> u64 {
        self.made += 1;
        self.files.insert(self.made, Content::default());
        self.change(Change::Put(path.to_owned(), self.made));
        self.made
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, change.clone());
        self.changes.push(change);
        if self.dice.chance(64) {
            let first = self.changes.remove(0);
            apply(&mut self.durable, first);
        }
    }

    /// Bytes of the files that have a name.
    fn used(&self) -> u64 {
        let len = |inode| self.files.get(inode).map_or(0, |content| content.visible.len() as u64);
        self.names.values().map(len).sum()
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }
}

/// An open file of a simulated disk.
#[derive(Debug)]
pub(crate) struct File {
    disk: Disk,
    inode: u64,
}

impl File {
    pub(crate) fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let at = usize::try_from(position).unwrap();
        let entered = state.enter(Operation::Write);
        let free = state.free();
        let State { dice, files, .. } = &mut *state;
        let content = files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let grows = (at + bytes.len()).saturating_sub(content.visible.len());
        let full = grows as u64 > free;
        if entered.is_err() || full {
            // Some of it is written all the same, the first bytes first.
            let room = if full { bytes.len().saturating_sub(grows) } else { bytes.len() };
            let some = usize::try_from(dice.below(room as u64 + 1)).unwrap();
            content.write(&bytes[..some], at);
            entered?;
            return Err(io::Error::from_raw_os_error(28));
        }
        content.write(bytes, at);
        if dice.chance(128) && !content.dirty.is_empty() {
            let dirty: Vec<_> = content.dirty.iter().copied().collect();
            let sector = *dice.pick(&dirty);
            content.persist(sector);
        }
        Ok(())
    }

    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], position: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.enter(Operation::Read)?;
        let content = state.files.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(position).unwrap();
        let found = content.visible.get(at..at + bytes.len());
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let entered = state.enter(Operation::Sync);
        let State { dice, files, dead, .. } = &mut *state;
        let content = files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        match entered {
            Ok(()) => content.sync(),
            Err(_) if *dead => {}
            Err(_) => content.lose(dice),
        }
        entered
    }

    pub(crate) fn len_and_inode(&self) -> io::Result<(u64, u64)> {
        let mut state = self.disk.0.lock();
        state.enter(Operation::Read)?;
        let content = state.files.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        Ok((content.visible.len() as u64, self.inode))
    }
}
