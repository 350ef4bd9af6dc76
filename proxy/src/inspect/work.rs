//! What is done for one message: how much is left to do, and how a text or a blob is read.
//!
//! A text may be JSON, hold JSON among prose, be an HL7 v2 message or a C-CDA document, or name
//! patients in a sentence; whatever it is, it is read as that. The work is bounded by the bytes
//! that are looked at: [`MAX_WORK_BYTES`] for a message, texts inside it counted again.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::clues::{Ahead, Clue, Clues, Hits, has_blobs};
use super::fhir::Walk;
use super::patients::{MAX_MENTIONS, PATIENT};
use super::references::{self, Sure};
use super::subjects::{Found, Unexamined};
use super::{cda, hl7v2};
use crate::scan::ScanError;

/// How many bytes are examined for one message, texts inside it counted again.
pub(crate) const MAX_WORK_BYTES: usize = 64 << 20;
/// How deep JSON in a text in JSON is read.
pub(super) const MAX_NESTING: u32 = 4;
/// What an attempt to read costs at least.
const LEAST: usize = 64;

/// Base64 with or without padding, as servers write it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What is asked of a message, and what is left to do for it.
pub(super) struct Work<'f> {
    left: usize,
    /// Whether an agent sends it: then names in it are questions.
    pub(super) sent: bool,
    /// Whether a sentence that names a patient counts.
    pub(super) prose: bool,
    pub(super) found: &'f mut Found,
}

impl<'f> Work<'f> {
    pub(super) fn new(sent: bool, prose: bool, found: &'f mut Found) -> Self {
        Self { left: MAX_WORK_BYTES, sent, prose, found }
    }

    /// Reads the message itself.
    pub(super) fn message(&mut self, text: &str) {
        let clues = Clues::of(text);
        if clues.is_empty() && !has_blobs(text) {
            return;
        }
        self.note_clues(&clues);
        if self.document(text, clues.from(0), 0).is_err() {
            self.found.note(Unexamined::Unreadable);
        }
    }

    fn note_clues(&mut self, clues: &Clues) {
        if !clues.is_complete() {
            self.found.note(Unexamined::Mentions);
        }
    }

    /// Reads one JSON value at the start of `text`; returns where it ends.
    fn document(&mut self, text: &str, clues: Ahead<'_>, nesting: u32) -> Result<usize, ScanError> {
        let mut walk = Walk::new(text, clues);
        let result = walk.run(self, nesting);
        let end = walk.position();
        self.found.note_read(end);
        self.spend(match result {
            Err(ScanError::Syntax(at)) => at.max(end),
            _ => end,
        });
        if result == Err(ScanError::TooDeep) {
            self.found.note(Unexamined::Depth);
        }
        if walk.patients.len() >= MAX_MENTIONS {
            self.found.note(Unexamined::Mentions);
        }
        // of what breaks off, its whole parts and its prose are read apart
        if result.is_ok() || nesting == 0 {
            walk.patients.settle(self.found);
        }
        result.map(|()| end)
    }

    fn spend(&mut self, bytes: usize) {
        match self.left.checked_sub(bytes.max(LEAST)) {
            Some(left) => self.left = left,
            None => {
                self.left = 0;
                self.found.note(Unexamined::Length);
            }
        }
    }

    /// Reads a text: every JSON value in it that may matter, and what is around them.
    pub(super) fn text(&mut self, text: &str, nesting: u32) {
        self.found.note_read(text.len());
        self.spend(text.len());
        let clues = Clues::of(text);
        self.note_clues(&clues);
        let (all, mut ahead) = (clues.all(), clues.from(0));
        let (mut read_to, mut at) = (0, 0);
        while let Some(clue) = ahead.next(at)
            && self.left > 0
        {
            let Some(bracket) = memchr::memchr2(b'{', b'[', &text.as_bytes()[at..clue]) else {
                at = clue + 1;
                continue;
            };
            let from = at + bracket;
            if nesting > MAX_NESTING {
                self.found.note(Unexamined::Depth);
                break;
            }
            match self.document(&text[from..], clues.from(from), nesting) {
                Ok(length) if from + length > clue => {
                    self.prose(&text[read_to..from], all);
                    read_to = from + length;
                    at = read_to;
                }
                Ok(length) => at = from + length,
                Err(_) => at = from + 1,
            }
        }
        self.prose(&text[read_to..], all);
    }

    /// Reads what is no JSON, looking for what there are clues of.
    fn prose(&mut self, text: &str, hits: Hits) {
        self.found.note_read(text.len());
        if hits.has(Clue::Message) {
            hl7v2::look(text, self.found);
        }
        if hits.has(Clue::Document) {
            cda::look(text, self.found);
        }
        if self.prose && hits.has(Clue::Patient) {
            let found = &mut *self.found;
            let sure = if self.sent { Sure::Yes } else { Sure::No };
            references::each(text, sure, |id| found.add(PATIENT, id, None, Vec::new()));
        }
    }

    /// Reads bytes that stand as base64, as far as they are text.
    pub(super) fn blob(&mut self, blob: &str, media: Option<&str>, nesting: u32) {
        if let Some(why) = media.and_then(no_text) {
            self.found.note(why);
            return;
        }
        self.spend(blob.len());
        let bytes = BASE64.decode(blob.trim()).or_else(|_| {
            let dense: Vec<u8> = blob.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
            BASE64.decode(dense)
        });
        match bytes.map(String::from_utf8) {
            Ok(Ok(text)) if text.contains('\0') => self.found.note(Unexamined::Binary),
            Ok(Ok(text)) => self.text(&text, nesting + 1),
            Ok(Err(error)) => {
                let pdf = error.as_bytes().starts_with(b"%PDF");
                self.found.note(if pdf { Unexamined::Pdf } else { Unexamined::Binary });
            }
            Err(_) => self.found.note(Unexamined::Base64),
        }
    }
}

/// Why bytes of this media type are not examined, if they are not.
fn no_text(media: &str) -> Option<Unexamined> {
    let media = media.trim().to_ascii_lowercase();
    match media.split('/').next() {
        Some("image") if !media.starts_with("image/svg") => Some(Unexamined::Image),
        Some("audio") => Some(Unexamined::Audio),
        Some("video") => Some(Unexamined::Video),
        _ if media.starts_with("application/pdf") => Some(Unexamined::Pdf),
        _ if media.starts_with("application/dicom") => Some(Unexamined::Image),
        _ => None,
    }
}
