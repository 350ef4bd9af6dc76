//! What an answer holds and what it cannot show: the judgement of the ledger as it is handed on.

use std::fmt::Write;

use custody_schemas::id::Micros;
use serde::Serialize;

use crate::tail::Taken;

/// What no answer can show, whatever it counts.
pub const CANNOT_SHOW: [&str; 3] = [
    "calls that passed no proxy",
    "protected health information that no detector recognised",
    "records that a proxy with a stolen key invented",
];

/// A writer that the keyring lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedWriter {
    /// Its name.
    pub name: String,
    /// Since when its key is in force.
    pub from: Micros,
    /// Whether it will write no more.
    pub retired: bool,
}

/// Microseconds since 1970 as RFC 3339 in UTC.
pub(crate) fn text(micros: u64) -> String {
    let micros = i64::try_from(micros).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros)
        .map_or_else(|_| micros.to_string(), |at| at.to_string())
}

/// How a writer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It writes.
    Open,
    /// It has ended its last run in order.
    Closed,
    /// Nothing was heard of it for 30 s, or ever.
    Silent,
    /// It will write no more.
    Retired,
}

/// One writer in a [`Completeness`].
#[derive(Clone, Debug, Serialize)]
pub struct WriterState {
    /// Its name.
    pub name: String,
    /// Whether the keyring lists it.
    pub listed: bool,
    /// How it stands.
    pub state: State,
    /// Its newest run.
    pub stream: Option<String>,
    #[serde(skip)]
    pub(crate) last_at: Option<u64>,
    /// When its last event was recorded.
    #[serde(rename = "last_at")]
    pub last: Option<String>,
    /// How many of its events are known.
    pub events: u64,
    /// How many events below the last of each run are missing.
    pub gaps: u64,
}

/// What an answer says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Completeness {
    /// When this was judged.
    pub as_of: String,
    /// Everything recorded up to here is in the answer; `None` while nothing has been heard of the
    /// journal, or of a part of it, so that no moment can be named.
    pub complete_through: Option<String>,
    #[serde(skip)]
    pub(crate) through: u64,
    /// The writer that keeps it from being later.
    pub held_back_by: Option<String>,
    /// Writers of which nothing was heard.
    pub silent: Vec<String>,
    /// Events that are missing below later ones or at the end of a run.
    pub gaps: u64,
    /// Events that were signed and then lost with a writer's journal.
    pub lost: u64,
    /// Calls without an ending.
    pub open_calls: u64,
    /// Calls of which nobody knows how they ended.
    pub unknown_outcomes: u64,
    /// Calls and relayed messages with protected health information, open calls included.
    pub phi_calls: u64,
    /// Ended ones among them without a recognised patient.
    pub phi_calls_without_patient: u64,
    /// Ended calls of which not every patient is listed.
    pub calls_partly_listed: u64,
    /// Entries that cannot be understood.
    pub undecodable: u64,
    /// Different records under one identity.
    pub conflicts: u64,
    /// Records that were sent again and counted once.
    pub duplicates: u64,
    /// Records that came after later ones of their stream.
    pub late: u64,
    /// How often auditing was degraded.
    pub degraded_intervals: u64,
    /// Whether it is now.
    pub degraded_now: bool,
    /// Findings of stored bytes that do not match what was signed.
    pub integrity_failures: u64,
    /// Durable entries of events that the answer does not hold.
    pub behind: u64,
    /// Durable chunks of bodies, or entries between them, that the answer does not hold.
    pub bodies_behind: u64,
    /// Since when the journal, or a part of it, has not said how far it goes; where it never has,
    /// since when it is asked.
    pub unheard_since: Option<String>,
    /// Up to where the answer reads: to be named in another question, here or elsewhere.
    pub cut: String,
    /// Every writer.
    pub writers: Vec<WriterState>,
    /// What no answer can show.
    pub cannot_show: &'static [&'static str],
}

impl Completeness {
    /// With what a question takes beside the ledger's judgement.
    pub(crate) fn holding(mut self, taken: &Taken, cut: String) -> Self {
        self.behind += taken.behind;
        self.bodies_behind += taken.bodies_behind;
        if let Some(unheard) = taken.unheard {
            self.unheard_since = Some(text(unheard.since));
            self.through = self.through.min(unheard.since);
            self.complete_through = unheard.before.then(|| text(self.through));
        }
        Self { cut, ..self }
    }

    /// For the header `custody-completeness`: one line of JSON in ASCII, with the line in words,
    /// without the cut and the lists of writers and of what cannot be shown.
    #[must_use]
    pub fn header(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            map.remove("cut");
            map.remove("writers");
            map.remove("cannot_show");
            map.insert("complete".to_owned(), self.is_complete().into());
            map.insert("line".to_owned(), self.line().into());
            map.insert("see".to_owned(), "/v1/completeness".into());
        }
        ascii(&value.to_string())
    }

    /// Whether nothing is known to be missing: no gap, nobody silent, nothing waiting, unreadable,
    /// contradictory or damaged. Open calls are in the answer, so they do not count.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let missing = [
            self.gaps,
            self.lost,
            self.calls_partly_listed,
            self.undecodable,
            self.conflicts,
            self.degraded_intervals,
            self.integrity_failures,
            self.behind,
        ];
        let heard = self.silent.is_empty() && self.unheard_since.is_none();
        heard && missing.iter().all(|count| *count == 0)
    }

    /// One line in words.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = match &self.complete_through {
            Some(_) => format!("Complete through {}", text(self.through / 1_000_000 * 1_000_000)),
            None => "What is missing is not known: the journal has not been heard yet".to_owned(),
        };
        let mut add = |text: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            line.write_fmt(text).unwrap_or_default();
        };
        if let (Some(writer), Some(_)) = (&self.held_back_by, &self.complete_through) {
            add(format_args!(" (as far as writer {writer} was heard)"));
        }
        for (count, one, many) in [
            (self.gaps, "event missing", "events missing"),
            (self.open_calls, "open call", "open calls"),
            (self.unknown_outcomes, "unknown outcome", "unknown outcomes"),
            (
                self.phi_calls_without_patient,
                "PHI call without a recognised patient",
                "PHI calls without a recognised patient",
            ),
        ] {
            add(format_args!(" · {count} {}", if count == 1 { one } else { many }));
        }
        for (count, what) in [
            (self.lost, "lost after they were signed"),
            (self.calls_partly_listed, "calls of which not every patient is listed"),
            (self.undecodable, "not understood"),
            (self.conflicts, "in conflict"),
            (self.late, "late"),
            (self.degraded_intervals, "degraded intervals"),
            (self.integrity_failures, "integrity failures"),
            (self.behind, "entries behind the journal"),
            (self.bodies_behind, "entries of bodies behind the journal"),
        ] {
            if count > 0 {
                add(format_args!(" · {count} {what}"));
            }
        }
        if let Some(since) = &self.unheard_since {
            add(format_args!(" · the journal has not said how far it goes since {since}"));
        }
        if !self.silent.is_empty() {
            add(format_args!(" · silent: {}", self.silent.join(", ")));
        }
        add(format_args!(". Not shown: {}.", CANNOT_SHOW.join("; ")));
        line
    }
}

/// JSON text with everything beyond ASCII as `\u` escapes (RFC 8259 § 7).
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a String cannot fail.
            text.write_fmt(format_args!("\\u{unit:04x}")).unwrap_or_default();
        }
    }
    text
}
