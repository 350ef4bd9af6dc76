//! A strict JSON scanner over borrowed bytes: what policy and inspection read messages with.
//!
//! It promises to accept exactly RFC 8259 (UTF-8, no trailing commas, no bare control characters),
//! to copy nothing, to use no recursion, and to stop at [`MAX_DEPTH`] levels, so that no message
//! can overflow the stack. Numbers are checked and never converted.

use std::borrow::Cow;

/// How deep a message may be nested.
pub(crate) const MAX_DEPTH: usize = 512;

/// Why bytes are not JSON, or not JSON that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScanError {
    /// Not JSON.
    #[error("not JSON at byte {0}")]
    Syntax(usize),
    /// Not UTF-8.
    #[error("not UTF-8 at byte {0}")]
    Encoding(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// A string as it stands between its quotes, escapes and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text<'a> {
    /// The bytes between the quotes.
    pub(crate) raw: &'a str,
    /// Whether there is a backslash in it.
    pub(crate) escaped: bool,
}

impl<'a> Text<'a> {
    /// The string that is meant. A lone surrogate becomes U+FFFD.
    pub(crate) fn decode(self) -> Cow<'a, str> {
        if self.escaped { Cow::Owned(unescape(self.raw).0) } else { Cow::Borrowed(self.raw) }
    }

    /// The string that is meant, or nothing when it holds a lone surrogate and so is no text.
    pub(crate) fn decode_exact(self) -> Option<Cow<'a, str>> {
        if !self.escaped {
            return Some(Cow::Borrowed(self.raw));
        }
        let (text, lone) = unescape(self.raw);
        (!lone).then_some(Cow::Owned(text))
    }

    /// Whether the string that is meant equals `other`.
    pub(crate) fn is(self, other: &str) -> bool {
        if self.escaped { self.decode() == other } else { self.raw == other }
    }
}

/// Resolves escapes of a string that the scanner has accepted; whether a surrogate stood alone.
fn unescape(raw: &str) -> (String, bool) {
    let bytes = raw.as_bytes();
    let mut text = Vec::with_capacity(raw.len() + 8);
    let mut lone = false;
    let mut at = 0;
    loop {
        at = copy_plain(bytes, at, &mut text);
        let escape = match (bytes.get(at), bytes.get(at + 1)) {
            (None, _) => break,
            (Some(b'\\'), Some(b'u')) => {
                let (c, used) = unicode_escape(&raw[at..], &mut lone);
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                at += used;
                continue;
            }
            (Some(b'\\'), Some(b'b')) => 8,
            (Some(b'\\'), Some(b'f')) => 12,
            (Some(b'\\'), Some(b'n')) => b'\n',
            (Some(b'\\'), Some(b'r')) => b'\r',
            (Some(b'\\'), Some(b't')) => b'\t',
            (Some(b'\\'), Some(&other)) => other,
            (Some(&other), _) => {
                text.push(other);
                at += 1;
                continue;
            }
        };
        text.push(escape);
        at += 2;
    }
    (String::from_utf8(text).unwrap_or_else(|_| raw.to_owned()), lone)
}

/// Copies up to the first quote, backslash or control character from `at` on; its position.
#[inline]
fn copy_plain(bytes: &[u8], mut at: usize, text: &mut Vec<u8>) -> usize {
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let length = text.len();
        // eight at once and some taken back: faster than as many as there are
        text.extend_from_slice(eight);
        let hits = special(*eight);
        if hits != 0 {
            let plain = (hits.trailing_zeros() / 8) as usize;
            text.truncate(length + plain);
            return at + plain;
        }
        at += 8;
    }
    let end = plain(bytes, at);
    text.extend_from_slice(&bytes[at..end]);
    end
}

/// The character of `\uXXXX` (or of a surrogate pair) at the start of `text`, and its length.
fn unicode_escape(text: &str, lone: &mut bool) -> (char, usize) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let first = unit(0).unwrap_or(0xfffd);
    if let Some(c) = char::from_u32(first) {
        return (c, 6);
    }
    if let (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) = (first, unit(6)) {
        let code = 0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00);
        return (char::from_u32(code).unwrap_or('\u{fffd}'), 12);
    }
    *lone = true;
    ('\u{fffd}', 6)
}

/// One step of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// `{`
    ObjectStart,
    /// `}`
    ObjectEnd,
    /// `[`
    ArrayStart,
    /// `]`
    ArrayEnd,
    /// A member's name; its value is the next token.
    Key(Text<'a>),
    /// A string value.
    Text(Text<'a>),
    /// A number, as it is written.
    Number(&'a str),
    /// `true` or `false`
    Bool(bool),
    /// `null`
    Null,
}

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    FirstKey,
    Key,
    FirstItem,
    CommaOrEnd,
    Done,
}

/// A position in a text, and the open brackets around it.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    next: Next,
    depth: usize,
    /// One bit for each level: set for an object.
    objects: [u64; MAX_DEPTH / 64],
}

