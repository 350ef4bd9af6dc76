//! Limits for strings that strangers chose, so that every record fits its 48 KiB.
//!
//! A longer string is cut at a character border and ends with `…#` and sixteen digits of
//! SHA-256(salt ‖ whole string): two records with the same salt-free text cannot be matched, but
//! whoever holds the text can check it. The record's `truncated` names the field. Lengths are
//! those of the encoded string, in which a control character takes six bytes.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::event::{Agent, Data, Decision, Event, Outcome, Principal, Subject, What, Who};
use crate::id::{Salt, Uint};
use crate::json::Json;

mod short;

const NAME: usize = 256;
const WORD: usize = 64;
const URI: usize = 1024;
/// How many entries a list of foreign words keeps.
const LIST: usize = 16;
/// How long the digits and the mark of a cut string are.
const MARK: usize = "…#".len() + 16;

/// Encoded bytes of subjects that an ending holds at most; the others are listed apart.
const SUBJECT_BYTES_ENDING: usize = 16 * 1024;
/// Encoded bytes of subjects in one `subjects.listed`.
const SUBJECT_BYTES_PART: usize = 24 * 1024;
/// How many subjects an ending holds at most.
pub const SUBJECTS_IN_ENDING: usize = 64;
/// How many subjects one `subjects.listed` holds at most.
pub const SUBJECTS_IN_PART: usize = 256;

/// Cuts every string of the event that is longer than its limit.
pub(crate) fn apply(event: &mut Event) {
    let mut cutter = Cutter { salt: event.salt, truncated: Vec::new() };
    if !short::text(&event.tenant) {
        let mut tenant = event.tenant.to_string();
        if cutter.text("tenant", NAME, &mut tenant) {
            event.tenant = Arc::from(tenant);
        }
    }
    if let Some(who) = &mut event.who
        && !short::who(who)
    {
        cutter.who(Arc::make_mut(who));
    }
    if let Some(what) = &mut event.what
        && !short::what(what)
    {
        cutter.what(Arc::make_mut(what));
    }
    if let Some(decision) = &mut event.decision
        && !short::decision(decision)
    {
        cutter.decision(Arc::make_mut(decision));
    }
    if let Some(outcome) = &mut event.outcome {
        cutter.outcome(outcome);
    }
    cutter.data(&mut event.data);
    for (key, value) in &mut event.detail {
        cutter.json(key, value);
    }
    cutter.truncated.dedup();
    event.truncated = cutter.truncated;
}

/// Splits the subjects of a call between its ending and the `subjects.listed` events before it.
///
/// The ending gets the first ones, so that a call with few subjects needs one event; nothing is
/// dropped and the order is kept.
#[must_use]
pub fn split_subjects(subjects: Vec<Subject>) -> (Vec<Subject>, Vec<Vec<Subject>>) {
    let mut ending = Vec::new();
    let mut parts: Vec<Vec<Subject>> = Vec::new();
    let mut bytes = 0;
    for subject in subjects {
        let cost = subject_cost(&subject);
        let first = parts.is_empty();
        let fits_ending = ending.len() < SUBJECTS_IN_ENDING && bytes + cost <= SUBJECT_BYTES_ENDING;
        if first && fits_ending {
            bytes += cost;
            ending.push(subject);
            continue;
        }
        let full = |part: &Vec<Subject>| {
            part.len() == SUBJECTS_IN_PART || bytes + cost > SUBJECT_BYTES_PART
        };
        if first || parts.last().is_some_and(full) {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += cost;
        if let Some(part) = parts.last_mut() {
            part.push(subject);
        }
    }
    (ending, parts)
}

/// An upper bound of what a subject takes in a record, after cutting.
fn subject_cost(subject: &Subject) -> usize {
    let text = |text: &String, max: usize| encoded_len(text).min(max) + 4;
    let list = |items: &[String]| items.iter().take(LIST).map(|i| text(i, WORD * 2)).sum::<usize>();
    120 + text(&subject.id, NAME)
        + text(&subject.system, NAME)
        + list(&subject.aliases)
        + list(&subject.categories)
}

fn encoded_len(text: &str) -> usize {
    text.bytes().map(encoded_byte_len).sum()
}

fn encoded_byte_len(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    }
}

struct Cutter {
    salt: Salt,
    truncated: Vec<String>,
}

impl Cutter {
    /// Cuts `text` if it is longer than `max`; whether it was.
    fn text(&mut self, field: &str, max: usize, text: &mut String) -> bool {
        if text.len() * 6 <= max || encoded_len(text) <= max {
            return false;
        }
        let digest = Sha256::new().chain_update(self.salt.0).chain_update(&*text).finalize();
        let mut end = 0;
        let mut used = MARK;
        for (at, c) in text.char_indices() {
            let mut utf8 = [0; 4];
            used += c.encode_utf8(&mut utf8).bytes().map(encoded_byte_len).sum::<usize>();
            if used > max {
                break;
            }
            end = at + c.len_utf8();
        }
        text.truncate(end);
        text.push_str("…#");
        text.push_str(&hex::encode(&digest[..8]));
        self.truncated.push(field.to_owned());
        true
    }

    fn option(&mut self, field: &str, max: usize, text: &mut Option<String>) {
        if let Some(text) = text {
            self.text(field, max, text);
        }
    }

    fn list(&mut self, field: &str, max: usize, items: &mut Vec<String>) {
        if items.len() > LIST {
            items.truncate(LIST);
            self.truncated.push(field.to_owned());
        }
        for item in items {
            self.text(field, max, item);
        }
    }

