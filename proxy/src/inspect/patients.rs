//! The patients that one document mentions, and whose data its resources therefore are.
//!
//! A mention is kept until the document has been read whole, because a Bundle may name a patient's
//! URL after it was referred to. Nobody is counted twice for one resource.

use std::collections::HashMap;

use memchr::memmem;

use super::subjects::Found;

/// How many identifiers of a patient are kept.
const MAX_IDENTIFIERS: usize = 8;
/// How many mentions of patients are kept for one document.
pub(super) const MAX_MENTIONS: usize = 100_000;
/// The system of a patient's logical id.
pub(super) const PATIENT: &str = "fhir:Patient";

/// What a key says of the object below it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Under {
    Identifier,
    Contained,
    /// `patient`
    Patient,
    /// A key whose reference is mostly a patient.
    Subject,
    Other,
}

impl Under {
    pub(super) fn key(key: &str) -> Self {
        match key {
            "identifier" => Self::Identifier,
            "contained" => Self::Contained,
            "patient" => Self::Patient,
            "subject" | "beneficiary" | "individual" | "for" => Self::Subject,
            _ => Self::Other,
        }
    }

    pub(super) fn is_patient(self) -> bool {
        matches!(self, Self::Patient | Self::Subject)
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
pub(super) enum Mention {
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
    /// What a reference points to; `of_type` is its `type`.
    pub(super) fn to(reference: &str, of_type: Option<&str>, under: Under) -> Self {
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
pub(super) struct Patients {
    resources: Vec<Patient>,
    urls: HashMap<String, usize>,
    /// With the place of their category in `kinds`, once it is known.
    mentions: Vec<(Mention, Option<usize>)>,
    kinds: Vec<String>,
}

impl Patients {
    /// A whole resource: what it mentions is about it, and it may be a patient itself; then its
    /// place is returned.
    pub(super) fn resource(
        &mut self,
        kind: &str,
        id: &str,
        identifiers: &[(String, String)],
        under: Under,
        mentions_from: usize,
    ) -> Option<usize> {
        let contained = under == Under::Contained;
        let patient = (kind == "Patient").then(|| {
            let identifiers = identifiers.iter().take(MAX_IDENTIFIERS).cloned().collect();
            let id = if contained { format!("#{id}") } else { id.to_owned() };
            self.add(Patient { id, url: None, identifiers })
        });
        if !contained {
            self.settle_contained(mentions_from, kind, id);
        }
        self.categorise(mentions_from, kind);
        patient
    }

    /// How many mentions there are so far.
    pub(super) fn len(&self) -> usize {
        self.mentions.len()
    }

    /// Keeps a mention.
    pub(super) fn mention(&mut self, mention: Mention) {
        if mention != Mention::Nobody && self.mentions.len() < MAX_MENTIONS {
            self.mentions.push((mention, None));
        }
    }

    /// Keeps the patient that a path or query names.
    pub(super) fn mention_in_text(&mut self, text: &str) {
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
    pub(super) fn name(&mut self, patient: Option<usize>, url: &str) {
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

    /// Counts everybody.
    pub(super) fn settle(self, found: &mut Found) {
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
pub(super) fn patient_in_path(text: &str) -> Option<&str> {
    const SEGMENT: &str = "Patient/";
    let at = memmem::find(text.as_bytes(), SEGMENT.as_bytes())?;
    let at_border = at == 0 || matches!(text.as_bytes()[at - 1], b'/' | b'=' | b'"' | b' ' | b'(');
    let id = leading_id(&text[at + SEGMENT.len()..]);
    (at_border && !id.is_empty()).then_some(id)
}

/// The id in `…?patient=ID` or `…&subject=Patient/ID`.
pub(super) fn patient_in_query(text: &str) -> Option<&str> {
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
