//! The queue to a committing thread: many push, one takes all that is there.
//!
//! It has no length limit of its own: whatever is pushed holds a slot or another of a limited
//! number of places, so that an ending always fits.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// A queue of things that hold a place each.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        let state = State { items: Vec::new(), closed: false };
        Self { state: Mutex::new(state), filled: Condvar::new() }
    }

    /// Puts `item` at the end; gives it back when the queue is closed.
    #[must_use]
    pub(crate) fn push(&self, item: T) -> Option<T> {
        let mut state = self.state.lock();
        if state.closed {
            return Some(item);
        }
        state.items.push(item);
        let wake = state.items.len() == 1;
        drop(state);
        if wake {
            self.filled.notify_one();
        }
        None
    }

    /// Moves everything into `taken`, waiting until `until` for something. `false` when the queue
    /// is closed and nothing is left in it.
    pub(crate) fn take(&self, taken: &mut impl Extend<T>, until: Instant) -> bool {
        let mut state = self.state.lock();
        while state.items.is_empty() && !state.closed {
            if self.filled.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        let more = !(state.closed && state.items.is_empty());
        taken.extend(state.items.drain(..));
        more
    }

    /// Refuses what comes from now on and lets go of what is in it.
    pub(crate) fn end(&self) {
        self.close();
        let left = std::mem::take(&mut self.state.lock().items);
        drop(left); // outside of the lock: items may do something when they go
    }

    /// Refuses what comes from now on; what is in it can still be taken.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_pushed_before_closing_is_taken_and_the_rest_given_back() {
        let queue = Queue::new();
        let soon = Instant::now() + Duration::from_millis(1);
        assert_eq!(queue.push(1), None);
        queue.close();
        assert_eq!(queue.push(2), Some(2));
        let mut taken = Vec::new();
        assert!(queue.take(&mut taken, soon));
        assert_eq!(taken, [1]);
        assert!(!queue.take(&mut taken, soon));
    }

    #[test]
    fn an_ended_queue_lets_go_of_what_is_in_it() {
        let queue = Queue::new();
        let (send, receive) = mpsc::channel::<()>();
        assert!(queue.push(send).is_none());
        queue.end();
        assert_eq!(receive.recv(), Err(mpsc::RecvError));
    }
}
