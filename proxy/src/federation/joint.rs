//! A request that is for all servers: one call of the client on the record, opened before anybody is asked
//! and ended before it is answered, and one answer.
//!
//! The answer is JSON, unless a server says something before it: then it is an event stream, in which that
//! comes when it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use custody_schemas::id::CallId;
use custody_schemas::words::Status;
use futures::future::join_all;
use futures::stream::unfold;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::common::{Common, Joint};
use super::gather::{Gathered, MAX_BEFORE, Patience, gather};
use super::membership::Member;
use super::{ROUTE, toward};
use crate::answer::{examine, respond};
use crate::call::{self, Asked};
use crate::envelope::Envelope;
use crate::era::{Era, SESSION_HEADER};
use crate::errors::Failure;
use crate::inspect::is_housekeeping;
use crate::payload::Payload;
use crate::record::{Call, Ending, new_call};
use crate::session::Session;
use crate::splice::Message;
use crate::stream::KEEP_ALIVE;
use crate::visit::Visit;

/// The common answer.
pub(super) struct Joined {
    pub(super) answer: Answer,
    /// Who is missing.
    pub(super) absent: Vec<String>,
}

/// What the client gets.
pub(super) enum Answer {
    Of(Bytes),
    /// An error that a server gave, for all that answered gave one.
    Theirs(StatusCode, Bytes),
    Ours(Failure),
}

impl Joined {
    pub(super) fn of(answer: Bytes) -> Self {
        Self { answer: Answer::Of(answer), absent: Vec::new() }
    }

    /// Nobody could be asked, or nobody said anything but errors.
    pub(super) fn nothing(id: &str, asked: &[(Member, Gathered)], absent: Vec<String>) -> Self {
        let theirs = asked.iter().find_map(|(_, gathered)| gathered.error(id));
        let ours = Answer::Ours(Failure::Unreachable);
        let answer = theirs.map_or(ours, |(status, bytes)| Answer::Theirs(status, bytes));
        Self { answer, absent }
    }
}

/// The answer as it is released.
struct Finished {
    status: StatusCode,
    bytes: Bytes,
}

type Working = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// Asks servers for their parts of the answer to one call of a client.
pub(super) struct Asking {
    pub(super) common: Arc<Common>,
    /// The raw token of the client's id.
    pub(super) id: String,
    /// The client's call.
    pub(super) call: CallId,
    patience: Patience,
}

impl Asking {
    /// Asks several servers at once.
    pub(super) async fn ask(
        &self,
        visit: &Visit,
        members: Vec<(Member, Message)>,
    ) -> Vec<(Member, Gathered)> {
        let asking = members.into_iter().map(|(member, message)| {
            Box::pin(async move {
                let there = toward(visit, &member, Some(self.call), None);
                let asking = call::forward(&there, &self.common.caller, message);
                let gathered = gather(asking, &self.id, &self.patience).await;
                (member, gathered)
            })
        });
        join_all(asking).await
    }

