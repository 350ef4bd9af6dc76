//! What becomes of each message of the client, and of each of the server.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::http::{Fault, Http};
use super::message::{Message, Shape, agreed, answers, error_of, header_text};
use super::stream::{Heard, Mark, Stream};

const SESSION: &str = "mcp-session-id";
const PROTOCOL: &str = "mcp-protocol-version";
/// What is told when a client has been let in.
const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
/// How long an answer may take to arrive once it has begun.
const ARRIVE: Duration = Duration::from_secs(120);
/// How long the end of a session may take.
const CLOSE: Duration = Duration::from_secs(2);
/// How often a stream that broke off before its answer is got again.
const MAX_RESUMED: u32 = 8;
/// The usual wait before a stream is got again, and the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(30);

/// Between one client and one server.
pub struct Bridge {
    http: Http,
    out: mpsc::Sender<Bytes>,
    max_message_bytes: usize,
    session: Mutex<Session>,
    renewing: tokio::sync::Mutex<()>,
    calls: Mutex<HashMap<String, AbortHandle>>,
}

/// A session of the legacy revisions.
#[derive(Clone, Debug, Default)]
struct Session {
    id: Option<HeaderValue>,
    protocol: Option<HeaderValue>,
    /// What the client opened it with.
    initialize: Option<Message>,
    /// Counts the times that it was opened.
    opened: u64,
    /// Gets the server's own messages.
    listening: Option<AbortHandle>,
}

/// An answer that came whole, or did not come.
enum Outcome {
    Answered,
    /// The server does not know the session.
    Lost,
    Failed(&'static str),
}

const UNREACHABLE: &str = "the server cannot be reached; the call was not delivered";
const BROKEN: &str = "the server broke off; the call may have taken effect";
const NO_ANSWER: &str = "the server gave no answer; the call may have taken effect";
const LOST: &str = "the session is gone and could not be opened anew; the call was not processed";

impl Bridge {
    /// A bridge whose messages for the client go to `out`.
    pub fn new(http: Http, out: mpsc::Sender<Bytes>, max_message_bytes: usize) -> Self {
        Self {
            http,
            out,
            max_message_bytes,
            session: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
            calls: Mutex::default(),
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<String, AbortHandle>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes ready when the client takes nothing more.
    pub async fn gone(&self) {
        self.out.closed().await;
    }

    /// Remembers how to leave a call.
    pub fn note_call(&self, id: String, call: AbortHandle) {
        let mut calls = self.calls();
        calls.retain(|_, call| !call.is_finished());
        calls.insert(id, call);
    }

    /// Answers what is no message.
    pub async fn refuse_unread(&self) {
        let text = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"a line must hold one JSON message; not forwarded"}}"#;
        self.put(Bytes::from_static(text.as_bytes())).await;
    }

    /// Sends a request and gives its answer.
    pub async fn call(
        self: &Arc<Self>,
        message: Message,
        mut on_its_way: Option<oneshot::Sender<()>>,
    ) {
        let mut again = false;
        loop {
            let opened = self.session().opened;
            match self.exchange(&message, on_its_way.take()).await {
                Outcome::Answered => return,
                Outcome::Failed(why) => return self.fail(&message, why).await,
                Outcome::Lost if again || self.renew(opened).await.is_none() => {
                    return self.fail(&message, LOST).await;
                }
                Outcome::Lost => again = true,
            }
        }
    }

    async fn exchange(
        self: &Arc<Self>,
        message: &Message,
        on_its_way: Option<oneshot::Sender<()>>,
    ) -> Outcome {
        let headers = self.headers(message);
        let in_session = headers.contains_key(SESSION);
        let sent = self.http.send(&Method::POST, &headers, &message.bytes, on_its_way).await;
        let response = match sent {
            Ok(response) => response,
            Err(Fault::NotDelivered) => return Outcome::Failed(UNREACHABLE),
            Err(Fault::Broken) => return Outcome::Failed(BROKEN),
        };
        if response.status() == StatusCode::NOT_FOUND && in_session {
            return Outcome::Lost;
        }
        if message.is_initialize() && response.status().is_success() {
            self.enter(message, response.headers());
        }
        if response.status().is_success() && is_stream(&response) {
            return self.follow(message, response).await;
        }
        self.whole(message, response).await
    }

    /// An answer in one piece.
    async fn whole(&self, message: &Message, response: Response<Incoming>) -> Outcome {
        let status = response.status();
        let Some(bytes) = self.read(response).await else { return Outcome::Failed(BROKEN) };
        if answers(&bytes, &message.id) {
            self.answered(message, bytes).await;
            return Outcome::Answered;
        }
        // an error that names no request, or somebody else's answer
        match error_of(&bytes) {
            Some(error) => {
                let id = &message.id;
                let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#);
                self.put(text.into()).await;
                Outcome::Answered
            }
            None if status.is_success() => Outcome::Failed(NO_ANSWER),
            None => {
                complain(&format!("a call was refused with HTTP {}", status.as_u16()));
                Outcome::Failed(NO_ANSWER)
            }
        }
    }

