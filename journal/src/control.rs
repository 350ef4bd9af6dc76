//! Control state: the keyring, pins, approvals, accounts, holds, rules, as a journal of its own.
//!
//! There is no other database: every process folds this journal at start, the last value of a key
//! is the one in force, and a value of nothing removes the key. A change is durable before it is
//! in force.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use custody_schemas::json::Json;

use crate::file::format::FrameKind;
use crate::file::lane::{Batch, Lane, LaneOptions, dir_of};
use crate::file::reader::Reader;
use crate::file::room::Room;
use crate::file::spool::Lock;
use crate::file::{Lanes, LockError, now};
use crate::{Read, ReadError, Topic};

/// Length of a segment.
const SEGMENT: u64 = 1 << 20;
/// The longest value.
const MAX_VALUE: usize = 512 * 1024;
/// The longest key.
const MAX_KEY: usize = 256;

/// Why control state cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What is there cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An entry is no control entry.
    #[error("entry {offset} of the control journal in {} cannot be read: {problem}", dir.display())]
    Entry {
        /// The folder.
        dir: PathBuf,
        /// Its offset.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// The key or the value is too long or cannot be written.
    #[error("control entry {key:?} cannot be written: {problem}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The disk failed; the old value is in force, but the new one may be after a restart.
    #[error("cannot write the control journal: {0}")]
    Write(io::Error),
}

/// The control state of a deployment, and the only handle that may change it.
#[derive(Debug)]
pub struct Control {
    lane: Lane,
    batch: Batch,
    state: BTreeMap<String, Json>,
    _lock: Lock,
}

impl Control {
    /// Opens the control journal in `dir`, making it if need be, and folds it.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn open(dir: &Path) -> Result<Self, ControlError> {
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
        let mut state = BTreeMap::new();
        loop {
            let entries = reader.read(1024, 1 << 20, Duration::ZERO)?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let folded = fold(&mut state, &entry.header, &entry.value);
                folded.map_err(|problem| {
                    let (dir, offset) = (dir.to_owned(), entry.offset);
                    ControlError::Entry { dir, offset, problem }
                })?;
            }
        }
        Ok(Self { lane, batch: Batch::new(), state, _lock: lock })
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.state.get(key)
    }

    /// Every key that begins with `prefix`, with its value, in order.
    pub fn entries<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Json)> {
        let from = self.state.range(prefix.to_owned()..);
        from.take_while(move |(key, _)| key.starts_with(prefix)).map(|(key, json)| (&**key, json))
    }

    /// Sets `key` to `value`, or removes it. Blocks until that is durable.
    ///
    /// # Errors
    /// [`ControlError::Value`] and [`ControlError::Write`]; the old value stays in force.
    pub fn put(&mut self, key: &str, value: Option<Json>) -> Result<(), ControlError> {
        let wrong = |problem: String| ControlError::Value { key: key.to_owned(), problem };
        let bytes = value.as_ref().map_or(Ok(Vec::new()), serde_json::to_vec);
        let bytes = bytes.map_err(|error| wrong(error.to_string()))?;
        if key.is_empty() || key.len() > MAX_KEY || bytes.len() > MAX_VALUE {
            return Err(wrong(format!(
                "a key has 1 to {MAX_KEY} bytes, a value at most {MAX_VALUE}"
            )));
        }
        self.batch.clear();
        self.batch.push(FrameKind::Control, key.as_bytes(), &bytes);
        self.lane.append(&mut self.batch, now()).map_err(ControlError::Write)?;
        match value {
            Some(value) => self.state.insert(key.to_owned(), value),
            None => self.state.remove(key),
        };
        Ok(())
    }
}

fn fold(state: &mut BTreeMap<String, Json>, key: &[u8], value: &[u8]) -> Result<(), String> {
    let key = std::str::from_utf8(key).map_err(|error| error.to_string())?;
    if value.is_empty() {
        state.remove(key);
    } else {
        let value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        state.insert(key.to_owned(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_each_key_is_in_force_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut control = Control::open(dir.path()).unwrap();
        for i in 0..3000u64 {
            control.put(&format!("pin/{}", i % 3), Some(Json::from(i))).unwrap();
        }
        control.put("pin/1", None).unwrap();
        control.put("rule/a", Some(Json::from("x"))).unwrap();
        assert!(matches!(Control::open(dir.path()), Err(ControlError::Lock(_))));
        drop(control);
        let control = Control::open(dir.path()).unwrap();
        let pins: Vec<_> = control.entries("pin/").collect();
        assert_eq!(pins, [("pin/0", &Json::from(2997u64)), ("pin/2", &Json::from(2999u64))]);
        assert_eq!(control.get("rule/a"), Some(&Json::from("x")));
        assert_eq!(control.get("pin/1"), None);
    }

    #[test]
    fn a_value_that_is_too_long_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut control = Control::open(dir.path()).unwrap();
        let long = Json::from("x".repeat(MAX_VALUE));
        assert!(matches!(control.put("k", Some(long)), Err(ControlError::Value { .. })));
        assert!(matches!(control.put("", None), Err(ControlError::Value { .. })));
        assert_eq!(control.entries("").count(), 0);
    }
}
