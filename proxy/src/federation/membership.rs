//! Who takes part in a session at the common address, and who comes later.
//!
//! A server that was not there when the client opened its session is asked again, with the client's own
//! `initialize`, whenever the client lists something or names it. One that is slow to say that it is not there is
//! asked less often by lists, so that it costs them a tenth of the time at most. A server whose session
//! is lost has left, and comes back in the same way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::HeaderValue;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::timeout;

use super::common::Common;
use super::gather::WAIT;
use super::merge::Said;
use crate::leg::{Errand, Gone};
use crate::session::Session;

/// How many times as long as it took nobody asks a server again that was not there.
const REST: u32 = 10;
/// The longest level of logging that is kept.
const MAX_LEVEL: usize = 4 << 10;

/// A server that takes part in a session.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) server: String,
    /// The revision that it agreed to.
    pub(crate) protocol: Option<HeaderValue>,
    /// What it can do; everything if that is not known.
    pub(crate) capabilities: Option<Map<String, Value>>,
}

impl Member {
    /// Whether it may have to do with this.
    pub(crate) fn can(&self, what: &str) -> bool {
        self.capabilities.as_ref().is_none_or(|capabilities| capabilities.contains_key(what))
    }
}

/// The servers that take part in one session.
#[derive(Debug)]
pub(crate) struct Membership {
    members: Mutex<Vec<Member>>,
    /// What opened it; empty where it was too long to keep.
    initialize: Bytes,
    /// What the client wants to be told, in its own request.
    level: Mutex<Option<Bytes>>,
    doors: Mutex<HashMap<String, Arc<Door>>>,
    /// How many have joined later.
    joined: watch::Sender<usize>,
}

/// Where a server comes in.
#[derive(Debug, Default)]
struct Door {
    /// Held while it is asked; when it was last not there.
    turn: tokio::sync::Mutex<Option<Instant>>,
    /// Until when lists do not ask.
    rests_until: Mutex<Option<Instant>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Membership {
    /// Of those who answered `initialize`.
    pub(super) fn new(members: Vec<Member>, initialize: Bytes) -> Self {
        let (members, joined) = (Mutex::new(members), watch::Sender::new(0));
        Self { members, initialize, level: Mutex::default(), doors: Mutex::default(), joined }
    }

    /// Those who take part now.
    pub(super) fn members(&self) -> Vec<Member> {
        held(&self.members).clone()
    }

    pub(super) fn has(&self, server: &str) -> bool {
        held(&self.members).iter().any(|member| member.server == server)
    }

    /// Tells when somebody has joined.
    pub(super) fn joining(&self) -> watch::Receiver<usize> {
        self.joined.subscribe()
    }

    /// Keeps the client's `logging/setLevel` for those who come later.
    pub(super) fn set_level(&self, request: &Bytes) {
        let kept = (request.len() <= MAX_LEVEL).then(|| Bytes::copy_from_slice(request));
        *held(&self.level) = kept;
    }

    /// The server takes part no more.
    pub(crate) fn leave(&self, server: &str) {
        held(&self.members).retain(|member| member.server != server);
    }

    fn join(&self, member: Member) {
        {
            let mut members = held(&self.members);
            members.retain(|known| known.server != member.server);
            members.push(member);
        }
        self.joined.send_modify(|joined| *joined += 1);
    }

    fn door(&self, server: &str) -> Arc<Door> {
        Arc::clone(held(&self.doors).entry(server.to_owned()).or_default())
    }

    fn is_due(&self, server: &str) -> bool {
        let until = *held(&self.door(server).rests_until);
        until.is_none_or(|until| until <= Instant::now())
    }
}

impl Common {
    /// Lets servers join that were not there when the client came: this one, or all.
    pub(super) async fn admit(&self, only: Option<&str>) {
        let Some(session) = &self.session else { return };
        let Some(membership) = session.membership.get().filter(|m| !m.initialize.is_empty()) else {
            return;
        };
        let all = self.visit.proxy.federation.servers.iter();
        let absent = all.filter(|server| !membership.has(server)).filter(|server| match only {
            Some(only) => only == *server,
            None => membership.is_due(server),
        });
        let joining = absent.map(|server| self.let_in(session, membership.door(server), server));
        join_all(joining).await;
    }

    async fn let_in(&self, session: &Arc<Session>, door: Arc<Door>, server: &str) {
        let visit = &self.visit;
        let Some(served) = visit.proxy.servers.get(server).map(Arc::clone) else { return };
        let errand = Errand {
            proxy: Arc::clone(&visit.proxy),
            served,
            session: Arc::clone(session),
            who: visit.seen.who(&self.caller.who, &visit.headers, self.claimed.as_ref()),
            protocol: None,
        };
        // it comes to its end when the client does not wait for it
        let coming = tokio::spawn(timeout(WAIT, come_in(errand, door)));
        if !matches!(coming.await, Ok(Ok(Ok(())))) {
            tracing::debug!(server, "a server is still not there");
        }
    }
}

async fn come_in(errand: Errand, door: Arc<Door>) -> Result<(), Gone> {
    let began = Instant::now();
    let mut turn = door.turn.lock().await;
    let membership = errand.session.membership.get().ok_or(Gone)?;
    let server = &errand.served.server.name;
    if membership.has(server) {
        return Ok(());
    }
    if turn.is_some_and(|away_at| away_at >= began) {
        return Err(Gone);
    }
    let _resting = Resting { door: &door, began };
    let member = |answer: &Bytes| Said::read(server, answer).map(|said| said.member());
    let level = |answer: &Bytes| {
        let can = member(answer).is_some_and(|member| member.can("logging"));
        held(&membership.level).clone().filter(|_| can)
    };
    let answer = errand.join(&membership.initialize, level).await;
    let joined = answer.and_then(|answer| member(&answer).ok_or(Gone));
    match joined {
        Ok(member) => {
            membership.join(member);
            Ok(())
        }
        Err(Gone) => {
            *turn = Some(Instant::now());
            Err(Gone)
        }
    }
}

/// Notes, however it ends, how long asking a server took.
struct Resting<'d> {
    door: &'d Door,
    began: Instant,
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        let took: Duration = self.began.elapsed();
        *held(&self.door.rests_until) = Some(Instant::now() + took * REST);
    }
}
