//! What data passed: labels, and whose data it was.
//!
//! Inspection reads the bytes that pass and changes nothing. It promises to do work in proportion
//! to a message's length and no more (64 MiB, texts inside it counted again), to say when and why
//! it has not seen all of it, and to count everybody it recognises. What it recognises are FHIR
//! resources in JSON, HL7 v2 messages and C-CDA documents (all of them also in texts, in JSON
//! inside a text, in base64), other strings that name a patient by a path or query, and whatever
//! the rules of the configuration point at. A method that carries data of a `phi` server is
//! labelled whether or not anybody was recognised, so that the report never misses it.
//!
//! `clues` finds the words without which nothing need be read, `work` reads a message and the
//! texts in it, `fhir`, `hl7v2` and `cda` read what they are, `references` and `identifiers` say
//! who is meant, `patients` settles whom a document was about, `subjects` counts them.

mod cda;
mod clues;
mod fhir;
mod hl7v2;
mod identifiers;
mod patients;
mod references;
mod rules;
mod subjects;
mod work;

use custody_schemas::event::Data;
use custody_schemas::id::Uint;
use custody_schemas::words::{Direction, SubjectStatus};

pub use rules::{Rule, RuleError, Rules, ToolRule};
pub(crate) use subjects::Found;

use self::patients::PATIENT;
use self::references::Sure;
use self::work::Work;
use crate::envelope::{Envelope, Look};

/// The detectors and their versions, as records name them.
const DETECTOR: &str = "fhir-json/2 hl7v2/1 cda/1 rules/1";

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
    let document = message.arguments.or(message.params);
    rules.look_at_arguments(message.name.as_deref(), document, &mut found);
    look(bytes, true, &mut found);
    if let Some(uri) = message.uri.as_deref() {
        references::each(uri, Sure::Yes, |id| found.add_if_new(PATIENT, id));
    }
    found
}

/// Looks at what an agent receives; `tool` is what its request named, `definitions` whether it
/// asked for descriptions, whose examples are no patients.
pub(crate) fn received(
    rules: &Rules,
    tool: Option<&str>,
    definitions: bool,
    message: &Envelope<'_>,
    bytes: &[u8],
) -> Found {
    let mut found = Found::new(Direction::Received);
    found.note_twin(message.twin.is_some());
    look(bytes, !definitions, &mut found);
    rules.look_at_result(tool, message.result, &mut found);
    found
}

/// Looks for patients in a message; `prose` is whether a sentence may name them.
fn look(bytes: &[u8], prose: bool, found: &mut Found) {
    let sent = *found.direction() == Direction::Sent;
    match std::str::from_utf8(bytes) {
        Ok(text) => Work::new(sent, prose, found).message(text),
        Err(_) => found.note_incomplete(),
    }
}

/// What a record says of the data: `phi` is whether this server, tool and method carry protected
/// data whatever was found. The subjects are returned apart, for there may be too many.
pub(crate) fn data(phi: bool, found: &Found) -> Data {
    let recognised = found.count() > 0;
    if !phi && !recognised && !found.is_clinical() {
        return Data::default();
    }
    let status = if found.is_ambiguous() {
        SubjectStatus::Ambiguous
    } else if found.is_incomplete() {
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

/// Why not all of the data was examined, for a record that says it.
pub(crate) fn unexamined(phi: bool, found: &Found) -> Vec<&'static str> {
    if data(phi, found).is_empty() { Vec::new() } else { found.unexamined() }
}

/// What inspection says of one message, apart from any call.
#[derive(Clone, Debug)]
pub struct Survey {
    /// As the record of a call to a server with protected data would say it, with everybody who
    /// is kept by name.
    pub data: Data,
    /// Why not all of it was examined.
    pub unexamined: Vec<&'static str>,
}

/// Looks at one message as it is looked at on its way; `None` when it is no JSON-RPC message.
/// For measurements, and for tests that feed it foreign bytes.
#[must_use]
pub fn survey(rules: &Rules, direction: &Direction, bytes: &[u8]) -> Option<Survey> {
    let message = Envelope::read(bytes, Look::Everywhere).ok()?;
    let found = match direction {
        Direction::Sent => sent(rules, &message, bytes),
        Direction::Received | Direction::Other(_) => received(rules, None, false, &message, bytes),
    };
    let mut data = data(true, &found);
    let unexamined = found.unexamined();
    data.subjects = found.into_subjects();
    Some(Survey { data, unexamined })
}

#[cfg(test)]
mod tests;
