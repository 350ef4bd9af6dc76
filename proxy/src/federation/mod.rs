//! All servers at one address, `/mcp`.
//!
//! # Life of a federated request
//! 1. It is judged like any other, and the server that it is for is read from what it names
//!    (`common`): tools and prompts as `{server}__{name}` (`names`), URIs, tasks and ids by their marks
//!    (`marks`).
//! 2. What names one server goes there as that server wrote it (`view`), by the same straight line
//!    as on the server's own route, with each changed place on the record.
//! 3. What is for all goes to all (`joint`): each exchange is a call of its own on the record, and
//!    so is the client's, opened before the first and ended before its answer is released; they say
//!    `within` which. Answers are taken out (`gather`) and joined of the servers' own bytes (`merge`):
//!    what servers say of themselves (`greet`), lists page by page (`lists`, `cursor`).
//! 4. Streams that stand open are one (`standing`), made of each server's part (`part`), which is opened
//!    again when it breaks off.
//! 5. A server that does not answer takes nobody down: who is missing is said and recorded, and
//!    comes in when it is there (`membership`).
//!
//! A client's session here holds one session at each server; its ids pass unchanged, for each server
//! sees them in a session of its own.

mod common;
mod complete;
mod cursor;
mod gather;
mod greet;
mod joint;
mod lists;
mod marks;
mod membership;
mod merge;
mod names;
mod part;
mod standing;
mod view;

use std::sync::Arc;

use bytes::Bytes;
use custody_journal::control::Control;
use custody_schemas::id::CallId;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;

use crate::answer::respond;
use crate::call;
use crate::config::Server;
use crate::envelope::{Envelope, Look};
use crate::era::{self, Era, Spoken};
use crate::errors::Failure;
use crate::inspect::Rules;
use crate::payload::Payload;
use crate::session::Session;
use crate::visit::{Stop, Visit, not_a_message};

pub(crate) use common::SPOKEN;
pub(crate) use membership::Membership;
pub(crate) use view::{Changes, Down, Unclear, View};

use common::Common;
use cursor::Sealer;
use membership::Member;
use names::Names;

/// The path, as sessions know it.
pub(crate) const ROUTE: &str = "";
/// By what a client takes up a broken stream.
const LAST_EVENT: &str = "last-event-id";

/// What all federated requests share.
pub(crate) struct Federation {
    servers: Vec<String>,
    names: Arc<Names>,
    sealer: Sealer,
    /// What is known of any server.
    rules: Rules,
    /// Whether any server holds protected data.
    phi: bool,
}

impl Federation {
    /// For these servers.
    pub(crate) fn new(servers: &[Server], control: Option<Control>) -> Self {
        let named: Vec<_> = servers.iter().map(|server| server.name.clone()).collect();
        let names = Arc::new(Names::new(named.clone(), control));
        let rules = Rules::of_all(servers.iter().map(|server| &server.rules));
        let phi = servers.iter().any(|server| server.rules.phi(None).unwrap_or(server.phi));
        Self { servers: named, names, sealer: Sealer::new(), rules, phi }
    }

    fn view(&self, server: &str, modern: bool) -> View {
        View { server: server.to_owned(), names: Arc::clone(&self.names), modern }
    }
}

/// Answers a POST.
pub(crate) async fn post(visit: Visit, body: Incoming) -> Response<Payload> {
    let (caller, bytes) = match call::receive(&visit, body).await {
        Ok(received) => received,
        Err(refused) => return *refused,
    };
    let envelope = match Envelope::read(&bytes, Look::Everywhere) {
        Ok(envelope) => envelope,
        Err(wrong) => {
            let (stop, nothing) = (not_a_message(wrong), Envelope::default());
            return visit.refuse(visit.denial(&caller, stop, &nothing, Some(&bytes))).await;
        }
    };
    match common::admit(&visit, &caller, &envelope) {
        Ok(admitted) => {
            let common = Common::new(visit, caller, admitted, &envelope, bytes.clone());
            Arc::new(common).answer(&envelope).await
        }
        Err(stop) => visit.refuse(visit.denial(&caller, stop, &envelope, Some(&bytes))).await,
    }
}

/// Answers a GET (the servers' own streams, as one) or a DELETE (the end of a session).
pub(crate) async fn bare(visit: Visit, method: Method, name: &'static str) -> Response<Payload> {
    let Ok(caller) = visit.proxy.authority.check(&visit.headers) else {
        return visit.turn_away(Failure::Unauthenticated);
    };
    let nothing = Envelope::default();
    let session = match visit.find_session(&caller, &nothing, Era::Legacy) {
        Ok(Some(session)) => session,
        Ok(None) => {
            let stop = Stop::from(Failure::UnknownSession);
            return visit.refuse(visit.denial(&caller, stop, &nothing, None)).await;
        }
        Err(stop) => return visit.refuse(visit.denial(&caller, stop, &nothing, None)).await,
    };
    let protocol = visit.headers.get(era::PROTOCOL_HEADER).and_then(|value| value.to_str().ok());
    let spoken = Spoken { era: Era::Legacy, protocol: protocol.unwrap_or_default().to_owned() };
    let ends = method == Method::DELETE;
    let admitted = (spoken, Some(Arc::clone(&session)));
    let common = Common::new(visit, caller, admitted, &nothing, Bytes::new());
    if !ends {
        return standing::own(Arc::new(common)).await;
    }
    let visit = &common.visit;
    let telling = members(visit, Some(&session)).into_iter().map(|member| {
        Box::pin(call::bare(toward(visit, &member, None, None), Method::DELETE, name))
    });
    futures::future::join_all(telling).await;
    visit.proxy.sessions.end(&session);
    respond(StatusCode::NO_CONTENT, HeaderMap::new(), Payload::whole(Bytes::new()))
}

/// The servers that a request can be for.
fn members(visit: &Visit, session: Option<&Arc<Session>>) -> Vec<Member> {
    let all = &visit.proxy.federation.servers;
    let unknown =
        |server: &String| Member { server: server.clone(), protocol: None, capabilities: None };
    match session {
        Some(session) => session.membership.get().map(Membership::members).unwrap_or_default(),
        None => all.iter().map(unknown).collect(),
    }
}

/// A request as it goes to one server. `name` is what `Mcp-Name` says there.
fn toward(visit: &Visit, member: &Member, within: Option<CallId>, name: Option<&str>) -> Visit {
    let mut headers = visit.headers.clone();
    headers.remove(LAST_EVENT);
    if let Some(protocol) = &member.protocol {
        headers.insert(era::PROTOCOL_HEADER, protocol.clone());
    }
    if let Some(name) = name
        && headers.contains_key(era::NAME_HEADER)
    {
        headers.insert(era::NAME_HEADER, era::encoded(name));
    }
    let protocol = headers.get(era::PROTOCOL_HEADER).and_then(|value| value.to_str().ok());
    let modern = protocol.is_some_and(era::is_modern);
    visit.toward(visit.proxy.federation.view(&member.server, modern), headers, within)
}
