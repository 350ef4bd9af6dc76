//! What data passed: labels, and whose data it was.
//!
//! Inspection reads the bytes that pass and changes nothing. It promises to do work in proportion
//! to a message's length and no more (64 MiB, texts inside it counted again), to say when it has
//! not seen all of it, and to count everybody it recognises. What it recognises are FHIR resources
//! (in JSON, in JSON inside a text, in JSON inside a base64 blob) and whatever the rules of the
//! configuration point at. A method that carries data of a `phi` server is labelled whether or not
//! anybody was recognised, so that the report never misses it.

mod fhir;
mod patients;
mod rules;
mod subjects;

use custody_schemas::event::Data;
use custody_schemas::id::Uint;
use custody_schemas::words::{Direction, SubjectStatus};

pub use rules::{Rule, RuleError, Rules, ToolRule};
pub(crate) use subjects::Found;

use crate::envelope::Envelope;

/// The detectors and their versions, as records name them.
const DETECTOR: &str = "fhir-json/1 rules/1";

/// Whether a method only runs the protocol and carries no data of its own.
pub(crate) fn is_housekeeping(method: &str) -> bool {
    matches!(
        method,
        "initialize"
            | "ping"
            | "tools/list"
            | "prompts/list"
            | "resources/templates/list"
            | "roots/list"
            | "logging/setLevel"
            | "server/discover"
    ) || method.starts_with("notifications/")
}

/// Looks at what an agent sends: a request, a notification, or its answer to a server's request.
pub(crate) fn sent(rules: &Rules, message: &Envelope<'_>, bytes: &[u8]) -> Found {
    let mut found = Found::new(Direction::Sent);
    found.note_twin(message.twin.is_some());
    fhir::look(bytes, &mut found);
    if let Some(uri) = message.uri.as_deref() {
        fhir::look_at_reference(uri, &mut found);
    }
    let document = message.arguments.or(message.params);
    rules.look_at_arguments(message.name.as_deref(), document, &mut found);
    found
}

/// Looks at what an agent receives; `tool` is what its request named.
pub(crate) fn received(
    rules: &Rules,
    tool: Option<&str>,
    message: &Envelope<'_>,
    bytes: &[u8],
) -> Found {
    let mut found = Found::new(Direction::Received);
    found.note_twin(message.twin.is_some());
    fhir::look(bytes, &mut found);
    rules.look_at_result(tool, message.result, &mut found);
    found
}

/// What a record says of the data: `phi` is whether this server, tool and method carry protected
/// data whatever was found. The subjects are returned apart, for there may be too many.
pub(crate) fn data(phi: bool, found: &Found) -> Data {
    let recognised = found.count() > 0;
    if !phi && !recognised {
        return Data::default();
    }
    let status = if found.is_ambiguous() {
        SubjectStatus::Ambiguous
    } else if found.is_incomplete() || (found.is_opaque() && !recognised) {
        SubjectStatus::NotExamined
    } else if recognised {
        SubjectStatus::Recognised
    } else {
        SubjectStatus::Unrecognised
    };
    Data {
        detector: Some(DETECTOR.to_owned()),
        labels: vec!["phi".to_owned()],
        subject_count: recognised.then(|| Uint::new(found.count())),
        subject_status: Some(status),
        ..Data::default()
    }
}

#[cfg(test)]
mod tests;
