//! Which records of which streams are stored, so that a resent record is noticed.
//!
//! Ranges, not a largest number: what arrives late fills its gap instead of being taken for a
//! duplicate. Pure.

use std::collections::HashMap;

use custody_schemas::id::StreamId;

/// Numbers as disjoint spans `[first, end)` in ascending order, never touching each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    spans: Vec<(u64, u64)>,
}

impl Ranges {
    /// Adds `number`; whether it was absent.
    pub fn insert(&mut self, number: u64) -> bool {
        if let Some(last) = self.spans.last_mut()
            && last.1 == number
        {
            // The usual case: the next number of a stream.
            last.1 = last.1.saturating_add(1);
            return true;
        }
        if self.contains(number) {
            return false;
        }
        self.extend(number, number.saturating_add(1));
        true
    }

    /// Adds every number from `first` up to but without `end`.
    pub fn extend(&mut self, first: u64, end: u64) {
        if first >= end {
            return;
        }
        let from = self.spans.partition_point(|span| span.1 < first);
        let to = self.spans.partition_point(|span| span.0 <= end);
        let touched = &self.spans[from..to];
        let first = touched.first().map_or(first, |span| span.0.min(first));
        let end = touched.last().map_or(end, |span| span.1.max(end));
        self.spans.splice(from..to, [(first, end)]);
    }

    /// Whether `number` is in it.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        let after = self.spans.partition_point(|span| span.0 <= number);
        after.checked_sub(1).is_some_and(|i| number < self.spans[i].1)
    }

    /// The spans.
    #[must_use]
    pub fn spans(&self) -> &[(u64, u64)] {
        &self.spans
    }
}

/// The stored ranges of every stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    ranges: HashMap<StreamId, Ranges>,
}

impl Streams {
    /// Adds a record; whether it was absent.
    pub fn insert(&mut self, stream: &StreamId, seq: u64) -> bool {
        if let Some(ranges) = self.ranges.get_mut(stream) {
            return ranges.insert(seq);
        }
        self.ranges.entry(stream.clone()).or_default().insert(seq)
    }

    /// Adds spans of one stream.
    pub fn extend(&mut self, stream: &StreamId, spans: &[(u64, u64)]) {
        let ranges = self.ranges.entry(stream.clone()).or_default();
        spans.iter().for_each(|(first, end)| ranges.extend(*first, *end));
    }

    /// Adds everything of another set.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(stream, spans)| self.extend(stream, spans));
    }

    /// Each stream with its spans.
    pub fn iter(&self) -> impl Iterator<Item = (&StreamId, &[(u64, u64)])> {
        self.ranges.iter().map(|(stream, ranges)| (stream, ranges.spans()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_exactly_what_was_put_in(
            puts in prop::collection::vec((0u64..60, 0u64..7), 0..60),
        ) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (first, length) in puts {
                if length == 1 {
                    prop_assert_eq!(ranges.insert(first), model.insert(first));
                } else {
                    ranges.extend(first, first + length);
                    model.extend(first..first + length);
                }
                let held: Vec<u64> = ranges.spans().iter().flat_map(|s| s.0..s.1).collect();
                prop_assert_eq!(&held, &model.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.spans().windows(2).all(|pair| pair[0].1 < pair[1].0));
                prop_assert!((0..70).all(|n| ranges.contains(n) == model.contains(&n)));
            }
        }
    }

    #[test]
    fn the_largest_number_there_is_does_no_harm() {
        let mut ranges = Ranges::default();
        assert!(ranges.insert(u64::MAX - 1));
        assert!(!ranges.insert(u64::MAX - 1));
    }
}
