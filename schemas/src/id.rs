//! Names of things: streams, calls, bodies, hashes, and the bounded integer of a record.
//!
//! Every type here prints and parses as exactly one text form, so that a record built from them
//! has one encoding only.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The largest integer a record may hold: 2⁵³ − 1 (RFC 8785 § 3.2.2.3, IEEE 754 doubles).
pub const MAX_INT: u64 = (1 << 53) - 1;

/// A non-negative integer that every JSON reader in the world reads alike.
///
/// Values above [`MAX_INT`] cannot be made: [`Uint::new`] saturates, which is a count nobody
/// reaches, and reading one is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Uint(u64);

impl Uint {
    /// The value, or [`MAX_INT`] when it is larger.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(if value > MAX_INT { MAX_INT } else { value })
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for Uint {
    fn from(value: u64) -> Self {
        Self::new(value)
    }
}

impl fmt::Display for Uint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Uint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        if value > MAX_INT {
            return Err(de::Error::custom("integer beyond 2^53-1"));
        }
        Ok(Self(value))
    }
}

/// A moment in microseconds since 1970-01-01T00:00:00Z.
pub type Micros = Uint;

/// What was wrong with the text of a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} expected, got {got:?}")]
pub struct ParseIdError {
    what: &'static str,
    got: String,
}

impl ParseIdError {
    fn new(what: &'static str, got: &str) -> Self {
        let got = got.chars().take(80).collect();
        Self { what, got }
    }
}

/// Whether `name` may name a writer: 1 to 64 of `a-z 0-9 . _ -`, beginning with a letter or digit.
#[must_use]
pub fn is_writer_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
    (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// One run of one writer, `{writer}/{run}`, where the run is a UUIDv7 made at start.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    text: std::sync::Arc<str>,
    slash: usize,
}

impl StreamId {
    /// The stream of `run` of the writer called `writer`.
    ///
    /// # Errors
    /// When `writer` is no writer name (see [`is_writer_name`]).
    pub fn new(writer: &str, run: uuid::Uuid) -> Result<Self, ParseIdError> {
        format!("{writer}/{}", run.hyphenated()).parse()
    }

    /// The writer's name.
    #[must_use]
    pub fn writer(&self) -> &str {
        &self.text[..self.slash]
    }

    /// The run, a UUID in its hyphenated form.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for StreamId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError::new("a stream {writer}/{run}", text);
        let (writer, run) = text.split_once('/').ok_or_else(wrong)?;
        if !is_writer_name(writer) || !is_hyphenated_uuid(run) {
            return Err(wrong());
        }
        Ok(Self { text: text.into(), slash: writer.len() })
    }
}

fn is_hyphenated_uuid(text: &str) -> bool {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => lower_hex(b),
        })
}

/// One call through the proxy, or one query: a UUIDv7 of ours, because JSON-RPC ids repeat.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId([u8; 16]);

impl CallId {
    /// The call with these sixteen bytes.
    #[must_use]
    pub const fn from_uuid(uuid: uuid::Uuid) -> Self {
        Self(uuid.into_bytes())
    }

    /// The sixteen bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = uuid::Uuid::encode_buffer();
        f.write_str(uuid::Uuid::from_bytes(self.0).hyphenated().encode_lower(&mut buffer))
    }
}

impl FromStr for CallId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError::new("a call id (lower-case hyphenated UUID)", text);
        if !is_hyphenated_uuid(text) {
            return Err(wrong());
        }
        uuid::Uuid::parse_str(text).map(Self::from_uuid).map_err(|_| wrong())
    }
}

/// `N` bytes, written as lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// SHA-256.
pub type Hash = Bytes<32>;
/// 128 random bits that keep a record's hash unguessable.
pub type Salt = Bytes<16>;
/// The random name of a body.
pub type BodyId = Bytes<16>;

impl<const N: usize> fmt::Display for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 64];
        for (i, byte) in self.0.iter().enumerate().take(32) {
            text[2 * i] = DIGITS[usize::from(byte >> 4)];
            text[2 * i + 1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text[..2 * N.min(32)]).map_err(|_| fmt::Error)?)
    }
}

impl<const N: usize> FromStr for Bytes<N> {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut bytes = [0u8; N];
        let wrong = || ParseIdError::new("lower-case hexadecimal digits", text);
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(wrong()) };
        if pairs.len() != N {
            return Err(wrong());
        }
        let mut seen = 0;
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (high, low) = (DIGIT[usize::from(*high)], DIGIT[usize::from(*low)]);
            seen |= high | low;
            *byte = (high << 4) | (low & 0x0f);
        }
        // Values of digits have no high bits.
        if seen & 0xf0 == 0 { Ok(Self(bytes)) } else { Err(wrong()) }
    }
}

/// The value of each lower-case hexadecimal digit; 255 for every other byte. Reading records is
/// mostly reading hashes, and a table is twice as fast as comparing.
const DIGIT: [u8; 256] = {
    let mut table = [0xff; 256];
    let digits = b"0123456789abcdef";
    let mut value = 0;
    while value < 16 {
        table[digits[value as usize] as usize] = value;
        value += 1;
    }
    table
};

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for StreamId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Serialize for CallId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buffer = uuid::Uuid::encode_buffer();
        let text = uuid::Uuid::from_bytes(self.0).hyphenated().encode_lower(&mut buffer);
        serializer.serialize_str(text)
    }
}

impl<const N: usize> Serialize for Bytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads a name from a JSON string, borrowed or not.
struct FromText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = ParseIdError>> de::Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the text form of an id")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for StreamId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText(std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for CallId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText(std::marker::PhantomData))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_reads_back_and_nothing_else_is_read() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in all.as_chunks::<16>().0 {
            let id = Bytes(*bytes);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let good = Bytes([0xab; 16]).to_string();
        for at in 0..good.len() {
            for wrong in ['G', 'A', '/', ':', '`', 'g', ' '] {
                let mut text = good.clone();
                text.replace_range(at..=at, &wrong.to_string());
                assert!(text.parse::<Bytes<16>>().is_err(), "{text}");
            }
        }
        for wrong in ["", "a", &good[1..], &good[2..], &format!("{good}00")] {
            assert!(wrong.parse::<Bytes<16>>().is_err(), "{wrong}");
        }
    }
}
