//! The clocks. In a simulation they stand still until it moves them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The time, µs since 1970.
pub(crate) fn now() -> u64 {
    #[cfg(test)]
    if let Some(now) = crate::sim::disk::clock() {
        return now.0;
    }
    micros(SystemTime::now())
}

/// A moment to measure from.
pub(crate) fn instant() -> Instant {
    #[cfg(test)]
    if let Some(now) = crate::sim::disk::clock() {
        return now.1;
    }
    Instant::now()
}

/// A time as µs since 1970; 0 before.
pub(crate) fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
