//! Sessions of the legacy revisions, each bound to the principal that opened it.
//!
//! A session's id is a secret: only its hash is kept. At most [`MAX_SESSIONS`] are remembered, the
//! least recently used are forgotten first; a forgotten session is answered with 404, on which a
//! client opens a new one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use custody_schemas::event::ClientClaimed;
use custody_schemas::id::{Bytes, Hash};
use sha2::{Digest, Sha256};

use crate::identity::PrincipalId;

/// How many sessions are remembered, at least half of it.
const MAX_SESSIONS: usize = 65_536;

/// What is known of a session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Who opened it.
    pub(crate) principal: PrincipalId,
    /// What the client called itself when it opened it.
    pub(crate) claimed: Option<ClientClaimed>,
}

/// The session belongs to somebody else or is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foreign;

/// The sessions that have passed through this proxy.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Hash, Arc<Session>>,
    old: HashMap<Hash, Arc<Session>>,
}

/// The hash under which records and the table know a session of a server.
pub(crate) fn hash(server: &str, id: &[u8]) -> Hash {
    let digest = Sha256::new().chain_update(server).chain_update([0]).chain_update(id);
    Bytes(digest.finalize().into())
}

impl Sessions {
    /// The session, if `principal` may use it.
    pub(crate) fn get(&self, id: Hash, principal: PrincipalId) -> Result<Arc<Session>, Foreign> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let session = generations.get(id).ok_or(Foreign)?;
        if session.principal == principal { Ok(session) } else { Err(Foreign) }
    }

    /// Binds a session that a server has just given out. One that is already bound to somebody
    /// else stays theirs.
    pub(crate) fn bind(&self, id: Hash, session: Session) -> Result<(), Foreign> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        match generations.get(id) {
            Some(known) if known.principal != session.principal => Err(Foreign),
            _ => {
                generations.insert(id, Arc::new(session));
                Ok(())
            }
        }
    }

    /// Forgets a session that has ended.
    pub(crate) fn end(&self, id: Hash) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.remove(&id);
        generations.old.remove(&id);
    }
}

impl Generations {
    fn get(&mut self, id: Hash) -> Option<Arc<Session>> {
        if let Some(session) = self.young.get(&id) {
            return Some(Arc::clone(session));
        }
        let session = self.old.remove(&id)?;
        self.insert(id, Arc::clone(&session));
        Some(session)
    }

    fn insert(&mut self, id: Hash, session: Arc<Session>) {
        if self.young.len() >= MAX_SESSIONS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, session);
    }
}
