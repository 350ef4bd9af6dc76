//! Patients that a text names by a path or a query: `Patient/1`, `…?patient=1`, `Patient%2F1`.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What stands in every one of them.
static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("atient"));

/// How surely a text is a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sure {
    /// It is one, or it is what an agent asks for: every id counts.
    Yes,
    /// It may be prose (`Patient/family education`): only an id with a digit counts.
    No,
}

/// Calls `on` with the id of each patient that `text` names, in order.
pub(super) fn each<'t>(text: &'t str, sure: Sure, mut on: impl FnMut(&'t str)) {
    for at in NAME.find_iter(text.as_bytes()) {
        let Some(before) = at.checked_sub(1) else { continue };
        let rest = &text[at + "atient".len()..];
        if !at_border(&text.as_bytes()[..before]) {
            continue;
        }
        match text.as_bytes()[before] {
            b'P' => ids(after_type(&text[..before], rest), sure, &mut on),
            b'p' => ids(after_key(rest), sure, &mut on),
            _ => {}
        }
    }
}

/// The first of them.
pub(super) fn first(text: &str) -> Option<&str> {
    let mut found = None;
    each(text, Sure::Yes, |id| found = found.or(Some(id)));
    found
}

/// Whether a word may begin behind these bytes.
fn at_border(before: &[u8]) -> bool {
    let Some(&last) = before.last() else { return true };
    let encoded = |digits: &[u8]| matches!(digits, [b'%', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    !(last.is_ascii_alphanumeric() || matches!(last, b'-' | b'_' | b'.'))
        || before.last_chunk::<3>().is_some_and(|digits| encoded(digits))
}

/// What follows `Patient`: the rest from the first id on.
fn after_type<'t>(before: &str, rest: &'t str) -> Option<&'t str> {
    const MARKS: [&str; 5] = ["/", "%2F", "%2f", "\\/", "?_id="];
    let in_key = before.ends_with(':') || before.ends_with("%3A");
    let value = rest.strip_prefix('=').filter(|_| in_key);
    value.or_else(|| MARKS.iter().find_map(|mark| rest.strip_prefix(mark)))
}

/// What follows `patient`: the value of a search parameter.
fn after_key(rest: &str) -> Option<&str> {
    let value =
        ["=", ":Patient=", "._id=", "%3D"].iter().find_map(|mark| rest.strip_prefix(mark))?;
    // `Patient/1` is found where it stands
    (!value.starts_with("Patient")).then_some(value)
}

/// The ids at the start of `rest`, one or, with commas, several.
fn ids<'t>(rest: Option<&'t str>, sure: Sure, on: &mut impl FnMut(&'t str)) {
    let Some(mut rest) = rest else { return };
    loop {
        let id = leading_id(rest);
        let counts = sure == Sure::Yes || id.bytes().any(|byte| byte.is_ascii_digit());
        if !id.is_empty() && counts {
            on(id);
        }
        let behind = rest.get(id.len()..).unwrap_or_default();
        match behind.strip_prefix(',').or_else(|| behind.strip_prefix("%2C")) {
            Some(next) if !id.is_empty() && !next.starts_with("Patient") => rest = next,
            _ => return,
        }
    }
}

/// Whether the whole text is an id that is not just a word.
pub(super) fn is_id(text: &str) -> bool {
    leading_id(text).len() == text.len() && text.bytes().any(|byte| byte.is_ascii_digit())
}

/// A FHIR id: up to 64 letters, digits, dots and hyphens. The full stop of a sentence is none.
pub(super) fn leading_id(text: &str) -> &str {
    let stop = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.');
    let id = text[..text.find(stop).unwrap_or(text.len())].trim_end_matches('.');
    if id.len() <= 64 { id } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, sure: Sure) -> Vec<&str> {
        let mut ids = Vec::new();
        each(text, sure, |id| ids.push(id));
        ids
    }

    #[test]
    fn every_patient_that_a_path_or_query_names_is_found() {
        for (text, ids) in [
            ("Patient/a1", vec!["a1"]),
            ("https://ehr/fhir/Patient/a1/_history/2", vec!["a1"]),
            ("see Patient/a1. And Patient/b-2, too", vec!["a1", "b-2"]),
            ("Observation?patient=a1&code=x", vec!["a1"]),
            ("Observation?patient=a1,b2&code=x", vec!["a1", "b2"]),
            ("Observation?subject=Patient/a1,Patient/b2", vec!["a1", "b2"]),
            ("?patient=Patient/a1", vec!["a1"]),
            ("?subject%3APatient=a1", vec!["a1"]),
            ("?subject:Patient=a1", vec!["a1"]),
            ("?subject=Patient%2Fa1&page=2", vec!["a1"]),
            ("Patient?_id=a1,b2", vec!["a1", "b2"]),
            ("<reference value=\"Patient/a1\"/>", vec!["a1"]),
            ("Patient\\/a1", vec!["a1"]),
        ] {
            assert_eq!(found(text, Sure::No), ids, "{text}");
        }
    }

    #[test]
    fn what_only_looks_like_a_patient_is_none() {
        for text in [
            "Patient/family education",
            "Patient/",
            "Patient/$everything",
            "Inpatient/1",
            "MyPatient/1",
            "the patient = 1",
            "impatient=1",
            "OperationDefinition/Patient-everything",
        ] {
            assert!(found(text, Sure::No).is_empty(), "{text}: {:?}", found(text, Sure::No));
        }
        assert_eq!(found("Patient/example", Sure::Yes), ["example"]);
        assert!(is_id("12") && is_id("a-1") && !is_id("ann") && !is_id("a 1"));
    }
}
