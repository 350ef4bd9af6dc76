//! What a JSON-RPC message says on the outside, read from the bytes that pass and never written
//! back.
//!
//! One pass over the bytes finds the id (as the raw token that it is), the method, and the few
//! members of `params`, `_meta`, `result` and `error` that policy and records need. Two keys that
//! are alike (also when one is written with escapes) are noted, because two readers of the same
//! bytes could take different ones: in the envelope, `params`, `_meta` and `clientInfo` always,
//! everywhere else on request. A key that differs from one we read only by letter case is noted
//! too, for there are servers that match keys without regard to case.

use std::borrow::Cow;

use crate::scan::{ScanError, Scanner, Text, Token};

/// How far duplicate keys are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Where policy reads.
    Policy,
    /// In every object of the message.
    Everywhere,
}

/// Why bytes are not one JSON-RPC message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvelopeError {
    /// Not JSON.
    #[error("the message is {0}")]
    Json(#[from] ScanError),
    /// An array of messages.
    #[error("batches are not part of MCP; send one message at a time")]
    Batch,
    /// Neither object nor array.
    #[error("a message must be a JSON object")]
    NotObject,
    /// A member has a type that it cannot have.
    #[error("the member {0} has the wrong type")]
    Type(&'static str),
}

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Method and id.
    Request,
    /// Method without id.
    Notification,
    /// Result or error.
    Response,
    /// Neither, or both.
    Unclear,
}

/// The outside of a message, borrowed from its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    /// The raw token of `id`; `null` too.
    pub(crate) id: Option<&'a str>,
    /// Whether `jsonrpc` is `"2.0"`.
    pub(crate) version_2: bool,
    /// The method.
    pub(crate) method: Option<Cow<'a, str>>,
    /// All of `params`, if it is an object.
    pub(crate) params: Option<&'a str>,
    /// All of `result`.
    pub(crate) result: Option<&'a str>,
    /// All of `error`.
    pub(crate) error: Option<&'a str>,
    /// `params.name`
    pub(crate) name: Option<Cow<'a, str>>,
    /// `params.uri`
    pub(crate) uri: Option<Cow<'a, str>>,
    /// `result.taskId`
    pub(crate) own_task: Option<Cow<'a, str>>,
    /// `params.taskId` or `result.task.taskId`.
    pub(crate) task: Option<Cow<'a, str>>,
    /// `params.arguments`
    pub(crate) arguments: Option<&'a str>,
    /// `requestState` of `params` or `result`.
    pub(crate) state: Option<Cow<'a, str>>,
    /// The raw token of `params.requestId`.
    pub(crate) cancels: Option<&'a str>,
    /// `protocolVersion` of `params` or `result`.
    pub(crate) protocol: Option<Cow<'a, str>>,
    /// `io.modelcontextprotocol/protocolVersion` of `params._meta`.
    pub(crate) meta_protocol: Option<Cow<'a, str>>,
    /// `traceparent` of `params._meta`.
    pub(crate) trace: Option<Cow<'a, str>>,
    /// What the client calls itself, in `initialize` or `_meta`.
    pub(crate) client: Client<'a>,
    /// `result.isError`
    pub(crate) is_error: bool,
    /// `result.resultType`
    pub(crate) result_type: Option<Cow<'a, str>>,
    /// The raw token of `error.code`.
    pub(crate) code: Option<&'a str>,
    /// A key that has a twin, or that looks like one we read.
    pub(crate) twin: Option<Cow<'a, str>>,
}

/// `clientInfo`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Client<'a> {
    /// Its name.
    pub(crate) name: Option<Cow<'a, str>>,
    /// Its version.
    pub(crate) version: Option<Cow<'a, str>>,
}

