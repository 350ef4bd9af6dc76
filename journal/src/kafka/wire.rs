//! An entry of the journal as a message of Kafka, and back.
//!
//! * Events: key = stream, value = canonical bytes, CloudEvents 1.0 headers in binary mode.
//!   A signed checkpoint stands in the same topic under the same key, so that it keeps its place
//!   behind the events that it signs; the header `custody_entry` says what it is.
//! * Bodies: key = body id, value = one chunk, its header in `custody_chunk`.
//! * Control: key = what it is about, no value where the key is removed.
//!
//! Whatever stands in a topic reads back as an entry, also what is not ours or of a later version:
//! nothing is skipped, the reader of the entry judges its bytes.

use bytes::Bytes;
use custody_schemas::body::ChunkHeader;
use custody_schemas::id::Uint;
use custody_schemas::seal::checkpoint;
use rdkafka::message::{Header, Headers as _, OwnedHeaders};
use serde::Deserialize;

use crate::{Entry, EntryKind, Topic};

/// The partition of a key is the same whatever client asks.
pub(crate) const PARTITIONER: (&str, &str) = ("partitioner", "murmur2");

/// Says what an entry is where that is not what its topic usually holds.
const ENTRY: &str = "custody_entry";
/// Holds a chunk's header.
const CHUNK: &str = "custody_chunk";
const CHECKPOINT: &[u8] = b"checkpoint";

/// What goes to Kafka for one entry, beside its value.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// The topic.
    pub(crate) topic: Topic,
    /// Decides on the partition.
    pub(crate) key: Vec<u8>,
    /// Says what the value is.
    pub(crate) headers: OwnedHeaders,
    /// The value; none where a control key is removed.
    pub(crate) value: Option<&'a [u8]>,
}

/// What names a record: read without understanding the rest of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Named<'a> {
    /// Its kind.
    pub(crate) kind: &'a str,
    /// Its place.
    pub(crate) seq: u64,
    /// The stream.
    pub(crate) stream: &'a str,
}

impl<'a> Named<'a> {
    /// The name of the record with these bytes, if it has one.
    pub(crate) fn of(record: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(record).ok()
    }
}

/// A checkpoint's stream and size, if it can be read.
pub(crate) fn signed(message: &[u8]) -> Option<(String, u64)> {
    let note = checkpoint::Message::decode(message).ok()?.note;
    let mut lines = note.lines();
    let (origin, size) = (lines.next()?, lines.next()?.parse().ok()?);
    // {deployment}/{writer}/{run}
    let mut names = origin.rsplitn(3, '/');
    let (run, writer) = (names.next()?, names.next()?);
    Some((format!("{writer}/{run}"), size))
}

/// The message for an entry of `kind`.
pub(crate) fn message<'a>(kind: EntryKind, header: &[u8], value: &'a [u8]) -> Message<'a> {
    let value_of = Some(value);
    match kind {
        EntryKind::Event => {
            let (key, headers) = about_event(value);
            Message { topic: Topic::Events, key, headers, value: value_of }
        }
        EntryKind::Checkpoint => {
            let (key, headers) = about_checkpoint(value);
            Message { topic: Topic::Events, key, headers, value: value_of }
        }
        EntryKind::Chunk => {
            let body = ChunkHeader::decode(header).map(|header| header.body.to_string());
            let headers = with(OwnedHeaders::new_with_capacity(1), CHUNK, header);
            let key = body.unwrap_or_default().into_bytes();
            Message { topic: Topic::Bodies, key, headers, value: value_of }
        }
        EntryKind::Control => {
            let headers = OwnedHeaders::new_with_capacity(0);
            let value = value_of.filter(|value| !value.is_empty());
            Message { topic: Topic::Control, key: header.to_vec(), headers, value }
        }
    }
}

fn about_event(record: &[u8]) -> (Vec<u8>, OwnedHeaders) {
    match Named::of(record) {
        Some(Named { kind, seq, stream }) => {
            (stream.into(), cloud_event(&format!("{stream}/{seq}"), stream, kind))
        }
        None => (Vec::new(), OwnedHeaders::new_with_capacity(0)),
    }
}

fn about_checkpoint(message: &[u8]) -> (Vec<u8>, OwnedHeaders) {
    let (key, headers) = match signed(message) {
        Some((stream, size)) => {
            let id = format!("{stream}/checkpoint/{size}");
            let headers = cloud_event(&id, &stream, "checkpoint");
            (stream.into_bytes(), headers)
        }
        None => (Vec::new(), OwnedHeaders::new_with_capacity(1)),
    };
    (key, with(headers, ENTRY, CHECKPOINT))
}

/// The attributes that CloudEvents 1.0 asks for; the source is the writer.
fn cloud_event(id: &str, stream: &str, kind: &str) -> OwnedHeaders {
    let writer = stream.split_once('/').map_or(stream, |(writer, _)| writer);
    let mut headers = OwnedHeaders::new_with_capacity(5);
    for (name, value) in
        [("ce_specversion", "1.0"), ("ce_id", id), ("ce_source", writer), ("ce_type", kind)]
    {
        headers = with(headers, name, value.as_bytes());
    }
    headers
}

fn with(headers: OwnedHeaders, key: &str, value: &[u8]) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}

