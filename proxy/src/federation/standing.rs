//! Streams that stand open, those of several servers as one: the servers' own (GET, up to 2025-11-25),
//! and what a client listens to (`subscriptions/listen`, from 2026-07-28 on).
//!
//! A client that listens is told once on what the servers agree together. A server that comes, or comes
//! back, while the stream stands is heard from then on, and the client is told that the lists have changed;
//! what the proxy tells is on the record like what servers tell. The client's own call ends when it
//! leaves, or when no server is left that could say anything.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use custody_schemas::edits::Edits;
use custody_schemas::id::CallId;
use custody_schemas::words::Status;
use futures::stream::{SelectAll, StreamExt as _, select_all, unfold};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::common::Common;
use super::joint::event;
use super::marks::unmark_uri;
use super::membership::{Member, Membership};
use super::merge::LISTS;
use super::part::{self, Ask, Heard, Hearing, Places};
use super::{LAST_EVENT, members};
use crate::answer::respond;
use crate::call::{Asked, error};
use crate::envelope::Envelope;
use crate::era::Era;
use crate::errors::Failure;
use crate::payload::{BrokenOff, Payload};
use crate::record::{Call, Ending, Relayed, Unrecorded, Way, new_call};
use crate::splice::Step::{Each, Key};
use crate::splice::{Message, Step, find, text_of};
use crate::stream::KEEP_ALIVE;
use crate::visit::Stop;

/// How long servers may take to open their parts before the client's stream begins; and how long
/// when one has done so.
const SETTLE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));
/// After how many events that come before that it begins at once.
const MAX_EARLY: usize = 256;
/// Where a request to listen names resources.
const RESOURCES: &[Step] = &[Key("params"), Key("notifications"), Key("resourceSubscriptions")];
/// And each of them.
const RESOURCE: &[Step] =
    &[Key("params"), Key("notifications"), Key("resourceSubscriptions"), Each];

/// A stream of several servers.
struct Standing {
    common: Arc<Common>,
    parts: SelectAll<Hearing>,
    /// What the client is to have next.
    due: VecDeque<Bytes>,
    purpose: Purpose,
    over: bool,
}

/// What it stands open for.
enum Purpose {
    /// The servers' own messages.
    Own { places: Arc<Places>, joining: watch::Receiver<usize>, known: HashSet<String> },
    /// The notifications of the client's choice, in this call.
    Listen { call: Option<Call>, id: String },
}

/// What came while the stream was not begun yet.
#[derive(Default)]
struct Settled {
    open: Vec<Value>,
    /// Servers that have no such stream.
    never: usize,
}

/// Answers a GET: the servers' own streams, as one.
pub(super) async fn own(common: Arc<Common>) -> Response<Payload> {
    let nothing = Envelope::default();
    let places = match common.visit.headers.get(LAST_EVENT).map(HeaderValue::to_str) {
        None => Places::default(),
        Some(last) => {
            let last = last.unwrap_or_default();
            if let Some(resumed) = common.resume(last).await {
                return resumed;
            }
            match Places::read(last) {
                Some(places) => places,
                None => return common.refuse(Failure::UnknownEvent.into(), &nothing).await,
            }
        }
    };
    let session = common.session.clone();
    let Some(membership) = session.as_ref().and_then(|session| session.membership.get()) else {
        return common.refuse(Stop::from(Failure::UnknownSession), &nothing).await;
    };
    let (places, joining) = (Arc::new(places), membership.joining());
    let members = membership.members();
    let known = members.iter().map(|member| member.server.clone()).collect();
    let parts = members
        .into_iter()
        .map(|member| part::of(Arc::clone(&common), member, Ask::Own(Arc::clone(&places))));
    let parts = select_all(parts);
    let all = parts.len();
    let purpose = Purpose::Own { places, joining, known };
    let mut standing = Standing { common, parts, due: VecDeque::new(), purpose, over: false };
    if standing.settle().await.never == all {
        return error(Failure::MethodNotAllowed, None, None, None);
    }
    standing.respond()
}

