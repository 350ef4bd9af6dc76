//! Control state: the keyring, pins, approvals, accounts, holds, rules, as a journal of its own.
//!
//! There is no other database: every process folds this journal at start, the last value of a key
//! is the one in force, and a value of nothing removes the key. The journal is a folder of one
//! process ([`Control::open`]) or a topic that all processes of a deployment follow
//! ([`Control::connect`]).
//!
//! Promises: a change is durable before it is in force. A change that was made from an older value
//! than the one in force is not written but made again, so that two processes which enrol
//! themselves at once both stay on the keyring. Whoever holds a [`State`] sees one moment of it.

#[cfg(feature = "kafka")]
mod copy;
mod file;
#[cfg(feature = "kafka")]
mod follow;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use custody_schemas::json::Json;
use tokio::sync::watch;

use crate::ReadError;
#[cfg(feature = "kafka")]
use crate::Topic;
use crate::file::LockError;

#[cfg(feature = "kafka")]
pub use kafka::ControlOptions;

/// The longest value.
const MAX_VALUE: usize = 512 * 1024;
/// The longest key.
const MAX_KEY: usize = 256;

/// The key under which a deployment's name stands, where several processes share the state.
pub const DEPLOYMENT: &str = "deployment";

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
    #[error("entry {offset} of the control journal in {place} cannot be read: {problem}")]
    Entry {
        /// The folder or topic.
        place: String,
        /// Its offset.
        offset: u64,
        /// What is wrong, and what to do.
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
    /// The medium failed; the old value is in force, but the new one may be after a restart.
    #[error("cannot write the control journal: {0}")]
    Write(io::Error),
    /// The topics are somebody else's.
    #[error(
        "the control journal in {place} belongs to the deployment {found:?}, this is {ours:?}: give \
         this one topics of its own with `topic_prefix` in [journal], or correct `name` in \
         [deployment]"
    )]
    Deployment {
        /// The topic.
        place: String,
        /// Whose it is.
        found: String,
        /// Who we are.
        ours: String,
    },
}

/// Control state at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    values: BTreeMap<String, Json>,
    /// Everything before this offset is folded in.
    end: u64,
}

impl State {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.values.get(key)
    }

    /// Every key that begins with `prefix`, with its value, in order.
    pub fn entries<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Json)> {
        let from = self.values.range(prefix.to_owned()..);
        from.take_while(move |(key, _)| key.starts_with(prefix)).map(|(key, json)| (&**key, json))
    }

    /// Takes in one entry; an error says why it is none.
    fn fold(&mut self, offset: u64, key: &[u8], value: &[u8]) -> Result<(), String> {
        let key = std::str::from_utf8(key).map_err(|error| error.to_string())?;
        if value.is_empty() {
            self.values.remove(key);
        } else {
            let value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
            self.values.insert(key.to_owned(), value);
        }
        self.end = offset + 1;
        Ok(())
    }
}

/// What is to become of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Nothing: it is as it should be.
    Keep,
    /// It gets this value.
    Set(Json),
    /// It is removed.
    Remove,
}

/// Makes a change out of the value in force; called again when that was not the last word.
type Changing<'a> = dyn FnMut(Option<&Json>) -> Change + 'a;

/// Where changes are written.
trait Medium: Send + Sync {
    /// Changes `key` and publishes the new state.
    fn update(
        &self,
        state: &watch::Sender<Arc<State>>,
        key: &str,
        change: &mut Changing<'_>,
    ) -> Result<(), ControlError>;

    /// What keeps the state from being current.
    fn problem(&self) -> Option<String>;
}

/// The control state of a deployment, and the right to change it.
#[derive(Clone)]
pub struct Control {
    medium: Arc<dyn Medium>,
    state: Arc<watch::Sender<Arc<State>>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys = self.state.borrow().values.len();
        f.debug_struct("Control").field("keys", &keys).finish_non_exhaustive()
    }
}

impl Control {
    /// Opens the control journal in `dir`, making it if need be, and folds it. Until the last
    /// clone is dropped no other process can.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn open(dir: &Path) -> Result<Self, ControlError> {
        let (medium, state) = file::Log::open(dir)?;
        let state = Arc::new(watch::Sender::new(Arc::new(state)));
        Ok(Self { medium: Arc::new(medium), state })
    }

    /// Folds the control topic to its end and follows it on a thread of its own until the last
    /// clone is dropped.
    ///
    /// # Errors
    /// [`ControlError::Deployment`] when the topics are another deployment's,
    /// [`ControlError::Read`] when Kafka cannot be reached or the topic is not there.
    #[cfg(feature = "kafka")]
    pub fn connect(
        settings: &crate::kafka::KafkaSettings,
        options: &ControlOptions,
    ) -> Result<Self, ControlError> {
        let state = Arc::new(watch::Sender::default());
        let medium = kafka::Log::connect(settings, options, &state)?;
        let control = Self { medium: Arc::new(medium), state };
        let place = format!("{}, topic {}", settings.brokers, settings.topic(Topic::Control));
        control.belong_to(&options.deployment, place)?;
        Ok(control)
    }

    /// Makes sure that the state is this deployment's.
    #[cfg(feature = "kafka")]
    fn belong_to(&self, ours: &str, place: String) -> Result<(), ControlError> {
        let mut found = self.get(DEPLOYMENT);
        if found.is_none() {
            self.update(DEPLOYMENT, |value| {
                found = value.cloned();
                if found.is_some() { Change::Keep } else { Change::Set(Json::from(ours)) }
            })?;
        }
        match found {
            None => Ok(()),
            Some(Json::Text(found)) if found == ours => Ok(()),
            Some(other) => {
                let found = serde_json::to_string(&other).unwrap_or_default();
                let (found, ours) = (found.trim_matches('"').to_owned(), ours.to_owned());
                Err(ControlError::Deployment { place, found, ours })
            }
        }
    }

    /// The state at this moment.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// The state, now and after every change, whoever made it.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Json> {
        self.state.borrow().get(key).cloned()
    }

    /// Sets `key` to `value`, or removes it. Blocks until that is durable and in force here.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn put(&self, key: &str, value: Option<Json>) -> Result<(), ControlError> {
        self.update(key, |old| match &value {
            value if old == value.as_ref() => Change::Keep,
            Some(value) => Change::Set(value.clone()),
            None => Change::Remove,
        })
    }

    /// Changes `key` by what `change` makes of the value in force. Blocks until that is durable
    /// and in force here. When another process has changed it meanwhile, `change` is asked again.
    ///
    /// # Errors
    /// [`ControlError::Value`] and [`ControlError::Write`]; the old value stays in force.
    pub fn update(
        &self,
        key: &str,
        mut change: impl FnMut(Option<&Json>) -> Change,
    ) -> Result<(), ControlError> {
        self.medium.update(&self.state, key, &mut change)
    }

    /// What keeps the state from being current, when something does.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.medium.problem()
    }
}

/// The bytes of a change; none when nothing is to be written.
fn encode(key: &str, change: &Change) -> Result<Option<Vec<u8>>, ControlError> {
    let wrong = |problem: String| ControlError::Value { key: key.to_owned(), problem };
    let bytes = match change {
        Change::Keep => return Ok(None),
        Change::Set(value) => {
            serde_json::to_vec(value).map_err(|error| wrong(error.to_string()))?
        }
        Change::Remove => Vec::new(),
    };
    if key.is_empty() || key.len() > MAX_KEY || bytes.len() > MAX_VALUE {
        return Err(wrong(format!("a key has 1 to {MAX_KEY} bytes, a value at most {MAX_VALUE}")));
    }
    Ok(Some(bytes))
}
