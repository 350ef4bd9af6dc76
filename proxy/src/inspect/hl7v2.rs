//! Recognises HL7 v2 messages in ER7 encoding, and the patients that they name.
//!
//! A message begins with `MSH` at the start of a line and brings its own separators. Patients are
//! named by `PID-3` (before version 2.3 by `PID-2` or `PID-4`) and, when two records of one person
//! are merged, by `MRG-1`. A message with clinical segments is protected data even if it names
//! nobody. Reads each text once, front to back.

use memchr::memmem;

use super::identifiers::{self, Identifier};
use super::subjects::{Found, Unexamined};

/// Segments that say something of a patient.
const CLINICAL: [&str; 14] = [
    "PID", "PV1", "OBR", "OBX", "NK1", "DG1", "AL1", "IN1", "ORC", "RXA", "RXE", "SCH", "TXA",
    "PRB",
];

/// The separators of a message.
struct Marks {
    field: char,
    component: char,
    repetition: char,
    sub: char,
}

impl Marks {
    /// Of a message whose text follows `MSH`.
    fn of(rest: &str) -> Option<Self> {
        let mut chars = rest.chars();
        let field = chars.next().filter(char::is_ascii_punctuation)?;
        let (component, repetition) = (chars.next()?, chars.next()?);
        let sub = chars.nth(1)?;
        let all = [component, repetition, sub];
        let plausible = all.iter().all(|c| c.is_ascii_punctuation() && *c != field);
        let closed = chars.take(8).any(|c| c == field);
        (plausible && closed).then_some(Self { field, component, repetition, sub })
    }
}

/// Looks for messages in a text; whether there is one.
pub(super) fn look(text: &str, found: &mut Found) -> bool {
    let mut starts = Vec::new();
    for at in memmem::find_iter(text.as_bytes(), b"MSH") {
        let before = &text[..at];
        let begins = !before.ends_with(|c: char| c.is_ascii_alphanumeric())
            || before.ends_with("\\r")
            || before.ends_with("\\n");
        if begins && Marks::of(&text[at + 3..]).is_some() {
            starts.push(at);
        }
    }
    for (n, &start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(text.len());
        if let Some(marks) = Marks::of(&text[start + 3..]) {
            found.note_read(end - start);
            read(&text[start..end], &marks, found);
        }
    }
    !starts.is_empty()
}

/// Reads one message.
fn read(message: &str, marks: &Marks, found: &mut Found) {
    let mut kind = None;
    for segment in segments(message) {
        let mut fields = segment.split(marks.field);
        let name = fields.next().unwrap_or_default().trim();
        match name {
            "MSH" => kind = fields.nth(7).map(|field| category(field, marks)),
            "PID" => {
                let mut ids = fields.skip(1);
                let (second, third, fourth) = (ids.next(), ids.next(), ids.next());
                let named = [third, second, fourth].into_iter().flatten();
                count(named, kind.as_deref(), marks, found);
            }
            "MRG" => count(fields.next().into_iter(), kind.as_deref(), marks, found),
            _ => {}
        }
        if CLINICAL.contains(&name) {
            found.note_clinical();
        }
    }
}

/// The segments of a message: lines, also where a line's end is written out as `\r` or `\n`.
fn segments(message: &str) -> Box<dyn Iterator<Item = &str> + '_> {
    if message.contains(['\r', '\n']) {
        return Box::new(message.split(['\r', '\n']));
    }
    let written = if message.contains("\\r") { "\\r" } else { "\\n" };
    Box::new(message.split(written).map(|line| line.trim_start_matches("\\n")))
}

/// `ADT^A01` of `ADT^A01^ADT_A01`.
fn category(field: &str, marks: &Marks) -> String {
    let parts: Vec<&str> = field.split(marks.component).take(2).collect();
    parts.join("^")
}

/// Counts the patient of a segment, named by the first of these fields that is not empty.
fn count<'t>(
    mut fields: impl Iterator<Item = &'t str>,
    kind: Option<&str>,
    marks: &Marks,
    found: &mut Found,
) {
    let list = fields.find_map(|field| {
        let ids = field.split(marks.repetition).take(identifiers::MAX);
        let ids: Vec<Identifier> = ids.filter_map(|id| identifier(id, marks)).collect();
        (!ids.is_empty()).then_some(ids)
    });
    match list.as_deref().and_then(identifiers::name) {
        Some((first, others)) => found.add(first.system(), &first.value, kind, others),
        None => found.note(Unexamined::Nameless),
    }
}

