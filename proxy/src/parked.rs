//! Calls whose stream ended before their answer, which a legacy client may fetch with a GET.
//!
//! Up to 2025-11-25 a server may close the stream of a call and give the rest of it to a GET of
//! the same session. Such a call waits here, still open, for its answer to pass on that stream. It
//! waits as long as an answer may take; after that it is ended as `unknown`, or as `cancelled` when
//! its client has said so. Because every
//! one holds a slot of the journal meanwhile, at most [`MAX_PARKED`] wait, and at most
//! [`MAX_PARKED_OF_SERVER`] of one server; others are ended at once.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use custody_schemas::id::{CallId, Hash};
use custody_schemas::words::Status;
use futures::future::OptionFuture;

use crate::call::Asked;
use crate::envelope::plain_id;
use crate::errors::Failure;
use crate::record::{Call, Ending};

/// How many calls may wait.
const MAX_PARKED: usize = 64;
/// How many calls of one server may wait.
const MAX_PARKED_OF_SERVER: usize = 16;

/// The session, the server and the request's id.
type Key = (Hash, Option<String>, String);

/// Calls that wait for their answer.
#[derive(Default)]
pub(crate) struct Parked {
    calls: Mutex<HashMap<Key, (Asked, Call)>>,
}

impl Parked {
    /// Lets `call` wait for an answer in `session`: for the first of these times, and for the second
    /// after it was cancelled.
    pub(crate) async fn park(
        self: &Arc<Self>,
        session: Option<Hash>,
        asked: Asked,
        call: Call,
        patience: (Duration, Duration),
    ) {
        let id = call.id();
        let refused = match session {
            None => Some(call),
            Some(session) => {
                let server = call.facts().what.server.clone();
                let key = (session, server, plain_id(&asked.id).into_owned());
                self.put(key, asked, call, patience)
            }
        };
        if let Some(call) = refused {
            give_up(id, call).await;
        }
    }

    /// Keeps the call, and returns the one that cannot be kept.
    fn put(
        self: &Arc<Self>,
        key: Key,
        asked: Asked,
        call: Call,
        patience: (Duration, Duration),
    ) -> Option<Call> {
        let id = call.id();
        let (patience, grace) = patience;
        let given_up = OptionFuture::from(call.flight().map(|flight| flight.given_up(grace)));
        let given_up = async {
            if given_up.await.is_none() {
                pending().await
            }
        };
        let displaced = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            if !calls.contains_key(&key) && !has_room(&calls, &call) {
                return Some(call);
            }
            calls.insert(key.clone(), (asked, call))
        };
        let parked = Arc::downgrade(self);
        tokio::spawn(async move {
            // nobody fetches what was cancelled
            tokio::select! {
                () = given_up => {}
                () = tokio::time::sleep(patience) => {}
            }
            if let Some(call) = parked.upgrade().and_then(|parked| parked.remove(&key, id)) {
                give_up(id, call).await;
            }
        });
        displaced.map(|(_, call)| call)
    }

    fn remove(&self, key: &Key, id: CallId) -> Option<Call> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.get(key)?.1.id() != id {
            return None;
        }
        calls.remove(key).map(|(_, call)| call)
    }

    /// The call that an answer of this server with this id in this session belongs to.
    pub(crate) fn take(
        &self,
        session: Option<Hash>,
        server: Option<&str>,
        id: &str,
    ) -> Option<(Asked, Call)> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.is_empty() {
            return None;
        }
        calls.remove(&(session?, server.map(str::to_owned), plain_id(id).into_owned()))
    }
}

fn has_room(calls: &HashMap<Key, (Asked, Call)>, call: &Call) -> bool {
    let server = |call: &Call| call.facts().what.server.clone();
    let of_server = calls.values().filter(|(_, parked)| server(parked) == server(call)).count();
    calls.len() < MAX_PARKED && of_server < MAX_PARKED_OF_SERVER
}

async fn give_up(id: CallId, call: Call) {
    let (status, failure) = match call.is_cancelled() {
        true => (Status::Cancelled, Failure::Cancelled),
        false => (Status::Unknown, Failure::UpstreamBroken),
    };
    if call.end(Ending::without_answer(status, Some(failure.code()))).await.is_err() {
        tracing::warn!(call = %id, "the next run will end this call");
    }
}
