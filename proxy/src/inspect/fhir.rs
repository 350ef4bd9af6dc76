//! Recognises FHIR R4 and R5 JSON, and the patients that it is about.
//!
//! A patient is found as a `Patient` resource, as the target of a reference (relative, absolute,
//! `urn:` within a Bundle, by identifier, contained), and, in what an agent sends, as a path or
//! query that names one. Several patients of a Bundle are several subjects. It reads in one pass
//! without recursion over the message; JSON inside a text or blob is read the same way, at most
//! [`MAX_NESTING`] deep.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_schemas::words::Direction;
use memchr::memmem::{self, Finder};

use super::patients::{
    MAX_MENTIONS, Mention, PATIENT, Patients, Under, patient_in_path, patient_in_query,
};
use super::subjects::Found;
use crate::scan::{ScanError, Scanner, Text, Token};

/// How many bytes are examined for one message, texts inside it counted again.
pub(crate) const MAX_WORK_BYTES: usize = 64 << 20;
/// How deep JSON in a text in JSON is read.
const MAX_NESTING: u32 = 3;
/// How many values one text may hold one after the other.
const MAX_VALUES_IN_TEXT: u32 = 4_096;

/// Words without which a message need not be read.
struct Clues {
    resource: Finder<'static>,
    patient: Finder<'static>,
    query: Finder<'static>,
    blob: Finder<'static>,
    mime: Finder<'static>,
    image: Finder<'static>,
    audio: Finder<'static>,
}

static CLUES: LazyLock<Clues> = LazyLock::new(|| Clues {
    resource: Finder::new("resourceType"),
    patient: Finder::new("Patient"),
    query: Finder::new("patient="),
    blob: Finder::new("\"blob\""),
    mime: Finder::new("\"mimeType\""),
    image: Finder::new("\"image\""),
    audio: Finder::new("\"audio\""),
});

/// Looks for patients in a message.
pub(super) fn look(bytes: &[u8], found: &mut Found) {
    let sent = *found.direction() == Direction::Sent;
    let clues = &*CLUES;
    let worth_it = clues.resource.find(bytes).is_some()
        || clues.patient.find(bytes).is_some()
        || clues.blob.find(bytes).is_some()
        || (sent && clues.query.find(bytes).is_some());
    if clues.mime.find(bytes).is_some()
        && (clues.image.find(bytes).is_some() || clues.audio.find(bytes).is_some())
    {
        found.note_opaque();
    }
    if !worth_it {
        return;
    }
    let mut work = Work { left: MAX_WORK_BYTES, sent, found };
    match std::str::from_utf8(bytes) {
        Ok(text) => drop(work.document(text, 0)),
        Err(_) => work.found.note_incomplete(),
    }
}

/// Looks for a patient in a text that may be a path or URL, such as a resource's URI.
pub(super) fn look_at_reference(text: &str, found: &mut Found) {
    if let Some(id) = patient_in_path(text).or_else(|| patient_in_query(text)) {
        found.add(PATIENT, id, None, Vec::new());
    }
}

struct Work<'f> {
    left: usize,
    sent: bool,
    found: &'f mut Found,
}

impl Work<'_> {
    /// Reads one JSON value at the start of `text`; returns where it ends.
    fn document(&mut self, text: &str, nesting: u32) -> Result<usize, ScanError> {
        if self.left < text.len() {
            self.found.note_incomplete();
            return Err(ScanError::TooDeep);
        }
        let mut walk = Walk::new(text);
        let result = walk.run(self, nesting);
        let end = walk.scanner.position();
        let read = match result {
            Err(ScanError::Syntax(at)) => at.max(end),
            _ => end,
        };
        self.left -= read.min(self.left);
        if result == Err(ScanError::TooDeep) || walk.patients.len() >= MAX_MENTIONS {
            self.found.note_incomplete();
        }
        walk.patients.settle(self.found);
        result.map(|()| end)
    }

    /// Reads every JSON value that stands in `text`, for there may be prose around it.
    fn text(&mut self, text: &str, nesting: u32) {
        let Some(last) = memmem::rfind(text.as_bytes(), b"resourceType") else { return };
        let mut at = 0;
        for _ in 0..MAX_VALUES_IN_TEXT {
            match memchr::memchr2(b'{', b'[', &text.as_bytes()[at..]) {
                Some(next) if at + next < last => at += next,
                _ => return,
            }
            at += self.document(&text[at..], nesting).unwrap_or(1);
        }
        self.found.note_incomplete();
    }
}

/// An object or array that is open.
#[derive(Clone, Copy)]
struct Frame {
    array: bool,
    /// Under what kind of key it stands; an array hands its own on to its items.
    under: Under,
    /// The patient that is this object's `resource`.
    patient: Option<usize>,
    /// How many fields, identifiers and mentions had been found when it was opened.
    fields_from: usize,
    identifiers_from: usize,
    mentions_from: usize,
}

/// The members that matter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    ResourceType,
    Id,
    Reference,
    Type,
    System,
    Value,
    FullUrl,
    Mime,
    Blob,
}

impl Field {
    fn key(key: &str, sent: bool) -> Option<Self> {
        Some(match key {
            "resourceType" => Self::ResourceType,
            "id" => Self::Id,
            "reference" => Self::Reference,
            "type" => Self::Type,
            "system" => Self::System,
            "value" => Self::Value,
            "fullUrl" => Self::FullUrl,
            "mimeType" => Self::Mime,
            "blob" => Self::Blob,
            "resource_type" if sent => Self::ResourceType,
            "resource_id" | "resourceId" if sent => Self::Id,
            _ => return None,
        })
    }
}

