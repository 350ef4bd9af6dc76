//! The people that were found in a message, each once for each direction.
//!
//! Keeps at most [`MAX_SUBJECTS`] of them and counts the others.

use std::collections::{HashMap, HashSet};

use custody_schemas::event::Subject;
use custody_schemas::id::Uint;
use custody_schemas::words::Direction;

/// How many people of one call are kept by name.
const MAX_SUBJECTS: usize = 8_192;
/// How many other identifiers of a person are kept.
const MAX_ALIASES: usize = 8;
/// How many kinds of data of a person are kept.
const MAX_CATEGORIES: usize = 16;

/// Where a person stands in the list: by system, then by id.
type Places = HashMap<String, HashMap<String, usize>>;

/// Why something was not examined, in the words of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unexamined {
    /// It could not be read.
    Unreadable,
    /// It is nested too deep.
    Depth,
    /// It is longer than what is examined of one message.
    Length,
    /// It names people too often.
    Mentions,
    /// It is about more people than are kept by name.
    People,
    /// It is about somebody without any identifier.
    Nameless,
    /// It is said to be base64 and is not.
    Base64,
    /// Bytes that are no text.
    Binary,
    /// A picture.
    Image,
    /// A sound.
    Audio,
    /// A film.
    Video,
    /// A PDF document.
    Pdf,
}

impl Unexamined {
    const ALL: [(Self, &'static str); 12] = [
        (Self::Unreadable, "unreadable"),
        (Self::Depth, "depth"),
        (Self::Length, "length"),
        (Self::Mentions, "mentions"),
        (Self::People, "people"),
        (Self::Nameless, "nameless"),
        (Self::Base64, "base64"),
        (Self::Binary, "binary"),
        (Self::Image, "image"),
        (Self::Audio, "audio"),
        (Self::Video, "video"),
        (Self::Pdf, "pdf"),
    ];

    /// Whether somebody may be missing among people who were found. Beside a picture they are
    /// taken for those whom the message is about.
    fn leaves_out(self) -> bool {
        matches!(
            self,
            Self::Unreadable
                | Self::Depth
                | Self::Length
                | Self::Mentions
                | Self::People
                | Self::Nameless
        )
    }
}

/// What an inspection found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    direction: Direction,
    subjects: Vec<Subject>,
    sent: Places,
    received: Places,
    /// Names and values of which a rule has said what they are.
    ruled: HashSet<(String, String)>,
    beyond: u64,
    ambiguous: bool,
    clinical: bool,
    /// One bit for each reason.
    unexamined: u16,
    /// How many bytes were read for it, those of texts inside others counted again.
    #[cfg(test)]
    read_bytes: usize,
}

impl Found {
    /// Nothing yet, looking in `direction`.
    pub(crate) fn new(direction: Direction) -> Self {
        Self {
            direction,
            subjects: Vec::new(),
            sent: Places::new(),
            received: Places::new(),
            ruled: HashSet::new(),
            beyond: 0,
            ambiguous: false,
            clinical: false,
            unexamined: 0,
            #[cfg(test)]
            read_bytes: 0,
        }
    }

    /// Counts bytes that were read, for the tests that hold the work against its limit.
    #[inline]
    pub(super) const fn note_read(&mut self, _bytes: usize) {
        #[cfg(test)]
        {
            self.read_bytes += _bytes;
        }
    }

    /// How many bytes were read.
    #[cfg(test)]
    pub(super) fn read_bytes(&self) -> usize {
        self.read_bytes
    }

    /// Nothing, of a message that was not looked at because it has no content.
    pub(crate) fn none() -> Self {
        Self::new(Direction::Received)
    }

    /// Counts one record of a person.
    pub(super) fn add(
        &mut self,
        system: &str,
        id: &str,
        category: Option<&str>,
        aliases: Vec<String>,
    ) {
        let place = self.places(&self.direction).get(system).and_then(|ids| ids.get(id));
        if let Some(known) = place.copied().and_then(|place| self.subjects.get_mut(place)) {
            known.records = Some(Uint::new(known.records.map_or(0, Uint::get) + 1));
            if let Some(category) = category
                && !known.categories.iter().any(|known| known == category)
            {
                union(&mut known.categories, vec![category.to_owned()], MAX_CATEGORIES);
            }
            union(&mut known.aliases, aliases, MAX_ALIASES);
            return;
        }
        self.merge(Subject {
            direction: self.direction.clone(),
            id: id.to_owned(),
            system: system.to_owned(),
            aliases,
            categories: category.map(str::to_owned).into_iter().collect(),
            records: Some(Uint::new(1)),
        });
    }