    fn who(&mut self, who: &mut Who) {
        if let Some(Agent { id, instance, name, version }) = &mut who.agent {
            self.text("who.agent.id", NAME, id);
            self.option("who.agent.instance", NAME, instance);
            self.option("who.agent.name", NAME, name);
            self.option("who.agent.version", WORD, version);
        }
        if let Some(claimed) = &mut who.client_claimed {
            self.text("who.client_claimed.name", NAME, &mut claimed.name);
            self.option("who.client_claimed.version", WORD, &mut claimed.version);
        }
        if who.delegation.len() > LIST / 2 {
            who.delegation.truncate(LIST / 2);
            self.truncated.push("who.delegation".to_owned());
        }
        for actor in &mut who.delegation {
            self.principal("who.delegation", actor);
        }
        self.option("who.purpose", WORD, &mut who.purpose);
        self.list("who.roles", WORD, &mut who.roles);
        if let Some(source) = &mut who.source {
            self.text("who.source.ip", WORD, &mut source.ip);
            self.option("who.source.user_agent", NAME, &mut source.user_agent);
        }
        self.option("who.token_id", NAME, &mut who.token_id);
        if let Some(user) = &mut who.user {
            self.principal("who.user", user);
        }
    }

    fn principal(&mut self, field: &str, principal: &mut Principal) {
        self.option(field, NAME, &mut principal.issuer);
        self.option(field, NAME, &mut principal.name);
        self.text(field, NAME, &mut principal.subject);
    }

    fn what(&mut self, what: &mut What) {
        self.option("what.method", 2 * WORD, &mut what.method);
        self.option("what.prompt", NAME, &mut what.prompt);
        self.option("what.protocol", WORD, &mut what.protocol);
        if let Some(recipient) = &mut what.recipient {
            self.option("what.recipient.address", NAME, &mut recipient.address);
            self.text("what.recipient.name", NAME, &mut recipient.name);
        }
        self.option("what.resource", URI, &mut what.resource);
        self.option("what.rpc_id", NAME, &mut what.rpc_id);
        self.option("what.server", 2 * WORD, &mut what.server);
        self.option("what.tool", NAME, &mut what.tool);
        self.option("what.trace", 2 * WORD, &mut what.trace);
        self.option("what.transport", WORD, &mut what.transport);
    }

    fn decision(&mut self, decision: &mut Decision) {
        self.option("decision.approval", NAME, &mut decision.approval);
        self.list("decision.policies", 2 * WORD, &mut decision.policies);
        self.option("decision.policy_version", 2 * WORD, &mut decision.policy_version);
        self.option("decision.reason", NAME, &mut decision.reason);
    }

    fn outcome(&mut self, outcome: &mut Outcome) {
        self.option("outcome.code", WORD, &mut outcome.code);
        self.option("outcome.result_type", WORD, &mut outcome.result_type);
    }

    fn data(&mut self, data: &mut Data) {
        self.option("data.detector", NAME, &mut data.detector);
        self.list("data.identifiers", WORD, &mut data.identifiers);
        self.list("data.labels", WORD, &mut data.labels);
        self.list("data.sensitivity", WORD, &mut data.sensitivity);
        if data.subject_count.is_none() && !data.subjects.is_empty() {
            data.subject_count = Some(Uint::new(data.subjects.len() as u64));
        }
        for subject in &mut data.subjects {
            self.list("data.subjects.aliases", 2 * WORD, &mut subject.aliases);
            self.list("data.subjects.categories", 2 * WORD, &mut subject.categories);
            self.text("data.subjects.id", NAME, &mut subject.id);
            self.text("data.subjects.system", NAME, &mut subject.system);
        }
    }

    fn json(&mut self, key: &str, value: &mut Json) {
        match value {
            Json::Text(text) => {
                self.text(&format!("detail.{key}"), URI, text);
            }
            Json::List(items) => items.iter_mut().for_each(|item| self.json(key, item)),
            Json::Map(map) => map.values_mut().for_each(|item| self.json(key, item)),
            Json::Null | Json::Bool(_) | Json::Int(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character_border_and_says_so() {
        let mut cutter = Cutter { salt: crate::id::Bytes([7; 16]), truncated: Vec::new() };
        let mut text = "é".repeat(300);
        assert!(cutter.text("who.user", NAME, &mut text));
        assert!(encoded_len(&text) <= NAME && text.contains("…#"), "{text}");
        assert_eq!(cutter.truncated, ["who.user"]);
        let mut short = "é".repeat(128);
        assert!(!cutter.text("who.user", NAME, &mut short));
    }

    #[test]
    fn no_subject_is_lost_when_many_are_split() {
        let subject = |i: usize| Subject {
            id: format!("{i}{}", "\u{1}".repeat(i % 300)),
            system: "fhir:Patient".into(),
            ..Subject::default()
        };
        for count in [0, 1, 64, 65, 320, 321, 5_000] {
            let all: Vec<_> = (0..count).map(subject).collect();
            let (ending, parts) = split_subjects(all.clone());
            assert!(ending.len() <= SUBJECTS_IN_ENDING);
            assert!(parts.iter().all(|part| (1..=SUBJECTS_IN_PART).contains(&part.len())));
            let joined: Vec<_> = ending.into_iter().chain(parts.into_iter().flatten()).collect();
            assert_eq!(joined, all);
        }
    }
}