impl<'a> Envelope<'a> {
    /// Reads the outside of the message.
    pub(crate) fn read(bytes: &'a [u8], look: Look) -> Result<Self, EnvelopeError> {
        let mut reader = Reader {
            scanner: Scanner::new(bytes)?,
            deep: look == Look::Everywhere,
            keys: Vec::new(),
            marks: Vec::new(),
            found: Self::default(),
        };
        match reader.scanner.step()? {
            Some(Token::ObjectStart) => reader.object(Level::Message)?,
            Some(Token::ArrayStart) => return Err(EnvelopeError::Batch),
            _ => return Err(EnvelopeError::NotObject),
        }
        reader.scanner.finish()?;
        Ok(reader.found)
    }

    /// What kind of message it is.
    pub(crate) fn shape(&self) -> Shape {
        let answers = self.result.is_some() || self.error.is_some();
        match (&self.method, self.id, answers) {
            (Some(_), Some(_), false) => Shape::Request,
            (Some(_), None, false) => Shape::Notification,
            (None, Some(_), true) => Shape::Response,
            _ => Shape::Unclear,
        }
    }

    /// The method, or the empty string.
    pub(crate) fn method(&self) -> &str {
        self.method.as_deref().unwrap_or_default()
    }
}

/// Whether two id tokens name the same request, however they are written.
pub(crate) fn same_id(a: &str, b: &str) -> bool {
    a == b || plain_id(a) == plain_id(b)
}

/// An id token in the one form that stands for all ways to write it.
pub(crate) fn plain_id(raw: &str) -> Cow<'_, str> {
    if raw.starts_with('"') {
        return match Scanner::over(raw).step() {
            Ok(Some(Token::Text(text))) => Cow::Owned(format!("text {}", text.decode())),
            _ => Cow::Borrowed(raw),
        };
    }
    let number = raw.parse::<f64>().ok();
    number.map_or(Cow::Borrowed(raw), |number| Cow::Owned(format!("{:x}", number.to_bits())))
}

/// Which object the reader is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Message,
    Params,
    Meta,
    Client,
    Result,
    Task,
    Error,
}

impl Level {
    /// The keys that we read at this level, where a look-alike would matter.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Message => &["jsonrpc", "id", "method", "params", "result", "error"],
            Self::Params => &["name", "uri", "taskId", "arguments", "_meta", "requestState"],
            Self::Meta | Self::Client | Self::Result | Self::Task | Self::Error => &[],
        }
    }
}

struct Reader<'a> {
    scanner: Scanner<'a>,
    deep: bool,
    /// Keys of the objects that are open, outermost first.
    keys: Vec<Cow<'a, str>>,
    /// Where the keys of each open object begin.
    marks: Vec<usize>,
    found: Envelope<'a>,
}

impl<'a> Reader<'a> {
    /// Reads the members of an object whose bracket has just been read.
    fn object(&mut self, level: Level) -> Result<(), EnvelopeError> {
        self.marks.push(self.keys.len());
        loop {
            match self.scanner.step()? {
                Some(Token::Key(key)) => {
                    let key = key.decode();
                    self.note_look_alike(level, &key);
                    self.keys.push(key.clone());
                    self.member(level, &key)?;
                }
                _ => break self.close_keys(),
            }
        }
        Ok(())
    }