impl<'a> Scanner<'a> {
    /// A scanner at the start of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, ScanError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self::over(text)),
            Err(error) => Err(ScanError::Encoding(error.valid_up_to())),
        }
    }

    /// A scanner at the start of `text`.
    pub(crate) fn over(text: &'a str) -> Self {
        Self { text, at: 0, next: Next::Value, depth: 0, objects: [0; MAX_DEPTH / 64] }
    }

    /// The position after the last token.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// How many brackets are open.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// The text from `from` to the end of the last token.
    pub(crate) fn since(&self, from: usize) -> &'a str {
        self.text.get(from..self.at).unwrap_or_default()
    }

    /// Where the next token begins: after white space, a comma and a colon.
    pub(crate) fn upcoming(&mut self) -> usize {
        self.skip_space();
        self.at
    }

    /// The next token; nothing once the value is complete.
    #[inline]
    pub(crate) fn step(&mut self) -> Result<Option<Token<'a>>, ScanError> {
        self.skip_space();
        let Some(byte) = self.peek() else {
            return if self.next == Next::Done { Ok(None) } else { self.wrong() };
        };
        match (self.next, byte) {
            (Next::Done, _) => Ok(None),
            (Next::FirstKey, b'}') | (Next::FirstItem, b']') => self.close(byte),
            (Next::FirstKey | Next::Key, b'"') => self.key(),
            (Next::CommaOrEnd, b',') => {
                self.at += 1;
                self.next = if self.in_object() { Next::Key } else { Next::Value };
                self.step_after_comma()
            }
            (Next::CommaOrEnd, b'}' | b']') => self.close(byte),
            (Next::Value | Next::FirstItem, _) => self.value(byte),
            _ => self.wrong(),
        }
    }

    fn step_after_comma(&mut self) -> Result<Option<Token<'a>>, ScanError> {
        self.skip_space();
        match (self.next, self.peek()) {
            (Next::Key, Some(b'"')) => self.key(),
            (Next::Value, Some(byte)) => self.value(byte),
            _ => self.wrong(),
        }
    }

    /// Whether only white space follows the value.
    pub(crate) fn finish(&mut self) -> Result<(), ScanError> {
        self.skip_space();
        if self.next == Next::Done && self.at == self.text.len() { Ok(()) } else { self.wrong() }
    }

    fn wrong<T>(&self) -> Result<T, ScanError> {
        Err(ScanError::Syntax(self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.objects[(self.depth - 1) / 64] & (1 << ((self.depth - 1) % 64)) != 0
    }

    fn open(&mut self, object: bool) -> Result<Option<Token<'a>>, ScanError> {
        if self.depth == MAX_DEPTH {
            return Err(ScanError::TooDeep);
        }
        let (word, bit) = (self.depth / 64, 1u64 << (self.depth % 64));
        self.objects[word] =
            if object { self.objects[word] | bit } else { self.objects[word] & !bit };
        self.depth += 1;
        self.at += 1;
        self.next = if object { Next::FirstKey } else { Next::FirstItem };
        Ok(Some(if object { Token::ObjectStart } else { Token::ArrayStart }))
    }

    fn close(&mut self, byte: u8) -> Result<Option<Token<'a>>, ScanError> {
        let object = self.in_object();
        if object != (byte == b'}') {
            return self.wrong();
        }
        self.at += 1;
        self.depth -= 1;
        self.next = if self.depth == 0 { Next::Done } else { Next::CommaOrEnd };
        Ok(Some(if object { Token::ObjectEnd } else { Token::ArrayEnd }))
    }

    #[inline]
    fn key(&mut self) -> Result<Option<Token<'a>>, ScanError> {
        let text = self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return self.wrong();
        }
        self.at += 1;
        self.next = Next::Value;
        Ok(Some(Token::Key(text)))
    }

    #[inline]
    fn value(&mut self, byte: u8) -> Result<Option<Token<'a>>, ScanError> {
        let token = match byte {
            b'{' => return self.open(true),
            b'[' => return self.open(false),
            b'"' => Token::Text(self.string()?),
            b't' => self.word("true", Token::Bool(true))?,
            b'f' => self.word("false", Token::Bool(false))?,
            b'n' => self.word("null", Token::Null)?,
            _ => self.number()?,
        };
        self.next = if self.depth == 0 { Next::Done } else { Next::CommaOrEnd };
        Ok(Some(token))
    }

    fn word(&mut self, word: &str, token: Token<'a>) -> Result<Token<'a>, ScanError> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return self.wrong();
        }
        self.at += word.len();
        Ok(token)
    }

    fn number(&mut self) -> Result<Token<'a>, ScanError> {
        let from = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return self.wrong(),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Token::Number(self.since(from)))
    }

    fn digits(&mut self) -> Result<(), ScanError> {
        let from = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == from { self.wrong() } else { Ok(()) }
    }

    /// Reads a string whose opening quote is at the position.
    #[inline]
    fn string(&mut self) -> Result<Text<'a>, ScanError> {
        let bytes = self.text.as_bytes();
        let from = self.at + 1;
        let mut at = from;
        let mut escaped = false;
        loop {
            at = plain(bytes, at);
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    at += match bytes.get(at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                        Some(b'u') if four_digits(bytes, at + 2) => 6,
                        _ => return Err(ScanError::Syntax(at)),
                    };
                }
                _ => return Err(ScanError::Syntax(at)),
            }
        }
        self.at = at + 1;
        Ok(Text { raw: self.text.get(from..at).unwrap_or_default(), escaped })
    }
}

/// The position of the first quote, backslash or control character from `at` on.
#[inline]
fn plain(bytes: &[u8], mut at: usize) -> usize {
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let hits = special(*eight);
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|b| !matches!(b, b'"' | b'\\' | 0..0x20)) {
        at += 1;
    }
    at
}

/// The highest bit of the first quote, backslash or control character, and perhaps of later bytes.
#[inline]
fn special(eight: [u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let word = u64::from_le_bytes(eight);
    let quote = word ^ (ONES * 0x22);
    let slash = word ^ (ONES * 0x5c);
    let below = word.wrapping_sub(ONES * 0x20) & !word;
    let zero = |x: u64| x.wrapping_sub(ONES) & !x;
    (zero(quote) | zero(slash) | below) & HIGH
}

fn four_digits(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..at + 4).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests;
