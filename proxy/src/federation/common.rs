//! A request at the common address: to whom it goes, and one answer for all.

use std::sync::Arc;

use bytes::Bytes;
use custody_schemas::event::ClientClaimed;
use custody_schemas::id::CallId;
use custody_schemas::words::Status;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::cursor::{Cursor, MAX_PAGES};
use super::gather::{Gathered, gather};
use super::merge::{self, Page, Said, items_of};
use super::view::{Changes, Up, up};
use super::{Member, ROUTE, members, toward};
use crate::answer::{examine, respond};
use crate::call::{self, Asked};
use crate::envelope::{Envelope, Look, Shape};
use crate::era::{Era, SESSION_HEADER, Spoken};
use crate::errors::Failure;
use crate::headers::noted_up;
use crate::identity::Caller;
use crate::inspect::{self, Rules, is_housekeeping};
use crate::payload::Payload;
use crate::record::{Ending, Facts, new_call};
use crate::session::Session;
use crate::splice::Step::Key;
use crate::splice::{Message, find, text_of};
use crate::visit::{Stop, Visit};

/// Revisions that are agreed on by `initialize`, the newest first.
const LEGACY: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

/// A request at the common address.
pub(super) struct Common<'v> {
    visit: &'v Visit,
    caller: &'v Caller,
    session: Option<Arc<Session>>,
    spoken: Spoken,
    bytes: &'v Bytes,
}

