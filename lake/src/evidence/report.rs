//! The report of a package: every access to protected health information that its records show.
//!
//! It follows from the records alone, so whoever verifies the package makes it again.

use std::collections::BTreeSet;

use chrono::DateTime;
use custody_schemas::derive::accesses;
use custody_schemas::event::{Event, Subject};
use custody_schemas::id::{CallId, Micros};
use custody_schemas::kind::Kind;

const HEADER: &str = "time,user,agent,purpose,server,tool,patient_system,patient_id,direction,\
    categories,status,call,stream,seq\n";

/// Makes the report. Records come in the order of their streams.
pub(super) fn make<'a>(events: impl Iterator<Item = &'a Event> + Clone) -> String {
    let ends = events.clone().filter(|event| event.kind == Kind::CallEnded);
    let ended: BTreeSet<CallId> = ends.filter_map(|event| event.call).collect();
    let mut text = HEADER.to_owned();
    for event in events {
        // An opening shows what its ending shows, once there is one.
        let superseded = event.kind == Kind::CallRequested
            && event.call.is_some_and(|call| ended.contains(&call));
        if superseded {
            continue;
        }
        for access in accesses(event) {
            line(&mut text, event, access.subject);
        }
    }
    text
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
