//! What a message of a client says on the outside: enough to send it on.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The first revision without sessions.
const MODERN: &str = "2026-07-28";

/// Whether a message waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// It does.
    Request,
    /// It is a notification, or an answer to a request of the server.
    Other,
}

/// A message of the client.
#[derive(Clone, Debug)]
pub struct Message {
    /// As it came.
    pub bytes: Bytes,
    /// Whether it waits for an answer.
    pub shape: Shape,
    /// The raw token of its id; `null` if it has none.
    pub id: String,
    /// Its method; empty for an answer.
    pub method: String,
    /// What `Mcp-Name` repeats.
    pub name: Option<String>,
    /// The revision that it names, if that is 2026-07-28 or later.
    pub modern: Option<String>,
    /// The raw token of the id that it cancels.
    pub cancels: Option<String>,
}

#[derive(Deserialize)]
struct Outside<'m> {
    #[serde(borrow, default)]
    id: Option<&'m RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'m, str>>,
    #[serde(borrow, default)]
    params: Option<&'m RawValue>,
}

#[derive(Default, Deserialize)]
struct Params<'m> {
    #[serde(borrow, default)]
    name: Option<Cow<'m, str>>,
    #[serde(borrow, default)]
    uri: Option<Cow<'m, str>>,
    #[serde(borrow, default, rename = "taskId")]
    task: Option<Cow<'m, str>>,
    #[serde(borrow, default, rename = "requestId")]
    request: Option<&'m RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<Meta<'m>>,
}

#[derive(Default, Deserialize)]
struct Meta<'m> {
    #[serde(borrow, default, rename = "io.modelcontextprotocol/protocolVersion")]
    protocol: Option<Cow<'m, str>>,
}

impl Message {
    /// Reads it; nothing if it is no JSON object or array.
    pub fn read(bytes: Bytes) -> Option<Self> {
        if bytes.first() == Some(&b'[') {
            serde_json::from_slice::<&RawValue>(&bytes).ok()?;
            return Some(Self::unread(bytes)); // batches are the server's to refuse
        }
        let outside: Outside<'_> = serde_json::from_slice(&bytes).ok()?;
        let params: Params<'_> = outside
            .params
            .and_then(|params| serde_json::from_str(params.get()).ok())
            .unwrap_or_default();
        let method = outside.method.unwrap_or_default().into_owned();
        let name = match method.as_str() {
            "tools/call" | "prompts/get" => params.name,
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => params.uri,
            "tasks/get" | "tasks/update" | "tasks/cancel" => params.task,
            _ => None,
        };
        let protocol = params.meta.and_then(|meta| meta.protocol);
        let modern = protocol.filter(|revision| revision.len() == 10 && &**revision >= MODERN);
        let is_request = outside.id.is_some() && !method.is_empty();
        let cancels = params.request.filter(|_| method == "notifications/cancelled");
        let (name, modern) = (name.map(Cow::into_owned), modern.map(Cow::into_owned));
        let cancels = cancels.map(|id| id.get().to_owned());
        let id = outside.id.map_or_else(|| "null".to_owned(), |id| id.get().to_owned());
        let shape = if is_request { Shape::Request } else { Shape::Other };
        Some(Self { shape, id, method, name, modern, cancels, bytes })
    }

    fn unread(bytes: Bytes) -> Self {
        Self {
            bytes,
            shape: Shape::Request,
            id: "null".to_owned(),
            method: String::new(),
            name: None,
            modern: None,
            cancels: None,
        }
    }

    /// Whether it opens a session.
    pub fn is_initialize(&self) -> bool {
        self.modern.is_none() && self.method == "initialize"
    }
}

/// Text as a header can hold it: wrapped where it is not plain, or looks as if it were wrapped.
pub fn header_text(text: &str) -> Cow<'_, str> {
    let plain = text.bytes().all(|b| (0x20..0x7f).contains(&b)) && text.trim() == text;
    if plain && !text.starts_with("=?base64?") {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("=?base64?{}?=", STANDARD.encode(text)))
}

/// Whether a message of the server is the answer to the request with this id.
pub fn answers(message: &[u8], id: &str) -> bool {
    let Ok(outside) = serde_json::from_slice::<Outside<'_>>(message) else { return false };
    outside.method.is_none() && outside.id.is_some_and(|other| same(other.get(), id))
}

fn same(a: &str, b: &str) -> bool {
    let value = |raw: &str| serde_json::from_str::<serde_json::Value>(raw).ok();
    a == b || value(a).is_some_and(|a| Some(a) == value(b))
}

/// The revision that the answer to `initialize` settles on.
pub fn agreed(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        result: Settled,
    }
    #[derive(Deserialize)]
    struct Settled {
        #[serde(rename = "protocolVersion")]
        protocol: String,
    }
    serde_json::from_slice::<Answer>(answer).ok().map(|answer| answer.result.protocol)
}

/// The raw `error` of an answer, if it is one.
pub fn error_of(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Failed<'m> {
        #[serde(borrow)]
        error: &'m RawValue,
    }
    serde_json::from_slice::<Failed<'_>>(answer).ok().map(|failed| failed.error.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Message {
        Message::read(Bytes::from_static(text.as_bytes())).unwrap()
    }

    #[test]
    fn what_a_message_says_on_the_outside_is_read_and_its_bytes_are_kept() {
        let call = read(
            r#"{"id":"a\/1","method":"tools/call","params":{"name":"søk","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
        );
        assert_eq!((call.shape, call.id.as_str()), (Shape::Request, r#""a\/1""#));
        assert_eq!(header_text(call.name.as_deref().unwrap()), "=?base64?c8O4aw==?=");
        assert_eq!(call.modern.as_deref(), Some("2026-07-28"));
        assert!(answers(br#"{"id":"a/1","result":{}}"#, &call.id));
        assert!(!answers(br#"{"id":"a/1","method":"ping"}"#, &call.id));
        let cancel = read(r#"{"method":"notifications/cancelled","params":{"requestId":7}}"#);
        assert_eq!((cancel.shape, cancel.cancels.as_deref()), (Shape::Other, Some("7")));
        assert!(read(r#"{"id":0,"method":"initialize","params":{}}"#).is_initialize());
        assert!(Message::read(Bytes::from_static(b"hello")).is_none());
        assert_eq!(header_text("plain name"), "plain name");
        assert_eq!(header_text(" a"), "=?base64?IGE=?=");
    }
}
