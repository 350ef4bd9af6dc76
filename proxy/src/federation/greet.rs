//! What servers say of themselves, joined: `initialize`, `server/discover`, and the level of logging.

use std::sync::Arc;

use http::HeaderValue;

use super::gather::Gathered;
use super::joint::{Answer, Asking, Joined};
use super::membership::{Member, Membership};
use super::merge::{self, Said};
use super::{ROUTE, members};
use crate::era::SESSION_HEADER;
use crate::errors::Failure;
use crate::session::{MAX_INITIALIZE, Session};
use crate::splice::Message;
use crate::visit::Visit;

/// Revisions that are agreed on by `initialize`, the newest first.
const LEGACY: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

/// What servers say of themselves, and who says nothing.
fn said(asked: &[(Member, Gathered)]) -> (Vec<Said>, Vec<String>) {
    let mut said = Vec::new();
    let mut absent = Vec::new();
    for (member, gathered) in asked {
        let answer = gathered.answer.as_deref();
        match answer.and_then(|answer| Said::read(&member.server, answer)) {
            Some(one) => said.push(one),
            None => absent.push(member.server.clone()),
        }
    }
    (said, absent)
}

impl Asking {
    /// The same message to all of these.
    fn alike(&self, members: Vec<Member>) -> Vec<(Member, Message)> {
        members.into_iter().map(|member| (member, self.common.bytes.clone().into())).collect()
    }

    /// Opens a session at every server behind `session`, which the client knows by `ours`.
    pub(super) async fn initialize(
        &self,
        wanted: Option<&str>,
        ours: HeaderValue,
        session: &Arc<Session>,
    ) -> Joined {
        let outer = &self.common.visit;
        let mut headers = outer.headers.clone();
        headers.insert(SESSION_HEADER, ours);
        let (proxy, seen) = (Arc::clone(&outer.proxy), Arc::clone(&outer.seen));
        let visit = Visit::new(proxy, seen, headers, ROUTE);
        let asked = self.ask(&visit, self.alike(members(outer, None))).await;
        let (said, absent) = said(&asked);
        if said.is_empty() {
            outer.proxy.sessions.end(session);
            return Joined::nothing(&self.id, &asked, absent);
        }
        let kept = Some(&self.common.bytes).filter(|bytes| bytes.len() <= MAX_INITIALIZE);
        let members = said.iter().map(Said::member).collect();
        let membership = Membership::new(members, kept.cloned().unwrap_or_default());
        session.membership.get_or_init(|| membership);
        let known = LEGACY.into_iter().find(|known| Some(*known) == wanted);
        let protocol = known.unwrap_or(LEGACY[0]);
        let answer = Answer::Of(merge::initialized(&self.id, protocol, &said, &absent));
        Joined { answer, absent }
    }

    /// Asks every server what it is.
    pub(super) async fn discover(&self) -> Joined {
        let visit = &self.common.visit;
        let asked = self.ask(visit, self.alike(members(visit, None))).await;
        let (said, absent) = said(&asked);
        if said.is_empty() {
            return Joined::nothing(&self.id, &asked, absent);
        }
        let protocol = &self.common.spoken.protocol;
        let answer = Answer::Of(merge::discovered(&self.id, protocol, &said, &absent));
        Joined { answer, absent }
    }

    /// Tells every server that logs what the client wants to be told; what is wrong if none does.
    pub(super) async fn level(&self) -> Option<Joined> {
        let common = &self.common;
        let mut able = members(&common.visit, common.session.as_ref());
        able.retain(|member| member.can("logging"));
        if able.is_empty() {
            return Some(Joined {
                answer: Answer::Ours(Failure::UnknownMethod),
                absent: Vec::new(),
            });
        }
        let membership = common.session.as_ref().and_then(|session| session.membership.get());
        if let Some(membership) = membership {
            membership.set_level(&common.bytes);
        }
        let asked = self.ask(&common.visit, self.alike(able)).await;
        let refused = asked.iter().all(|(_, gathered)| gathered.error(&self.id).is_some());
        refused.then(|| Joined::nothing(&self.id, &asked, Vec::new()))
    }
}
