//! Recognises FHIR R4 and R5 JSON, and the patients that it is about.
//!
//! A patient is found as a `Patient` resource, as the target of a reference (relative, absolute,
//! `urn:` within a Bundle, by identifier, contained), in any other string that names one, and, in
//! what an agent sends, as an id that is asked for. Several patients of a Bundle are several
//! subjects. It reads in one pass without recursion over the message, and hands texts and blobs
//! that may hold more to [`super::work`].

use std::borrow::Cow;

use super::clues::{Ahead, Clue, Clues, Hits};
use super::identifiers::Identifier;
use super::patients::{Mention, Patients, Under};
use super::references::{self, Sure};
use super::work::Work;
use crate::scan::{ScanError, Scanner, Text, Token};

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
    Code,
    FullUrl,
    Media,
    Blob,
    /// Base64 if a media type stands beside it.
    Data,
    /// In what is sent: the parameters by which a patient is searched for.
    AskedId,
    AskedIdentifier,
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
            "code" => Self::Code,
            "fullUrl" => Self::FullUrl,
            "mimeType" | "contentType" => Self::Media,
            "blob" => Self::Blob,
            "data" => Self::Data,
            "resource_type" if sent => Self::ResourceType,
            "resource_id" | "resourceId" if sent => Self::Id,
            "_id" if sent => Self::AskedId,
            "identifier" if sent => Self::AskedIdentifier,
            _ => return None,
        })
    }

    /// Whether what it names is looked at when its object is complete.
    fn waits(self) -> bool {
        matches!(
            self,
            Self::ResourceType | Self::Reference | Self::Type | Self::FullUrl | Self::Blob
        )
    }
}

/// The members of an object that matter, as they stand in it.
struct Members<'w, 'a>(&'w [(Field, Cow<'a, str>)]);

impl Members<'_, '_> {
    fn get(&self, field: Field) -> Option<&str> {
        self.all(field).next_back()
    }

    fn all(&self, field: Field) -> impl DoubleEndedIterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| *known == field).map(|(_, text)| &**text)
    }
}

/// What a key says of the value behind it.
#[derive(Clone, Copy)]
struct Key {
    field: Option<Field>,
    under: Under,
    /// Itself, if an id behind it is a patient's in what an agent sends.
    asks: Option<&'static str>,
}

/// Arguments that are mostly a patient's id.
const ASKING: [&str; 4] = ["patient", "patientId", "patient_id", "patientID"];

impl Key {
    const NONE: Self = Self { field: None, under: Under::Other, asks: None };

    fn of(key: &str, sent: bool) -> Self {
        // no word of ours is longer
        if key.len() > 13 {
            return Self::NONE;
        }
        let asks = ASKING.into_iter().find(|asking| sent && *asking == key);
        Self { field: Field::key(key, sent), under: Under::key(key), asks }
    }
}

/// The reading of one JSON value.
pub(super) struct Walk<'a> {
    scanner: Scanner<'a>,
    clues: Ahead<'a>,
    open: Vec<Frame>,
    /// The fields of all open objects, outermost first.
    fields: Vec<(Field, Cow<'a, str>)>,
    /// The identifiers of all open objects, outermost first.
    identifiers: Vec<Identifier>,
    /// The type of the identifier that is being read.
    code: Option<Cow<'a, str>>,
    key: Key,
    pub(super) patients: Patients,
}

impl<'a> Walk<'a> {
    /// A reading of the value at the start of `text`, of whose clues `clues` are.
    pub(super) fn new(text: &'a str, clues: Ahead<'a>) -> Self {
        Self {
            scanner: Scanner::over(text),
            clues,
            open: Vec::new(),
            fields: Vec::new(),
            identifiers: Vec::new(),
            code: None,
            key: Key::NONE,
            patients: Patients::default(),
        }
    }

    /// The position behind what has been read.
    pub(super) fn position(&self) -> usize {
        self.scanner.position()
    }