    async fn join(&self, joint: Joint, opened: Option<(HeaderValue, Arc<Session>)>) -> Joined {
        let nothing = |modern| {
            let result = if modern { r#"{"resultType":"complete"}"# } else { "{}" };
            let id = &self.id;
            Joined::of(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}").into())
        };
        match joint {
            Joint::Initialize(wanted) => match opened {
                Some((id, session)) => self.initialize(wanted.as_deref(), id, &session).await,
                None => Joined { answer: Answer::Ours(Failure::UnknownSession), absent: vec![] },
            },
            Joint::Discover => self.discover().await,
            Joint::List(method, key) => self.list((&method, key)).await,
            Joint::Level => self.level().await.unwrap_or_else(|| nothing(false)),
            Joint::Ping => nothing(false),
        }
    }
}

impl Common {
    /// Answers a request for all.
    pub(super) async fn joint(
        self: Arc<Self>,
        joint: Joint,
        envelope: &Envelope<'_>,
    ) -> Response<Payload> {
        let proxy = &self.visit.proxy;
        let id = envelope.id.unwrap_or("null").to_owned();
        let definitions = is_housekeeping(envelope.method());
        let asked = Asked { id: id.clone(), era: self.spoken.era, tool: None, definitions };
        let (call, permit) = (new_call(), proxy.recorder.policy().decide(&self.caller));
        let facts = self.facts(envelope);
        let opening = proxy.recorder.open(permit, call, facts, self.bytes.clone()).await;
        // nothing of it is sent by itself: what is sent is recorded on its own
        let Ok((mut open, _)) = opening else {
            return asked.failure(Failure::AuditUnavailable, Some(call));
        };
        let opens = matches!(joint, Joint::Initialize(_));
        let opened = opens.then(|| proxy.sessions.open(ROUTE, &self.caller, self.claimed.clone()));
        let session = opened.as_ref().map(|(_, session)| session.hash);
        open.note_head(session, "application/json", None);
        let issued = opened.as_ref().map(|(id, _)| id.clone());
        let (tell, told) = mpsc::channel(MAX_BEFORE);
        let limits = &proxy.limits;
        let keep_alive = limits.keep_alive;
        let max_message_bytes = proxy.max_message_bytes;
        let patience = Patience { tell, max_message_bytes, asked: limits.response };
        let asking = Asking { common: Arc::clone(&self), id, call, patience };
        let work: Working = Box::pin(async move {
            let joined = asking.join(joint, opened).await;
            finish(&asking, asked, open, joined).await
        });
        Coming { told, work: Some(work), last: None, keep_alive }.respond(issued).await
    }
}

/// Ends the client's call; what it is answered.
async fn finish(asking: &Asking, asked: Asked, mut open: Call, joined: Joined) -> Finished {
    open.note_absent(joined.absent);
    let call = open.id();
    let ours = |failure: Failure| Finished {
        status: failure.status(),
        bytes: failure.body(Some(&asked.id), Some(call), None),
    };
    let rules = &asking.common.visit.proxy.federation.rules;
    let (ending, finished) = match joined.answer {
        Answer::Ours(failure) => {
            let away = failure == Failure::Unreachable;
            let status = if away { Status::Unreachable } else { Status::RpcError };
            (Ending::without_answer(status, Some(failure.code())), ours(failure))
        }
        Answer::Of(bytes) => ended(rules, &asked, &mut open, StatusCode::OK, bytes),
        Answer::Theirs(status, bytes) => {
            // in a session an HTTP error would speak of the session
            let status = if asked.era == Era::Modern { status } else { StatusCode::OK };
            ended(rules, &asked, &mut open, status, bytes)
        }
    };
    match open.end(ending).await {
        Ok(()) => finished,
        Err(_) => ours(Failure::AuditOutcomeUnrecorded),
    }
}

fn ended(
    rules: &crate::inspect::Rules,
    asked: &Asked,
    open: &mut Call,
    status: StatusCode,
    bytes: Bytes,
) -> (Ending, Finished) {
    let examined = examine(rules, Some(asked), &bytes);
    open.absorb(examined.found);
    let unclear = || Ending::without_answer(Status::Unknown, None);
    let answer = examined.answer.unwrap_or_else(unclear);
    let http_status = Some(status.as_u16());
    let ending = Ending { response: Some(bytes.clone()), http_status, ..answer };
    (ending, Finished { status, bytes })
}

/// An answer that is still coming, and what comes before it.
struct Coming {
    told: mpsc::Receiver<Bytes>,
    /// Nothing once it is done.
    work: Option<Working>,
    last: Option<Bytes>,
    keep_alive: Duration,
}

impl Coming {
    /// Answers when something is there: the answer, or what comes before it.
    async fn respond(mut self, issued: Option<HeaderValue>) -> Response<Payload> {
        let first = match &mut self.work {
            Some(work) => tokio::select! {
                biased;
                Some(first) = self.told.recv() => Ok(first),
                finished = work => Err(finished),
            },
            None => return respond(StatusCode::OK, HeaderMap::new(), Payload::whole(Bytes::new())),
        };
        match first {
            Err(finished) if self.told.is_empty() => {
                let issued = issued.filter(|_| finished.status.is_success());
                let headers = headers("application/json", issued);
                respond(finished.status, headers, Payload::whole(finished.bytes))
            }
            Err(finished) => {
                (self.work, self.last) = (None, Some(event(&finished.bytes)));
                self.stream(None, issued)
            }
            Ok(first) => self.stream(Some(first), issued),
        }
    }

    fn stream(self, first: Option<Bytes>, issued: Option<HeaderValue>) -> Response<Payload> {
        let pieces = unfold((first, self), |(first, mut coming)| async move {
            let piece = match first {
                Some(first) => first,
                None => coming.next().await?,
            };
            Some((Ok(piece), (None, coming)))
        });
        let headers = headers("text/event-stream", issued);
        respond(StatusCode::OK, headers, Payload::Pieces(Box::pin(pieces)))
    }

    /// The next event.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(work) = &mut self.work {
            tokio::select! {
                biased;
                Some(event) = self.told.recv() => return Some(event),
                finished = work => {
                    (self.work, self.last) = (None, Some(event(&finished.bytes)));
                }
                () = sleep(self.keep_alive) => return Some(Bytes::from_static(KEEP_ALIVE)),
            }
        }
        self.told.try_recv().ok().or_else(|| self.last.take())
    }
}

fn headers(media: &'static str, issued: Option<HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if let Some(id) = issued {
        headers.insert(SESSION_HEADER, id);
    }
    headers
}

/// A message as an event.
pub(super) fn event(message: &[u8]) -> Bytes {
    [b"event: message\ndata: ", message, b"\n\n"].concat().into()
}
