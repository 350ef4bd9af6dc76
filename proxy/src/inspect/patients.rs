//! The patients that one document mentions, and whose data its resources therefore are.
//!
//! A mention is kept until the document has been read whole, because a Bundle may name a patient's
//! URL after it was referred to. Nobody is counted twice for one resource.

use std::collections::HashMap;

use super::identifiers::{self, Identifier};
use super::references::{self, Sure};
use super::subjects::{Found, Unexamined};

/// How many mentions of patients are kept for one document.
pub(super) const MAX_MENTIONS: usize = 100_000;
/// The system of a patient's logical id.
pub(super) const PATIENT: &str = "fhir:Patient";

/// What a key says of the object below it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Under {
    Identifier,
    Coding,
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
            "coding" => Self::Coding,
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
    identifiers: Vec<Identifier>,
}

/// Something that points to a patient.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Mention {
    /// The resource at this place.
    Resource(usize),
    /// A logical id, with what else the reference says: its absolute URL, an identifier.
    Id(String, Vec<String>),
    /// An argument of this name with an id in it, whosever it is.
    Argument(&'static str, String),
    /// A URN, and whether it is said to be a patient.
    Urn(String, bool),
    /// Somebody who is known by identifiers only.
    Identifiers(Vec<Identifier>),
    /// Nobody.
    Nobody,
}

impl Mention {
    /// What a reference points to; `of_type` is its `type`, `identifiers` stand beside it.
    pub(super) fn to(
        reference: &str,
        of_type: Option<&str>,
        under: Under,
        identifiers: &[Identifier],
    ) -> Self {
        if let Some(query) = reference.strip_prefix("Patient?identifier=") {
            return Self::asked(query);
        }
        if let Some(id) = references::first(reference) {
            let absolute = reference.contains("://").then(|| reference.to_owned());
            let others = identifiers::aliases(identifiers);
            return Self::Id(id.to_owned(), absolute.into_iter().chain(others).collect());
        }
        if reference.starts_with("urn:") {
            let said = of_type.map_or(under == Under::Patient, |kind| kind == "Patient");
            return Self::Urn(reference.to_owned(), said);
        }
        Self::Nobody
    }

    /// Whom a search for this identifier asks for, `system|value` or only a value.
    pub(super) fn asked(query: &str) -> Self {
        let (system, value) = query.split_once('|').unwrap_or(("", query));
        let identifier =
            Identifier { system: system.to_owned(), value: value.to_owned(), code: None };
        if value.is_empty() { Self::Nobody } else { Self::Identifiers(vec![identifier]) }
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
        identifiers: &[Identifier],
        under: Under,
        mentions_from: usize,
    ) -> Option<usize> {
        let contained = under == Under::Contained;
        let patient = (kind == "Patient").then(|| {
            let identifiers = identifiers.iter().take(2 * identifiers::MAX).cloned().collect();
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

    /// Keeps the patients that a text names.
    pub(super) fn mention_in_text(&mut self, text: &str, sure: Sure) {
        references::each(text, sure, |id| self.mention(Mention::Id(id.to_owned(), Vec::new())));
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
                Mention::Id(id, others) => found.add(PATIENT, id, category, others.clone()),
                // a rule knows better than a name
                Mention::Argument(key, id) if found.is_ruled(key, id) => {}
                Mention::Argument(_, id) => found.add(PATIENT, id, category, Vec::new()),
                Mention::Urn(urn, said) => match self.urls.get(urn) {
                    Some(&index) => self.resources[index].count(category, found),
                    None if *said => found.add(PATIENT, urn, category, Vec::new()),
                    None => {}
                },
                Mention::Identifiers(all) => {
                    if let Some((first, others)) = identifiers::name(all) {
                        found.add(first.system(), &first.value, category, others);
                    }
                }
                Mention::Nobody => {}
            }
        }
    }
}

impl Patient {
    fn count(&self, category: Option<&str>, found: &mut Found) {
        let named = !self.id.is_empty() && !self.id.contains('#');
        if named {
            let others = identifiers::aliases(&self.identifiers);
            return found.add(PATIENT, &self.id, category, others);
        }
        match (identifiers::name(&self.identifiers), &self.url) {
            (Some((first, others)), _) => {
                found.add(first.system(), &first.value, category, others);
            }
            (None, Some(url)) => found.add(PATIENT, url, category, Vec::new()),
            (None, None) if !self.id.is_empty() => {
                found.add("fhir:contained", &self.id, category, Vec::new());
            }
            (None, None) => found.note(Unexamined::Nameless),
        }
    }
}
