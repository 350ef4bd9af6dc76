//! Sessions of the legacy revisions: ours towards clients, and the servers' own behind them.
//!
//! A client never sees the id that a server gave out. It gets one of ours, 128 random bits, bound to
//! the principal that opened it and to the route it was opened on; somebody else's is as unknown as
//! one that never was. Ids are secrets: only their hashes are kept and recorded.
//!
//! The table has a limit, and sessions that nobody uses for long are forgotten. When it is full, a
//! principal's own least recently used session goes first, so that nobody can push others out.
//! Whatever is forgotten is handed out by [`Sessions::leaving`], for its servers to be told.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use custody_schemas::event::ClientClaimed;
use custody_schemas::id::{Bytes as Digits, Hash};
use http::HeaderValue;
use sha2::{Digest, Sha256};

use crate::federation::Membership;
use crate::identity::{Caller, PrincipalId};
use crate::traffic::Traffic;

/// How many forgotten sessions wait for their servers to be told.
const MAX_LEAVING: usize = 1024;
/// The longest `initialize` that is kept to open a server's session anew.
pub(crate) const MAX_INITIALIZE: usize = 16 << 10;

/// The session belongs to somebody else or is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foreign;

/// A session of ours.
#[derive(Debug)]
pub(crate) struct Session {
    /// Under which records and the table know it.
    pub(crate) hash: Hash,
    /// The server of its route; the empty text is all of them.
    pub(crate) route: String,
    /// Who opened it.
    pub(crate) caller: Caller,
    /// What the client called itself when it opened it.
    pub(crate) claimed: Option<ClientClaimed>,
    legs: Mutex<Vec<Arc<Leg>>>,
    /// The servers that take part in it, where it is for all of them.
    pub(crate) membership: OnceLock<Membership>,
    /// What is open in it.
    pub(crate) traffic: Traffic,
    /// When it was last used, in nanoseconds of the table's clock.
    used_at: AtomicU64,
}

/// A server's own session behind one of ours.
#[derive(Debug)]
pub(crate) struct Leg {
    /// The server's name.
    pub(crate) server: String,
    now: Mutex<Arc<Opened>>,
    /// Held while it is opened anew, so that only one does so.
    pub(crate) renewing: tokio::sync::Mutex<Renewals>,
}

/// What came of opening a server's session anew.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    /// When it last failed: whoever began to wait before that has failed, too.
    pub(crate) failed_at: Option<Instant>,
}

/// A server's session as it was opened last.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The id that the server gave out.
    pub(crate) id: HeaderValue,
    /// The client's `initialize`, empty where it was too long to keep.
    pub(crate) initialize: Bytes,
}

impl Opened {
    /// A session that `initialize` opened, if it was that which did.
    pub(crate) fn new(id: HeaderValue, initialize: Option<&Bytes>) -> Self {
        let kept = initialize.filter(|bytes| bytes.len() <= MAX_INITIALIZE);
        // a copy of its own, that keeps no larger buffer from being used again
        Self { id, initialize: kept.map(|bytes| Bytes::copy_from_slice(bytes)).unwrap_or_default() }
    }
}

impl Session {
    /// The session at `server` behind this one.
    pub(crate) fn leg(&self, server: &str) -> Option<Arc<Leg>> {
        held(&self.legs).iter().find(|leg| leg.server == server).map(Arc::clone)
    }

    /// All sessions at servers behind this one.
    pub(crate) fn legs(&self) -> Vec<Arc<Leg>> {
        held(&self.legs).clone()
    }
}

impl Leg {
    /// The server's session as it is now.
    pub(crate) fn now(&self) -> Arc<Opened> {
        Arc::clone(&held(&self.now))
    }
}

/// The sessions of this proxy.
#[derive(Debug)]
pub(crate) struct Sessions {
    limit: usize,
    idle: Duration,
    began_at: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<Hash, Arc<Session>>,
    /// Whose a server's session is, by the hash of its name and id.
    owners: HashMap<Hash, (PrincipalId, Hash)>,
    leaving: VecDeque<Arc<Session>>,
    /// Sessions whose servers were not told, for there were too many.
    dropped: u64,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The hash under which a session's id is known.
pub(crate) fn hash(id: &[u8]) -> Hash {
    Digits(Sha256::digest(id).into())
}

/// The hash under which a server's session is known.
fn owner(server: &str, id: &HeaderValue) -> Hash {
    let digest = Sha256::new().chain_update(server).chain_update([0]).chain_update(id);
    Digits(digest.finalize().into())
}

impl Sessions {
    /// At most `limit` sessions, each forgotten after `idle` without use.
    pub(crate) fn new(limit: usize, idle: Duration) -> Self {
        Self { limit: limit.max(1), idle, began_at: Instant::now(), table: Mutex::default() }
    }

