//! Recognises FHIR R4 and R5 JSON, and the patients that it is about.
//!
//! A patient is found as a `Patient` resource, as the target of a reference (relative, absolute,
//! `urn:` within a Bundle, by identifier, contained), and, in what an agent sends, as a path or
//! query that names one. Several patients of a Bundle are several subjects. It reads in one pass
//! without recursion over the message; JSON inside a text or blob is read the same way, at most
//! [`MAX_NESTING`] deep.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_schemas::words::Direction;
use memchr::memmem::{self, Finder};

use super::subjects::Found;
use crate::scan::{ScanError, Scanner, Text, Token};

/// How many bytes are examined for one message, texts inside it counted again.
pub(crate) const MAX_WORK_BYTES: usize = 64 << 20;
/// How deep JSON in a text in JSON is read.
const MAX_NESTING: u32 = 3;
/// How many values one text may hold one after the other.
const MAX_VALUES_IN_TEXT: u32 = 4_096;
/// How many identifiers of a patient are kept.
const MAX_IDENTIFIERS: usize = 8;
/// How many mentions of patients are kept for one document.
const MAX_MENTIONS: usize = 100_000;
/// The system of a patient's logical id.
const PATIENT: &str = "fhir:Patient";

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
        if result == Err(ScanError::TooDeep) || walk.patients.mentions.len() >= MAX_MENTIONS {
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

/// What a key says of the object below it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Under {
    Identifier,
    Contained,
    /// `patient`
    Patient,
    /// A key whose reference is mostly a patient.
    Subject,
    Other,
}

impl Under {
    fn key(key: &str) -> Self {
        match key {
            "identifier" => Self::Identifier,
            "contained" => Self::Contained,
            "patient" => Self::Patient,
            "subject" | "beneficiary" | "individual" | "for" => Self::Subject,
            _ => Self::Other,
        }
    }

    fn is_patient(self) -> bool {
        matches!(self, Self::Patient | Self::Subject)
    }
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
            mentions_from: self.patients.mentions.len(),
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
            let patient = self.patients.resource(kind, id, identifiers, frame);
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

/// A patient resource.
struct Patient {
    id: String,
    url: Option<String>,
    identifiers: Vec<(String, String)>,
}

/// Something that points to a patient.
#[derive(Clone, PartialEq, Eq)]
enum Mention {
    /// The resource at this place.
    Resource(usize),
    /// A logical id, with the absolute URL that it was part of.
    Id(String, Option<String>),
    /// A URN, and whether it is said to be a patient.
    Urn(String, bool),
    /// An identifier.
    Identifier(String, String),
    /// Nobody.
    Nobody,
}

impl Mention {
    fn to(reference: &str, of_type: Option<&str>, under: Under) -> Self {
        if let Some(id) = patient_in_path(reference) {
            let absolute = reference.contains("://").then(|| reference.to_owned());
            return Self::Id(id.to_owned(), absolute);
        }
        if reference.starts_with("urn:") {
            let said = of_type.map_or(under == Under::Patient, |kind| kind == "Patient");
            return Self::Urn(reference.to_owned(), said);
        }
        if let Some(query) = reference.strip_prefix("Patient?identifier=") {
            let (system, value) = query.split_once('|').unwrap_or(("", query));
            return Self::Identifier(system.to_owned(), value.to_owned());
        }
        Self::Nobody
    }
}

/// The patients of one document.
#[derive(Default)]
struct Patients {
    resources: Vec<Patient>,
    urls: HashMap<String, usize>,
    /// With the place of their category in `kinds`, once it is known.
    mentions: Vec<(Mention, Option<usize>)>,
    kinds: Vec<String>,
}

impl Patients {
    /// A whole resource: what it mentions is about it, and it may be a patient itself; then its
    /// place is returned.
    fn resource(
        &mut self,
        kind: &str,
        id: &str,
        identifiers: &[(String, String)],
        frame: Frame,
    ) -> Option<usize> {
        let contained = frame.under == Under::Contained;
        let patient = (kind == "Patient").then(|| {
            let identifiers = identifiers.iter().take(MAX_IDENTIFIERS).cloned().collect();
            let id = if contained { format!("#{id}") } else { id.to_owned() };
            self.add(Patient { id, url: None, identifiers })
        });
        if !contained {
            self.settle_contained(frame.mentions_from, kind, id);
        }
        self.categorise(frame.mentions_from, kind);
        patient
    }

    fn mention(&mut self, mention: Mention) {
        if mention != Mention::Nobody && self.mentions.len() < MAX_MENTIONS {
            self.mentions.push((mention, None));
        }
    }

    fn mention_in_text(&mut self, text: &str) {
        if let Some(id) = patient_in_path(text).or_else(|| patient_in_query(text)) {
            self.mention(Mention::Id(id.to_owned(), None));
        }
    }

