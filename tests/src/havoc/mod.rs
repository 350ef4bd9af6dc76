//! Processes under load that are killed at random: afterwards everything that was promised must hold.
//!
//! Everything that happens is drawn from a seed. When the operating system lets a process run is
//! not, so that a seed gives the same deeds, not the same run.

pub mod alone;
pub mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::fault::store::Fault;
use crate::question;
use crate::storm::Seen;

/// What was done and seen.
#[derive(Debug, Default)]
pub struct Told {
    /// How often each process was killed.
    pub kills: BTreeMap<String, u32>,
    /// What else happened to broker, store and workers, and how often.
    pub weather: BTreeMap<String, u32>,
    /// Requests to the store that met a fault.
    pub faults: BTreeMap<Fault, u64>,
    /// Calls that were begun, answered with a result, refused, and cut off.
    pub calls: [usize; 4],
    /// Calls of which the audit says that nobody knows how they ended.
    pub unknown: i64,
    /// Records in the lake at its end, every one as it was signed.
    pub verified: u64,
    /// How long it took.
    pub took: Duration,
}

impl Told {
    /// Takes note of what callers saw, and of what the audit at `query` says.
    async fn count(&mut self, query: &str, seen: &Seen) -> anyhow::Result<()> {
        let unknown = "SELECT count(*) FROM calls WHERE status = 'unknown'";
        self.unknown = question::number(query, unknown).await?;
        let refused = seen.refused.values().map(BTreeSet::len).sum();
        self.calls = [seen.attempted.len(), seen.answered.len(), refused, seen.broken.len()];
        Ok(())
    }

    /// With what happened in another storm.
    pub fn add(&mut self, other: &Self) {
        other.kills.iter().for_each(|(k, n)| *self.kills.entry(k.clone()).or_default() += n);
        other.weather.iter().for_each(|(k, n)| *self.weather.entry(k.clone()).or_default() += n);
        other.faults.iter().for_each(|(k, n)| *self.faults.entry(*k).or_default() += n);
        self.calls.iter_mut().zip(other.calls).for_each(|(sum, n)| *sum += n);
        self.unknown += other.unknown;
        self.verified += other.verified;
        self.took += other.took;
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [begun, answered, refused, broken] = self.calls;
        write!(
            f,
            "{} kills {:?}, weather {:?}, faults of the store {:?}, in {:.0?}: of {begun} calls {answered} \
             were answered, {refused} refused, {broken} cut off; every answered one is in SQL once, \
             {} of the others are there as unknown, all have one ending, no stream has a hole; \
             `custody verify` finds {} records as they were signed",
            self.kills.values().sum::<u32>(),
            self.kills,
            self.weather,
            self.faults,
            self.took,
            self.unknown,
            self.verified,
        )
    }
}