    fn clock(&self) -> u64 {
        u64::try_from(self.began_at.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The session with this id on this route, if `principal` may use it.
    pub(crate) fn get(
        &self,
        hash: Hash,
        route: &str,
        principal: PrincipalId,
    ) -> Result<Arc<Session>, Foreign> {
        let table = held(&self.table);
        let session = table.sessions.get(&hash).ok_or(Foreign)?;
        if session.caller.principal != principal || session.route != route {
            return Err(Foreign);
        }
        session.used_at.store(self.clock(), Ordering::Relaxed);
        Ok(Arc::clone(session))
    }

    /// Opens a session, and gives the id that the client is to have.
    pub(crate) fn open(
        &self,
        route: &str,
        caller: &Caller,
        claimed: Option<ClientClaimed>,
    ) -> (HeaderValue, Arc<Session>) {
        let id = hex::encode(rand::random::<[u8; 16]>());
        let session = Arc::new(Session {
            hash: hash(id.as_bytes()),
            route: route.to_owned(),
            caller: caller.clone(),
            claimed,
            legs: Mutex::default(),
            membership: OnceLock::new(),
            traffic: Traffic::default(),
            used_at: AtomicU64::new(self.clock()),
        });
        let mut table = held(&self.table);
        if table.sessions.len() >= self.limit {
            table.make_room(caller.principal);
        }
        table.sessions.insert(session.hash, Arc::clone(&session));
        let id = HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static(""));
        (id, session)
    }

    /// Puts a session that a server has given out behind one of ours, in place of the one that was
    /// there. Nobody gets one that is already behind somebody else's.
    pub(crate) fn bind(
        &self,
        session: &Session,
        server: &str,
        opened: Opened,
    ) -> Result<(), Foreign> {
        let mut table = held(&self.table);
        let (key, principal) = (owner(server, &opened.id), session.caller.principal);
        if table.owners.get(&key).is_some_and(|(other, _)| *other != principal) {
            return Err(Foreign);
        }
        if !table.sessions.contains_key(&session.hash) {
            return Err(Foreign);
        }
        table.owners.insert(key, (principal, session.hash));
        let mut legs = held(&session.legs);
        let now = Arc::new(opened);
        match legs.iter().find(|leg| leg.server == server) {
            Some(leg) => {
                let before = std::mem::replace(&mut *held(&leg.now), Arc::clone(&now));
                if before.id != now.id {
                    table.disown(session, server, &before.id);
                }
            }
            None => legs.push(Arc::new(Leg {
                server: server.to_owned(),
                now: Mutex::new(now),
                renewing: tokio::sync::Mutex::default(),
            })),
        }
        Ok(())
    }

    /// Forgets the session at one server behind one of ours.
    pub(crate) fn part(&self, session: &Session, server: &str) {
        let mut table = held(&self.table);
        if let Some(leg) = session.leg(server) {
            table.disown(session, server, &leg.now().id);
        }
        held(&session.legs).retain(|leg| leg.server != server);
    }

    /// Forgets a session that has ended.
    pub(crate) fn end(&self, session: &Session) {
        let mut table = held(&self.table);
        table.remove(session);
    }

    /// Forgets what nobody has used for too long, and gives everything that was forgotten since
    /// the last time, with the number of those of which nothing more is known.
    pub(crate) fn leaving(&self) -> (Vec<Arc<Session>>, u64) {
        let limit = u64::try_from(self.idle.as_nanos()).unwrap_or(u64::MAX);
        let now = self.clock();
        let mut table = held(&self.table);
        let idle = |session: &&Arc<Session>| {
            // whoever holds one uses it, be it only by an open stream
            if Arc::strong_count(session) > 1 {
                session.used_at.store(now, Ordering::Relaxed);
                return false;
            }
            now.saturating_sub(session.used_at.load(Ordering::Relaxed)) >= limit
        };
        let over: Vec<_> = table.sessions.values().filter(idle).map(Arc::clone).collect();
        for session in over {
            table.forget(session);
        }
        let dropped = std::mem::take(&mut table.dropped);
        (table.leaving.drain(..).collect(), dropped)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        held(&self.table).sessions.len()
    }
}

impl Table {
    /// Forgets the session that was not used for longest: one of `principal` if there is any.
    fn make_room(&mut self, principal: PrincipalId) {
        let used = |session: &&Arc<Session>| session.used_at.load(Ordering::Relaxed);
        let own = self.sessions.values().filter(|session| session.caller.principal == principal);
        let oldest = own.min_by_key(used).or_else(|| self.sessions.values().min_by_key(used));
        if let Some(session) = oldest.map(Arc::clone) {
            self.forget(session);
        }
    }