/// What becomes of a message.
enum Plan {
    /// It goes to one server, changed like this.
    One(String, Changes),
    /// It goes to everybody, and nobody answers.
    Everybody,
    Initialize,
    Discover,
    /// Everybody's list of these.
    List(&'static str),
    /// Everybody who can do this, and the answer says nothing.
    Told(&'static str),
    Ping,
}

/// The common answer.
struct Joined {
    answer: Result<Bytes, Failure>,
    before: Vec<Bytes>,
    /// Who is missing.
    absent: Vec<String>,
    /// The session that was opened.
    opened: Option<(HeaderValue, Arc<Session>)>,
}

impl Joined {
    fn of(answer: Bytes) -> Self {
        Self { answer: Ok(answer), before: Vec::new(), absent: Vec::new(), opened: None }
    }
}

impl<'v> Common<'v> {
    /// Everything that a message must be before it is asked whom it is for.
    pub(super) fn enter(
        visit: &'v Visit,
        caller: &'v Caller,
        envelope: &Envelope<'_>,
        bytes: &'v Bytes,
    ) -> Result<Self, Stop> {
        let spoken = visit.check(envelope)?;
        let session = visit.find_session(caller, envelope, spoken.era)?;
        let opens = envelope.method() == "initialize";
        if spoken.era == Era::Legacy && session.is_none() && !opens {
            return Err(Stop::because(Failure::UnknownSession, "Mcp-Session-Id is missing"));
        }
        Ok(Self { visit, caller, session, spoken, bytes })
    }

    /// Sends the message where it belongs, and answers.
    pub(super) async fn answer(&self, envelope: &Envelope<'_>) -> Response<Payload> {
        match self.plan(envelope) {
            Ok(Plan::One(server, changes)) => self.one(&server, changes, envelope).await,
            Ok(Plan::Everybody) => self.tell_everybody().await,
            Ok(plan) => Box::pin(self.common(plan, envelope)).await,
            Err(stop) => {
                let denial = self.visit.denial(self.caller, stop, envelope, Some(self.bytes));
                self.visit.refuse(denial).await
            }
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(self.bytes).unwrap_or_default()
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
            Shape::Request | Shape::Unclear => match (method, self.spoken.era) {
                ("initialize", Era::Legacy) => Ok(Plan::Initialize),
                ("server/discover", Era::Modern) => Ok(Plan::Discover),
                ("ping", Era::Legacy) => Ok(Plan::Ping),
                ("logging/setLevel", Era::Legacy) => Ok(Plan::Told("logging")),
                _ => match items_of(method) {
                    Some(key) => Ok(Plan::List(key)),
                    None => named(Up::Named)?.ok_or(Failure::NotOffered.into()),
                },
            },
        }
    }

    /// What names one server goes there.
    async fn one(
        &self,
        server: &str,
        changes: Changes,
        envelope: &Envelope<'_>,
    ) -> Response<Payload> {
        let members = members(self.visit, self.session.as_ref());
        let member = members.iter().find(|member| member.server == server);
        let message = Message::spliced(self.bytes.clone(), changes);
        let (Some(member), Ok(message)) = (member, message) else {
            let stop =
                Stop::because(Failure::NotOffered, "its server takes no part in this session");
            let denial = self.visit.denial(self.caller, stop, envelope, Some(self.bytes));
            return self.visit.refuse(denial).await;
        };
        let there = Envelope::read(&message.bytes, Look::Policy).unwrap_or_default();
        let name = there.name.as_deref().or(there.uri.as_deref()).or(there.task.as_deref());
        let visit = toward(self.visit, member, None, name);
        call::forward(&visit, self.caller, message.clone()).await
    }

    /// What names nobody is for everybody.
    async fn tell_everybody(&self) -> Response<Payload> {
        let members = members(self.visit, self.session.as_ref());
        let telling = members.iter().map(|member| async move {
            let visit = toward(self.visit, member, None, None);
            call::forward(&visit, self.caller, self.bytes.clone().into()).await
        });
        let answers = join_all(telling.map(Box::pin)).await;
        let (done, mut failed): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| answer.status().is_success());
        match failed.pop() {
            Some(failed) if done.is_empty() => failed,
            _ => respond(StatusCode::ACCEPTED, HeaderMap::new(), Payload::whole(Bytes::new())),
        }
    }

    /// A call of all: recorded before anybody is asked, and before it is answered.
    async fn common(&self, plan: Plan, envelope: &Envelope<'_>) -> Response<Payload> {
        let recorder = &self.visit.proxy.recorder;
        let id = envelope.id.unwrap_or("null").to_owned();
        let definitions = is_housekeeping(envelope.method());
        let asked = Asked { id: id.clone(), era: self.spoken.era, tool: None, definitions };
        let (call, permit) = (new_call(), recorder.policy().decide(self.caller));
        let facts = self.facts(envelope);
        let opening = recorder.open(permit, call, facts, self.bytes.clone()).await;
        // nothing of it is sent by itself: what is sent is recorded on its own
        let Ok((mut open, _)) = opening else {
            return asked.failure(Failure::AuditUnavailable, Some(call));
        };
        let joined = self.join(plan, envelope, &id, call).await;
        open.note_absent(joined.absent);
        let session = joined.opened.as_ref().map(|(_, session)| session.hash);
        open.note_head(session, "application/json", None);
        let ending = match &joined.answer {
            Ok(bytes) => {
                let examined = examine(&Rules::default(), Some(&asked), bytes);
                open.absorb(examined.found);
                let unclear = || Ending::without_answer(Status::Unknown, None);
                let answer = examined.answer.unwrap_or_else(unclear);
                Ending { response: Some(bytes.clone()), http_status: Some(200), ..answer }
            }
            Err(failure) => Ending::without_answer(Status::Unreachable, Some(failure.code())),
        };
        if open.end(ending).await.is_err() {
            return asked.failure(Failure::AuditOutcomeUnrecorded, Some(call));
        }
        match joined.answer {
            Ok(bytes) => released(bytes, &joined.before, joined.opened.map(|(id, _)| id)),
            Err(failure) => asked.failure(failure, Some(call)),
        }
    }

    fn claimed(&self, envelope: &Envelope<'_>) -> Option<ClientClaimed> {
        let owned = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let name = owned(&envelope.client.name);
        let own = name.map(|name| ClientClaimed { name, version: owned(&envelope.client.version) });
        own.or_else(|| self.session.as_ref().and_then(|session| session.claimed.clone()))
    }

    fn facts(&self, envelope: &Envelope<'_>) -> Facts {
        let visit = self.visit;
        let what = visit.what(envelope, Some(self.spoken.protocol.clone()));
        let claimed = self.claimed(envelope);
        let is_phi = visit.proxy.servers.values().any(|served| served.server.phi);
        Facts {
            headers: noted_up(&visit.headers, &what),
            who: visit.seen.who(&self.caller.who, &visit.headers, claimed.as_ref()),
            what: Arc::new(what),
            prev: None,
            leaving_cancels: self.spoken.era == Era::Modern,
            phi: is_phi && !is_housekeeping(envelope.method()),
            found: inspect::sent(&Rules::default(), envelope, self.bytes),
            by_proxy: false,
            within: None,
        }
    }

    async fn join(&self, plan: Plan, envelope: &Envelope<'_>, id: &str, call: CallId) -> Joined {
        let nothing =
            || Joined::of(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}").into());
        match plan {
            Plan::Initialize => self.initialize(envelope, id, call).await,
            Plan::Discover => self.discover(id, call).await,
            Plan::List(key) => self.list((envelope.method(), key), id, call).await,
            Plan::Told(what) => {
                let mut able = members(self.visit, self.session.as_ref());
                able.retain(|member| member.can(what));
                let able: Vec<_> =
                    able.into_iter().map(|member| (member, self.bytes.clone().into())).collect();
                self.ask(self.visit, able, id, call).await;
                nothing()
            }
            Plan::Ping | Plan::One(..) | Plan::Everybody => nothing(),
        }
    }

    /// Asks several servers at once.
    async fn ask(
        &self,
        visit: &Visit,
        members: Vec<(Member, Message)>,
        id: &str,
        within: CallId,
    ) -> Vec<(Member, Gathered)> {
        let limit = self.visit.proxy.max_message_bytes + 4096;
        let asking = members.into_iter().map(|(member, message)| {
            Box::pin(async move {
                let there = toward(visit, &member, Some(within), None);
                let gathered = gather(call::forward(&there, self.caller, message), id, limit).await;
                (member, gathered)
            })
        });
        join_all(asking).await
    }

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

    async fn initialize(&self, envelope: &Envelope<'_>, id: &str, call: CallId) -> Joined {
        let sessions = &self.visit.proxy.sessions;
        let (ours, session) = sessions.open(ROUTE, self.caller, self.claimed(envelope));
        let mut headers = self.visit.headers.clone();
        headers.insert(SESSION_HEADER, ours.clone());
        let (proxy, seen) = (Arc::clone(&self.visit.proxy), Arc::clone(&self.visit.seen));
        let visit = Visit::new(proxy, seen, headers, ROUTE);
        let all = members(self.visit, None).into_iter();
        let all = all.map(|member| (member, self.bytes.clone().into())).collect();
        let asked = self.ask(&visit, all, id, call).await;
        let (said, absent) = Self::said(&asked);
        if said.is_empty() {
            sessions.end(&session);
            let answer = Err(Failure::Unreachable);
            return Joined { answer, before: Vec::new(), absent, opened: None };
        }
        let joining = said.iter().map(|one| Member {
            server: one.server.clone(),
            protocol: one.protocol.as_deref().and_then(|text| HeaderValue::from_str(text).ok()),
            capabilities: Some(one.capabilities.clone()),
        });
        session.members.get_or_init(|| joining.collect());
        let wanted = envelope.protocol.as_deref();
        let known = LEGACY.into_iter().find(|known| Some(*known) == wanted);
        let answer = Ok(merge::initialized(id, known.unwrap_or(LEGACY[0]), &said, &absent));
        Joined { answer, before: before(asked), absent, opened: Some((ours, session)) }
    }

    async fn discover(&self, id: &str, call: CallId) -> Joined {
        let all = members(self.visit, None).into_iter();
        let all = all.map(|member| (member, self.bytes.clone().into())).collect();
        let asked = self.ask(self.visit, all, id, call).await;
        let (said, absent) = Self::said(&asked);
        let answer = if said.is_empty() {
            Err(Failure::Unreachable)
        } else {
            Ok(merge::discovered(id, &self.spoken.protocol, &said, &absent))
        };
        Joined { answer, before: before(asked), absent, opened: None }
    }

    /// For whom a cursor is good.
    fn owner(&self) -> String {
        match &self.session {
            Some(session) => session.hash.to_string(),
            None => format!("{:?}", self.caller.principal),
        }
    }

    /// The page that the client asks for: of whom, and from where on.
    fn page(&self, method: &str) -> Result<(Cursor, Vec<(Member, Message)>), Failure> {
        let (federation, session) = (&self.visit.proxy.federation, self.session.as_ref());
        let mut members = members(self.visit, session);
        let cursor: &[_] = &[Key("params"), Key("cursor")];
        let places = find(self.text(), &[cursor]).map_err(|_| Failure::Invalid)?;
        let Some(place) =
            places.first().filter(|place| &self.text()[place.range.clone()] != "null")
        else {
            members.retain(|member| member.can(method.split('/').next().unwrap_or_default()));
            let all = members.into_iter().map(|member| (member, self.bytes.clone().into()));
            return Ok((Cursor::default(), all.collect()));
        };
        let sealed = text_of(&self.text()[place.range.clone()]).ok_or(Failure::ForeignCursor)?;
        let cursor = federation.sealer.read(&self.owner(), method, &sealed);
        let cursor = cursor.map_err(|_| Failure::ForeignCursor)?;
        let own = |member: Member| {
            let (_, own) = cursor.servers.iter().find(|(server, _)| *server == member.server)?;
            let change = vec![(place.range.clone(), own.clone())];
            Some((member, Message::spliced(self.bytes.clone(), change).ok()?))
        };
        let of = members.into_iter().filter_map(own).collect();
        Ok((cursor, of))
    }

    async fn list(&self, (method, key): (&str, &'static str), id: &str, call: CallId) -> Joined {
        let (last, of) = match self.page(method) {
            Ok(page) => page,
            Err(failure) => return Joined { answer: Err(failure), ..Joined::of(Bytes::new()) },
        };
        let asked = self.ask(self.visit, of, id, call).await;
        let mut next = Cursor { pages: last.pages + 1, servers: Vec::new() };
        let (mut read, mut absent) = (Vec::new(), Vec::new());
        for (member, gathered) in &asked {
            let text = gathered.answer.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
            match text.map(|text| Page::read(text, key)) {
                Some(Ok(page)) => {
                    if let Some(own) = page.next {
                        let own = (member.server.clone(), own.to_owned());
                        if next.pages >= MAX_PAGES || last.servers.contains(&own) {
                            absent.push(format!("{} (its list goes in circles)", own.0));
                        } else {
                            next.servers.push(own);
                        }
                    }
                    read.push(page);
                }
                _ if gathered.knows_no_such_method() => {}
                _ => absent.push(member.server.clone()),
            }
        }
        if read.is_empty() && !absent.is_empty() {
            return Joined {
                answer: Err(Failure::Unreachable),
                absent,
                ..Joined::of(Bytes::new())
            };
        }
        let sealer = &self.visit.proxy.federation.sealer;
        let sealed = (!next.servers.is_empty()).then(|| sealer.write(&self.owner(), method, &next));
        let answer = Ok(merge::join((id, key), &read, sealed.as_deref(), &absent));
        Joined { answer, before: before(asked), absent, opened: None }
    }
}

fn before(asked: Vec<(Member, Gathered)>) -> Vec<Bytes> {
    asked.into_iter().flat_map(|(_, gathered)| gathered.before).collect()
}

/// The answer as the client gets it: in a stream if something came before it.
fn released(bytes: Bytes, before: &[Bytes], opened: Option<HeaderValue>) -> Response<Payload> {
    let mut headers = HeaderMap::with_capacity(2);
    let (media, body) = if before.is_empty() {
        ("application/json", bytes)
    } else {
        let mut stream = before.concat();
        stream.extend_from_slice(b"event: message\ndata: ");
        stream.extend_from_slice(&bytes);
        stream.extend_from_slice(b"\n\n");
        ("text/event-stream", stream.into())
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if let Some(id) = opened {
        headers.insert(SESSION_HEADER, id);
    }
    respond(StatusCode::OK, headers, Payload::whole(body))
}
