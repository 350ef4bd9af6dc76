//! What is open between a client and a server: calls of the client, and requests of the server.
//!
//! A legacy client cancels a call, and answers a server's request, by an id that means something in
//! its own session only. So each session has a [`Traffic`] of its own, and callers without sessions
//! have one for each server: nobody cancels another's call or answers what another was asked.
//!
//! A call that its client has cancelled has a little time left to be answered. Of the calls that ended
//! without their answer, and of the server's requests, only the last few are remembered.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use custody_schemas::id::CallId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::envelope::plain_id;
use crate::identity::PrincipalId;

/// How many requests of a server wait for their answers.
const MAX_ASKED: usize = 256;
/// How many calls that ended without their answer are remembered.
const MAX_UNANSWERED: usize = 32;
/// How many pairs of caller and server without a session are kept when nothing is open in them.
const MAX_LOOSE: usize = 4096;

/// A JSON-RPC id, however it is written.
type Key = u64;

/// What is open in one session, or between one caller and one server without sessions.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    keys: RandomState,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// The client's calls; nothing where two have the same id.
    calls: HashMap<Key, Vec<(CallId, Cancel)>>,
    /// Calls that ended without their answer, oldest first.
    unanswered: VecDeque<(Key, CallId)>,
    /// Requests of the server that the client has not answered, oldest first.
    asked: VecDeque<(Key, Option<CallId>)>,
}

/// Whether a client has cancelled a call, and since when.
#[derive(Clone, Debug, Default)]
struct Cancel(Arc<(Notify, OnceLock<Instant>)>);

impl Cancel {
    fn now(&self) {
        let (told, at) = &*self.0;
        at.get_or_init(Instant::now);
        told.notify_waiters();
    }

    fn is_cancelled(&self) -> bool {
        self.0.1.get().is_some()
    }

    async fn given_up(self, grace: Duration) {
        let (told, at) = &*self.0;
        let mut heard = pin!(told.notified());
        let at = loop {
            // from here on no word is missed
            heard.as_mut().enable();
            match at.get() {
                Some(at) => break *at,
                None => heard.as_mut().await,
            }
            heard.set(told.notified());
        };
        tokio::time::sleep_until(at + grace).await;
    }
}

/// A call that is open; it is not any more when this is dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    traffic: Lane,
    key: Key,
    call: CallId,
    cancel: Cancel,
    answered: bool,
}

/// A [`Traffic`] that is shared with the session it belongs to, or stands alone.
#[derive(Clone, Debug)]
pub(crate) enum Lane {
    /// Of a session.
    Session(Arc<crate::session::Session>),
    /// Of a caller without one.
    Loose(Arc<Traffic>),
}

impl std::ops::Deref for Lane {
    type Target = Traffic;

    fn deref(&self) -> &Traffic {
        match self {
            Self::Session(session) => &session.traffic,
            Self::Loose(traffic) => traffic,
        }
    }
}

impl Lane {
    /// Notes that a call with this id, a raw JSON token, is open.
    pub(crate) fn enter(&self, id: &str, call: CallId) -> Flight {
        let cancel = Cancel::default();
        let key = self.key(id);
        self.open().calls.entry(key).or_default().push((call, cancel.clone()));
        Flight { traffic: self.clone(), key, call, cancel, answered: false }
    }
}

impl Traffic {
    fn key(&self, id: &str) -> Key {
        self.keys.hash_one(&*plain_id(id))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels the call with this id, if there is exactly one, and says which it is.
    pub(crate) fn cancel(&self, id: &str) -> Option<CallId> {
        let key = self.key(id);
        let open = self.open();
        let [(call, cancel)] = open.calls.get(&key)?.as_slice() else { return None };
        cancel.now();
        Some(*call)
    }

    /// Whether a call with this id is open.
    pub(crate) fn is_open(&self, id: &str) -> bool {
        self.open().calls.contains_key(&self.key(id))
    }

    /// The call with this id that ended without its answer, if it is remembered.
    pub(crate) fn unanswered(&self, id: &str) -> Option<CallId> {
        let key = self.key(id);
        self.open().unanswered.iter().rev().find(|(known, _)| *known == key).map(|(_, call)| *call)
    }

    /// Notes a request of the server that the client has to answer, in the stream of `call`.
    pub(crate) fn ask(&self, id: &str, call: Option<CallId>) {
        let key = self.key(id);
        let mut open = self.open();
        open.asked.retain(|(known, _)| *known != key);
        if open.asked.len() == MAX_ASKED {
            open.asked.pop_front();
        }
        open.asked.push_back((key, call));
    }

    /// The request that an answer with this id answers: the call in whose stream it came, if it
    /// came in one. Nothing if the client was not asked, or has answered.
    pub(crate) fn answer(&self, id: &str) -> Option<Asked> {
        let key = self.key(id);
        let mut open = self.open();
        let at = open.asked.iter().position(|(known, _)| *known == key)?;
        open.asked.remove(at).map(|(_, call)| Asked { call })
    }

    fn is_idle(&self) -> bool {
        let open = self.open();
        open.calls.is_empty() && open.asked.is_empty() && open.unanswered.is_empty()
    }
}

/// A request of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The call in whose stream it came.
    pub(crate) call: Option<CallId>,
}

