//! Frames a `text/event-stream` without re-encoding it.
//!
//! It promises that the frames it returns, joined, are exactly the bytes that came in; that each
//! frame is one whole event (or what stood between two events); and that it never holds more than
//! its limit. Line ends may be LF, CR LF or CR, and may be torn between two reads.

use bytes::{Bytes, BytesMut};

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The bytes as they came, terminator included.
    pub raw: Bytes,
    /// The event's data: its `data` lines, joined by line feeds. Nothing for comments.
    pub data: Option<Bytes>,
}

impl Frame {
    /// What of it a client may have: the fields that an event has, without comments and others,
    /// and nothing of a frame that has no fields.
    pub(crate) fn passing(&self) -> Bytes {
        let mut fields = 0;
        let mut kept = Vec::new();
        let mut all = true;
        let mut at = 0;
        while at < self.raw.len() {
            let line = memchr::memchr2(b'\n', b'\r', &self.raw[at..]);
            let end = line.map_or(self.raw.len(), |n| at + n);
            let next = (end + 1).min(self.raw.len());
            let text = &self.raw[at..end];
            let text = if at == 0 { text.strip_prefix(BOM).unwrap_or(text) } else { text };
            let is_field = is_field(text);
            fields += usize::from(is_field);
            if is_field || text.is_empty() {
                kept.push((at, next));
            } else {
                all = false;
                // a CR LF goes with its line
                at = next + usize::from(self.raw[end..].starts_with(b"\r\n"));
                continue;
            }
            at = next;
        }
        if fields == 0 {
            return Bytes::new();
        }
        if all {
            return self.raw.clone();
        }
        kept.into_iter().flat_map(|(from, to)| self.raw[from..to].to_vec()).collect()
    }

    /// The event with other data, or none: its fields but the data as they came, its id as `named`
    /// says, then the data. Nothing of a frame that has no fields.
    pub(crate) fn carrying(
        &self,
        data: Option<&[u8]>,
        named: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Bytes {
        let raw = self.raw.strip_prefix(BOM).unwrap_or(&self.raw);
        let mut bytes = Vec::with_capacity(data.map_or(0, <[u8]>::len) + 64);
        for line in raw.split(|b| matches!(b, b'\n' | b'\r')) {
            if let Some(id) = id_of(line) {
                let id = named(id).map(|id| [b"id: ", &id[..], b"\n"].concat());
                bytes.extend(id.unwrap_or_default());
            } else if is_field(line) && !line.starts_with(b"data") {
                bytes.extend_from_slice(line);
                bytes.push(b'\n');
            }
        }
        if let Some(data) = data.or(self.data.as_deref()) {
            for line in data.split(|&b| b == b'\n') {
                bytes.extend_from_slice(b"data: ");
                bytes.extend_from_slice(line);
                bytes.push(b'\n');
            }
        }
        if !bytes.is_empty() {
            bytes.push(b'\n');
        }
        bytes.into()
    }

    /// The event's id.
    pub(crate) fn id(&self) -> Option<&[u8]> {
        let raw = self.raw.strip_prefix(BOM).unwrap_or(&self.raw);
        raw.split(|b| matches!(b, b'\n' | b'\r')).filter_map(id_of).next_back()
    }
}

/// What the first line of a stream may begin with.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// What a line says that the event's id is.
fn id_of(line: &[u8]) -> Option<&[u8]> {
    let id = line.strip_prefix(b"id")?;
    match id {
        [] => Some(id),
        [b':', b' ', id @ ..] | [b':', id @ ..] => Some(id),
        _ => None,
    }
}

/// Whether a line is a field that an event has.
fn is_field(line: &[u8]) -> bool {
    let name = line.split(|&b| b == b':').next().unwrap_or_default();
    [b"event".as_slice(), b"id", b"retry", b"data"].contains(&name)
}

/// An event is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Collects bytes until an event is complete.
#[derive(Debug)]
pub struct Framer {
    buffer: BytesMut,
    /// Up to here the buffer holds whole lines of the current event.
    scanned: usize,
    /// The last line ended with CR at the end of the input, so an LF still belongs to it.
    after_cr: bool,
    limit: usize,
}

impl Framer {
    /// A framer for events of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, after_cr: false, limit }
    }

    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event, nothing if it has not come yet.
    ///
    /// # Errors
    /// [`TooLong`], once and for all.
    pub fn frame(&mut self) -> Result<Option<Frame>, TooLong> {
        loop {
            let Some(line) = self.line() else {
                return if self.buffer.len() > self.limit { Err(TooLong) } else { Ok(None) };
            };
            let blank = line.start == line.end;
            let lf_of_torn_pair = blank && self.after_cr && self.buffer[line.end] == b'\n';
            self.after_cr = line.torn;
            self.scanned = line.next;
            if blank && !lf_of_torn_pair {
                self.scanned = 0;
                return Ok(Some(frame(self.buffer.split_to(line.next).freeze())));
            }
        }
    }

    /// What is left when the stream has ended: an event without its terminator.
    pub fn rest(&mut self) -> Option<Frame> {
        self.scanned = 0;
        let raw = self.buffer.split().freeze();
        (!raw.is_empty()).then(|| frame(raw))
    }