    fn member(&mut self, level: Level, key: &str) -> Result<(), EnvelopeError> {
        match (level, key) {
            (Level::Message, "jsonrpc") => {
                self.found.version_2 = self.text()?.is_some_and(|text| text.is("2.0"));
            }
            (Level::Message, "id") => self.found.id = Some(self.scalar("id")?),
            (Level::Message, "method") => {
                let text = self.text()?.and_then(Text::decode_exact);
                self.found.method = Some(text.ok_or(EnvelopeError::Type("method"))?);
            }
            (Level::Message, "params") => self.found.params = self.params()?,
            (Level::Message, "result") => self.found.result = Some(self.inside(Level::Result)?),
            (Level::Message, "error") => self.found.error = Some(self.inside(Level::Error)?),
            (Level::Params, "name") => self.found.name = self.word("params.name")?,
            (Level::Params, "uri") => self.found.uri = self.word("params.uri")?,
            (Level::Params, "taskId") => self.found.task = self.word("params.taskId")?,
            (Level::Params, "arguments") => self.found.arguments = Some(self.skip()?),
            (Level::Params | Level::Result, "requestState") => {
                self.found.state = self.any_word()?;
            }
            (Level::Params, "requestId") => self.found.cancels = Some(self.skip()?),
            (Level::Result, "taskId") => self.found.own_task = self.any_word()?,
            (Level::Task, "taskId") => self.found.task = self.any_word()?,
            (Level::Result, "task") => drop(self.inside(Level::Task)?),
            (Level::Params | Level::Result, "protocolVersion") => {
                self.found.protocol = self.any_word()?;
            }
            (Level::Params, "_meta") => drop(self.inside(Level::Meta)?),
            (Level::Params, "clientInfo") | (Level::Meta, "io.modelcontextprotocol/clientInfo") => {
                self.inside(Level::Client)?;
            }
            (Level::Meta, "io.modelcontextprotocol/protocolVersion") => {
                self.found.meta_protocol = self.any_word()?;
            }
            (Level::Meta, "traceparent") => self.found.trace = self.any_word()?,
            (Level::Client, "name") => self.found.client.name = self.any_word()?,
            (Level::Client, "version") => self.found.client.version = self.any_word()?,
            (Level::Result, "isError") => self.found.is_error = self.skip()? == "true",
            (Level::Result, "resultType") => self.found.result_type = self.any_word()?,
            (Level::Error, "code") => self.found.code = Some(self.skip()?),
            _ => drop(self.skip()?),
        }
        Ok(())
    }

    /// `params`: an object; `null` counts as absent.
    fn params(&mut self) -> Result<Option<&'a str>, EnvelopeError> {
        let raw = self.inside(Level::Params)?;
        match raw.as_bytes().first() {
            Some(b'{') => Ok(Some(raw)),
            _ if raw == "null" => Ok(None),
            _ => Err(EnvelopeError::Type("params")),
        }
    }

    /// Reads the next value, its members at `level` if it is an object.
    fn inside(&mut self, level: Level) -> Result<&'a str, EnvelopeError> {
        let from = self.scanner.upcoming();
        match self.scanner.step()? {
            Some(Token::ObjectStart) => self.object(level)?,
            Some(Token::ArrayStart) => self.skip_rest()?,
            _ => {}
        }
        Ok(self.scanner.since(from))
    }

    /// The next value, unread.
    fn skip(&mut self) -> Result<&'a str, EnvelopeError> {
        let from = self.scanner.upcoming();
        if let Some(Token::ObjectStart | Token::ArrayStart) = self.peeked_step()? {
            self.skip_rest()?;
        }
        Ok(self.scanner.since(from))
    }

    /// A step that keeps track of the keys' marks.
    #[inline]
    fn peeked_step(&mut self) -> Result<Option<Token<'a>>, EnvelopeError> {
        let token = self.scanner.step()?;
        if self.deep {
            match token {
                Some(Token::ObjectStart) => self.marks.push(self.keys.len()),
                Some(Token::ObjectEnd) => self.close_keys(),
                Some(Token::Key(key)) => self.keys.push(key.decode()),
                _ => {}
            }
        }
        Ok(token)
    }

    /// Reads on until the bracket that has just been opened is closed.
    fn skip_rest(&mut self) -> Result<(), EnvelopeError> {
        let outside = self.scanner.depth() - 1;
        while self.scanner.depth() > outside {
            self.peeked_step()?;
        }
        Ok(())
    }

    fn text(&mut self) -> Result<Option<Text<'a>>, EnvelopeError> {
        match self.peeked_step()? {
            Some(Token::Text(text)) => Ok(Some(text)),
            Some(Token::ObjectStart | Token::ArrayStart) => self.skip_rest().map(|()| None),
            _ => Ok(None),
        }
    }

    /// A string that policy reads: absent when `null`, an error when anything else.
    fn word(&mut self, what: &'static str) -> Result<Option<Cow<'a, str>>, EnvelopeError> {
        match self.scanner.step()? {
            Some(Token::Text(text)) => {
                text.decode_exact().map(Some).ok_or(EnvelopeError::Type(what))
            }
            Some(Token::Null) => Ok(None),
            _ => Err(EnvelopeError::Type(what)),
        }
    }

    /// A string that is only noted: absent when it is anything else.
    fn any_word(&mut self) -> Result<Option<Cow<'a, str>>, EnvelopeError> {
        Ok(self.text()?.map(Text::decode))
    }

    fn scalar(&mut self, what: &'static str) -> Result<&'a str, EnvelopeError> {
        let from = self.scanner.upcoming();
        match self.scanner.step()? {
            Some(Token::ObjectStart | Token::ArrayStart) => Err(EnvelopeError::Type(what)),
            _ => Ok(self.scanner.since(from)),
        }
    }

    fn note_look_alike(&mut self, level: Level, key: &str) {
        let keys = level.keys();
        if keys.contains(&key) || !keys.iter().any(|known| folds_to(key, known)) {
            return;
        }
        if self.found.twin.is_none() {
            self.found.twin = Some(Cow::Owned(key.to_owned()));
        }
    }

    /// Looks for twins among the keys of the innermost object, and forgets them.
    fn close_keys(&mut self) {
        let mark = self.marks.pop().unwrap_or_default();
        if self.found.twin.is_none() {
            self.found.twin = twin(&mut self.keys[mark..]).cloned();
        }
        self.keys.truncate(mark);
    }
}

