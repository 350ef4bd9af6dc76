//! Sets of sequence numbers as ranges.

/// Ranges, ends exclusive, ascending, neither touching nor overlapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds `[from, to)`.
    pub(crate) fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let first = self.0.partition_point(|range| range.1 < from);
        let last = self.0.partition_point(|range| range.0 <= to);
        let from = self.0.get(first).map_or(from, |range| range.0.min(from));
        let to = match last.checked_sub(1).and_then(|i| self.0.get(i)) {
            Some(range) if last > first => range.1.max(to),
            _ => to,
        };
        self.0.splice(first..last.max(first), [(from, to)]);
    }

    /// Whether `n` is in it.
    pub(crate) fn contains(&self, n: u64) -> bool {
        let after = self.0.partition_point(|range| range.0 <= n);
        after.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|range| n < range.1)
    }

    /// How many numbers it holds.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|range| range.1 - range.0).sum()
    }

    /// The number after its last.
    pub(crate) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ranges_hold_what_a_set_of_single_numbers_holds() {
        let mut seed = 7u64;
        for _ in 0..200 {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (from, length) = ((seed >> 33) % 30, (seed >> 40) % 6);
                ranges.add(from, from + length);
                set.extend(from..from + length);
                assert_eq!(ranges.count(), set.len() as u64);
                assert!((0..40).all(|n| ranges.contains(n) == set.contains(&n)));
                assert!(ranges.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}
