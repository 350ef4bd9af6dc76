//! A request as it came through the door, and whether it may go on.
//!
//! Everything is decided here before policy is asked: whether the body is one message that can be
//! read in one way only, whether headers and body agree, whether the session is the caller's own.
//! A caller's refusal is recorded before it is given; strangers who are turned away are counted.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use custody_schemas::event::{ClientClaimed, What};
use custody_schemas::id::{CallId, Hash};
use custody_schemas::words::Activity;
use http::{HeaderMap, Response, header};
use hyper::body::Incoming;

use crate::answer::{Unread, read_whole, within};
use crate::call::{Asked, Exchange, error};
use crate::envelope::{Envelope, EnvelopeError, Look, Shape};
use crate::era::{self, Era, SESSION_HEADER, Spoken};
use crate::errors::Failure;
use crate::federation::View;
use crate::headers::noted_up;
use crate::identity::{Caller, Seen};
use crate::inspect::{self, Found};
use crate::payload::Payload;
use crate::record::Facts;
use crate::session::{self, Foreign, Session};
use crate::tools::Verdict;
use crate::upstream::media_type;
use crate::{Proxy, Served};

/// A request as it came through the door.
pub(crate) struct Visit {
    pub(crate) proxy: Arc<Proxy>,
    /// Who came on this connection before.
    pub(crate) seen: Arc<Seen>,
    pub(crate) headers: HeaderMap,
    /// The server's name in the path; the empty text is all of them.
    pub(crate) server: String,
    /// The path that it came on: the server's name, or the empty text.
    pub(crate) route: String,
    /// How the server looks at the common address, if the request came there.
    pub(crate) view: Option<View>,
    /// The client's call that this request is part of.
    pub(crate) within: Option<CallId>,
    /// That server, if there is one.
    pub(crate) served: Option<Arc<Served>>,
    /// The hash of the session that the client names.
    pub(crate) session: Option<Hash>,
}

/// Why a request goes no further.
pub(crate) struct Stop {
    pub(crate) failure: Failure,
    pub(crate) note: Option<Cow<'static, str>>,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self { failure, note: None }
    }
}

impl Stop {
    pub(crate) fn because(failure: Failure, note: impl Into<Cow<'static, str>>) -> Self {
        Self { failure, note: Some(note.into()) }
    }
}

/// What becomes of a message.
pub(crate) enum Judged<'v> {
    /// It goes no further.
    Refused(Denial),
    /// It is a request.
    Call(Exchange<'v>, Asked, Facts),
    /// It is a notification, or an answer to a server's request.
    Other(Exchange<'v>, Facts, Beside),
}

/// What a message beside calls is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside {
    /// The call in whose stream it belongs.
    pub(crate) call: Option<CallId>,
    /// The id of the server's request that it answers, a raw token.
    pub(crate) answers: Option<String>,
}

/// A refusal, ready to be recorded and given.
pub(crate) struct Denial {
    stop: Stop,
    facts: Facts,
    id: Option<String>,
    request: Option<Bytes>,
}

pub(crate) fn not_a_message(wrong: EnvelopeError) -> Stop {
    let failure = match wrong {
        EnvelopeError::Json(_) => Failure::NotJson,
        EnvelopeError::Batch | EnvelopeError::NotObject | EnvelopeError::Type(_) => {
            Failure::Invalid
        }
    };
    Stop::because(failure, wrong.to_string())
}

impl Visit {
    /// A request for the server called `server`.
    pub(crate) fn new(
        proxy: Arc<Proxy>,
        seen: Arc<Seen>,
        headers: HeaderMap,
        server: &str,
    ) -> Self {
        let session = headers.get(SESSION_HEADER).map(|id| session::hash(id.as_bytes()));
        let served = proxy.servers.get(server).map(Arc::clone);
        let (server, route) = (server.to_owned(), server.to_owned());
        Self { proxy, seen, headers, server, route, view: None, within: None, served, session }
    }

    /// The same request as it goes to one of the servers of the common address.
    pub(crate) fn toward(&self, view: View, headers: HeaderMap, within: Option<CallId>) -> Self {
        let (proxy, seen) = (Arc::clone(&self.proxy), Arc::clone(&self.seen));
        let visit = Self::new(proxy, seen, headers, &view.server);
        Self { route: self.route.clone(), view: Some(view), within, ..visit }
    }

    /// Twins matter everywhere in what goes to a server with protected data.
    fn look(&self) -> Look {
        match &self.served {
            Some(served) if !served.server.phi => Look::Policy,
            _ => Look::Everywhere,
        }
    }

