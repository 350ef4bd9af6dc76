//! Control state in a folder: a lane of the file journal that one process holds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Changing, ControlError, Medium, State, encode};
use crate::file::format::FrameKind;
use crate::file::lane::{Batch, Lane, LaneOptions, dir_of};
use crate::file::reader::Reader;
use crate::file::room::Room;
use crate::file::spool::Lock;
use crate::file::{Lanes, now};
use crate::{Read, Topic};

/// Length of a segment.
const SEGMENT: u64 = 1 << 20;

/// The folder, locked.
#[derive(Debug)]
pub(super) struct Log {
    lane: Mutex<(Lane, Batch)>,
    _lock: Lock,
}

impl Log {
    /// Opens the folder and folds what is in it.
    pub(super) fn open(dir: &Path) -> Result<(Self, State), ControlError> {
        let lock = Lock::take(dir)?;
        let room = Arc::new(Room::new(dir, u64::MAX, 0));
        let options = LaneOptions {
            dir: dir_of(dir, Lanes::Control),
            lane: Lanes::Control,
            segment_bytes: SEGMENT,
            sync: true,
            #[cfg(test)]
            fail: Arc::default(),
        };
        let lane = Lane::open(options, &room)?;
        let mut reader = Reader::new(Arc::clone(lane.shelf()), Topic::Control, 0)?;
        let mut state = State::default();
        loop {
            let entries = reader.read(1024, 1 << 20, Duration::ZERO)?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let folded = state.fold(entry.offset, &entry.header, &entry.value);
                folded.map_err(|problem| {
                    let (place, offset) = (dir.display().to_string(), entry.offset);
                    ControlError::Entry { place, offset, problem }
                })?;
            }
        }
        Ok((Self { lane: Mutex::new((lane, Batch::new())), _lock: lock }, state))
    }
}

impl Medium for Log {
    fn update(
        &self,
        state: &watch::Sender<Arc<State>>,
        key: &str,
        change: &mut Changing<'_>,
    ) -> Result<(), ControlError> {
        let (lane, batch) = &mut *self.lane.lock();
        let mut next = State::clone(&state.borrow());
        let Some(bytes) = encode(key, &change(next.get(key)))? else { return Ok(()) };
        batch.clear();
        batch.push(FrameKind::Control, key.as_bytes(), &bytes);
        let offsets = lane.append(batch, now()).map_err(ControlError::Write)?;
        next.fold(offsets.start, key.as_bytes(), &bytes)
            .map_err(|problem| ControlError::Value { key: key.to_owned(), problem })?;
        state.send_replace(Arc::new(next));
        Ok(())
    }

    fn problem(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use custody_schemas::json::Json;

    use super::super::{Change, Control, ControlError, MAX_VALUE};

    #[test]
    fn the_last_value_of_each_key_is_in_force_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        for i in 0..3000u64 {
            control.put(&format!("pin/{}", i % 3), Some(Json::from(i))).unwrap();
        }
        control.put("pin/1", None).unwrap();
        control.put("rule/a", Some(Json::from("x"))).unwrap();
        assert!(matches!(Control::open(dir.path()), Err(ControlError::Lock(_))));
        drop(control);
        let control = Control::open(dir.path()).unwrap();
        let state = control.state();
        let pins: Vec<_> = state.entries("pin/").collect();
        assert_eq!(pins, [("pin/0", &Json::from(2997u64)), ("pin/2", &Json::from(2999u64))]);
        assert_eq!(control.get("rule/a"), Some(Json::from("x")));
        assert_eq!(control.get("pin/1"), None);
    }

    #[test]
    fn a_value_that_is_too_long_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        let long = Json::from("x".repeat(MAX_VALUE));
        assert!(matches!(control.put("k", Some(long)), Err(ControlError::Value { .. })));
        assert!(matches!(control.put("", Some(Json::from("x"))), Err(ControlError::Value { .. })));
        assert_eq!(control.state().entries("").count(), 0);
    }

    #[test]
    fn changes_of_two_threads_are_all_made_and_followers_see_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        let mut changed = control.changed();
        let count = |value: Option<&Json>| match value {
            Some(Json::Int(n)) => n.get(),
            _ => 0,
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let more = |value: Option<&Json>| {
                            let next = u64::try_from(count(value) + 1).unwrap();
                            Change::Set(Json::from(next))
                        };
                        control.update("n", more).unwrap();
                    }
                });
            }
        });
        assert!(changed.has_changed().unwrap());
        assert_eq!(count(changed.borrow_and_update().get("n")), 200);
    }
}