    fn forget(&mut self, session: Arc<Session>) {
        self.remove(&session);
        if self.leaving.len() < MAX_LEAVING {
            self.leaving.push_back(session);
        } else {
            self.dropped += 1;
        }
    }

    fn remove(&mut self, session: &Session) {
        self.sessions.remove(&session.hash);
        for leg in session.legs() {
            self.disown(session, &leg.server, &leg.now().id);
        }
    }

    fn disown(&mut self, session: &Session, server: &str, id: &HeaderValue) {
        let key = owner(server, id);
        if self.owners.get(&key).is_some_and(|(_, by)| *by == session.hash) {
            self.owners.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: PrincipalId = PrincipalId::test(1);
    const BOB: PrincipalId = PrincipalId::test(2);

    fn caller(principal: PrincipalId) -> Caller {
        Caller { principal, who: Arc::default() }
    }

    fn opened(id: &'static str) -> Opened {
        Opened::new(HeaderValue::from_static(id), None)
    }

    #[test]
    fn a_session_is_known_to_its_principal_on_its_route_only() {
        let sessions = Sessions::new(8, Duration::from_secs(60));
        let (id, session) = sessions.open("ehr", &caller(ANN), None);
        assert_eq!((id.len(), hash(id.as_bytes())), (32, session.hash));
        assert!(sessions.get(session.hash, "ehr", ANN).is_ok());
        assert_eq!(sessions.get(session.hash, "ehr", BOB).unwrap_err(), Foreign);
        assert_eq!(sessions.get(session.hash, "lab", ANN).unwrap_err(), Foreign);
        assert_ne!(sessions.open("ehr", &caller(ANN), None).0, id);
        sessions.end(&session);
        assert_eq!(sessions.get(session.hash, "ehr", ANN).unwrap_err(), Foreign);
    }

    #[test]
    fn a_servers_session_is_never_shared_between_principals() {
        let sessions = Sessions::new(8, Duration::from_secs(60));
        let (_, ann) = sessions.open("ehr", &caller(ANN), None);
        let (_, bob) = sessions.open("ehr", &caller(BOB), None);
        sessions.bind(&ann, "ehr", opened("s")).unwrap();
        assert_eq!(sessions.bind(&bob, "ehr", opened("s")), Err(Foreign));
        sessions.bind(&bob, "lab", opened("s")).unwrap();
        sessions.bind(&ann, "ehr", opened("t")).unwrap();
        assert_eq!(ann.leg("ehr").unwrap().now().id, "t");
        sessions.bind(&bob, "ehr", opened("s")).unwrap();
        sessions.end(&bob);
        sessions.bind(&ann, "lab", opened("s")).unwrap();
        assert_eq!(sessions.bind(&bob, "ehr", opened("u")), Err(Foreign), "it has ended");
    }

    #[test]
    fn a_full_table_forgets_the_callers_own_sessions_first() {
        let sessions = Sessions::new(3, Duration::from_secs(60));
        let (_, of_bob) = sessions.open("ehr", &caller(BOB), None);
        let first = sessions.open("ehr", &caller(ANN), None).1;
        for _ in 0..5 {
            sessions.open("ehr", &caller(ANN), None);
        }
        assert_eq!(sessions.count(), 3);
        assert!(sessions.get(of_bob.hash, "ehr", BOB).is_ok());
        assert!(sessions.get(first.hash, "ehr", ANN).is_err());
        assert_eq!(sessions.leaving().0.len(), 4);
    }

    #[test]
    fn a_session_that_nobody_holds_is_forgotten_when_it_was_idle_for_too_long() {
        let sessions = Sessions::new(3, Duration::ZERO);
        let (_, held) = sessions.open("ehr", &caller(ANN), None);
        sessions.bind(&held, "ehr", opened("s")).unwrap();
        sessions.open("ehr", &caller(ANN), None);
        assert_eq!((sessions.leaving().0.len(), sessions.count()), (1, 1));
        drop(held);
        let (left, dropped) = sessions.leaving();
        assert_eq!((left[0].leg("ehr").unwrap().now().id.to_str().unwrap(), dropped), ("s", 0));
        assert_eq!((sessions.count(), held_owners(&sessions)), (0, 0));
    }

    fn held_owners(sessions: &Sessions) -> usize {
        held(&sessions.table).owners.len()
    }
}