/// The entry that stands in `topic` as `message`.
pub(crate) fn entry(topic: Topic, message: &impl rdkafka::Message) -> Entry {
    let header = |name| header(message, name);
    let (kind, header) = match topic {
        Topic::Events if header(ENTRY) == Some(CHECKPOINT) => (EntryKind::Checkpoint, None),
        Topic::Events => (EntryKind::Event, None),
        Topic::Bodies => (EntryKind::Chunk, header(CHUNK)),
        Topic::Control => (EntryKind::Control, message.key()),
    };
    let millis = message.timestamp().to_millis().and_then(|at| u64::try_from(at).ok());
    Entry {
        offset: u64::try_from(message.offset()).unwrap_or(0),
        journaled_at: Uint::new(millis.unwrap_or(0).saturating_mul(1000)),
        kind,
        header: Bytes::copy_from_slice(header.unwrap_or_default()),
        value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    }
}

fn header<'a>(message: &'a impl rdkafka::Message, name: &str) -> Option<&'a [u8]> {
    message.headers()?.iter().find(|header| header.key == name)?.value
}

#[cfg(test)]
mod tests {
    use custody_schemas::body;
    use custody_schemas::event::Draft;
    use custody_schemas::id::{Bytes as Fixed, StreamId};
    use custody_schemas::kind::Kind;
    use custody_schemas::record::Place;
    use custody_schemas::seal::Tree;
    use custody_schemas::seal::checkpoint::Checkpoint;
    use custody_schemas::seal::key::Signer;
    use rdkafka::message::{OwnedMessage, Timestamp};

    use super::*;

    fn stream() -> StreamId {
        StreamId::new("edge-1", uuid::Uuid::nil()).unwrap()
    }

    fn record() -> Vec<u8> {
        let place = Place { stream: stream(), seq: 7, at: Uint::new(1), salt: Fixed([7; 16]) };
        Draft::new(Kind::StreamAlive).seal(place).unwrap().bytes
    }

    fn checkpoint_message() -> Vec<u8> {
        let (signer, _) = Signer::from_seed("a.example/edge-1", &[3; 32]).unwrap();
        let origin = checkpoint::origin("a.example", &stream());
        let note = Checkpoint::of(origin, &Tree::default()).sign(&signer).unwrap();
        checkpoint::Message { note, first: 0, leaves: Vec::new() }.encode()
    }

    /// What a reader finds where `message` was written.
    fn back(message: Message<'_>) -> Entry {
        let key = Some(message.key);
        let (value, at) = (message.value.map(<[u8]>::to_vec), Timestamp::LogAppendTime(5));
        let topic = message.topic;
        let headers = Some(message.headers);
        entry(topic, &OwnedMessage::new(value, key, topic.name().to_owned(), at, 0, 42, headers))
    }

    #[test]
    fn every_kind_of_entry_reads_back_as_it_was() {
        let id = Fixed([9; 16]);
        let (_, chunks) = body::split(id, Fixed([1; 32]), &Bytes::from_static(b"body"));
        let chunk = chunks[0].header.encode();
        let (record, checkpoint) = (record(), checkpoint_message());
        let cases: [(EntryKind, &[u8], &[u8]); 6] = [
            (EntryKind::Event, b"", &record),
            (EntryKind::Event, b"", b"not a record"),
            (EntryKind::Checkpoint, b"", &checkpoint),
            (EntryKind::Chunk, &chunk, b"body"),
            (EntryKind::Control, b"pin/a", b"1"),
            (EntryKind::Control, b"pin/a", b""),
        ];
        for (kind, header, value) in cases {
            let entry = back(message(kind, header, value));
            assert_eq!((entry.kind, &entry.header[..], &entry.value[..]), (kind, header, value));
            assert_eq!((entry.offset, entry.journaled_at.get()), (42, 5000));
        }
    }

    #[test]
    fn events_and_checkpoints_of_a_stream_have_its_key_and_are_cloud_events() {
        let (record, checkpoint) = (record(), checkpoint_message());
        let event = message(EntryKind::Event, b"", &record);
        assert_eq!(event.key, stream().as_str().as_bytes());
        let found: Vec<_> = event.headers.iter().map(|h| (h.key, h.value.unwrap())).collect();
        let id = format!("{}/7", stream());
        let expected = [
            ("ce_specversion", &b"1.0"[..]),
            ("ce_id", id.as_bytes()),
            ("ce_source", b"edge-1"),
            ("ce_type", b"stream.alive"),
        ];
        assert_eq!(found, expected);
        assert_eq!(message(EntryKind::Checkpoint, b"", &checkpoint).key, event.key);
        assert_eq!(signed(&checkpoint), Some((stream().to_string(), 0)));
    }

    #[test]
    fn a_removed_control_key_has_no_value_so_that_compaction_forgets_it() {
        assert_eq!(message(EntryKind::Control, b"pin/a", b"").value, None);
        assert_eq!(message(EntryKind::Control, b"pin/a", b"1").value, Some(&b"1"[..]));
    }

    #[test]
    fn what_is_not_ours_reads_as_an_entry_with_its_bytes() {
        let at = Timestamp::NotAvailable;
        let foreign = |headers| {
            let value = Some(b"whatever".to_vec());
            OwnedMessage::new(value, None, "t".to_owned(), at, 0, 1, headers)
        };
        let later = with(OwnedHeaders::new(), ENTRY, b"of a later version");
        for headers in [None, Some(later)] {
            let read = entry(Topic::Events, &foreign(headers));
            assert_eq!((read.kind, &read.value[..]), (EntryKind::Event, &b"whatever"[..]));
        }
        let read = entry(Topic::Bodies, &foreign(None));
        assert_eq!((read.kind, &read.header[..]), (EntryKind::Chunk, &b""[..]));
    }
}
