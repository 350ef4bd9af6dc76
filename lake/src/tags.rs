//! What our writers say of a file beside Delta's statistics: the partition it was read from, the
//! offsets, and which records of which streams it holds.
//!
//! With that, ingest knows after a restart what is stored without reading a row. A file without
//! tags (rewritten by another program) is read instead, so that tags are never the only truth.

use std::collections::BTreeMap;

use custody_schemas::id::StreamId;
use serde_json::{Value, json};

use crate::snapshot::DataFile;

/// The app id of the journal partition.
const PARTITION: &str = "custody.partition";
/// `[[stream, [[first, end], …]], …]`, ends exclusive.
const STREAMS: &str = "custody.streams";

/// Ranges of sequence numbers, ends exclusive, ascending.
pub type Spans = Vec<(u64, u64)>;

/// The tags of a file read from the partition with this app id.
#[must_use]
pub fn write<'a>(
    app_id: &str,
    streams: impl IntoIterator<Item = (&'a StreamId, &'a [(u64, u64)])>,
) -> BTreeMap<String, String> {
    let streams: Vec<Value> =
        streams.into_iter().map(|(stream, spans)| json!([stream.as_str(), spans])).collect();
    BTreeMap::from([
        (PARTITION.to_owned(), app_id.to_owned()),
        (STREAMS.to_owned(), Value::from(streams).to_string()),
    ])
}

impl DataFile {
    /// The app id of the partition that the file was read from, when its tags say.
    #[must_use]
    pub fn partition(&self) -> Option<&str> {
        self.tags.get(PARTITION).map(String::as_str)
    }

    /// The records that the file holds, when its tags say. Several files of one commit may name
    /// the same records: tags speak of the whole batch.
    #[must_use]
    pub fn streams(&self) -> Option<Vec<(StreamId, Spans)>> {
        let tag: Vec<(StreamId, Spans)> = serde_json::from_str(self.tags.get(STREAMS)?).ok()?;
        let sound = tag.iter().all(|(_, spans)| spans.iter().all(|(first, end)| first < end));
        sound.then_some(tag)
    }
}