/// A key that stands twice.
pub(crate) fn twin<'k, 'a>(keys: &'k mut [Cow<'a, str>]) -> Option<&'k Cow<'a, str>> {
    if keys.len() <= 12 {
        let twice = (1..keys.len()).find(|&i| keys[..i].contains(&keys[i]));
        return twice.map(|i| &keys[i]);
    }
    keys.sort_unstable();
    keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| &pair[0])
}

/// Whether `key` equals the ASCII word `known` under Unicode simple case folding.
fn folds_to(key: &str, known: &str) -> bool {
    if key.is_ascii() {
        return key.eq_ignore_ascii_case(known);
    }
    let fold = |c: char| match c {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(known.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Envelope<'_>, EnvelopeError> {
        Envelope::read(text.as_bytes(), Look::Policy)
    }

    fn twin_of(text: &str, look: Look) -> Option<String> {
        Envelope::read(text.as_bytes(), look).unwrap().twin.map(Cow::into_owned)
    }

    #[test]
    fn a_call_is_read_from_its_bytes() {
        let text = r#" {"id":"a\/b","params":{"arguments":{"z":"\u00e9"},"name":"x","_meta":{"traceparent":"00-1","io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"}}},"method":"tools\/call","jsonrpc":"2.0"} "#;
        let envelope = read(text).unwrap();
        assert_eq!(envelope.id, Some("\"a\\/b\""));
        assert_eq!(envelope.method(), "tools/call");
        assert_eq!(envelope.name.as_deref(), Some("x"));
        assert_eq!(envelope.arguments, Some("{\"z\":\"\\u00e9\"}"));
        assert_eq!(envelope.meta_protocol.as_deref(), Some("2026-07-28"));
        assert_eq!(envelope.client.name.as_deref(), Some("c"));
        assert_eq!(envelope.trace.as_deref(), Some("00-1"));
        assert_eq!((envelope.shape(), envelope.version_2), (Shape::Request, true));
        assert_eq!(envelope.twin, None);
    }

    #[test]
    fn an_answer_is_read_from_its_bytes() {
        let answer = read(r#"{"jsonrpc":"2.0","id":1.50,"result":{"isError":true,"resultType":"complete","content":[{}]}}"#).unwrap();
        assert!(answer.is_error);
        assert_eq!((answer.id, answer.result_type.as_deref()), (Some("1.50"), Some("complete")));
        assert_eq!(answer.shape(), Shape::Response);
        let error = read(r#"{"id":null,"error":{"code":9999999999,"message":"m"}}"#).unwrap();
        assert_eq!((error.code, error.id), (Some("9999999999"), Some("null")));
        let error = read(r#"{"id":1,"error":{"code":"E1"}}"#).unwrap();
        assert_eq!(error.code, Some("\"E1\""));
        assert_eq!(read(r#"{"id":1,"result":null}"#).unwrap().shape(), Shape::Response);
    }

    #[test]
    fn twins_are_found_where_policy_reads_and_everywhere_on_request() {
        for text in [
            r#"{"id":1,"id":2}"#,
            r#"{"params":{"name":"safe","name":"evil"}}"#,
            r#"{"params":{"name":"safe","n\u0061me":"evil"}}"#,
            r#"{"params":{"_meta":{"a":1,"a":2}}}"#,
            r#"{"params":{"clientInfo":{"name":"a","name":"b"}}}"#,
            r#"{"params":{"name":"safe","Name":"evil"}}"#,
            r#"{"Method":"tools/call"}"#,
            "{\"params\":{\"ta\u{17f}\u{212a}Id\":\"1\"}}",
        ] {
            assert!(twin_of(text, Look::Policy).is_some(), "{text}");
        }
        let deep = r#"{"params":{"arguments":{"a":[{"b":1,"c":{},"b":2}]}}}"#;
        assert_eq!(twin_of(deep, Look::Policy), None);
        assert_eq!(twin_of(deep, Look::Everywhere).as_deref(), Some("b"));
        let many: String = (0..40).map(|i| format!("\"k{}\":0,", i % 39)).collect();
        let many = format!("{{\"x\":{{{many}\"l\":{{\"k0\":1}}}}}}");
        assert_eq!(twin_of(&many, Look::Everywhere).as_deref(), Some("k0"));
        let fine = r#"{"a":{"x":1,"y":{"x":2}},"b":{"x":3},"id":1,"params":{"titles":1}}"#;
        assert_eq!(twin_of(fine, Look::Everywhere), None);
    }

    #[test]
    fn what_is_no_single_message_is_refused_with_the_reason() {
        assert_eq!(read("[{}]"), Err(EnvelopeError::Batch));
        assert_eq!(read("3"), Err(EnvelopeError::NotObject));
        assert_eq!(read(r#"{"params":[1]}"#), Err(EnvelopeError::Type("params")));
        assert_eq!(read(r#"{"id":{}}"#), Err(EnvelopeError::Type("id")));
        assert_eq!(read(r#"{"method":1}"#), Err(EnvelopeError::Type("method")));
        assert_eq!(read(r#"{"params":{"name":7}}"#), Err(EnvelopeError::Type("params.name")));
        assert!(matches!(read("{\"a\":1} x"), Err(EnvelopeError::Json(ScanError::Syntax(8)))));
        assert_eq!(read(r#"{"params":null}"#).unwrap().params, None);
        let deep = format!("{{\"params\":{{\"arguments\":{}", "[".repeat(1_000_000));
        assert_eq!(read(&deep), Err(EnvelopeError::Json(ScanError::TooDeep)));
    }

    #[test]
    fn ids_are_the_same_when_they_mean_the_same() {
        assert!(same_id("1", "1") && same_id("1", "1.0") && same_id("\"a\\/b\"", "\"a/b\""));
        assert!(!same_id("1", "\"1\"") && !same_id("1", "2") && !same_id("null", "0"));
    }
}
