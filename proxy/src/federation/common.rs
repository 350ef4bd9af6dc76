//! A request at the common address: to whom it goes.

use std::sync::Arc;

use bytes::Bytes;
use custody_schemas::event::{ClientClaimed, What};
use futures::future::join_all;
use http::{HeaderMap, Response, StatusCode};

use super::marks::unmark_event;
use super::merge::items_of;
use super::view::{Changes, Up, up};
use super::{members, standing, toward};
use crate::answer::respond;
use crate::call;
use crate::envelope::{Envelope, Look, Shape};
use crate::era::{Era, Spoken};
use crate::errors::Failure;
use crate::headers::noted_up;
use crate::identity::Caller;
use crate::inspect::{self, Found, is_housekeeping};
use crate::payload::Payload;
use crate::record::{Facts, LISTEN};
use crate::session::Session;
use crate::splice::Message;
use crate::visit::{Stop, Visit};

/// The revisions that are spoken at the common address, the newest first.
pub(crate) const SPOKEN: [&str; 4] = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26"];

/// A request at the common address.
pub(crate) struct Common {
    pub(super) visit: Visit,
    pub(super) caller: Caller,
    pub(super) claimed: Option<ClientClaimed>,
    pub(super) session: Option<Arc<Session>>,
    pub(super) spoken: Spoken,
    pub(super) bytes: Bytes,
}

/// What becomes of a message.
enum Plan {
    /// It goes to one server, changed like this.
    One(String, Changes),
    /// It goes to everybody, and nobody answers.
    Everybody,
    /// Everybody has part in the answer.
    Joint(Joint),
    /// The client listens to everybody.
    Listen,
}

/// What everybody has part in.
pub(super) enum Joint {
    /// A session in this revision, if it says so.
    Initialize(Option<String>),
    Discover,
    /// A list, with this method, of items under this key.
    List(String, &'static str),
    /// What is to be logged.
    Level,
    Ping,
}

/// Methods of which each request names something of one server.
fn names_something(method: &str) -> bool {
    matches!(
        method,
        "tools/call"
            | "prompts/get"
            | "resources/read"
            | "resources/subscribe"
            | "resources/unsubscribe"
            | "completion/complete"
    ) || method.starts_with("tasks/")
}

/// Everything that a message must be before it is asked whom it is for.
pub(super) fn admit(
    visit: &Visit,
    caller: &Caller,
    envelope: &Envelope<'_>,
) -> Result<(Spoken, Option<Arc<Session>>), Stop> {
    let spoken = visit.check(envelope)?;
    if let Some(revision) = envelope.meta_protocol.as_deref()
        && envelope.shape() == Shape::Request
        && !SPOKEN.contains(&revision)
    {
        let revision: String = revision.chars().take(64).collect();
        return Err(Stop::because(Failure::UnsupportedRevision, revision));
    }
    let session = visit.find_session(caller, envelope, spoken.era)?;
    let opens = envelope.method() == "initialize";
    if spoken.era == Era::Legacy && session.is_none() && !opens {
        return Err(Stop::because(Failure::UnknownSession, "Mcp-Session-Id is missing"));
    }
    Ok((spoken, session))
}

impl Common {
    /// A request that may come in.
    pub(super) fn new(
        visit: Visit,
        caller: Caller,
        (spoken, session): (Spoken, Option<Arc<Session>>),
        envelope: &Envelope<'_>,
        bytes: Bytes,
    ) -> Self {
        let owned = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let name = owned(&envelope.client.name);
        let own = name.map(|name| ClientClaimed { name, version: owned(&envelope.client.version) });
        let known = || session.as_ref().and_then(|session| session.claimed.clone());
        let claimed = own.or_else(known);
        Self { visit, caller, claimed, session, spoken, bytes }
    }

    /// Sends the message where it belongs, and answers.
    pub(super) async fn answer(self: Arc<Self>, envelope: &Envelope<'_>) -> Response<Payload> {
        match self.plan(envelope) {
            Ok(Plan::One(server, changes)) => self.one(&server, changes, envelope).await,
            Ok(Plan::Everybody) => self.tell_everybody().await,
            Ok(Plan::Joint(joint)) => Box::pin(self.joint(joint, envelope)).await,
            Ok(Plan::Listen) => Box::pin(standing::listen(self, envelope)).await,
            Err(stop) => self.refuse(stop, envelope).await,
        }
    }