/// The members of an object that matter, as they stand in it.
struct Members<'w, 'a>(&'w [(Field, Cow<'a, str>)]);

impl Members<'_, '_> {
    fn get(&self, field: Field) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| *known == field).map(|(_, text)| &**text)
    }
}

struct Walk<'a> {
    scanner: Scanner<'a>,
    open: Vec<Frame>,
    /// The fields of all open objects, outermost first.
    fields: Vec<(Field, Cow<'a, str>)>,
    /// The identifiers (system, value) of all open objects, outermost first.
    identifiers: Vec<(String, String)>,
    key: Cow<'a, str>,
    patients: Patients,
}

impl<'a> Walk<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            scanner: Scanner::over(text),
            open: Vec::new(),
            fields: Vec::new(),
            identifiers: Vec::new(),
            key: Cow::Borrowed(""),
            patients: Patients::default(),
        }
    }

    fn run(&mut self, work: &mut Work<'_>, nesting: u32) -> Result<(), ScanError> {
        while let Some(token) = self.scanner.step()? {
            match token {
                Token::ObjectStart => self.enter(false),
                Token::ArrayStart => self.enter(true),
                Token::ObjectEnd => self.leave_object(work, nesting),
                Token::ArrayEnd => drop(self.open.pop()),
                Token::Key(key) => self.key = key.decode(),
                Token::Text(text) => self.text(text, work, nesting),
                Token::Number(digits) => self.number(digits),
                Token::Bool(_) | Token::Null => {}
            }
        }
        Ok(())
    }

    fn enter(&mut self, array: bool) {
        let under = match self.open.last() {
            Some(outer) if outer.array => outer.under,
            _ => Under::key(&self.key),
        };
        self.open.push(Frame {
            array,
            under,
            patient: None,
            fields_from: self.fields.len(),
            identifiers_from: self.identifiers.len(),
            mentions_from: self.patients.len(),
        });
    }

    fn text(&mut self, text: Text<'a>, work: &mut Work<'_>, nesting: u32) {
        if nesting < MAX_NESTING
            && text.raw.len() > 16
            && CLUES.resource.find(text.raw.as_bytes()).is_some()
        {
            work.text(&text.decode(), nesting + 1);
        }
        let Some(frame) = self.open.last() else { return };
        let field = if frame.array { None } else { Field::key(&self.key, work.sent) };
        if let Some(field) = field {
            self.fields.push((field, text.decode()));
        } else if work.sent || (!frame.array && Under::key(&self.key).is_patient()) {
            self.patients.mention_in_text(&text.decode());
        }
    }

    fn number(&mut self, digits: &'a str) {
        let in_object = self.open.last().is_some_and(|frame| !frame.array);
        if in_object && self.key == "id" {
            self.fields.push((Field::Id, Cow::Borrowed(digits)));
        }
    }

    fn leave_object(&mut self, work: &mut Work<'_>, nesting: u32) {
        let Some(frame) = self.open.pop() else { return };
        let members = Members(&self.fields[frame.fields_from..]);
        if let Some(blob) = members.get(Field::Blob) {
            read_blob(blob, members.get(Field::Mime), work, nesting);
        }
        let of_type = members.get(Field::Type);
        let asks_for = work.sent && of_type == Some("Patient") && members.get(Field::Id).is_some();
        let kind = members.get(Field::ResourceType).or(of_type.filter(|_| asks_for));
        let mut identifier = None;
        if frame.under == Under::Identifier {
            let system = members.get(Field::System).unwrap_or_default().to_owned();
            identifier = members.get(Field::Value).map(|value| (system, value.to_owned()));
        } else if let Some(kind) = kind {
            let id = members.get(Field::Id).unwrap_or_default();
            let identifiers = &self.identifiers[frame.identifiers_from..];
            let patient =
                self.patients.resource(kind, id, identifiers, frame.under, frame.mentions_from);
            if let (Some(patient), Some(outer)) = (patient, self.open.last_mut()) {
                outer.patient = Some(patient);
            }
        } else if let Some(reference) = members.get(Field::Reference) {
            self.patients.mention(Mention::to(reference, of_type, frame.under));
        } else if let Some(url) = members.get(Field::FullUrl) {
            self.patients.name(frame.patient, url);
        } else if let Some((system, value)) = self.identifiers.get(frame.identifiers_from)
            && (of_type == Some("Patient") || frame.under.is_patient())
        {
            self.patients.mention(Mention::Identifier(system.clone(), value.clone()));
        }
        self.fields.truncate(frame.fields_from);
        self.identifiers.truncate(frame.identifiers_from);
        // an identifier belongs to the object around it
        self.identifiers.extend(identifier);
    }
}

fn read_blob(blob: &str, mime: Option<&str>, work: &mut Work<'_>, nesting: u32) {
    let json = mime.is_some_and(|mime| mime.contains("json")) && nesting < MAX_NESTING;
    match json.then(|| STANDARD.decode(blob.trim())) {
        Some(Ok(bytes)) => match String::from_utf8(bytes) {
            Ok(text) => work.text(&text, nesting + 1),
            Err(_) => work.found.note_opaque(),
        },
        _ => work.found.note_opaque(),
    }
}