/// Answers `subscriptions/listen`.
pub(super) async fn listen(common: Arc<Common>, envelope: &Envelope<'_>) -> Response<Payload> {
    let recorder = &common.visit.proxy.recorder;
    let id = envelope.id.unwrap_or("null").to_owned();
    let asked = Asked { id: id.clone(), era: Era::Modern, tool: None, definitions: true };
    let (own, permit) = (new_call(), recorder.policy().decide(&common.caller));
    let parts = match asks(&common) {
        Ok(parts) => parts,
        Err(failure) => return common.refuse(failure.into(), envelope).await,
    };
    let facts = common.facts(envelope);
    let opening = recorder.open(permit, own, facts, common.bytes.clone()).await;
    let Ok((mut call, _)) = opening else {
        return asked.failure(Failure::AuditUnavailable, Some(own));
    };
    call.note_head(None, "text/event-stream", None);
    let parts = parts
        .into_iter()
        .map(|(member, message)| part::of(Arc::clone(&common), member, Ask::Listen(message, own)));
    let parts = select_all(parts);
    let all = parts.len();
    let purpose = Purpose::Listen { call: Some(call), id };
    let mut standing = Standing { common, parts, due: VecDeque::new(), purpose, over: false };
    let settled = standing.settle().await;
    if settled.open.is_empty() {
        let unknown = settled.never == all;
        let failure = if unknown { Failure::UnknownMethod } else { Failure::Unreachable };
        return standing.fail(&asked, failure).await;
    }
    match standing.acknowledge(&settled.open).await {
        Ok(()) => standing.respond(),
        Err(Unrecorded) => standing.fail(&asked, Failure::AuditOutcomeUnrecorded).await,
    }
}

/// What each server is asked: the client's own request, with those of its resources that are the server's.
fn asks(common: &Common) -> Result<Vec<(Member, Message)>, Failure> {
    let text = common.text();
    let found = find(text, &[RESOURCES, RESOURCE]).map_err(|_| Failure::Invalid)?;
    let mut list: Option<Range<usize>> = None;
    let mut named: Vec<(String, String)> = Vec::new();
    for place in found {
        let raw = text.get(place.range.clone()).unwrap_or_default();
        if place.path == 0 {
            list = Some(place.range).filter(|_| raw.starts_with('['));
        } else {
            let uri = text_of(raw).and_then(|uri| unmark_uri(&uri));
            named.push(uri.ok_or(Failure::NotOffered)?);
        }
    }
    let change = |server: &str| {
        let own = named.iter().filter(|(of, _)| of == server).map(|(_, uri)| uri);
        list.clone().map(|range| (range, json!(own.collect::<Vec<_>>()).to_string()))
    };
    let all = members(&common.visit, None);
    let concerned = |member: &Member| named.iter().any(|(server, _)| *server == member.server);
    let everybody = named.is_empty() || wants_lists(text);
    let asks = all.into_iter().filter(|member| everybody || concerned(member)).map(|member| {
        let changes = change(&member.server).into_iter().collect();
        Message::spliced(common.bytes.clone(), changes).map(|message| (member, message))
    });
    asks.collect::<Result<_, _>>().map_err(|_| Failure::Invalid)
}

/// Whether a client wants to hear of lists, and not of its own resources only.
fn wants_lists(text: &str) -> bool {
    let request: Value = serde_json::from_str(text).unwrap_or_default();
    let wanted = request["params"]["notifications"].as_object();
    wanted.is_some_and(|wanted| wanted.values().any(|value| *value == json!(true)))
}