    /// Reads the value to its end.
    pub(super) fn run(&mut self, work: &mut Work<'_>, nesting: u32) -> Result<(), ScanError> {
        while let Some(token) = self.scanner.step()? {
            match token {
                Token::ObjectStart => self.enter(false),
                Token::ArrayStart => self.enter(true),
                Token::ObjectEnd => self.leave_object(work, nesting),
                Token::ArrayEnd => drop(self.open.pop()),
                Token::Key(key) if key.escaped => self.key = Key::of(&key.decode(), work.sent),
                Token::Key(key) => self.key = Key::of(key.raw, work.sent),
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
            _ => self.key.under,
        };
        if under == Under::Identifier && !array {
            self.code = None;
        }
        self.open.push(Frame {
            array,
            under,
            patient: None,
            fields_from: self.fields.len(),
            identifiers_from: self.identifiers.len(),
            mentions_from: self.patients.len(),
        });
    }

    #[inline]
    fn text(&mut self, text: Text<'a>, work: &mut Work<'_>, nesting: u32) {
        let end = self.scanner.position() - 1; // the closing quote
        let hits = self.clues.between(end - text.raw.len(), end);
        let field = self.key.field.filter(|field| self.matters(*field));
        if field.is_none() && !hits.any() && self.key.asks.is_none() {
            return;
        }
        self.telling_text(text, field, hits, (work, nesting));
    }

    /// Whether this member matters where it stands: most codes and values are nobody's identifier.
    #[inline]
    fn matters(&self, field: Field) -> bool {
        let Some(frame) = self.open.last() else { return false };
        match field {
            Field::AskedId => true,
            Field::System | Field::Value => frame.under == Under::Identifier && !frame.array,
            Field::Code => frame.under == Under::Coding && self.types_an_identifier(4),
            Field::ResourceType
            | Field::Id
            | Field::Reference
            | Field::Type
            | Field::FullUrl
            | Field::Media
            | Field::Blob
            | Field::Data
            | Field::AskedIdentifier => !frame.array,
        }
    }

    /// A string that says something.
    fn telling_text(
        &mut self,
        text: Text<'a>,
        field: Option<Field>,
        hits: Hits,
        (work, nesting): (&mut Work<'_>, u32),
    ) {
        let plain = text.decode();
        let hits = match hits.has(Clue::Escape) {
            true => Clues::of(&plain).all(),
            false => hits,
        };
        let waits = field.is_some_and(Field::waits);
        if hits.beyond_names() && text.raw.len() > 16 {
            work.text(&plain, nesting + 1);
        } else if hits.any() && !waits && (work.prose || self.key.under.is_patient()) {
            let sure = work.sent || self.key.under.is_patient() || plain.contains("://");
            self.patients.mention_in_text(&plain, if sure { Sure::Yes } else { Sure::No });
        } else if let Some(key) = self.key.asks
            && references::is_id(&plain)
        {
            self.patients.mention(Mention::Argument(key, plain.clone().into_owned()));
        }
        if let Some(field) = field {
            self.fields.push((field, plain));
        }
    }

    fn number(&mut self, digits: &'a str) {
        if let Some(key) = self.key.asks {
            self.patients.mention(Mention::Argument(key, digits.to_owned()));
        }
        let in_object = self.open.last().is_some_and(|frame| !frame.array);
        if in_object && self.key.field == Some(Field::Id) {
            self.fields.push((Field::Id, Cow::Borrowed(digits)));
        }
    }

    fn leave_object(&mut self, work: &mut Work<'_>, nesting: u32) {
        let Some(frame) = self.open.pop() else { return };
        if self.fields.len() == frame.fields_from
            && self.identifiers.len() == frame.identifiers_from
        {
            return; // no member that matters
        }
        let members = Members(&self.fields[frame.fields_from..]);
        read_blob(&members, work, nesting);
        let mut identifier = None;
        if frame.under == Under::Identifier {
            identifier = members.get(Field::Value).map(|value| Identifier {
                system: members.get(Field::System).unwrap_or_default().to_owned(),
                value: value.to_owned(),
                code: self.code.take().map(Cow::into_owned),
            });
        } else if frame.under == Under::Coding && self.types_an_identifier(3) {
            let code = members.get(Field::Code).map(str::to_owned);
            self.code = self.code.take().or(code.map(Cow::Owned));
        } else {
            self.somebody(frame, work.sent);
        }
        let asked = if work.sent { self.asked_of_outer(frame) } else { Vec::new() };
        self.fields.truncate(frame.fields_from);
        self.fields.extend(asked);
        self.identifiers.truncate(frame.identifiers_from);
        // an identifier belongs to the object around it
        self.identifiers.extend(identifier);
    }

    /// Whether a coding is that of an identifier's `type`: whether the object so many levels up is
    /// an identifier.
    fn types_an_identifier(&self, levels: usize) -> bool {
        let around = self.open.len().checked_sub(levels).and_then(|at| self.open.get(at));
        around.is_some_and(|frame| frame.under == Under::Identifier)
    }

    /// Search parameters that stand in an object of their own belong to the one around it.
    fn asked_of_outer(&self, frame: Frame) -> Vec<(Field, Cow<'a, str>)> {
        let asked = |field| matches!(field, Field::AskedId | Field::AskedIdentifier);
        let own = self.fields[frame.fields_from..].iter();
        let outer_is_object = self.open.last().is_some_and(|outer| !outer.array);
        let typed = Members(&self.fields[frame.fields_from..]).get(Field::Type).is_some();
        own.filter(|(field, _)| asked(*field) && outer_is_object && !typed).cloned().collect()
    }

    /// What an object says of a patient, when it has been read whole.
    fn somebody(&mut self, frame: Frame, sent: bool) {
        let members = Members(&self.fields[frame.fields_from..]);
        let of_type = members.get(Field::Type);
        let asks = sent && of_type == Some("Patient");
        let kind = members
            .get(Field::ResourceType)
            .or(of_type.filter(|_| asks && members.get(Field::Id).is_some()));
        let identifiers = &self.identifiers[frame.identifiers_from..];
        if asks || (sent && kind == Some("Patient")) {
            for id in members.all(Field::AskedId).flat_map(|ids| ids.split(',')) {
                self.patients.mention(Mention::Id(id.trim().to_owned(), Vec::new()));
            }
            for query in members.all(Field::AskedIdentifier).flat_map(|all| all.split(',')) {
                self.patients.mention(Mention::asked(query.trim()));
            }
        }
        if let Some(kind) = kind {
            let id = members.get(Field::Id).unwrap_or_default();
            let from = frame.mentions_from;
            let patient = self.patients.resource(kind, id, identifiers, frame.under, from);
            if let (Some(patient), Some(outer)) = (patient, self.open.last_mut()) {
                outer.patient = Some(patient);
            }
        } else if let Some(reference) = members.get(Field::Reference) {
            let mention = Mention::to(reference, of_type, frame.under, identifiers);
            self.patients.mention(mention);
        } else if let Some(url) = members.get(Field::FullUrl) {
            self.patients.name(frame.patient, url);
        } else if !identifiers.is_empty()
            && (of_type == Some("Patient") || frame.under.is_patient())
        {
            self.patients.mention(Mention::Identifiers(identifiers.to_vec()));
        }
    }
}

/// Reads the bytes that an object holds as base64.
fn read_blob(members: &Members<'_, '_>, work: &mut Work<'_>, nesting: u32) {
    let media = members.get(Field::Media);
    let kind = members.get(Field::Type).filter(|kind| matches!(*kind, "image" | "audio"));
    let described = media.or(kind);
    let data = members.get(Field::Data).filter(|_| described.is_some());
    if let Some(blob) = members.get(Field::Blob).or(data) {
        work.blob(blob, described, nesting);
    }
}
