//! When a server that keeps failing is started again.
//!
//! A first failure costs nothing; after each further one in a row the next start waits twice as
//! long, up to a minute. Whoever comes earlier is told at once that the server cannot be reached,
//! unless the wait is short.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The first wait.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a caller is let wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the last starts went.
#[derive(Debug, Default)]
pub(super) struct Starts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    not_before: Option<Instant>,
}

/// It is too early for another start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooEarly;

impl Starts {
    /// From when on a start may be tried, if that is soon.
    pub(super) fn turn(&self, now: Instant) -> Result<Instant, TooEarly> {
        let at = self.lock().not_before.unwrap_or(now);
        if at.saturating_duration_since(now) > PATIENCE { Err(TooEarly) } else { Ok(at) }
    }

    /// A server that was started works.
    pub(super) fn worked(&self) {
        *self.lock() = State::default();
    }

    /// It could not be started, or ended right away; how long it is left alone now.
    pub(super) fn failed(&self, now: Instant) -> Duration {
        let mut state = self.lock();
        let doublings = state.failures.min(16);
        state.failures += 1;
        if doublings == 0 {
            return Duration::ZERO;
        }
        let wait = (FIRST * (1 << (doublings - 1))).min(LONGEST);
        state.not_before = Some(now + wait);
        wait
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_in_a_row_doubles_the_wait_up_to_a_minute() {
        let (starts, now) = (Starts::default(), Instant::now());
        let waits: Vec<u128> = (0..12).map(|_| starts.failed(now).as_millis()).collect();
        assert_eq!(waits[..5], [0, 500, 1000, 2000, 4000]);
        assert_eq!(waits[11], 60_000);
        assert_eq!(starts.turn(now), Err(TooEarly));
        let minute = now + Duration::from_secs(60);
        assert_eq!(
            starts.turn(now + Duration::from_secs(59)),
            Ok(minute),
            "the rest is waited for"
        );
        starts.worked();
        assert_eq!(starts.turn(now), Ok(now));
        assert_eq!(starts.failed(now), Duration::ZERO);
    }
}
