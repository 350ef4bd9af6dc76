//! What the run before left: read back from its spool, never continued.
//!
//! Beside the journal lies `signed`, a note of the newest signed checkpoint. It is not synced, so
//! it may be old, but it never says more than was durable: when the journal reaches less far, the
//! difference is reported as lost.

use std::io;
use std::path::Path;

use custody_schemas::event::{Draft, Outcome};
use custody_schemas::id::{Hash, StreamId};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;
use custody_schemas::record::{Decoded, decode};
use custody_schemas::words::Status;

use super::Previous;
use super::state::State;
use crate::ReadError;
use crate::file::disk::{self, File, Mode};
use crate::file::format::{FrameKind, SEGMENT_HEADER, take_frame};
use crate::file::segment::{Segment, Step};
use crate::file::shelf::{Shelf, Stored};
use custody_schemas::seal::Tree;

const SIGNED: &str = "signed";
const SIGNED_BYTES: usize = 256;

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// The run before.
    pub(crate) previous: Option<Previous>,
    /// Openings without an ending.
    pub(crate) orphans: Vec<Vec<u8>>,
    /// The note of signed checkpoints.
    pub(crate) signed: Signed,
}

/// Reads back the last run in `shelf`, the main lane of the spool in `dir`.
pub(crate) fn read_back(dir: &Path, shelf: &Shelf) -> Result<Found, ReadError> {
    let signed = Signed::open(dir).map_err(|error| ReadError::io(dir, error))?;
    let segments = shelf.all();
    let mut state = None;
    // the newest segment alone is enough, unless its first batch is missing
    for start in (0..segments.len()).rev() {
        state = fold(&segments[start..])?;
        if state.is_some() {
            break;
        }
    }
    let state = state.unwrap_or_default();
    let orphans = state.open.values().cloned().collect();
    let previous = previous(&state, signed.read());
    Ok(Found { previous, orphans, signed })
}

fn previous(state: &State, signed: Option<(StreamId, u64)>) -> Option<Previous> {
    let found = state.stream.as_ref().map(|stream| Previous {
        stream: stream.clone(),
        size: state.tree.size(),
        root: state.tree.root(),
        clean: state.closed,
        lost: 0,
    });
    match (found, signed) {
        (Some(found), Some((stream, size))) if found.stream == stream => {
            Some(Previous { lost: size.saturating_sub(found.size), ..found })
        }
        // runs are UUIDv7, so they sort by time
        (Some(found), Some((stream, _))) if found.stream.run() > stream.run() => Some(found),
        (_, Some((stream, lost))) => {
            let root = Tree::default().root();
            Some(Previous { stream, size: 0, root, clean: false, lost })
        }
        (found, None) => found,
    }
}

/// The state at the end of `segments`; none when nothing in them says where to begin.
fn fold(segments: &[Stored]) -> Result<Option<State>, ReadError> {
    let mut state = None;
    for stored in segments {
        let segment = Segment::open(&stored.path, false)?;
        let mut walk = segment.walk();
        let mut at = SEGMENT_HEADER;
        while at < stored.end.position {
            let (header, mut body) = match walk.batch(at, stored.end.position)? {
                Step::Batch(header, body) => (header, body),
                Step::Broken(reason) => return Err(segment.corrupt(at, reason)),
            };
            while let Some(frame) = take_frame(&mut body) {
                let problem = step(&mut state, frame.kind, &frame.value);
                problem.map_err(|reason| segment.corrupt(at, reason))?;
            }
            at = header.next_position();
        }
    }
    Ok(state)
}

fn step(state: &mut Option<State>, kind: FrameKind, value: &[u8]) -> Result<(), &'static str> {
    match kind {
        FrameKind::State => {
            let noted = State::decode(value).ok_or("a note of the run's state cannot be read")?;
            *state = Some(noted);
            Ok(())
        }
        FrameKind::Event => match state {
            Some(state) => state.push(value),
            None => {
                let mut first = State::default();
                if first.push(value).is_ok() {
                    *state = Some(first);
                }
                Ok(())
            }
        },
        FrameKind::Checkpoint | FrameKind::Chunk | FrameKind::Control | FrameKind::Other(_) => {
            Ok(())
        }
    }
}

/// The ending `unknown` of the call that `record` opens, whole and, should that be too long for a
/// record, without who, what and subjects.
pub(crate) fn unknown_ending(record: &[u8]) -> Option<[Draft; 2]> {
    let Decoded::Event(event) = decode(record) else { return None };
    let kind = if event.kind == Kind::QueryRequested { Kind::QueryEnded } else { Kind::CallEnded };
    let mut draft = Draft::new(kind);
    draft.tenant = event.tenant;
    draft.call = event.call;
    draft.outcome = Some(Outcome { status: Status::Unknown, ..Outcome::default() });
    draft.data.labels.clone_from(&event.data.labels);
    draft.data.subject_status.clone_from(&event.data.subject_status);
    let opening = [("seq", Json::from(event.seq)), ("stream", Json::from(event.stream.as_str()))];
    let bare = draft.with("opening", Json::from(opening));
    let mut whole = bare.clone();
    whole.prev_call = event.prev_call;
    whole.who = event.who;
    whole.what = event.what;
    whole.decision = event.decision;
    whole.data = event.data;
    Some([whole, bare])
}

/// The note of the newest signed checkpoint.
#[derive(Debug)]
pub(crate) struct Signed(File);

impl Signed {
    fn open(dir: &Path) -> io::Result<Self> {
        disk::make_folders(dir)?;
        File::open(&dir.join(SIGNED), Mode::Keep).map(Self)
    }

    fn read(&self) -> Option<(StreamId, u64)> {
        let mut bytes = [0; SIGNED_BYTES];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        let (text, crc) = std::str::from_utf8(&bytes).ok()?.trim_end().rsplit_once(' ')?;
        if crc != format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
            return None;
        }
        let mut words = text.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    }

    /// Notes that `size` leaves of `stream` are signed and durable.
    pub(crate) fn write(&self, stream: &StreamId, size: u64, root: Hash) {
        let text = format!("{stream} {size} {root}");
        let mut bytes = format!("{text} {:08x}", crc32c::crc32c(text.as_bytes())).into_bytes();
        bytes.resize(SIGNED_BYTES, b' ');
        if let Err(error) = self.0.write_all_at(&bytes, 0) {
            tracing::warn!(%error, "cannot note the signed size");
        }
    }
}
