//! Brings an upstream's answer to the client: recorded first, then the same bytes.
//!
//! A JSON answer is read whole up to the limit, inspected, recorded, released. An event stream is
//! handed to [`crate::stream`]. What is no answer that MCP allows becomes an error that says so,
//! and what arrived whole, or in [`UNWANTED`] of an answer that its head alone rules out, is on the
//! record all the same, marked as `partial` if it was cut. Of an answer that is too long or breaks
//! off the record says so, and holds none of its bytes, for none were released.

use std::borrow::Cow;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use custody_schemas::edits::Edits;
use custody_schemas::id::CallId;
use custody_schemas::words::Status;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::call::{Asked, Exchange, examine as examine_on};
use crate::envelope::{Envelope, EnvelopeError, Look, Shape, same_id};
use crate::era::Era;
use crate::errors::Failure;
use crate::headers::noted_down;
use crate::identity::PrincipalId;
use crate::inspect::{self, Found};
use crate::links::{Links, Token};
use crate::payload::Payload;
use crate::record::{Call, Ending};
use crate::revise::Reviser;
use crate::splice::Message;
use crate::stream;
use crate::upstream::{Body, NoAnswer, media_type};

/// How long the body of an answer that is not passed on is read, for the record.
const UNWANTED: Duration = Duration::from_secs(2);

/// Brings the answer of a call to its client.
pub(crate) async fn deliver(
    exchange: &Exchange<'_>,
    asked: &Asked,
    mut call: Call,
    answer: Response<Body>,
    request: &Bytes,
) -> Response<Payload> {
    let (head, mut body) = answer.into_parts();
    let initializes = asked.era == Era::Legacy && call.facts().method() == "initialize";
    let bound = match unacceptable(head.status, &head.headers) {
        Some(failure) => Err(failure),
        None if asked.era == Era::Modern => Ok(None),
        None => exchange
            .bind_session(head.status, &head.headers, initializes.then_some(request))
            .map_err(|_| Failure::UpstreamInvalid),
    };
    let session = match bound {
        Ok(session) => session,
        Err(failure) => {
            let http = Some(head.status.as_u16());
            let (bytes, cut) = read_some(&mut body, exchange.max_message_bytes(), UNWANTED).await;
            call.note_partial(cut);
            return fail(asked, call, failure, Status::HttpError, http, Some(bytes)).await;
        }
    };
    let (issued, session) = session.unzip();
    call.note_head(session, media_type(&head.headers), noted_down(&head.headers));
    if head.status.is_success() && media_type(&head.headers) == "text/event-stream" {
        let body = stream::of_call(exchange, asked, call, body);
        return respond(head.status, exchange.down(&head.headers, issued), body);
    }
    let reading = read_whole(&mut body, exchange.max_message_bytes());
    match within(exchange.limits().answer, reading).await {
        Ok(bytes) => {
            let headers = exchange.down(&head.headers, issued);
            whole(exchange, asked, call, (head.status, headers), bytes).await
        }
        Err(unread) => {
            let (failure, status) = unread.failure();
            fail(asked, call, failure, status, Some(head.status.as_u16()), None).await
        }
    }
}

/// Ends a call that got no answer.
pub(crate) async fn no_answer(asked: &Asked, call: Call, why: NoAnswer) -> Response<Payload> {
    let (failure, status) = failure_of(why);
    fail(asked, call, failure, status, None, None).await
}

/// How it looks that there is no answer, and how the call ended by it.
pub(crate) fn failure_of(why: NoAnswer) -> (Failure, Status) {
    match why {
        NoAnswer::Unreachable => (Failure::Unreachable, Status::Unreachable),
        NoAnswer::Broken => (Failure::UpstreamBroken, Status::Unknown),
        NoAnswer::TimedOut => (Failure::UpstreamTimeout, Status::Timeout),
        NoAnswer::SessionLost => (Failure::SessionLost, Status::HttpError),
        NoAnswer::Cancelled => (Failure::Cancelled, Status::Cancelled),
    }
}