    fn add(&mut self, patient: Patient) -> usize {
        let index = self.resources.len();
        self.resources.push(patient);
        self.mention(Mention::Resource(index));
        index
    }

    /// The patient of a Bundle's entry has this URL.
    fn name(&mut self, patient: Option<usize>, url: &str) {
        if let Some(index) = patient {
            self.resources[index].url = Some(url.to_owned());
            self.urls.insert(url.to_owned(), index);
        }
    }

    /// Gives contained patients, whose ids mean nothing outside, the name of what contains them.
    fn settle_contained(&mut self, from: usize, kind: &str, id: &str) {
        for (mention, _) in &self.mentions[from..] {
            if let Mention::Resource(index) = mention {
                let patient = &mut self.resources[*index];
                if patient.id.starts_with('#') {
                    patient.id = format!("{kind}/{id}{}", patient.id);
                }
            }
        }
    }

    /// Everything mentioned inside a resource is data of its kind, counted once for each patient.
    fn categorise(&mut self, from: usize, kind: &str) {
        if self.mentions.len() == from {
            return;
        }
        let place = self.kinds.iter().rposition(|known| known == kind).unwrap_or_else(|| {
            self.kinds.push(kind.to_owned());
            self.kinds.len() - 1
        });
        let mut kept = from;
        for at in from..self.mentions.len() {
            let (mention, known) = &self.mentions[at];
            let recent = &self.mentions[from.max(kept.saturating_sub(64))..kept];
            let again =
                |other: &(Mention, Option<usize>)| other.1 == Some(place) && other.0 == *mention;
            if known.is_none() && recent.iter().any(again) {
                continue;
            }
            self.mentions[at].1.get_or_insert(place);
            self.mentions.swap(kept, at);
            kept += 1;
        }
        self.mentions.truncate(kept);
    }

    fn settle(self, found: &mut Found) {
        for (mention, category) in &self.mentions {
            let category = category.and_then(|place| self.kinds.get(place)).map(String::as_str);
            match mention {
                Mention::Resource(index) => self.resources[*index].count(category, found),
                Mention::Id(id, url) => {
                    found.add(PATIENT, id, category, url.iter().cloned().collect());
                }
                Mention::Urn(urn, said) => match self.urls.get(urn) {
                    Some(&index) => self.resources[index].count(category, found),
                    None if *said => found.add(PATIENT, urn, category, Vec::new()),
                    None => {}
                },
                Mention::Identifier(system, value) => {
                    let system = if system.is_empty() { "identifier" } else { system };
                    found.add(system, value, category, Vec::new());
                }
                Mention::Nobody => {}
            }
        }
    }
}

impl Patient {
    fn count(&self, category: Option<&str>, found: &mut Found) {
        let named = !self.id.is_empty() && !self.id.contains('#');
        let aliases = || self.identifiers.iter().map(|(system, value)| format!("{system}|{value}"));
        match (named, self.identifiers.first(), &self.url) {
            (true, ..) => found.add(PATIENT, &self.id, category, aliases().collect()),
            (false, Some((system, value)), _) => {
                let system = if system.is_empty() { "identifier" } else { system };
                found.add(system, value, category, aliases().skip(1).collect());
            }
            (false, None, Some(url)) => found.add(PATIENT, url, category, Vec::new()),
            (false, None, None) if !self.id.is_empty() => {
                found.add("fhir:contained", &self.id, category, Vec::new());
            }
            (false, None, None) => found.note_incomplete(),
        }
    }
}

/// The id in `Patient/ID`, at the start or after a slash.
fn patient_in_path(text: &str) -> Option<&str> {
    const SEGMENT: &str = "Patient/";
    let at = memmem::find(text.as_bytes(), SEGMENT.as_bytes())?;
    let at_border = at == 0 || matches!(text.as_bytes()[at - 1], b'/' | b'=' | b'"' | b' ' | b'(');
    let id = leading_id(&text[at + SEGMENT.len()..]);
    (at_border && !id.is_empty()).then_some(id)
}

/// The id in `…?patient=ID` or `…&subject=Patient/ID`.
fn patient_in_query(text: &str) -> Option<&str> {
    let (_, query) = text.split_once('?')?;
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let wanted = matches!(key, "patient" | "patient:Patient" | "subject:Patient");
        let id = leading_id(value);
        (wanted && !id.is_empty()).then_some(id)
    })
}

/// A FHIR id: up to 64 letters, digits, dots and hyphens.
fn leading_id(text: &str) -> &str {
    let stop = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.');
    let id = &text[..text.find(stop).unwrap_or(text.len())];
    if id.len() <= 64 { id } else { "" }
}
