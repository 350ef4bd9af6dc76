//! The bytes of a segment: its header, batches, frames.
//!
//! A segment is a 4096-byte header and then batches, one per group commit, each on an 8-byte
//! boundary in a file that was filled with zeros beforehand. Every number is little-endian.
//!
//! ```text
//! segment  magic 8 | format u32 | lane u8, 3 zero | base offset u64 | created_at u64 | key u64
//!          | previous base u64 | previous end u64 | CRC-32C u32, of the 56 bytes before
//! batch    magic u32 | CRC-32C u32 of the rest of this header | segment key u64 | position u64
//!          | base offset u64 | journaled_at u64 | synced through u64
//!          | body length u32 | CRC-32C u32 of the body | frames u32 | zero u32      = 64 bytes
//! frame    length of header and value u32 | length of header u16 | kind u8 | zero | header | value
//! ```
//!
//! The key is random: no bytes that a stranger sends through a body can look like a batch.
//! `synced through` is the position that was known to be on disk when the batch was written: a
//! broken batch before it is damage, not a torn tail.

use bytes::Bytes;

/// The newest format that this build reads and the one it writes.
pub(crate) const FORMAT: u32 = 1;
/// Where the first batch of a segment begins.
pub(crate) const SEGMENT_HEADER: u64 = 4096;
/// Length of a batch's header.
pub(crate) const BATCH_HEADER: usize = 64;
/// Length of a frame's head.
pub(crate) const FRAME_HEAD: usize = 8;
/// Says that there is no previous segment.
pub(crate) const NO_PREVIOUS: u64 = u64::MAX;

const SEGMENT_MAGIC: &[u8; 8] = b"CUSTODYJ";
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"CBAT");
const SEGMENT_FIELDS: usize = 60;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Which lane it belongs to.
    pub(crate) lane: u8,
    /// The offset of its first frame.
    pub(crate) base: u64,
    /// When it was begun, µs.
    pub(crate) created_at: u64,
    /// A random number that all its batches carry.
    pub(crate) key: u64,
    /// The base of the segment before, or [`NO_PREVIOUS`].
    pub(crate) previous_base: u64,
    /// Where the segment before ends; what stands behind that is no part of the journal.
    pub(crate) previous_end: u64,
}

/// Why a segment's header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderProblem {
    /// A later version wrote it.
    Newer(u32),
    /// The bytes are damaged.
    Damaged,
}

impl SegmentHeader {
    /// The whole header as it stands in the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4096);
        bytes.extend_from_slice(SEGMENT_MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[self.lane, 0, 0, 0]);
        let numbers = [self.base, self.created_at, self.key, self.previous_base, self.previous_end];
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.resize(4096, 0);
        bytes
    }

    /// Reads a header. The format is looked at before the checksum, so that a later version may
    /// change everything behind it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        if bytes.len() < SEGMENT_FIELDS || &bytes[..8] != SEGMENT_MAGIC {
            return Err(HeaderProblem::Damaged);
        }
        let format = u32_at(bytes, 8);
        if format > FORMAT {
            return Err(HeaderProblem::Newer(format));
        }
        if crc32c::crc32c(&bytes[..56]) != u32_at(bytes, 56) {
            return Err(HeaderProblem::Damaged);
        }
        Ok(Self {
            lane: bytes[12],
            base: u64_at(bytes, 16),
            created_at: u64_at(bytes, 24),
            key: u64_at(bytes, 32),
            previous_base: u64_at(bytes, 40),
            previous_end: u64_at(bytes, 48),
        })
    }
}

/// What a batch says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// The segment's key.
    pub(crate) key: u64,
    /// Where in the file it stands.
    pub(crate) position: u64,
    /// The offset of its first frame.
    pub(crate) base: u64,
    /// When it was written, µs.
    pub(crate) journaled_at: u64,
    /// The position that was known to be on disk when this was written.
    pub(crate) synced_through: u64,
    /// Length of the frames.
    pub(crate) body_len: u32,
    /// Checksum of the frames.
    pub(crate) body_crc: u32,
    /// Number of frames.
    pub(crate) count: u32,
}

