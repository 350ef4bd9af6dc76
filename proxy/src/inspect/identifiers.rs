//! Which of a person's identifiers a record names: those of the health record, not those of the
//! state.
//!
//! A medical record number beside the id makes a person findable; a social security or passport
//! number does so too, and would make every record of an access worth stealing. So it is left out,
//! unless the message names the person by nothing else.

/// How many identifiers of a person are kept.
pub(super) const MAX: usize = 8;

/// An identifier, as it stands in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identifier {
    pub(super) system: String,
    pub(super) value: String,
    /// Its type (HL7 table 0203), if it is said.
    pub(super) code: Option<String>,
}

/// What an identifier is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Record,
    Other,
    State,
}

impl Identifier {
    fn usage(&self) -> Use {
        match self.code.as_deref() {
            Some("MR" | "MRT" | "PI" | "PT" | "PE" | "EI") => Use::Record,
            Some("SS" | "SB" | "DL" | "PPN" | "NI" | "TAX" | "DR" | "MI" | "PRC") => Use::State,
            _ if is_of_the_state(&self.system) => Use::State,
            _ => Use::Other,
        }
    }

    /// As it stands among aliases.
    fn alias(&self) -> String {
        format!("{}|{}", self.system, self.value)
    }

    /// The system, or a word for none.
    pub(super) fn system(&self) -> &str {
        if self.system.is_empty() { "identifier" } else { &self.system }
    }
}

/// Identifiers of the state that are known by their system.
fn is_of_the_state(system: &str) -> bool {
    const SSN: &str = "2.16.840.1.113883.4.1";
    const LICENCES: &str = "2.16.840.1.113883.4.3.";
    let oid = system.strip_prefix("urn:oid:").unwrap_or(system);
    oid == SSN
        || oid.starts_with(LICENCES)
        || system.ends_with("/us-ssn")
        || system.contains("passport")
}

/// The identifier that a person is known by, where there is no better id, and the others as
/// aliases: at most [`MAX`], those of the health record first.
pub(super) fn name(identifiers: &[Identifier]) -> Option<(&Identifier, Vec<String>)> {
    let first = identifiers.iter().min_by_key(|identifier| identifier.usage())?;
    let mut others = aliases(identifiers);
    others.retain(|alias| *alias != first.alias());
    Some((first, others))
}

/// The aliases of a person who is known by something else.
pub(super) fn aliases(identifiers: &[Identifier]) -> Vec<String> {
    let of = |usage| identifiers.iter().filter(move |identifier| identifier.usage() == usage);
    of(Use::Record).chain(of(Use::Other)).take(MAX).map(Identifier::alias).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identifier(system: &str, value: &str, code: &str) -> Identifier {
        let code = (!code.is_empty()).then(|| code.to_owned());
        Identifier { system: system.to_owned(), value: value.to_owned(), code }
    }

    #[test]
    fn record_numbers_come_first_and_numbers_of_the_state_stay_out() {
        let all = [
            identifier("http://hl7.org/fhir/sid/us-ssn", "999-11-2222", ""),
            identifier("urn:x", "1", ""),
            identifier("urn:licence", "S1", "DL"),
            identifier("urn:oid:1.2", "M1", "MR"),
        ];
        assert_eq!(aliases(&all), ["urn:oid:1.2|M1", "urn:x|1"]);
        let (first, others) = name(&all).unwrap();
        assert_eq!((first.value.as_str(), others), ("M1", vec!["urn:x|1".to_owned()]));
        let (only, none) = name(&all[..1]).unwrap();
        assert_eq!((only.value.as_str(), none.len()), ("999-11-2222", 0));
        assert!(name(&[]).is_none());
    }
}