/// A composite id (CX): `id^check digit^scheme^assigning authority^type`.
fn identifier(text: &str, marks: &Marks) -> Option<Identifier> {
    let mut parts = text.split(marks.component).map(str::trim);
    let value = parts.next().filter(|id| !id.is_empty() && *id != "\"\"")?;
    let mut authority = parts.nth(2).unwrap_or_default().split(marks.sub);
    let code = parts.next().filter(|code| !code.is_empty()).map(str::to_owned);
    let space = authority.next().unwrap_or_default();
    let (id, kind) = (authority.next().unwrap_or_default(), authority.next().unwrap_or_default());
    let system = match (space, id, kind) {
        (_, oid, "ISO") if !oid.is_empty() => format!("urn:oid:{oid}"),
        (_, uri, "URI" | "URL") if !uri.is_empty() => uri.to_owned(),
        ("", ..) => "hl7v2".to_owned(),
        (space, ..) => format!("hl7v2:{space}"),
    };
    Some(Identifier { system, value: value.to_owned(), code })
}

#[cfg(test)]
mod tests {
    use custody_schemas::event::Subject;
    use custody_schemas::words::Direction;

    use super::*;

    fn subjects(text: &str) -> (Vec<Subject>, Found) {
        let mut found = Found::new(Direction::Received);
        look(text, &mut found);
        (found.clone().into_subjects(), found)
    }

    const ADMISSION: &str = "MSH|^~\\&|ADT|HOSP|LAB|HOSP|20260101||ADT^A01^ADT_A01|1|P|2.5.1\r\
        EVN|A01|20260101\r\
        PID|1||M1^^^HOSP^MR~999-11-2222^^^USA^SS~77^^^EAST&1.2.3&ISO^PI||SYNTHETIC^PERSON\r\
        PV1|1|I\r";

    #[test]
    fn a_patient_is_named_by_the_record_number() {
        let (subjects, found) = subjects(ADMISSION);
        assert_eq!(subjects.len(), 1);
        assert_eq!((&*subjects[0].system, &*subjects[0].id), ("hl7v2:HOSP", "M1"));
        assert_eq!(subjects[0].aliases, ["urn:oid:1.2.3|77"]);
        assert_eq!(subjects[0].categories, ["ADT^A01"]);
        assert!(found.is_clinical());
    }

    #[test]
    fn line_ends_of_every_kind_and_text_around_are_no_obstacle() {
        for text in [
            ADMISSION.replace('\r', "\n"),
            ADMISSION.replace('\r', "\r\n"),
            ADMISSION.replace('\r', "\\r"),
            format!("Here it is:\n```\n{}```", ADMISSION.replace('\r', "\n")),
            format!("\u{b}{ADMISSION}\u{1c}\r"),
        ] {
            assert_eq!(subjects(&text).0.len(), 1, "{text:?}");
        }
    }

    #[test]
    fn every_message_and_every_patient_group_is_read() {
        let second = ADMISSION.replace("M1^", "M2^").replace("PV1", "MRG|OLD^^^HOSP^MR\rPV1");
        let (subjects, _) =
            subjects(&format!("FHS|^~\\&|a\rBHS|^~\\&|a\r{ADMISSION}{second}BTS|2\r"));
        let ids: Vec<_> = subjects.iter().map(|subject| &*subject.id).collect();
        assert_eq!(ids, ["M1", "M2", "OLD"]);
    }

    #[test]
    fn older_versions_name_a_patient_in_the_fields_beside() {
        let (subjects, _) =
            subjects("MSH|^~\\&|A|B|C|D|1||ORU^R01|1|P|2.2\rPID|1|X9|||DOE\rOBX|1\r");
        assert_eq!((&*subjects[0].system, &*subjects[0].id), ("hl7v2", "X9"));
    }

    #[test]
    fn a_message_that_names_nobody_is_protected_data_all_the_same() {
        let (nobody, found) =
            subjects("MSH|^~\\&|A|B|C|D|1||ORU^R01|1|P|2.5\rPID|1||\rOBX|1|NM|1\r");
        assert!(nobody.is_empty() && found.is_clinical());
        let (_, receipt) = subjects("MSH|^~\\&|A|B|C|D|1||ACK^A01|1|P|2.5\rMSA|AA|1\r");
        assert!(!receipt.is_clinical());
    }

    #[test]
    fn prose_with_those_letters_is_no_message() {
        for text in ["MSHA", "about MSH segments", "MSH|", "MSH|^~", "xMSH|^~\\&|", "MSH|||||||"] {
            let mut found = Found::new(Direction::Received);
            assert!(!look(text, &mut found), "{text}");
        }
    }
}
