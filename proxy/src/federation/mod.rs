//! All servers at one address, `/mcp`.
//!
//! # Life of a federated request
//! 1. It is judged like any other, and the server that it is for is read from what it names: tools
//!    and prompts as `{server}__{name}` (`names`), URIs, tasks and ids by their marks (`marks`).
//! 2. What names one server goes there as that server wrote it (`view`), by the same straight line
//!    as on the server's own route, with each changed place on the record.
//! 3. What is for all goes to all (`common`): each exchange is a call of its own on the record, and
//!    so is the client's, opened before the first and ended before its answer is released; they say
//!    `within` which. Answers are joined of the servers' own bytes (`merge`), page by page (`cursor`).
//! 4. A server that does not answer takes nobody down: who is missing is said and recorded.
//!
//! A client's session here holds one session at each server; its ids pass unchanged, for each server
//! sees them in a session of its own.

mod common;
mod cursor;
mod gather;
mod marks;
mod merge;
mod names;
mod streams;
mod view;

use std::sync::Arc;

use bytes::Bytes;
use custody_journal::control::Control;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use crate::answer::respond;
use crate::call::{self, error};
use crate::envelope::{Envelope, Look};
use crate::era::Era;
use crate::errors::Failure;
use crate::payload::Payload;
use crate::session::Session;
use crate::visit::{Stop, Visit, not_a_message};

pub(crate) use view::{Changes, Down, Unclear, View};

use common::Common;
use cursor::Sealer;
use names::Names;

/// The path, as sessions know it.
pub(crate) const ROUTE: &str = "";

/// What all federated requests share.
pub(crate) struct Federation {
    servers: Vec<String>,
    names: Arc<Names>,
    sealer: Sealer,
}

impl Federation {
    /// For these servers.
    pub(crate) fn new(servers: Vec<String>, control: Option<Control>) -> Self {
        let names = Arc::new(Names::new(servers.clone(), control));
        Self { servers, names, sealer: Sealer::new() }
    }

    fn view(&self, server: &str) -> View {
        View { server: server.to_owned(), names: Arc::clone(&self.names) }
    }
}

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
    fn can(&self, what: &str) -> bool {
        self.capabilities.as_ref().is_none_or(|capabilities| capabilities.contains_key(what))
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
    match Common::enter(&visit, &caller, &envelope, &bytes) {
        Ok(common) => common.answer(&envelope).await,
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
    let asking = members(&visit, Some(&session)).into_iter().map(|member| {
        let visit = toward(&visit, &member, None, None);
        Box::pin(call::bare(visit, method.clone(), name))
    });
    let answers = futures::future::join_all(asking).await;
    if method == Method::DELETE {
        visit.proxy.sessions.end(&session);
        return respond(StatusCode::NO_CONTENT, HeaderMap::new(), Payload::whole(Bytes::new()));
    }
    let mut headers = HeaderMap::new();
    let streams = answers.into_iter().filter_map(|answer| {
        let (head, body) = answer.into_parts();
        match body {
            Payload::Pieces(pieces) if head.status.is_success() => {
                headers = head.headers;
                Some(pieces)
            }
            Payload::Pieces(_) | Payload::Whole(_) => None,
        }
    });
    let streams: Vec<_> = streams.collect();
    if streams.is_empty() {
        return error(Failure::MethodNotAllowed, None, None, None);
    }
    respond(StatusCode::OK, headers, Payload::Pieces(streams::join(streams)))
}

/// The servers that a request can be for.
fn members(visit: &Visit, session: Option<&Arc<Session>>) -> Vec<Member> {
    let all = &visit.proxy.federation.servers;
    let unknown =
        |server: &String| Member { server: server.clone(), protocol: None, capabilities: None };
    match session {
        Some(session) => session.members.get().cloned().unwrap_or_default(),
        None => all.iter().map(unknown).collect(),
    }
}

/// A request as it goes to one server. `name` is what `Mcp-Name` says there.
fn toward(
    visit: &Visit,
    member: &Member,
    within: Option<custody_schemas::id::CallId>,
    name: Option<&str>,
) -> Visit {
    let mut headers = visit.headers.clone();
    headers.remove("last-event-id");
    if let Some(protocol) = &member.protocol {
        headers.insert(crate::era::PROTOCOL_HEADER, protocol.clone());
    }
    if let Some(name) = name
        && headers.contains_key(crate::era::NAME_HEADER)
    {
        headers.insert(crate::era::NAME_HEADER, crate::era::encoded(name));
    }
    visit.toward(visit.proxy.federation.view(&member.server), headers, within)
}