/// On what servers agree together.
fn agreed(all: &[Value]) -> Value {
    let mut together = Map::new();
    for (key, value) in all.iter().filter_map(Value::as_object).flatten() {
        match (together.get_mut(key), value) {
            (Some(Value::Array(known)), Value::Array(more)) => known.extend(more.iter().cloned()),
            (Some(Value::Bool(known)), Value::Bool(more)) => *known |= more,
            (Some(_), _) => {}
            (None, _) => drop(together.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(together)
}

impl Standing {
    /// Waits until every server has opened its part, or said that it will not; not for long.
    async fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        let mut waiting = self.parts.len();
        let mut until = Instant::now() + SETTLE.0;
        while waiting > 0 {
            match timeout_at(until, self.parts.next()).await {
                Ok(Some(Heard::Open(agreed))) => {
                    settled.open.push(agreed);
                    until = until.min(Instant::now() + SETTLE.1);
                    waiting -= 1;
                }
                Ok(Some(Heard::Never)) => {
                    settled.never += 1;
                    waiting -= 1;
                }
                Ok(Some(Heard::Away)) => waiting -= 1,
                Ok(Some(Heard::Event(event))) => {
                    self.due.push_back(event);
                    if self.due.len() == MAX_EARLY {
                        break;
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        settled
    }

    fn call(&self) -> Option<CallId> {
        match &self.purpose {
            Purpose::Listen { call, .. } => call.as_ref().map(Call::id),
            Purpose::Own { .. } => None,
        }
    }

    /// Puts a message of the proxy's own on the record, and then before the client.
    async fn tell(
        &mut self,
        method: &str,
        mut params: Map<String, Value>,
    ) -> Result<Bytes, Unrecorded> {
        if let Purpose::Listen { id, .. } = &self.purpose {
            let id: Value = serde_json::from_str(id).unwrap_or_default();
            params.insert("_meta".into(), json!({ "io.modelcontextprotocol/subscriptionId": id }));
        }
        let mut message = json!({ "jsonrpc": "2.0", "method": method });
        if !params.is_empty() {
            message["params"] = Value::Object(params);
        }
        let bytes = Bytes::from(message.to_string());
        let (facts, edits) = (self.common.own_facts(method), Edits::default());
        let call = self.call();
        let relayed =
            Relayed { way: Way::Down, call, http: None, facts, bytes: Some(bytes.clone()), edits };
        self.common.visit.proxy.recorder.relay(relayed).await?;
        Ok(event(&bytes))
    }

    /// Tells the client on what the servers agree, before anything else.
    async fn acknowledge(&mut self, open: &[Value]) -> Result<(), Unrecorded> {
        let method = "notifications/subscriptions/acknowledged";
        let params = Map::from_iter([("notifications".to_owned(), agreed(open))]);
        let event = self.tell(method, params).await?;
        self.due.push_front(event);
        Ok(())
    }

    /// Tells the client that lists have changed.
    async fn tell_changed<'l>(
        &mut self,
        lists: impl Iterator<Item = &'l &'static str>,
    ) -> Result<(), Unrecorded> {
        for list in lists {
            let event =
                self.tell(&format!("notifications/{list}/list_changed"), Map::new()).await?;
            self.due.push_back(event);
        }
        Ok(())
    }

    /// Ends a call that comes to nothing.
    async fn fail(mut self, asked: &Asked, failure: Failure) -> Response<Payload> {
        let Purpose::Listen { call, .. } = &mut self.purpose else {
            return asked.failure(failure, None);
        };
        let Some(call) = call.take() else { return asked.failure(failure, None) };
        let id = call.id();
        let status = if failure == Failure::Unreachable {
            Status::Unreachable
        } else if failure == Failure::UnknownMethod {
            Status::RpcError
        } else {
            Status::AuditFailed
        };
        let ended = call.end(Ending::without_answer(status, Some(failure.code()))).await;
        let failure = ended.map_or(Failure::AuditOutcomeUnrecorded, |()| failure);
        let mut response = asked.failure(failure, Some(id));
        if failure == Failure::UnknownMethod {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        response
    }

    fn respond(self) -> Response<Payload> {
        let mut headers = HeaderMap::with_capacity(1);
        let media = HeaderValue::from_static("text/event-stream");
        headers.insert(header::CONTENT_TYPE, media);
        let pieces = unfold(self, |mut standing| async move {
            let piece = standing.next().await?;
            Some((piece, standing))
        });
        respond(StatusCode::OK, headers, Payload::Pieces(Box::pin(pieces)))
    }

    async fn next(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        if let Some(event) = self.due.pop_front() {
            return Some(Ok(event));
        }
        if self.over {
            return None;
        }
        let keep_alive = self.common.visit.proxy.limits.keep_alive;
        let came = match &mut self.purpose {
            Purpose::Listen { .. } => timeout(keep_alive, self.parts.next()).await,
            Purpose::Own { joining, .. } => tokio::select! {
                came = timeout(keep_alive, self.parts.next()) => came,
                Ok(()) = joining.changed() => return Some(self.widen().await),
            },
        };
        match came {
            Ok(Some(Heard::Event(event))) => Some(Ok(event)),
            // it has come, or come back, while the client was listening
            Ok(Some(Heard::Open(agreed))) => Some(self.heard_again(&agreed).await),
            Ok(Some(Heard::Away | Heard::Never)) | Err(_) => {
                Some(Ok(Bytes::from_static(KEEP_ALIVE)))
            }
            Ok(None) => {
                self.over = true;
                self.end().await
            }
        }
    }

    /// What is due, or something that says that the stream stands.
    fn due(&mut self) -> Bytes {
        self.due.pop_front().unwrap_or_else(|| Bytes::from_static(KEEP_ALIVE))
    }

    async fn heard_again(&mut self, agreed: &Value) -> Result<Bytes, BrokenOff> {
        let changed = |list: &&&'static str| agreed[format!("{list}ListChanged")] == json!(true);
        let told = self.tell_changed(LISTS.iter().filter(changed)).await;
        told.map(|()| self.due()).map_err(|_| self.break_off())
    }

    /// Hears those, too, who have joined.
    async fn widen(&mut self) -> Result<Bytes, BrokenOff> {
        let session = self.common.session.clone();
        let membership = session.as_ref().and_then(|session| session.membership.get());
        let mut lists = HashSet::<&str>::new();
        if let (Purpose::Own { places, known, .. }, Some(membership)) =
            (&mut self.purpose, membership)
        {
            known.retain(|server| membership.has(server));
            for member in Membership::members(membership) {
                if known.insert(member.server.clone()) {
                    lists.extend(LISTS.iter().copied().filter(|list| member.can(list)));
                    let ask = Ask::Own(Arc::clone(places));
                    self.parts.push(part::of(Arc::clone(&self.common), member, ask));
                }
            }
        }
        let told = self.tell_changed(LISTS.iter().filter(|list| lists.contains(*list))).await;
        told.map(|()| self.due()).map_err(|_| self.break_off())
    }

    /// Nothing more can be recorded, so nothing more is told.
    fn break_off(&mut self) -> BrokenOff {
        self.over = true;
        self.parts = SelectAll::new();
        BrokenOff
    }

    /// Nobody is left who could say anything.
    async fn end(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        let Purpose::Listen { call, id } = &mut self.purpose else { return None };
        let call = call.take()?;
        let answer = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"resultType\":\"complete\",\
             \"_meta\":{{\"io.modelcontextprotocol/subscriptionId\":{id}}}}}}}"
        );
        let ending = Ending {
            http_status: Some(200),
            result_type: Some("complete".to_owned()),
            response: Some(Bytes::from(answer.clone())),
            ..Ending::without_answer(Status::Ok, None)
        };
        match call.end(ending).await {
            Ok(()) => Some(Ok(event(answer.as_bytes()))),
            Err(Unrecorded) => Some(Err(BrokenOff)),
        }
    }
}
