//! Which call continues which: by the `requestState` or the task that an answer handed out.
//!
//! A server that needs more from the client, or answers later, gives the client something to bring
//! along. Whoever brings it continues the call that got it; only its own principal does, and only
//! at the same server. What was handed out longest ago is forgotten first.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use custody_schemas::id::{Bytes as Digits, CallId, Hash};
use sha2::{Digest, Sha256};

use crate::identity::PrincipalId;

/// How many are remembered, at least half of it.
const MAX_LINKS: usize = 65_536;

/// What was handed out to whom, by hash.
type Key = (PrincipalId, Hash);

/// What a client brings along from an earlier answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'t> {
    /// `requestState`
    State(&'t str),
    /// `taskId`
    Task(&'t str),
}

/// What was handed out lately.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Key, CallId>,
    old: HashMap<Key, CallId>,
}

fn key(principal: PrincipalId, server: &str, token: Token<'_>) -> Key {
    let (kind, text) = match token {
        Token::State(text) => (b"s", text),
        Token::Task(text) => (b"t", text),
    };
    let digest = Sha256::new().chain_update(kind).chain_update(server).chain_update([0]);
    (principal, Digits(digest.chain_update(text).finalize().into()))
}

impl Links {
    /// Notes that the answer to `call` handed this out.
    pub(crate) fn note(&self, by: PrincipalId, server: &str, token: Token<'_>, call: CallId) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if links.young.len() >= MAX_LINKS / 2 {
            links.old = std::mem::take(&mut links.young);
        }
        links.young.insert(key(by, server, token), call);
    }

    /// The call whose answer handed this out.
    pub(crate) fn find(&self, by: PrincipalId, server: &str, token: Token<'_>) -> Option<CallId> {
        let key = key(by, server, token);
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.young.get(&key).or_else(|| links.old.get(&key)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::new_call;

    #[test]
    fn what_was_handed_out_is_known_to_its_principal_at_its_server_up_to_a_limit() {
        let links = Links::default();
        let (ann, bob) = (PrincipalId::test(1), PrincipalId::test(2));
        let call = new_call();
        links.note(ann, "ehr", Token::State("x"), call);
        assert_eq!(links.find(ann, "ehr", Token::State("x")), Some(call));
        assert_eq!(links.find(bob, "ehr", Token::State("x")), None);
        assert_eq!(links.find(ann, "lab", Token::State("x")), None);
        assert_eq!(links.find(ann, "ehr", Token::Task("x")), None);
        for i in 0..MAX_LINKS {
            links.note(ann, "ehr", Token::Task(&i.to_string()), new_call());
        }
        assert_eq!(links.find(ann, "ehr", Token::State("x")), None);
        let held = links.0.lock().unwrap();
        assert!(held.young.len() + held.old.len() <= MAX_LINKS);
    }
}