impl Flight {
    /// Becomes ready when the client has cancelled the call and the server had `grace` to answer.
    pub(crate) fn given_up(&self, grace: Duration) -> impl Future<Output = ()> + Send + use<> {
        self.cancel.clone().given_up(grace)
    }

    /// Whether the client has cancelled it.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Notes that the call has its answer.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut open = self.traffic.open();
        if let Entry::Occupied(mut calls) = open.calls.entry(self.key) {
            calls.get_mut().retain(|(call, _)| *call != self.call);
            if calls.get().is_empty() {
                calls.remove();
            }
        }
        if !self.answered {
            if open.unanswered.len() == MAX_UNANSWERED {
                open.unanswered.pop_front();
            }
            open.unanswered.push_back((self.key, self.call));
        }
    }
}

/// The traffic of callers without sessions.
#[derive(Debug, Default)]
pub(crate) struct Loose(Mutex<HashMap<(PrincipalId, String), Arc<Traffic>>>);

impl Loose {
    /// What is open between `principal` and `server`.
    pub(crate) fn of(&self, principal: PrincipalId, server: &str) -> Lane {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_LOOSE {
            all.retain(|_, traffic| Arc::strong_count(traffic) > 1 || !traffic.is_idle());
        }
        let traffic = all.entry((principal, server.to_owned())).or_default();
        Lane::Loose(Arc::clone(traffic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::new_call;

    fn lane() -> Lane {
        Lane::Loose(Arc::default())
    }

    #[test]
    fn a_call_is_cancelled_by_its_id_however_it_is_written_and_only_where_it_is_open() {
        let (lane, other) = (lane(), lane());
        let call = new_call();
        let flight = lane.enter("\"a/b\"", call);
        assert_eq!(other.cancel("\"a/b\""), None);
        assert_eq!(lane.cancel("\"a\""), None);
        assert!(!flight.is_cancelled());
        assert_eq!(lane.cancel("\"a\\/b\""), Some(call));
        assert!(flight.is_cancelled());
        drop(flight);
        assert_eq!((lane.cancel("\"a/b\""), lane.is_open("\"a/b\"")), (None, false));
        assert_eq!(lane.unanswered("\"a/b\""), Some(call));
    }

    #[test]
    fn of_two_calls_with_one_id_none_is_cancelled() {
        let lane = lane();
        let (first, second) = (lane.enter("1", new_call()), lane.enter("1.0", new_call()));
        assert_eq!(lane.cancel("1"), None);
        drop(first);
        assert!(lane.cancel("1").is_some() && second.is_cancelled());
    }

    #[test]
    fn a_server_that_asks_without_end_is_remembered_for_its_last_requests_only() {
        let lane = lane();
        for id in 0..10_000 {
            lane.ask(&id.to_string(), None);
        }
        assert_eq!(lane.answer("1"), None);
        assert_eq!(lane.answer("9999"), Some(Asked { call: None }));
        assert_eq!(lane.answer("9999"), None, "it has its answer");
        assert_eq!(lane.open().asked.len(), MAX_ASKED - 1);
    }

    #[test]
    fn calls_without_an_answer_are_remembered_up_to_a_limit_and_others_not() {
        let lane = lane();
        for id in 0..100 {
            let mut flight = lane.enter(&id.to_string(), new_call());
            if id == 99 {
                flight.answered();
            }
        }
        assert!(lane.unanswered("0").is_none() && lane.unanswered("98").is_some());
        assert!(lane.unanswered("99").is_none());
        assert_eq!(lane.open().unanswered.len(), MAX_UNANSWERED);
    }
}
