//! When shipping ends: never of itself, by a time once somebody has asked for it.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What the threads of a shipper look at.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    until: Mutex<Option<Instant>>,
    asked: Condvar,
}

impl Stop {
    /// Asks for the end: what can be sent until then is.
    pub(crate) fn ask(&self, until: Instant) {
        *self.until.lock() = Some(until);
        self.asked.notify_all();
    }

    /// Whether the end was asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.until.lock().is_some()
    }

    /// Whether the time is up.
    pub(crate) fn is_due(&self) -> bool {
        self.until.lock().is_some_and(|until| Instant::now() >= until)
    }

    /// Waits for `wait`, or until the end is asked for.
    pub(crate) fn pause(&self, wait: Duration) {
        let mut until = self.until.lock();
        let wait =
            until.map_or(wait, |until| wait.min(until.saturating_duration_since(Instant::now())));
        self.asked.wait_for(&mut until, wait);
    }
}