    /// Refuses it. From 2026-07-28 on a method that nobody knows is not found.
    pub(super) async fn refuse(&self, stop: Stop, envelope: &Envelope<'_>) -> Response<Payload> {
        let unknown = stop.failure == Failure::UnknownMethod && self.spoken.era == Era::Modern;
        let request = Some(&self.bytes).filter(|bytes| !bytes.is_empty());
        let denial = self.visit.denial(&self.caller, stop, envelope, request);
        let mut response = self.visit.refuse(denial).await;
        if unknown && response.status().is_success() {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        response
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap_or_default()
    }

    fn plan(&self, envelope: &Envelope<'_>) -> Result<Plan, Stop> {
        let names = &self.visit.proxy.federation.names;
        let named = |kind| {
            let found = up(names, self.text(), kind).map_err(|_| Failure::Invalid)?;
            Ok::<_, Stop>(found.map(|(server, changes)| Plan::One(server, changes)))
        };
        let method = envelope.method();
        match envelope.shape() {
            Shape::Response => named(Up::Answer)?.ok_or(Failure::NotAsked.into()),
            Shape::Notification if method == "notifications/progress" => {
                named(Up::Progress)?.ok_or(Failure::NotAsked.into())
            }
            Shape::Notification => Ok(named(Up::Named)?.unwrap_or(Plan::Everybody)),
            Shape::Request | Shape::Unclear => {
                if let Some(plan) = for_all(envelope, self.spoken.era) {
                    return Ok(plan);
                }
                let nobody = match names_something(method) {
                    true => Failure::NotOffered,
                    false => Failure::UnknownMethod,
                };
                named(Up::Named)?.ok_or(nobody.into())
            }
        }
    }

    /// What names one server goes there.
    async fn one(
        &self,
        server: &str,
        changes: Changes,
        envelope: &Envelope<'_>,
    ) -> Response<Payload> {
        self.admit(Some(server)).await;
        let members = members(&self.visit, self.session.as_ref());
        let member = members.iter().find(|member| member.server == server);
        let message = Message::spliced(self.bytes.clone(), changes);
        let (Some(member), Ok(message)) = (member, message) else {
            let why = "its server takes no part in this session now";
            return self.refuse(Stop::because(Failure::NotOffered, why), envelope).await;
        };
        let there = Envelope::read(&message.bytes, Look::Policy).unwrap_or_default();
        let name = there.name.as_deref().or(there.uri.as_deref()).or(there.task.as_deref());
        let visit = toward(&self.visit, member, None, name);
        call::forward(&visit, &self.caller, message.clone()).await
    }

    /// What names nobody is for everybody.
    async fn tell_everybody(&self) -> Response<Payload> {
        let members = members(&self.visit, self.session.as_ref());
        let telling = members.iter().map(|member| async move {
            let visit = toward(&self.visit, member, None, None);
            call::forward(&visit, &self.caller, self.bytes.clone().into()).await
        });
        let answers = join_all(telling.map(Box::pin)).await;
        let (done, mut failed): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| answer.status().is_success());
        match failed.pop() {
            Some(failed) if done.is_empty() => failed,
            _ => respond(StatusCode::ACCEPTED, HeaderMap::new(), Payload::whole(Bytes::new())),
        }
    }

    /// The stream of one server that a client takes up again at an event that it was given.
    pub(super) async fn resume(&self, event: &str) -> Option<Response<Payload>> {
        let (server, id) = unmark_event(event)?;
        let members = members(&self.visit, self.session.as_ref());
        let member = members.iter().find(|member| member.server == server)?;
        let mut visit = toward(&self.visit, member, None, None);
        visit.headers.insert(super::LAST_EVENT, id);
        Some(call::bare(visit, http::Method::GET, "GET").await)
    }

    /// Who, what and whose data, for a message of the client to all servers.
    pub(super) fn facts(&self, envelope: &Envelope<'_>) -> Facts {
        let visit = &self.visit;
        let federation = &visit.proxy.federation;
        let what = visit.what(envelope, Some(self.spoken.protocol.clone()));
        Facts {
            headers: noted_up(&visit.headers, &what),
            who: visit.seen.who(&self.caller.who, &visit.headers, self.claimed.as_ref()),
            what: Arc::new(what),
            prev: None,
            leaving_cancels: self.spoken.era == Era::Modern,
            phi: federation.phi && !is_housekeeping(envelope.method()),
            found: inspect::sent(&federation.rules, envelope, &self.bytes),
            by_proxy: false,
            within: None,
        }
    }

    /// The same for a message of the proxy's own to the client.
    pub(super) fn own_facts(&self, method: &str) -> Facts {
        let what = What {
            method: Some(method.to_owned()),
            protocol: Some(self.spoken.protocol.clone()).filter(|text| !text.is_empty()),
            session: self.session.as_ref().map(|session| session.hash),
            transport: Some("streamable-http".to_owned()),
            ..What::default()
        };
        let visit = &self.visit;
        Facts {
            headers: None,
            who: visit.seen.who(&self.caller.who, &visit.headers, self.claimed.as_ref()),
            what: Arc::new(what),
            prev: None,
            leaving_cancels: false,
            phi: false,
            found: Found::none(),
            by_proxy: true,
            within: None,
        }
    }
}

/// What becomes of a request that is for all servers.
fn for_all(envelope: &Envelope<'_>, era: Era) -> Option<Plan> {
    let method = envelope.method();
    let joint = match (method, era) {
        ("initialize", Era::Legacy) => {
            Joint::Initialize(envelope.protocol.as_deref().map(str::to_owned))
        }
        ("server/discover", Era::Modern) => Joint::Discover,
        ("ping", Era::Legacy) => Joint::Ping,
        ("logging/setLevel", Era::Legacy) => Joint::Level,
        (LISTEN, Era::Modern) => return Some(Plan::Listen),
        _ => Joint::List(method.to_owned(), items_of(method)?),
    };
    Some(Plan::Joint(joint))
}
