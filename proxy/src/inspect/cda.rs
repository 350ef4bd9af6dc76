//! Recognises C-CDA documents (HL7 CDA R2), and the patients that they are about.
//!
//! A patient is whom `recordTarget/patientRole/id` names; there may be several of either. Tags are
//! read one after the other, without building anything and without resolving entities that a
//! document defines itself.

use std::borrow::Cow;

use memchr::memmem;

use super::identifiers::{self, Identifier};
use super::subjects::{Found, Unexamined};

/// The kind of data that a document is.
const CATEGORY: &str = "ClinicalDocument";
/// How long a tag may be.
const MAX_TAG: usize = 4 << 10;
/// How many ids of one patient are read.
const MAX_IDS: usize = 16;

/// Looks for documents in a text; whether there is one. A document that breaks off is the last.
pub(super) fn look(text: &str, found: &mut Found) -> bool {
    let mut any = false;
    let mut from = 0;
    while let Some(at) = memmem::find(&text.as_bytes()[from..], CATEGORY.as_bytes()) {
        let at = from + at;
        from = at + CATEGORY.len();
        let Some(start) = bracket_before(&text[..at]) else { continue };
        let mut tags = Tags { text, at: start };
        if !tags.next().is_some_and(|tag| tag.opens && tag.is(CATEGORY)) {
            continue;
        }
        any = true;
        found.note_clinical();
        let whole = read(&mut tags, found);
        found.note_read(tags.at - start);
        if !whole {
            found.note(Unexamined::Unreadable);
            break;
        }
        from = tags.at;
    }
    any
}

/// Where the tag begins whose name comes next, with or without a prefix.
fn bracket_before(text: &str) -> Option<usize> {
    let bare = text.strip_suffix(':').map_or(text, |prefixed| {
        prefixed.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    });
    bare.ends_with('<').then(|| bare.len() - 1)
}

/// Reads a document whose first tag has been read; whether to its end.
fn read(tags: &mut Tags<'_>, found: &mut Found) -> bool {
    let (mut depth, mut in_target, mut role) = (1_usize, false, None);
    let mut ids: Vec<Identifier> = Vec::new();
    let mut named = false;
    while depth > 0
        && let Some(tag) = tags.next()
    {
        if tag.opens {
            depth += 1;
            in_target |= tag.is("recordTarget");
            if in_target && role.is_none() && tag.is("patientRole") {
                role = Some(depth);
            } else if role.is_some_and(|role| depth == role + 1) && tag.is("id") {
                ids.extend(tag.identifier().filter(|_| ids.len() < MAX_IDS));
            }
        }
        if tag.closes {
            if role == Some(depth) {
                named |= count(&ids, found);
                ids.clear();
                role = None;
            }
            in_target &= !tag.is("recordTarget");
            depth -= 1;
        }
    }
    if role.is_some() {
        named |= count(&ids, found);
    }
    if !named {
        found.note(Unexamined::Nameless);
    }
    depth == 0
}

fn count(ids: &[Identifier], found: &mut Found) -> bool {
    let Some((first, others)) = identifiers::name(ids) else { return false };
    found.add(first.system(), &first.value, Some(CATEGORY), others);
    true
}

/// A tag, without its brackets.
struct Tag<'a> {
    /// Its name, without prefix.
    name: &'a str,
    attributes: &'a str,
    opens: bool,
    closes: bool,
}

impl Tag<'_> {
    fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// What `<id root="…" extension="…"/>` names.
    fn identifier(&self) -> Option<Identifier> {
        let root = self.attribute("root").filter(|root| !root.is_empty())?;
        let oid = root.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let (system, value) = match self.attribute("extension").filter(|value| !value.is_empty()) {
            Some(extension) if oid => (format!("urn:oid:{root}"), extension.into_owned()),
            Some(extension) => (format!("urn:uuid:{root}"), extension.into_owned()),
            None if oid => ("urn:ietf:rfc:3986".to_owned(), format!("urn:oid:{root}")),
            None => ("urn:ietf:rfc:3986".to_owned(), format!("urn:uuid:{root}")),
        };
        Some(Identifier { system, value, code: None })
    }

    /// The value of an attribute.
    fn attribute(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut rest = self.attributes;
        loop {
            let (key, behind) = rest.split_once('=')?;
            let behind = behind.trim_start();
            let quote = behind.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (value, after) = behind[1..].split_once(quote)?;
            if key.trim() == name {
                return Some(plain(value.trim()));
            }
            rest = after;
        }
    }
}

/// A value without the references that XML itself defines.
fn plain(value: &str) -> Cow<'_, str> {
    if !value.contains('&') {
        return Cow::Borrowed(value);
    }
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    Cow::Owned(pairs.iter().fold(value.to_owned(), |text, (from, to)| text.replace(from, to)))
}