impl BatchHeader {
    /// The header's bytes.
    pub(crate) fn encode(&self) -> [u8; BATCH_HEADER] {
        let mut bytes = [0; BATCH_HEADER];
        bytes[..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        let numbers = [self.key, self.position, self.base, self.journaled_at, self.synced_through];
        for (i, number) in numbers.iter().enumerate() {
            bytes[8 + 8 * i..16 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
        for (i, number) in [self.body_len, self.body_crc, self.count].iter().enumerate() {
            bytes[48 + 4 * i..52 + 4 * i].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header that stands at `position` of the segment with `key`, if it is one.
    pub(crate) fn decode(bytes: &[u8], key: u64, position: u64) -> Option<Self> {
        if bytes.len() < BATCH_HEADER || u32_at(bytes, 0) != BATCH_MAGIC {
            return None;
        }
        let header = Self {
            key: u64_at(bytes, 8),
            position: u64_at(bytes, 16),
            base: u64_at(bytes, 24),
            journaled_at: u64_at(bytes, 32),
            synced_through: u64_at(bytes, 40),
            body_len: u32_at(bytes, 48),
            body_crc: u32_at(bytes, 52),
            count: u32_at(bytes, 56),
        };
        let crc = crc32c::crc32c(&bytes[8..BATCH_HEADER]);
        let right = crc == u32_at(bytes, 4) && header.key == key && header.position == position;
        right.then_some(header)
    }

    /// Where the next batch begins.
    pub(crate) fn next_position(&self) -> u64 {
        self.position + batch_len(self.body_len as usize)
    }
}

/// What a batch with `body_len` bytes of frames takes up in the file.
pub(crate) const fn batch_len(body_len: usize) -> u64 {
    ((BATCH_HEADER + body_len) as u64).next_multiple_of(8)
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A record.
    Event,
    /// A signed checkpoint.
    Checkpoint,
    /// A chunk of a body.
    Chunk,
    /// A control entry.
    Control,
    /// The writer's own note of what is open; no reader sees it.
    State,
    /// A kind of a later version; readers pass it by.
    Other(u8),
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            Self::Event => 1,
            Self::Checkpoint => 2,
            Self::Chunk => 3,
            Self::Control => 4,
            Self::State => 5,
            Self::Other(code) => code,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Event,
            2 => Self::Checkpoint,
            3 => Self::Chunk,
            4 => Self::Control,
            5 => Self::State,
            other => Self::Other(other),
        }
    }
}

/// One frame, borrowed from its batch's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it is.
    pub(crate) kind: FrameKind,
    /// Its header.
    pub(crate) header: Bytes,
    /// Its value.
    pub(crate) value: Bytes,
}

/// Appends a frame to `buffer`. `false`, and nothing appended, when it is too large for one.
pub(crate) fn push_frame(
    buffer: &mut Vec<u8>,
    kind: FrameKind,
    header: &[u8],
    value: &[u8],
) -> bool {
    let (Ok(len), Ok(header_len)) =
        (u32::try_from(header.len() + value.len()), u16::try_from(header.len()))
    else {
        return false;
    };
    buffer.extend_from_slice(&len.to_le_bytes());
    buffer.extend_from_slice(&header_len.to_le_bytes());
    buffer.extend_from_slice(&[kind.code(), 0]);
    buffer.extend_from_slice(header);
    buffer.extend_from_slice(value);
    true
}

/// Takes the first frame off `body`, whose checksum was right; `None` when it is no frame.
pub(crate) fn take_frame(body: &mut Bytes) -> Option<Frame> {
    if body.len() < FRAME_HEAD {
        return None;
    }
    let (len, header_len) = (u32_at(body, 0) as usize, usize::from(u16_at(body, 4)));
    let kind = FrameKind::from_code(body[6]);
    if header_len > len || body.len() - FRAME_HEAD < len {
        return None;
    }
    let mut content = body.split_to(FRAME_HEAD + len).split_off(FRAME_HEAD);
    let header = content.split_to(header_len);
    Some(Frame { kind, header, value: content })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            lane: 1,
            base: 77,
            created_at: 1_700_000_000_000_000,
            key: 0x0123_4567_89ab_cdef,
            previous_base: 5,
            previous_end: 8192,
        }
    }

    #[test]
    fn a_segment_header_reads_back_and_a_newer_one_says_so() {
        let mut bytes = header().encode();
        assert_eq!(bytes.len() as u64, SEGMENT_HEADER);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
        bytes[20] ^= 1;
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderProblem::Damaged));
        bytes[8] = 2;
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderProblem::Newer(2)));
    }

    #[test]
    fn the_format_of_a_segment_header_is_final() {
        let hex: String = header().encode()[..60].iter().map(|b| format!("{b:02x}")).collect();
        let golden = "435553544f44594a01000000010000004d0000000000000000401e18240a0600\
                      efcdab8967452301050000000000000000200000000000009cbdc47f";
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_batch_header_is_one_only_at_its_own_place_in_its_own_segment() {
        let header = BatchHeader {
            key: 9,
            position: 4096,
            base: 3,
            journaled_at: 1,
            synced_through: 4096,
            body_len: 17,
            body_crc: 2,
            count: 1,
        };
        let bytes = header.encode();
        assert_eq!(BatchHeader::decode(&bytes, 9, 4096), Some(header));
        assert_eq!(BatchHeader::decode(&bytes, 8, 4096), None);
        assert_eq!(BatchHeader::decode(&bytes, 9, 4104), None);
        assert_eq!(header.next_position(), 4096 + 88);
    }

    proptest! {
        #[test]
        fn frames_read_back(
            frames in prop::collection::vec(
                (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40),
                 prop::collection::vec(any::<u8>(), 0..400)), 0..9)
        ) {
            let mut buffer = Vec::new();
            for (code, header, value) in &frames {
                prop_assert!(push_frame(&mut buffer, FrameKind::from_code(*code), header, value));
            }
            let mut body = Bytes::from(buffer);
            for (code, header, value) in &frames {
                let frame = take_frame(&mut body).unwrap();
                prop_assert_eq!(frame.kind.code(), *code);
                prop_assert_eq!(&frame.header[..], &header[..]);
                prop_assert_eq!(&frame.value[..], &value[..]);
            }
            prop_assert!(body.is_empty());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(BatchHeader::decode(&bytes, 1, 2), None);
            let mut body = Bytes::from(bytes);
            while take_frame(&mut body).is_some() {}
        }
    }
}
