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
#[derive(Default)]
struct Frame<'a> {
    array: bool,
    /// The key under which it stands; an array hands its own on to its items.
    under: Cow<'a, str>,
    resource_type: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    reference: Option<Cow<'a, str>>,
    of_type: Option<Cow<'a, str>>,
    system: Option<Cow<'a, str>>,
    value: Option<Cow<'a, str>>,
    full_url: Option<Cow<'a, str>>,
    mime: Option<Cow<'a, str>>,
    blob: Option<Cow<'a, str>>,
    identifiers: Vec<(String, String)>,
    /// The patient that is this object's `resource`.
    patient: Option<usize>,
    /// How many mentions had been found when it was opened.
    mentions_from: usize,
}

struct Walk<'a> {
    scanner: Scanner<'a>,
    open: Vec<Frame<'a>>,
    key: Cow<'a, str>,
    patients: Patients,
}

impl<'a> Walk<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            scanner: Scanner::over(text),
            open: Vec::new(),
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
            Some(outer) if outer.array => outer.under.clone(),
            _ => std::mem::take(&mut self.key),
        };
        let mentions_from = self.patients.mentions.len();
        self.open.push(Frame { array, under, mentions_from, ..Frame::default() });
    }

    fn text(&mut self, text: Text<'a>, work: &mut Work<'_>, nesting: u32) {
        if nesting < MAX_NESTING && text.raw.len() > 16 {
            self.embedded(text, work, nesting);
        }
        let Some(frame) = self.open.last_mut() else { return };
        if frame.array {
            if work.sent {
                self.patients.mention_in_text(&text.decode());
            }
            return;
        }
        let slot = match &*self.key {
            "resourceType" => &mut frame.resource_type,
            "id" => &mut frame.id,
            "reference" => &mut frame.reference,
            "type" => &mut frame.of_type,
            "system" => &mut frame.system,
            "value" => &mut frame.value,
            "fullUrl" => &mut frame.full_url,
            "mimeType" => &mut frame.mime,
            "blob" => &mut frame.blob,
            "resource_type" if work.sent => &mut frame.resource_type,
            "resource_id" | "resourceId" if work.sent => &mut frame.id,
            key => {
                let text = text.decode();
                if is_patient_key(key) || work.sent {
                    self.patients.mention_in_text(&text);
                }
                return;
            }
        };
        *slot = Some(text.decode());
    }

    /// JSON inside the text.
    fn embedded(&mut self, text: Text<'a>, work: &mut Work<'_>, nesting: u32) {
        if memmem::find(text.raw.as_bytes(), b"resourceType").is_some() {
            work.text(&text.decode(), nesting + 1);
        }
    }

    fn number(&mut self, digits: &'a str) {
        if let Some(frame) = self.open.last_mut()
            && !frame.array
            && self.key == "id"
        {
            frame.id = Some(Cow::Borrowed(digits));
        }
    }

    fn leave_object(&mut self, work: &mut Work<'_>, nesting: u32) {
        let Some(mut frame) = self.open.pop() else { return };
        if let Some(blob) = frame.blob.take() {
            read_blob(&blob, frame.mime.as_deref(), work, nesting);
        }
        if work.sent && frame.resource_type.is_none() && frame.of_type.as_deref() == Some("Patient")
        {
            frame.resource_type = frame.id.is_some().then_some(Cow::Borrowed("Patient"));
        }
        if frame.under == "identifier" {
            self.identifier(&frame);
        } else if let Some(kind) = frame.resource_type.take() {
            self.resource(&kind, frame);
        } else if let Some(reference) = &frame.reference {
            self.patients.mention(Mention::to(reference, frame.of_type.as_deref(), &frame.under));
        } else if let Some(url) = &frame.full_url {
            self.patients.name(frame.patient, url);
        } else if let Some((system, value)) = frame.identifiers.first()
            && (frame.of_type.as_deref() == Some("Patient") || is_patient_key(&frame.under))
        {
            self.patients.mention(Mention::Identifier(system.clone(), value.clone()));
        }
    }

    /// An `identifier` belongs to the object around it.
    fn identifier(&mut self, frame: &Frame<'_>) {
        let Some(value) = frame.value.as_deref() else { return };
        let system = frame.system.as_deref().unwrap_or_default();
        if let Some(owner) = self.open.iter_mut().rev().find(|outer| !outer.array)
            && owner.identifiers.len() < 8
        {
            owner.identifiers.push((system.to_owned(), value.to_owned()));
        }
    }

    /// A whole resource: what it mentions is about it, and it may be a patient itself.
    fn resource(&mut self, kind: &str, frame: Frame<'a>) {
        let contained = frame.under == "contained";
        if kind == "Patient" {
            let id = frame.id.as_deref().unwrap_or_default();
            let patient = Patient {
                id: if contained { format!("#{id}") } else { id.to_owned() },
                url: None,
                identifiers: frame.identifiers,
            };
            let index = self.patients.add(patient);
            if let Some(outer) = self.open.last_mut() {
                outer.patient = Some(index);
            }
        }
        if !contained {
            let id = frame.id.as_deref().unwrap_or_default();
            self.patients.settle_contained(frame.mentions_from, kind, id);
        }
        self.patients.categorise(frame.mentions_from, kind);
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
    fn to(reference: &str, of_type: Option<&str>, under: &str) -> Self {
        if let Some(id) = patient_in_path(reference) {
            let absolute = reference.contains("://").then(|| reference.to_owned());
            return Self::Id(id.to_owned(), absolute);
        }
        if reference.starts_with("urn:") {
            let said = of_type.map_or(under == "patient", |kind| kind == "Patient");
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
    mentions: Vec<(Mention, Option<String>)>,
}

impl Patients {
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
        let mut fresh: Vec<Mention> = Vec::new();
        let mut kept = self.mentions.split_off(from);
        kept.retain_mut(|(mention, category)| {
            if category.is_some() {
                return true;
            }
            *category = Some(kind.to_owned());
            let new = fresh.len() > 64 || !fresh.contains(mention);
            fresh.push(mention.clone());
            new
        });
        self.mentions.append(&mut kept);
    }

    fn settle(self, found: &mut Found) {
        for (mention, category) in &self.mentions {
            let category = category.as_deref();
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

fn is_patient_key(key: &str) -> bool {
    matches!(key, "patient" | "subject" | "beneficiary" | "individual" | "for")
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
