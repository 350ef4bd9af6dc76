//! Seeded simulation: the real spool and writer, on a disk that tears, forgets and fails, in a
//! process that dies at any operation, with a lake and a query node behind it.
//!
//! A seed decides everything that happens, so a seed that fails can be played again. One thread,
//! no waiting, no clock but the simulated one: thousands of histories in a second.
//!
//! * [`disk`](mod@disk) is the disk, [`process`] one life of a writer and of those who call it,
//!   [`lake`] the table that follows it, [`truth`] what everybody was told and what must hold.
//! * `CUSTODY_SEEDS=100000 cargo test --release -p custody-journal sim -- --nocapture` is the long
//!   form; `CUSTODY_SEED=N` plays one history again.

pub(crate) mod dice;
pub(crate) mod disk;
mod lake;
mod process;
mod truth;

use std::io::Write;
use std::time::Duration;

use dice::Dice;
use disk::{Disk, Odds};
use lake::Lake;
use process::{Process, Setting};
use truth::Truth;

/// Paths below it lie on the simulated disk.
pub(crate) const ROOT: &str = "/simulated";

/// How many histories are tried unless more are asked for.
const SEEDS: u64 = 200;
/// What happens in one life at most.
const STEPS: u64 = 80;

/// What happened in a history.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    lives: u64,
    kills: u64,
    power_cuts: u64,
    faults: u64,
    acknowledged: u64,
    refused_starts: u64,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.lives += other.lives;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.faults += other.faults;
        self.acknowledged += other.acknowledged;
        self.refused_starts += other.refused_starts;
    }
}

/// One whole history; panics with what is wrong.
fn history(seed: u64) -> Figures {
    let mut dice = Dice::new(seed);
    let setting = Setting::draw(&mut dice);
    let disk = Disk::install(seed ^ 0xd15c, setting.disk_bytes);
    let (mut truth, mut lake, mut figures) =
        (Truth::default(), Lake::default(), Figures::default());
    for _ in 0..1 + dice.below(5) {
        figures.lives += 1;
        disk.threaten(odds(&mut dice), Some(1 + dice.below(1500)).filter(|_| dice.chance(700)));
        match Process::start(&setting) {
            Ok(process) => process.live(STEPS, &mut dice, &disk, &mut truth, &mut lake),
            Err(error) => {
                figures.refused_starts += 1;
                assert!(disk.faults() > 0 || disk.is_dead(), "no start for no reason: {error}");
            }
        }
        let power = dice.chance(512);
        figures.kills += u64::from(!power);
        figures.power_cuts += u64::from(power);
        disk.restart(power);
        disk.pass(Duration::from_secs(dice.below(200_000)));
    }
    let process = Process::start(&setting).expect("an undisturbed start succeeds");
    process.end(&mut truth, &mut lake);
    truth.holds(&lake);
    figures.faults = disk.faults();
    figures.acknowledged = truth.acknowledged();
    figures
}

/// How unkind the disk is.
fn odds(dice: &mut Dice) -> Odds {
    match dice.below(5) {
        0 => Odds::default(),
        1 => Odds { syncs: 60, ..Odds::default() },
        3 => Odds { reads: 40, ..Odds::default() },
        2 => Odds { reads: 2, writes: 30, syncs: 30, names: 30 },
        _ => Odds { reads: 5, writes: 150, syncs: 150, names: 150 },
    }
}

fn say(what: &str) {
    writeln!(std::io::stderr(), "{what}").expect("somebody reads it");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_disk_and_process_suffer_what_was_acknowledged_is_read_exactly_once() {
    if let Some(seed) = number("CUSTODY_SEED") {
        return say(&format!("seed {seed}: {:?}", history(seed)));
    }
    let seeds = number("CUSTODY_SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut all = Figures::default();
    std::thread::scope(|scope| {
        let share = |first| move || (first..seeds).step_by(threads).map(tried).collect();
        let shares: Vec<_> = (0..threads as u64).map(|first| scope.spawn(share(first))).collect();
        for share in shares {
            let figures: Vec<Figures> = share.join().expect("a seed failed, see above");
            figures.into_iter().for_each(|figures| all += figures);
        }
    });
    say(&format!("{seeds} seeds: {all:?}"));
    assert!(all.acknowledged > seeds && all.faults > seeds / 4, "too little happened: {all:?}");
}

/// Plays a history and names its seed if it fails.
fn tried(seed: u64) -> Figures {
    struct Named(u64);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                say(&format!("seed {0} failed: CUSTODY_SEED={0} plays it again", self.0));
            }
        }
    }
    let _named = Named(seed);
    history(seed)
}