    /// Counts a person who is only named, unless something else has named them.
    pub(super) fn add_if_new(&mut self, system: &str, id: &str) {
        let known = self.places(&self.direction).get(system).and_then(|ids| ids.get(id));
        if known.is_none() {
            self.add(system, id, None, Vec::new());
        }
    }

    /// Notes that a rule says what `id` under `key` is.
    pub(super) fn rule(&mut self, key: &str, id: &str) {
        self.ruled.insert((key.to_owned(), id.to_owned()));
    }

    /// Whether a rule has said what `id` under `key` is.
    pub(super) fn is_ruled(&self, key: &str, id: &str) -> bool {
        !self.ruled.is_empty() && self.ruled.contains(&(key.to_owned(), id.to_owned()))
    }

    fn places(&self, direction: &Direction) -> &Places {
        if *direction == Direction::Sent { &self.sent } else { &self.received }
    }

    fn merge(&mut self, new: Subject) {
        let places = self.places(&new.direction);
        let place = places.get(&new.system).and_then(|ids| ids.get(&new.id)).copied();
        if let Some(known) = place.and_then(|place| self.subjects.get_mut(place)) {
            union(&mut known.aliases, new.aliases, MAX_ALIASES);
            union(&mut known.categories, new.categories, MAX_CATEGORIES);
            let count = |records: Option<Uint>| records.map_or(0, Uint::get);
            known.records = Some(Uint::new(count(known.records) + count(new.records)));
        } else if self.subjects.len() < MAX_SUBJECTS {
            let sent = new.direction == Direction::Sent;
            let places = if sent { &mut self.sent } else { &mut self.received };
            let ids = places.entry(new.system.clone()).or_default();
            ids.insert(new.id.clone(), self.subjects.len());
            self.subjects.push(new);
        } else {
            self.beyond += 1;
            self.note(Unexamined::People);
        }
    }

    /// Adds what another message of the same call held.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.ambiguous |= other.ambiguous;
        self.clinical |= other.clinical;
        self.unexamined |= other.unexamined;
        self.beyond += other.beyond;
        for subject in other.subjects {
            self.merge(subject);
        }
    }

    /// Notes that two keys were alike.
    pub(crate) fn note_twin(&mut self, twin: bool) {
        self.ambiguous |= twin;
    }

    /// Notes that the message could not be read.
    pub(crate) fn note_incomplete(&mut self) {
        self.note(Unexamined::Unreadable);
    }

    /// Notes why part of the message was not examined.
    pub(super) fn note(&mut self, why: Unexamined) {
        self.unexamined |= 1 << why as u16;
    }

    /// Notes that the message is about somebody's health, whoever it is.
    pub(super) fn note_clinical(&mut self) {
        self.clinical = true;
    }

    /// Which way the data went.
    pub(super) fn direction(&self) -> &Direction {
        &self.direction
    }

    pub(super) fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    pub(super) fn is_clinical(&self) -> bool {
        self.clinical
    }

    fn reasons(&self) -> impl Iterator<Item = (Unexamined, &'static str)> {
        let noted = self.unexamined;
        Unexamined::ALL.into_iter().filter(move |(why, _)| noted & (1 << *why as u16) != 0)
    }

    /// Whether people may be missing: something was not examined that may be about others than
    /// those who were found.
    pub(super) fn is_incomplete(&self) -> bool {
        self.reasons().any(|(why, _)| match self.count() {
            0 => why != Unexamined::Nameless,
            _ => why.leaves_out(),
        })
    }

    /// Why not all of it was examined, in words; nothing when all was.
    pub(crate) fn unexamined(&self) -> Vec<&'static str> {
        self.reasons().map(|(_, word)| word).collect()
    }

    /// How many people were found, those not kept by name included.
    pub(crate) fn count(&self) -> u64 {
        self.subjects.len() as u64 + self.beyond
    }

    /// How many of them are kept by name.
    pub(crate) fn named(&self) -> usize {
        self.subjects.len()
    }

    /// The people, in the order in which they were found.
    pub(crate) fn into_subjects(self) -> Vec<Subject> {
        self.subjects
    }
}

fn union(known: &mut Vec<String>, new: Vec<String>, limit: usize) {
    for word in new {
        if known.len() < limit && !known.contains(&word) {
            known.push(word);
        }
    }
}
