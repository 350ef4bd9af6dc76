//! The report of a package: every access to protected health information that its records show.
//!
//! It follows from the records alone, so whoever verifies the package makes it again, record by
//! record and in one pass ([`Compared`]).

use std::collections::HashSet;
use std::io::{self, Read};

use chrono::DateTime;
use custody_schemas::derive::accesses;
use custody_schemas::event::{Event, Subject};
use custody_schemas::id::{CallId, Micros};
use custody_schemas::kind::Kind;

/// The first line.
pub(super) const HEADER: &str = "time,user,agent,purpose,server,tool,patient_system,patient_id,\
    direction,categories,status,call,stream,seq\n";

/// The lines of a record. Those of an opening are left out where the ending of its call is there:
/// it shows what its ending shows.
pub(super) fn lines(event: &Event) -> String {
    let mut text = String::new();
    for access in accesses(event) {
        line(&mut text, event, access.subject);
    }
    text
}

/// The call whose ending replaces the lines of this record.
pub(super) fn opens(event: &Event) -> Option<CallId> {
    event.call.filter(|_| event.kind == Kind::CallRequested)
}

/// The call that this record ends.
pub(super) fn ends(event: &Event) -> Option<CallId> {
    event.call.filter(|_| event.kind == Kind::CallEnded)
}

/// A report that is held against records as they come, in their order.
///
/// Whether an opening's lines belong there is known at the end only: what the report does is noted,
/// and must be what follows.
pub(super) struct Compared<R> {
    report: R,
    /// What was read of it and not compared yet.
    ahead: Vec<u8>,
    ended: HashSet<CallId>,
    shown: HashSet<CallId>,
    left_out: HashSet<CallId>,
    equal: bool,
    lines: u64,
}

impl<R: Read> Compared<R> {
    pub(super) fn new(report: R) -> io::Result<Self> {
        let sets = (HashSet::new(), HashSet::new(), HashSet::new());
        let (ended, shown, left_out) = sets;
        let mut compared =
            Self { report, ahead: Vec::new(), ended, shown, left_out, equal: true, lines: 0 };
        compared.take(HEADER, 0)?;
        Ok(compared)
    }

    /// The next record.
    pub(super) fn event(&mut self, event: &Event) -> io::Result<()> {
        self.ended.extend(ends(event));
        let text = lines(event);
        if text.is_empty() || !self.equal {
            return Ok(());
        }
        let count = accesses(event).len() as u64;
        if let Some(call) = opens(event) {
            if !self.starts_with(&text)? {
                self.left_out.insert(call);
                return Ok(());
            }
            self.shown.insert(call);
        }
        self.take(&text, count)
    }

    /// Whether the report is what follows from all of them, and its lines.
    pub(super) fn end(mut self) -> io::Result<(bool, u64)> {
        let over = !self.starts_with("x")? && self.ahead.is_empty();
        let right = self.shown.is_disjoint(&self.ended) && self.left_out.is_subset(&self.ended);
        Ok((self.equal && over && right, self.lines))
    }

    fn starts_with(&mut self, text: &str) -> io::Result<bool> {
        let missing = text.len().saturating_sub(self.ahead.len()) as u64;
        self.report.by_ref().take(missing).read_to_end(&mut self.ahead)?;
        Ok(self.ahead.starts_with(text.as_bytes()))
    }

    fn take(&mut self, text: &str, lines: u64) -> io::Result<()> {
        self.equal = self.equal && self.starts_with(text)?;
        if self.equal {
            self.ahead.drain(..text.len());
            self.lines += lines;
        }
        Ok(())
    }
}

fn line(text: &mut String, event: &Event, subject: Option<&Subject>) {
    let (who, what) = (event.who.as_deref(), event.what.as_deref());
    let tool = what.and_then(|w| {
        let first = w.tool.as_deref().or(w.resource.as_deref());
        first.or(w.prompt.as_deref()).or(w.method.as_deref())
    });
    let fields = [
        time(event.at),
        owned(who.and_then(|w| w.user.as_ref()).map(|user| user.subject.as_str())),
        owned(who.and_then(|w| w.agent.as_ref()).map(|agent| agent.id.as_str())),
        owned(who.and_then(|w| w.purpose.as_deref())),
        owned(what.and_then(|w| w.server.as_deref())),
        owned(tool),
        owned(subject.map(|s| s.system.as_str())),
        owned(subject.map(|s| s.id.as_str())),
        owned(subject.map(|s| s.direction.as_str())),
        subject.map(|s| s.categories.join(" ")).unwrap_or_default(),
        owned(event.outcome.as_ref().map(|outcome| outcome.status.as_str())),
        event.call.map(|call| call.to_string()).unwrap_or_default(),
        event.stream.to_string(),
        event.seq.to_string(),
    ];
    let fields: Vec<_> = fields.iter().map(|field| quoted(field)).collect();
    text.push_str(&fields.join(","));
    text.push('\n');
}

fn owned(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

/// RFC 4180.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// `2026-01-31T08:00:00.000000Z`.
pub(super) fn time(at: Micros) -> String {
    let at = i64::try_from(at.get()).unwrap_or(i64::MAX);
    let at = DateTime::from_timestamp_micros(at).unwrap_or_default();
    at.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use custody_schemas::event::{Data, Draft};
    use custody_schemas::id::{Bytes, Uint};
    use custody_schemas::record::Place;

    use super::*;

    fn event(seq: u64, kind: Kind, call: u8) -> Event {
        let data = Data { labels: vec!["phi".to_owned()], ..Data::default() };
        let call = Some(CallId::from_uuid(uuid::Uuid::from_bytes([call; 16])));
        let draft = Draft { call, data, ..Draft::new(kind) };
        let stream = "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap();
        draft.seal(Place { stream, seq, at: Uint::new(seq), salt: Bytes([1; 16]) }).unwrap().event
    }

    fn fits(report: &str, events: &[Event]) -> bool {
        let mut compared = Compared::new(report.as_bytes()).unwrap();
        events.iter().for_each(|event| compared.event(event).unwrap());
        compared.end().unwrap().0
    }

    #[test]
    fn a_report_shows_an_opening_only_without_its_ending_and_nothing_else_is_accepted() {
        let open = event(0, Kind::CallRequested, 1);
        let (opened, ended) = (event(1, Kind::CallRequested, 2), event(2, Kind::CallEnded, 2));
        let events = [open.clone(), opened.clone(), ended.clone()];
        let report = |events: &[&Event]| {
            HEADER.to_owned() + &events.iter().map(|event| lines(event)).collect::<String>()
        };
        assert!(fits(&report(&[&open, &ended]), &events));
        assert!(!fits(&report(&[&ended]), &events), "an open call is left out");
        assert!(!fits(&report(&[&open, &opened, &ended]), &events), "a call is shown twice");
        assert!(!fits(&report(&[&open]), &events));
        assert!(!fits(&(report(&[&open, &ended]) + "x"), &events));
        assert!(!fits("", &events));
        // An ending before its opening: of another run, whose stream comes first.
        let turned = [ended.clone(), opened];
        assert!(fits(&report(&[&ended]), &turned));
    }
}