/// An answer that has arrived whole.
async fn whole(
    exchange: &Exchange<'_>,
    asked: &Asked,
    mut call: Call,
    (status, headers): (StatusCode, HeaderMap),
    bytes: Bytes,
) -> Response<Payload> {
    let http_status = Some(status.as_u16());
    let examined = examine_on(exchange.served, Some(asked), bytes.clone()).await;
    call.absorb(examined.found);
    let mut message = Message::from(bytes.clone());
    let newer = exchange.visit.view.as_ref().is_some_and(|view| view.modern);
    if newer && OTHER_REVISION.contains(&status) && !concerns(asked, &bytes) {
        let (failure, status) = (Failure::OtherRevision, Status::HttpError);
        return fail(asked, call, failure, status, http_status, Some(bytes)).await;
    }
    let ending = match examined.answer {
        Some(answer) => {
            match Reviser::of(exchange).answer(call.id(), call.facts(), &bytes).await {
                Ok(revised) => message = revised,
                Err(unshown) => {
                    let (failure, status) = (unshown.failure(), Status::HttpError);
                    return fail(asked, call, failure, status, http_status, Some(bytes)).await;
                }
            }
            let (response, edits) = (Some(bytes), message.edits.clone());
            Ending { http_status, response, edits, ..answer }
        }
        None if status.is_success() => {
            let failure = Failure::UpstreamInvalid;
            return fail(asked, call, failure, Status::HttpError, http_status, Some(bytes)).await;
        }
        None => Ending {
            http_status,
            response: Some(bytes),
            ..Ending::without_answer(Status::HttpError, None)
        },
    };
    let id = call.id();
    match call.end(ending).await {
        Ok(()) => {
            let (links, by) = (&exchange.visit.proxy.links, exchange.caller.principal);
            examined.handed.note(links, by, &exchange.served.server.name, id);
            respond(status, headers, Payload::whole(message.bytes))
        }
        Err(_) => asked.failure(Failure::AuditOutcomeUnrecorded, Some(id)),
    }
}

/// How servers refuse a request that does not belong to a session.
const OTHER_REVISION: [StatusCode; 2] = [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY];

/// Whether a refusal is about the request itself, or one that servers of a revision without sessions
/// give; any other of these says that the server does not speak it.
fn concerns(asked: &Asked, refusal: &[u8]) -> bool {
    let read = Envelope::read(refusal, Look::Policy);
    read.is_ok_and(|refusal| {
        let code = refusal.code.and_then(|code| code.parse().ok());
        let is_modern = code.is_some_and(|code: i64| (-32099..=-32020).contains(&code));
        is_modern || refusal.id.is_some_and(|id| same_id(id, &asked.id))
    })
}

/// Ends a call with an error of our own. Boxed, for it is rare and large.
fn fail(
    asked: &Asked,
    call: Call,
    failure: Failure,
    status: Status,
    http_status: Option<u16>,
    response: Option<Bytes>,
) -> Pin<Box<dyn Future<Output = Response<Payload>> + Send + '_>> {
    let id = call.id();
    let ending =
        Ending { http_status, response, ..Ending::without_answer(status, Some(failure.code())) };
    Box::pin(async move {
        match call.end(ending).await {
            Ok(()) => asked.failure(failure, Some(id)),
            Err(_) => asked.failure(Failure::AuditOutcomeUnrecorded, Some(id)),
        }
    })
}

/// Why the head of an answer alone rules it out.
pub(crate) fn unacceptable(status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED) {
        Some(Failure::UpstreamRefused)
    } else if status.is_redirection()
        || status.is_informational()
        || encoding.is_some_and(|value| value != "identity")
    {
        Some(Failure::UpstreamInvalid)
    } else {
        None
    }
}

/// What a message of a server says.
pub(crate) struct Examined {
    /// The outcome, if it answers the call.
    pub(crate) answer: Option<Ending>,
    /// Whose data it holds.
    pub(crate) found: Found,
    /// Its method, if it is a request or notification.
    pub(crate) method: Option<String>,
    /// The raw token of its id.
    pub(crate) id: Option<String>,
    /// Whether it is an answer, be it to something else.
    pub(crate) answers: bool,
    /// Whether it is several messages at once, in which answers could hide.
    pub(crate) several: bool,
    /// What an answer to the call gives the client to bring along.
    pub(crate) handed: Handed,
}

/// What a client is to bring along with the call that continues another.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    state: Option<String>,
    task: Option<String>,
}

impl Handed {
    fn by(message: &Envelope<'_>) -> Self {
        let owned = |text: &Option<Cow<'_, str>>| text.as_deref().map(str::to_owned);
        let is_task = message.result_type.as_deref() == Some("task");
        let own = owned(&message.own_task).filter(|_| is_task);
        Self { state: owned(&message.state), task: own.or_else(|| owned(&message.task)) }
    }

    /// Notes that the answer to `call` handed this out.
    pub(crate) fn note(&self, links: &Links, by: PrincipalId, server: &str, call: CallId) {
        let state = self.state.as_deref().map(Token::State);
        for token in state.into_iter().chain(self.task.as_deref().map(Token::Task)) {
            links.note(by, server, token, call);
        }
    }
}

impl Examined {
    /// Nothing can be said.
    pub(crate) fn nothing() -> Self {
        let mut found = Found::none();
        found.note_incomplete();
        Self {
            answer: None,
            found,
            method: None,
            id: None,
            answers: false,
            several: false,
            handed: Handed::default(),
        }
    }
}