    /// The line that begins where the scan stands.
    fn line(&self) -> Option<Line> {
        let start = self.scanned;
        let rest = &self.buffer[start..];
        let end = start + memchr::memchr2(b'\n', b'\r', rest)?;
        let cr = self.buffer[end] == b'\r';
        let lf_follows = self.buffer.get(end + 1) == Some(&b'\n');
        let next = if cr && lf_follows { end + 2 } else { end + 1 };
        Some(Line { start, end, next, torn: cr && next == self.buffer.len() && !lf_follows })
    }
}

struct Line {
    start: usize,
    end: usize,
    next: usize,
    torn: bool,
}

fn frame(raw: Bytes) -> Frame {
    let mut first: Option<(usize, usize)> = None;
    let mut joined: Option<Vec<u8>> = None;
    let mut at = 0;
    while at < raw.len() {
        let end = memchr::memchr2(b'\n', b'\r', &raw[at..]).map_or(raw.len(), |n| at + n);
        if let Some(offset) = data_offset(&raw[at..end], at == 0) {
            let value = (at + offset, end);
            match (&first, &mut joined) {
                (None, _) => first = Some(value),
                (Some(_), Some(joined)) => append(joined, &raw[value.0..value.1]),
                (Some((from, to)), None) => {
                    let mut lines = raw[*from..*to].to_vec();
                    append(&mut lines, &raw[value.0..value.1]);
                    joined = Some(lines);
                }
            }
        }
        at = end + 1;
    }
    let data = joined.map(Bytes::from).or_else(|| first.map(|(from, to)| raw.slice(from..to)));
    Frame { raw, data }
}

fn append(lines: &mut Vec<u8>, line: &[u8]) {
    lines.push(b'\n');
    lines.extend_from_slice(line);
}

/// Where the value begins, if the line is a `data` field.
fn data_offset(line: &[u8], first: bool) -> Option<usize> {
    let bom = if first && line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let rest = line[bom..].strip_prefix(b"data")?;
    match rest {
        [] => Some(line.len()),
        [b':', b' ', ..] => Some(bom + 6),
        [b':', ..] => Some(bom + 5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(pieces: &[&[u8]]) -> Vec<Frame> {
        let mut framer = Framer::new(1 << 20);
        let mut frames = Vec::new();
        for piece in pieces {
            framer.push(piece);
            while let Some(frame) = framer.frame().unwrap() {
                frames.push(frame);
            }
        }
        frames.extend(framer.rest());
        frames
    }

    fn data(frames: &[Frame]) -> Vec<String> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        frames.iter().filter_map(|f| f.data.as_ref()).map(text).collect()
    }

    const STREAM: &[u8] = b"\xef\xbb\xbfid: 1\ndata: {\"a\":1}\n\n: comment\n\nevent: message\r\n\
        data:{\"b\":\r\ndata: 2}\r\n\r\ndata\rretry: 5\r\rdatax: no\n\ndata: tail";

    #[test]
    fn events_are_found_and_every_byte_is_kept() {
        let frames = frames(&[STREAM]);
        assert_eq!(data(&frames), ["{\"a\":1}", "{\"b\":\n2}", "", "tail"]);
        let joined: Vec<u8> = frames.iter().flat_map(|f| f.raw.to_vec()).collect();
        assert_eq!(joined, STREAM);
        assert_eq!(frames.len(), 6);
    }

    #[test]
    fn a_stream_torn_anywhere_gives_the_same_messages() {
        let whole = data(&frames(&[STREAM]));
        let single: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(data(&frames(&single)), whole);
        for at in 0..STREAM.len() {
            let torn = frames(&[&STREAM[..at], &STREAM[at..]]);
            assert_eq!(data(&torn), whole, "torn at {at}");
            let joined: Vec<u8> = torn.iter().flat_map(|f| f.raw.to_vec()).collect();
            assert_eq!(joined, STREAM);
        }
    }

    #[test]
    fn comments_and_unknown_fields_do_not_pass_and_fields_pass_as_they_came() {
        let passing = |text: &'static str| {
            let frames = frames(&[text.as_bytes()]);
            let bytes: Vec<u8> = frames.iter().flat_map(|f| f.passing().to_vec()).collect();
            String::from_utf8(bytes).unwrap()
        };
        let clean = "\u{feff}id: 1\r\ndata: a\r\n\r\nretry:5\rdata\r\revent: x\ndata:\n\n";
        assert_eq!(passing(clean), clean);
        assert_eq!(passing("\u{feff}: secret\n\ndata: a\n\n"), "data: a\n\n");
        assert_eq!(passing("x: 1\r\nid: 1\r\n:c\r\ndata: a\r\n\r\n"), "id: 1\r\ndata: a\r\n\r\n");
        assert_eq!(passing("data: a\ndatax: b\ndata: c\n\n:only\n\n"), "data: a\ndata: c\n\n");
    }

    #[test]
    fn an_event_longer_than_the_limit_is_an_error() {
        let mut framer = Framer::new(16);
        framer.push(b"data: 0123456789");
        assert_eq!(framer.frame(), Ok(None));
        framer.push(b"0");
        assert_eq!(framer.frame(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_added(text in "[\r\n:da t]{0,40}", at in 0usize..40) {
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            let frames = frames(&[&bytes[..at], &bytes[at..]]);
            let joined: Vec<u8> = frames.iter().flat_map(|f| f.raw.to_vec()).collect();
            prop_assert_eq!(joined, bytes);
        }
    }
}
