//! The words without which nothing need be read, and where they stand in a text.
//!
//! A text is searched once for each word before it is read; then a string without a clue costs
//! one comparison.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What a word may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clue {
    /// `Patient` or `patient`: a reference, a query, a resource.
    Patient = 0,
    /// A FHIR resource.
    Resource = 1,
    /// An HL7 v2 message.
    Message = 2,
    /// A C-CDA document.
    Document = 3,
    /// A letter that is written as an escape, in a text that may hide any of the others.
    Escape = 4,
}

const ALL: [Clue; 5] = [Clue::Patient, Clue::Resource, Clue::Message, Clue::Document, Clue::Escape];

/// In the order of [`ALL`].
static WORDS: LazyLock<[Finder<'static>; 5]> = LazyLock::new(|| {
    ["atient", "resourceType", "MSH", "ClinicalDocument", "\\u00"].map(Finder::new)
});

/// The keys below which bytes stand as base64.
static BLOBS: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| ["\"blob\"", "\"data\""].map(Finder::new));

/// Which clues there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hits(u8);

impl Hits {
    pub(super) fn any(self) -> bool {
        self.0 != 0
    }

    fn with(self, hit: u64) -> Self {
        Self(self.0 | 1 << (hit & 7))
    }

    pub(super) fn has(self, clue: Clue) -> bool {
        self.0 & (1 << clue as u8) != 0
    }

    /// Whether there is more to it than a name: something that must be read as what it is.
    pub(super) fn beyond_names(self) -> bool {
        self.0 & !(1 << Clue::Patient as u8) != 0
    }
}

/// How many clues of one text are kept.
const MAX_CLUES: usize = 1 << 20;

/// Where the clues of one text stand.
pub(super) struct Clues {
    /// Rising; each is a position and, in the lowest three bits, which clue.
    hits: Vec<u64>,
    complete: bool,
}

impl Clues {
    pub(super) fn of(text: &str) -> Self {
        let mut hits = Vec::new();
        for (clue, finder) in ALL.into_iter().zip(&*WORDS) {
            let at = finder.find_iter(text.as_bytes());
            hits.extend(at.take(MAX_CLUES).map(|at| (at as u64) << 3 | clue as u64));
        }
        hits.sort_unstable();
        let complete = hits.len() <= MAX_CLUES;
        hits.truncate(MAX_CLUES);
        Self { hits, complete }
    }

    /// Whether these are all of them.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hits.is_empty()
    }

    /// Which there are.
    pub(super) fn all(&self) -> Hits {
        self.hits.iter().fold(Hits::default(), |hits, hit| hits.with(*hit))
    }

    /// The clues behind the first `from` bytes, for a reader who counts from there.
    pub(super) fn from(&self, from: usize) -> Ahead<'_> {
        let before = self.hits.partition_point(|hit| hit >> 3 < from as u64);
        Ahead { hits: &self.hits[before..], from: from as u64 }
    }
}

/// The clues that a reader has before him.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'c> {
    hits: &'c [u64],
    /// Where the reader began.
    from: u64,
}

impl Ahead<'_> {
    /// Where the next one stands at or behind `from`.
    pub(super) fn next(&mut self, from: usize) -> Option<usize> {
        self.pass(self.from + from as u64);
        let hit = self.hits.first()? >> 3;
        usize::try_from(hit - self.from).ok()
    }

    /// Those between `start` and `end`. Asked in rising order.
    #[inline]
    pub(super) fn between(&mut self, start: usize, end: usize) -> Hits {
        match self.hits.first() {
            Some(hit) if hit >> 3 < self.from + end as u64 => self.collect(start, end),
            _ => Hits::default(),
        }
    }

    fn collect(&mut self, start: usize, end: usize) -> Hits {
        self.pass(self.from + start as u64);
        let end = self.from + end as u64;
        let within = self.hits.iter().take_while(|hit| *hit >> 3 < end);
        within.fold(Hits::default(), |hits, hit| hits.with(*hit))
    }

    fn pass(&mut self, to: u64) {
        while let [first, rest @ ..] = self.hits
            && first >> 3 < to
        {
            self.hits = rest;
        }
    }
}

/// Whether a message holds bytes in base64.
pub(super) fn has_blobs(message: &str) -> bool {
    BLOBS.iter().any(|key| key.find(message.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_shows_each_clue_where_it_stands() {
        let text = "a Patient, MSH| and another patient \\u0041";
        let clues = Clues::of(text);
        let mut ahead = clues.from(0);
        assert_eq!(ahead.next(0), text.find("atient"));
        assert!(!ahead.between(0, 3).any());
        let hits = ahead.between(0, 9);
        assert!(hits.has(Clue::Patient) && !hits.beyond_names());
        let hits = ahead.between(9, text.len());
        assert!(hits.has(Clue::Message) && hits.has(Clue::Patient) && hits.has(Clue::Escape));
        assert!(!hits.has(Clue::Document) && hits.beyond_names());
        assert_eq!(ahead.next(13), text.rfind("atient"));
        assert_eq!(clues.from(11).next(0), Some(0));
        assert_eq!(clues.all(), clues.from(0).between(0, text.len()));
        assert!(Clues::of("nothing").is_empty() && Clues::of("").from(0).next(0).is_none());
        assert!(has_blobs("{\"blob\":1}") && !has_blobs("{\"a\":1}"));
    }
}