    /// An answer in an event stream, which is got again where it breaks off.
    async fn follow(self: &Arc<Self>, message: &Message, response: Response<Incoming>) -> Outcome {
        let mut stream = self.stream(response, Mark::default());
        let mut resumed = 0;
        loop {
            let ended = match stream.next().await {
                Heard::Message(bytes) if answers(&bytes, &message.id) => {
                    self.answered(message, bytes).await;
                    return Outcome::Answered;
                }
                Heard::Message(bytes) => {
                    self.put(bytes).await;
                    continue;
                }
                Heard::End => true,
                Heard::Broken => false,
            };
            if message.method == "subscriptions/listen" && ended {
                self.end_of_subscription(message).await;
                return Outcome::Answered;
            }
            let mark = std::mem::take(&mut stream.mark);
            if message.modern.is_some() || mark.last.is_none() || resumed == MAX_RESUMED {
                return Outcome::Failed(BROKEN);
            }
            resumed += 1;
            tokio::time::sleep(mark.retry.unwrap_or(AGAIN)).await;
            match self.get(&mark).await {
                Some(response) if is_stream(&response) => stream = self.stream(response, mark),
                _ => return Outcome::Failed(BROKEN),
            }
        }
    }

    /// Where there is no stream to close, a server says that a subscription is over.
    async fn end_of_subscription(&self, message: &Message) {
        let id = &message.id;
        let text = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
        );
        self.put(text.into()).await;
    }

    async fn answered(&self, message: &Message, bytes: Bytes) {
        if message.is_initialize() {
            let protocol = agreed(&bytes).and_then(|text| HeaderValue::from_str(&text).ok());
            self.session().protocol = protocol;
        }
        self.put(bytes).await;
    }

    /// Sends a notification, or an answer to a request of the server.
    pub async fn tell(self: &Arc<Self>, message: Message) {
        if let Some(id) = &message.cancels
            && self.leave(id)
        {
            return;
        }
        let is_initialized = message.method == "notifications/initialized";
        for again in [false, true] {
            let opened = self.session().opened;
            let headers = self.headers(&message);
            let sent = self.http.send(&Method::POST, &headers, &message.bytes, None).await;
            let status = match sent {
                Ok(response) => response.status(),
                Err(_) => return complain("a notification could not be sent"),
            };
            let lost = status == StatusCode::NOT_FOUND && headers.contains_key(SESSION);
            if lost && !again && self.renew(opened).await.is_some() {
                continue;
            }
            if !status.is_success() {
                complain(&format!("a notification was refused with HTTP {}", status.as_u16()));
            }
            break;
        }
        if is_initialized {
            self.listen();
        }
    }

    /// Leaves a call of the modern era: closing its stream is what cancels it.
    fn leave(&self, id: &str) -> bool {
        let mut calls = self.calls();
        if self.session().initialize.is_some() {
            return false; // a legacy server is told
        }
        calls.remove(id).is_some_and(|call| {
            call.abort();
            true
        })
    }

    /// Keeps the stream of the server's own messages open.
    fn listen(self: &Arc<Self>) {
        let at_work = Arc::downgrade(self);
        let listening = tokio::spawn(async move {
            let mut mark = Mark::default();
            let mut wait = AGAIN;
            while let Some(bridge) = at_work.upgrade() {
                let opened = bridge.session().opened;
                let Some(response) = bridge.get(&mark).await else {
                    drop(bridge);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(AGAIN_AT_MOST);
                    continue;
                };
                match response.status() {
                    StatusCode::NOT_FOUND => {
                        mark = Mark::default();
                        if bridge.renew(opened).await.is_none() {
                            return;
                        }
                    }
                    status if status.is_success() && is_stream(&response) => {
                        let mut stream = bridge.stream(response, mark);
                        drop(bridge);
                        mark = listen_to(&at_work, &mut stream).await;
                        wait = AGAIN;
                    }
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => {}
                    _ => return, // it has no such stream
                }
                tokio::time::sleep(mark.retry.unwrap_or(wait)).await;
            }
        });
        let earlier = self.session().listening.replace(listening.abort_handle());
        earlier.iter().for_each(AbortHandle::abort);
    }