    pub(crate) async fn read_body(&self, body: &mut Incoming) -> Result<Bytes, Stop> {
        let declared = media_type(&self.headers);
        if !declared.eq_ignore_ascii_case("application/json")
            || self.headers.contains_key(header::CONTENT_ENCODING)
        {
            return Err(Failure::UnsupportedMediaType.into());
        }
        let reading = read_whole(body, self.proxy.max_message_bytes);
        let read = within(self.proxy.limits.body, reading).await;
        read.map_err(|unread| match unread {
            Unread::TooLong => {
                let limit = self.proxy.max_message_bytes;
                Stop::because(Failure::TooLarge, format!("the limit is {limit} bytes"))
            }
            Unread::TimedOut => Failure::BodyTimeout.into(),
            Unread::Broken => Stop::because(Failure::Invalid, "the body broke off"),
        })
    }

    /// Reads a message and decides what becomes of it.
    pub(crate) fn judge(&self, caller: &Caller, bytes: &Bytes) -> Judged<'_> {
        let envelope = match Envelope::read(bytes, self.look()) {
            Ok(envelope) => envelope,
            Err(wrong) => {
                let stop = not_a_message(wrong);
                let nothing = Envelope::default();
                return Judged::Refused(self.denial(caller, stop, &nothing, Some(bytes)));
            }
        };
        let (exchange, spoken) = match self.admit(caller, &envelope) {
            Ok(admitted) => admitted,
            Err(stop) => {
                return Judged::Refused(self.denial(caller, stop, &envelope, Some(bytes)));
            }
        };
        if envelope.shape() != Shape::Request {
            return match exchange.beside(&envelope) {
                Ok(beside) => {
                    let facts = exchange.facts(&envelope, &spoken, bytes);
                    Judged::Other(exchange, facts, beside)
                }
                Err(stop) => Judged::Refused(self.denial(caller, stop, &envelope, Some(bytes))),
            };
        }
        let facts = exchange.facts(&envelope, &spoken, bytes);
        let asked = Asked {
            id: envelope.id.unwrap_or("null").to_owned(),
            era: spoken.era,
            definitions: inspect::is_housekeeping(envelope.method()),
            tool: envelope.name.as_deref().map(str::to_owned),
        };
        Judged::Call(exchange, asked, facts)
    }

    /// Everything that a message must be before policy is asked.
    fn admit<'v>(
        &'v self,
        caller: &Caller,
        envelope: &Envelope<'_>,
    ) -> Result<(Exchange<'v>, Spoken), Stop> {
        let served = self.served.as_ref().ok_or(Failure::UnknownServer)?;
        let spoken = self.check(envelope)?;
        if let (CALLING, Some(tool)) = (envelope.method(), &envelope.name) {
            match self.proxy.tools.judge(&served.server, tool) {
                Verdict::Allowed(_) => {}
                Verdict::Denied => return Err(Failure::ToolDenied.into()),
                Verdict::Changed(_) => return Err(Failure::ToolChanged.into()),
            }
        }
        Ok((self.enter(caller, served, envelope, spoken.era)?, spoken))
    }

    /// What a message must be, whichever server it is for.
    pub(crate) fn check(&self, envelope: &Envelope<'_>) -> Result<Spoken, Stop> {
        if let Some(key) = &envelope.twin {
            let key: String = key.chars().take(64).collect();
            return Err(Stop::because(Failure::TwinKeys, format!("{key:?}")));
        }
        match envelope.shape() {
            Shape::Request | Shape::Response => {}
            Shape::Notification if envelope.method().starts_with("notifications/") => {}
            Shape::Notification => {
                return Err(Stop::because(Failure::Invalid, "a request needs an id"));
            }
            Shape::Unclear => {
                return Err(Stop::because(
                    Failure::Invalid,
                    "a message is either a method with params or an id with a result or error",
                ));
            }
        }
        let spoken = era::check(&self.headers, envelope)
            .map_err(|note| Stop::because(Failure::HeaderMismatch, note))?;
        if spoken.era == Era::Modern && !envelope.version_2 {
            return Err(Stop::because(Failure::Invalid, "jsonrpc must be \"2.0\""));
        }
        Ok(spoken)
    }

    /// Finds the session, which must be the caller's own. From 2026-07-28 on there are none, and
    /// whoever opens one needs none.
    pub(crate) fn enter<'v>(
        &'v self,
        caller: &Caller,
        served: &'v Arc<Served>,
        envelope: &Envelope<'_>,
        era: Era,
    ) -> Result<Exchange<'v>, Stop> {
        let session = self.find_session(caller, envelope, era)?;
        let known = session.as_ref().and_then(|session| session.claimed.clone());
        let owned = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let claimed = owned(&envelope.client.name)
            .map(|name| ClientClaimed { name, version: owned(&envelope.client.version) });
        let (caller, claimed) = (caller.clone(), claimed.or(known));
        Ok(Exchange { visit: self, served, caller, claimed, session })
    }

    /// The session that the request names.
    pub(crate) fn find_session(
        &self,
        caller: &Caller,
        envelope: &Envelope<'_>,
        era: Era,
    ) -> Result<Option<Arc<Session>>, Stop> {
        if self.headers.get_all(SESSION_HEADER).iter().nth(1).is_some() {
            return Err(Stop::because(Failure::HeaderMismatch, "Mcp-Session-Id stands twice"));
        }
        match self.session.filter(|_| era == Era::Legacy) {
            None => Ok(None),
            Some(id) => match self.proxy.sessions.get(id, &self.route, caller.principal) {
                Ok(session) => Ok(Some(session)),
                Err(Foreign) if envelope.method() == "initialize" => Ok(None),
                Err(Foreign) => Err(Failure::UnknownSession.into()),
            },
        }
    }

    /// Turns away somebody who is not known, of whose request only the head was read.
    pub(crate) fn turn_away(&self, failure: Failure) -> Response<Payload> {
        self.proxy.refusals.count(self.seen.ip(), failure);
        self.proxy.watched.metrics.refused(failure);
        error(failure, None, None, None)
    }

    /// The refusal of a caller's request.
    pub(crate) fn denial(
        &self,
        caller: &Caller,
        stop: Stop,
        envelope: &Envelope<'_>,
        request: Option<&Bytes>,
    ) -> Denial {
        let protocol = era::check(&self.headers, envelope).map(|spoken| spoken.protocol).ok();
        let found = match (&self.served, request) {
            (Some(served), Some(bytes)) => inspect::sent(&served.server.rules, envelope, bytes),
            _ => Found::none(),
        };
        let what = self.what(envelope, protocol);
        let facts = Facts {
            who: self.seen.who(&caller.who, &self.headers, None),
            headers: noted_up(&self.headers, &what),
            what: Arc::new(what),
            prev: None,
            leaving_cancels: false,
            phi: false,
            found,
            by_proxy: false,
            within: self.within,
        };
        let id = envelope.id.filter(|_| envelope.method.is_some()).map(str::to_owned);
        Denial { stop, facts, id, request: request.cloned() }
    }

    /// Records a refusal and gives it to the client. Boxed, for it is rare and large.
    pub(crate) fn refuse(
        &self,
        denial: Denial,
    ) -> Pin<Box<dyn Future<Output = Response<Payload>> + Send + '_>> {
        Box::pin(async move {
            let Denial { stop, facts, id, request } = denial;
            let id = id.as_deref();
            match self.proxy.recorder.deny(stop.failure, &facts, request).await {
                Ok(call) => error(stop.failure, id, Some(call), stop.note.as_deref()),
                Err(_) => error(Failure::AuditUnavailable, id, None, None),
            }
        })
    }

    /// The definition of a tool that is in force.
    fn definition(&self, tool: &str) -> Option<Hash> {
        match self.proxy.tools.judge(&self.served.as_ref()?.server, tool) {
            Verdict::Allowed(definition) | Verdict::Changed(definition) => definition,
            Verdict::Denied => None,
        }
    }

    /// What is called, in the words of a record.
    pub(crate) fn what(&self, envelope: &Envelope<'_>, protocol: Option<String>) -> What {
        let owned = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let method = envelope.method.as_deref();
        let name = |wanted: &str| owned(&envelope.name).filter(|_| method == Some(wanted));
        let served = self.served.as_deref().map(|served| &served.server);
        let rule = served.and_then(|server| server.rules.activity(envelope.name.as_deref()));
        let tool = name(CALLING);
        let header = self.headers.get("traceparent").and_then(|value| value.to_str().ok());
        What {
            activity: rule.or_else(|| activity(method?)),
            method: owned(&envelope.method),
            prompt: name("prompts/get"),
            protocol: protocol.filter(|protocol| !protocol.is_empty()),
            recipient: served.and_then(|server| server.recipient.clone()),
            resource: owned(&envelope.uri),
            rpc_id: envelope.id.map(str::to_owned),
            server: Some(self.server.clone()).filter(|server| !server.is_empty()),
            session: self.session,
            tool_definition: tool.as_deref().and_then(|tool| self.definition(tool)),
            tool,
            trace: owned(&envelope.trace).or_else(|| header.map(str::to_owned)),
            transport: Some("streamable-http".to_owned()),
        }
    }
}

/// The method that calls a tool.
const CALLING: &str = "tools/call";

/// What a method does to data, where its name says so.
fn activity(method: &str) -> Option<Activity> {
    match method {
        CALLING => Some(Activity::E),
        "resources/read"
        | "resources/list"
        | "resources/subscribe"
        | "prompts/get"
        | "completion/complete"
        | "tasks/get"
        | "tasks/list"
        | "tasks/result" => Some(Activity::R),
        _ => None,
    }
}