/// Reads a message of a server, which may be the answer to `asked`.
pub(crate) fn examine(rules: &inspect::Rules, asked: Option<&Asked>, bytes: &[u8]) -> Examined {
    let message = match Envelope::read(bytes, Look::Everywhere) {
        Ok(message) => message,
        Err(wrong) => {
            let several = wrong == EnvelopeError::Batch;
            return Examined { several, ..Examined::nothing() };
        }
    };
    let answer = asked.and_then(|asked| outcome(asked, &message));
    Examined {
        handed: answer.as_ref().map(|_| Handed::by(&message)).unwrap_or_default(),
        answer,
        several: false,
        answers: message.method.is_none() && (message.result.is_some() || message.error.is_some()),
        found: inspect::received(
            rules,
            asked.and_then(Asked::tool),
            asked.is_some_and(|asked| asked.definitions),
            &message,
            bytes,
        ),
        method: message.method.as_deref().map(str::to_owned),
        id: message.id.map(str::to_owned),
    }
}

/// The outcome that a message says, if it answers the call.
fn outcome(asked: &Asked, message: &Envelope<'_>) -> Option<Ending> {
    let id = message.id.unwrap_or("null");
    let answers = same_id(id, &asked.id) || (message.error.is_some() && id == "null");
    let response = matches!(message.shape(), Shape::Response)
        || (message.error.is_some() && message.method.is_none());
    if !response || !answers {
        return None;
    }
    let status = match (message.error, message.is_error) {
        (Some(_), _) => Status::RpcError,
        (None, true) => Status::ToolError,
        (None, false) => Status::Ok,
    };
    Some(Ending {
        status,
        http_status: None,
        code: message.code.map(str::to_owned),
        result_type: message.result_type.as_deref().map(str::to_owned),
        response: None,
        edits: Edits::default(),
    })
}

/// Why a body could not be read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Longer than the limit.
    TooLong,
    /// The connection broke.
    Broken,
    /// The next piece did not come.
    TimedOut,
}

impl Unread {
    /// How it looks when it is an upstream's answer, and how the call ended by it.
    pub(crate) fn failure(self) -> (Failure, Status) {
        match self {
            Self::TooLong => (Failure::AnswerTooLarge, Status::TooLarge),
            Self::Broken => (Failure::UpstreamBroken, Status::Unknown),
            Self::TimedOut => (Failure::UpstreamTimeout, Status::Timeout),
        }
    }
}

/// Gives a reading a limited time.
pub(crate) async fn within(
    limit: Duration,
    reading: impl Future<Output = Result<Bytes, Unread>>,
) -> Result<Bytes, Unread> {
    timeout(limit, reading).await.unwrap_or(Err(Unread::TimedOut))
}

/// Reads away at most `left` bytes for at most `limit`.
pub(crate) async fn discard(mut body: Incoming, mut left: usize, limit: Duration) {
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    if timeout(limit, rest).await.is_err() {
        tracing::debug!("the rest of a body that is too long did not come");
    }
}

/// Up to how many bytes a body is copied, so that it does not keep the connection's much larger
/// read buffer from being used again.
const COPY_BYTES: usize = 4096;

/// Reads what comes of a body in `time`, up to `limit` bytes; whether that is not all of it.
async fn read_some(body: &mut Body, limit: usize, time: Duration) -> (Bytes, bool) {
    let mut bytes = BytesMut::new();
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return true };
            let Ok(data) = frame.into_data() else { continue };
            let fits = data.len().min(limit - bytes.len());
            bytes.extend_from_slice(&data[..fits]);
            if fits < data.len() {
                return true;
            }
        }
        false
    };
    let cut = timeout(time, reading).await.unwrap_or(true);
    (bytes.freeze(), cut)
}

/// Reads a body of at most `limit` bytes. Copies nothing of a longer one that comes in one piece.
pub(crate) async fn read_whole<B>(body: &mut B, limit: usize) -> Result<Bytes, Unread>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let announced = body.size_hint().lower();
    if announced > limit as u64 {
        return Err(Unread::TooLong);
    }
    let mut first = Bytes::new();
    let mut joined: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        let so_far = joined.as_ref().map_or(first.len(), BytesMut::len);
        if so_far + data.len() > limit {
            return Err(Unread::TooLong);
        }
        match &mut joined {
            Some(joined) => joined.extend_from_slice(&data),
            None if first.is_empty() && data.len() <= COPY_BYTES => {
                first = Bytes::copy_from_slice(&data);
            }
            None if first.is_empty() => first = data,
            None => {
                let expected = usize::try_from(announced).unwrap_or(0);
                let mut bytes = BytesMut::with_capacity(expected.max(2 * (so_far + data.len())));
                bytes.extend_from_slice(&first);
                bytes.extend_from_slice(&data);
                joined = Some(bytes);
            }
        }
    }
    Ok(joined.map_or(first, BytesMut::freeze))
}

/// A response with these headers and this body.
pub(crate) fn respond(status: StatusCode, headers: HeaderMap, body: Payload) -> Response<Payload> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