    /// Opens the session anew that `opened` counts, unless somebody else has.
    async fn renew(self: &Arc<Self>, opened: u64) -> Option<()> {
        let _turn = self.renewing.lock().await;
        if self.session().opened != opened {
            return Some(());
        }
        let initialize = self.session().initialize.clone()?;
        let headers = self.headers(&initialize);
        let sent = self.http.send(&Method::POST, &headers, &initialize.bytes, None).await;
        let response = sent.ok().filter(|response| response.status().is_success())?;
        let head = response.headers().clone();
        let answer = if is_stream(&response) {
            self.answer_in(response, &initialize.id).await?
        } else {
            self.read(response).await?
        };
        let protocol = HeaderValue::from_str(&agreed(&answer)?).ok();
        if protocol != self.session().protocol {
            return None; // the client would go on in a revision that is not agreed on
        }
        self.enter(&initialize, &head);
        self.session().protocol = protocol;
        let said = Message::read(Bytes::from_static(INITIALIZED))?;
        let headers = self.headers(&said);
        let sent = self.http.send(&Method::POST, &headers, &said.bytes, None).await;
        complain("the session was lost and has been opened anew");
        sent.ok().filter(|response| response.status().is_success()).map(drop)
    }

    async fn answer_in(&self, response: Response<Incoming>, id: &str) -> Option<Bytes> {
        let mut stream = self.stream(response, Mark::default());
        let reading = async {
            loop {
                match stream.next().await {
                    Heard::Message(bytes) if answers(&bytes, id) => return Some(bytes),
                    Heard::Message(bytes) => self.put(bytes).await,
                    Heard::End | Heard::Broken => return None,
                }
            }
        };
        timeout(ARRIVE, reading).await.ok().flatten()
    }

    fn enter(&self, initialize: &Message, headers: &HeaderMap) {
        let mut session = self.session();
        session.id = headers.get(SESSION).cloned();
        session.initialize = Some(initialize.clone());
        session.opened += 1;
    }

    /// Gets the server's stream, after `mark` if that is somewhere.
    async fn get(&self, mark: &Mark) -> Option<Response<Incoming>> {
        let mut headers = self.in_session();
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(last) = &mark.last {
            headers.insert("last-event-id", last.clone());
        }
        self.http.send(&Method::GET, &headers, &Bytes::new(), None).await.ok()
    }

    /// Ends the session.
    pub async fn close(&self) {
        let listening = self.session().listening.take();
        listening.iter().for_each(AbortHandle::abort);
        let headers = self.in_session();
        if headers.contains_key(SESSION) {
            let nothing = Bytes::new();
            let ending = self.http.send(&Method::DELETE, &headers, &nothing, None);
            drop(timeout(CLOSE, ending).await);
        }
    }

    fn in_session(&self) -> HeaderMap {
        let session = self.session();
        let mut headers = HeaderMap::new();
        let known = [(SESSION, &session.id), (PROTOCOL, &session.protocol)];
        for (name, value) in known {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        headers
    }

    fn headers(&self, message: &Message) -> HeaderMap {
        let text = |text: &str| HeaderValue::from_str(&header_text(text)).ok();
        let mut headers = match &message.modern {
            None if message.is_initialize() => HeaderMap::new(),
            None => self.in_session(),
            Some(protocol) => {
                let named = [
                    (PROTOCOL, text(protocol)),
                    ("mcp-method", text(&message.method)),
                    ("mcp-name", message.name.as_deref().and_then(text)),
                ];
                let named = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
                named.map(|(name, value)| (http::HeaderName::from_static(name), value)).collect()
            }
        };
        let both = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(header::ACCEPT, both);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers
    }

    fn stream(&self, response: Response<Incoming>, mark: Mark) -> Stream {
        Stream::new(response.into_body(), self.max_message_bytes, mark)
    }

    async fn read(&self, response: Response<Incoming>) -> Option<Bytes> {
        let body = Limited::new(response.into_body(), self.max_message_bytes);
        Some(timeout(ARRIVE, body.collect()).await.ok()?.ok()?.to_bytes())
    }

    /// Answers a request with an error of ours.
    async fn fail(&self, message: &Message, why: &str) {
        if message.shape == Shape::Request {
            let id = &message.id;
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32000,"message":"{why}"}}}}"#
            );
            self.put(text.into()).await;
        }
    }

    /// Hands a message to the client.
    async fn put(&self, message: Bytes) {
        // a client that takes nothing more ends us
        drop(self.out.send(message).await);
    }
}

/// Hands over what a stream of the server's own messages holds, and says where it ended.
async fn listen_to(bridge: &std::sync::Weak<Bridge>, stream: &mut Stream) -> Mark {
    while let Heard::Message(bytes) = stream.next().await {
        let Some(bridge) = bridge.upgrade() else { break };
        bridge.put(bytes).await;
    }
    std::mem::take(&mut stream.mark)
}

fn is_stream(response: &Response<Incoming>) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media.is_some_and(|media| media.trim_start().starts_with("text/event-stream"))
}

/// Says something to the person who looks: never what a message holds.
fn complain(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "custody connect: {text}"));
}
