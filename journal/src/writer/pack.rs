//! Turns the bodies that come with a draft into chunks and the draft's references to them.
//!
//! This runs on the caller's thread: hashing a large body holds up nobody else's append.

use bytes::Bytes;
use custody_schemas::body;
use custody_schemas::event::Draft;
use custody_schemas::id::Bytes as Fixed;

use super::{OutBody, Part};

/// What a chunk's frame and header take up beside its bytes, generously.
const CHUNK_OVERHEAD: u64 = 256;

/// A chunk as it is stored.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The encoded header.
    pub(crate) header: Bytes,
    /// The bytes.
    pub(crate) value: Bytes,
}

/// Commits to `bodies` and fills in the draft's references.
pub(crate) fn pack(draft: &mut Draft, bodies: Vec<OutBody>) -> Vec<Packed> {
    let mut packed = Vec::with_capacity(bodies.len());
    for OutBody { part, bytes } in bodies {
        let (reference, chunks) = body::split(Fixed(rand::random()), Fixed(rand::random()), &bytes);
        let field = match part {
            Part::Request => &mut draft.bodies.request,
            Part::Response => &mut draft.bodies.response,
            Part::Edits => &mut draft.bodies.edits,
        };
        *field = Some(reference);
        let chunks = chunks.into_iter();
        packed.extend(chunks.map(|c| Packed { header: c.header.encode(), value: c.value }));
    }
    packed
}

/// Length of `bodies`.
pub(crate) fn plain_len(bodies: &[OutBody]) -> u64 {
    bodies.iter().map(|body| body.bytes.len() as u64).sum()
}

/// What bodies of `plain` bytes together take up at most.
pub(crate) const fn stored_len(plain: u64) -> u64 {
    let chunks = plain / body::MAX_CHUNK_BYTES as u64 + 4;
    plain.saturating_add(chunks * CHUNK_OVERHEAD)
}