/// The tags of a text, in order; comments, CDATA, declarations and instructions are passed over.
struct Tags<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tags<'a> {
    fn next(&mut self) -> Option<Tag<'a>> {
        loop {
            let from = self.at + memchr::memchr(b'<', &self.text.as_bytes()[self.at..])?;
            let rest = &self.text[from..];
            let pass = |end: &str| rest.find(end).map(|at| from + at + end.len());
            if rest.starts_with("<!--") {
                self.at = pass("-->")?;
            } else if rest.starts_with("<![CDATA[") {
                self.at = pass("]]>")?;
            } else if rest.starts_with("<!") || rest.starts_with("<?") {
                self.at = pass(">")?;
            } else {
                let length = end_of_tag(&rest[1..])?;
                self.at = from + 1 + length + 1;
                return Some(Self::tag(&rest[1..=length]));
            }
        }
    }

    /// The tag between its brackets.
    fn tag(inside: &'a str) -> Tag<'a> {
        let (closing, inside) = match inside.strip_prefix('/') {
            Some(name) => (true, name),
            None => (false, inside),
        };
        let (empty, inside) = match inside.strip_suffix('/') {
            Some(rest) => (true, rest),
            None => (false, inside),
        };
        let end = inside.find(|c: char| c.is_ascii_whitespace()).unwrap_or(inside.len());
        let (name, attributes) = inside.split_at(end);
        let name = name.rsplit(':').next().unwrap_or(name);
        Tag { name, attributes, opens: !closing, closes: closing || empty }
    }
}

/// Where the bracket that closes a tag stands: not the one in an attribute's value.
fn end_of_tag(text: &str) -> Option<usize> {
    let bytes = &text.as_bytes()[..text.len().min(MAX_TAG)];
    let mut at = 0;
    loop {
        at += memchr::memchr3(b'>', b'"', b'\'', bytes.get(at..)?)?;
        match bytes[at] {
            b'>' => return Some(at),
            quote => at += 2 + memchr::memchr(quote, bytes.get(at + 1..)?)?,
        }
    }
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

    fn document(ids: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><!-- <id root='9'/> -->\
             <ClinicalDocument xmlns=\"urn:hl7-org:v3\"><id root=\"7.7\" extension=\"doc\"/>\
             <recordTarget><patientRole>{ids}<addr use='>'/><patient><name>S</name></patient>\
             <providerOrganization><id root=\"8.8\" extension=\"org\"/></providerOrganization>\
             </patientRole></recordTarget>\
             <author><assignedAuthor><id root=\"6.6\" extension=\"who\"/></assignedAuthor></author>\
             </ClinicalDocument>"
        )
    }

    #[test]
    fn a_patient_is_named_by_the_ids_of_the_role_and_by_no_others() {
        let ids = "<id root=\"2.16.840.1.113883.4.1\" extension=\"999-11-2222\"/>\
            <id root=\"1.2.3\" extension=\"M&amp;1\"/><id nullFlavor=\"UNK\"/><id root='4.5'/>";
        let (found, _) = subjects(&document(ids));
        assert_eq!(found.len(), 1);
        assert_eq!((&*found[0].system, &*found[0].id), ("urn:oid:1.2.3", "M&1"));
        assert_eq!(found[0].aliases, ["urn:ietf:rfc:3986|urn:oid:4.5"]);
        assert_eq!(found[0].categories, ["ClinicalDocument"]);
    }

    #[test]
    fn prefixes_several_patients_and_text_around_are_no_obstacle() {
        let one = document("<id root=\"1.2\" extension=\"A\"/>");
        let prefixed = one.replace("</", "</cda:").replace("<id", "<cda:id");
        let prefixed = ["ClinicalDocument ", "recordTarget>", "patientRole>", "patient>"]
            .iter()
            .fold(prefixed, |text, name| {
                text.replace(&format!("<{name}"), &format!("<cda:{name}"))
            });
        assert_eq!(subjects(&prefixed).0.len(), 1, "{prefixed}");
        let two = format!("First: {one} second: {}", one.replace("\"A\"", "\"B\""));
        let ids: Vec<_> = subjects(&two).0.into_iter().map(|subject| subject.id).collect();
        assert_eq!(ids, ["A", "B"]);
    }

    #[test]
    fn a_document_without_an_id_is_protected_data_all_the_same() {
        let (nobody, found) = subjects(&document("<id nullFlavor=\"NI\"/>"));
        assert!(nobody.is_empty() && found.is_clinical());
    }

    #[test]
    fn what_breaks_off_or_is_no_document_ends_without_harm() {
        let whole = document("<id root=\"1.2\" extension=\"A\"/>");
        for length in 0..whole.len() {
            subjects(&whole[..length]);
        }
        for text in [
            "ClinicalDocument",
            "<ClinicalDocument",
            "a ClinicalDocument > b",
            "</ClinicalDocument>",
        ] {
            assert!(!subjects(text).1.is_clinical(), "{text}");
        }
        let cut = &whole[..whole.find("<author>").unwrap()];
        assert_eq!(subjects(cut).0.len(), 1);
    }
}
