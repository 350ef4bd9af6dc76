//! Reads many records: what they have in common is read once.
//!
//! Most records repeat, byte for byte, who called, what was called and what was decided: an ending
//! repeats its opening, and a person makes more than one call. The text of such a group is looked
//! up before it is parsed, and events share what it says. A decoder gives what [`decode`] gives,
//! for whatever bytes, and remembers a bounded number of groups.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::event::{Bodies, Data, Decision, Event, Outcome, PrevCall, What, Who};
use crate::id::{CallId, Micros, Salt, StreamId, Uint};
use crate::json::Json;
use crate::kind::Kind;
use crate::record::{Decoded, MAX_RECORD_BYTES, decode};

/// Groups of one sort that are remembered.
const REMEMBERED: usize = 1024;

/// Reads records one after another.
#[derive(Debug, Default)]
pub struct Decoder {
    who: Memory<Who>,
    what: Memory<What>,
    decision: Memory<Decision>,
    stream: Option<StreamId>,
    tenant: Option<Arc<str>>,
}

/// An event whose repeated groups are still text.
#[derive(Deserialize)]
struct Outline<'a> {
    at: Micros,
    #[serde(default)]
    bodies: Bodies,
    #[serde(default)]
    call: Option<CallId>,
    code: u16,
    #[serde(default)]
    data: Data,
    #[serde(borrow, default)]
    decision: Option<&'a RawValue>,
    #[serde(default)]
    detail: BTreeMap<String, Json>,
    flags: u16,
    kind: Kind,
    #[serde(default)]
    outcome: Option<Outcome>,
    #[serde(default)]
    prev_call: Option<PrevCall>,
    salt: Salt,
    seq: Uint,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    #[serde(default)]
    truncated: Vec<String>,
    v: u32,
    #[serde(borrow, default)]
    what: Option<&'a RawValue>,
    #[serde(borrow, default)]
    who: Option<&'a RawValue>,
}

impl Decoder {
    /// Reads a record of any version.
    #[must_use]
    pub fn decode(&mut self, bytes: &[u8]) -> Decoded {
        match self.event(bytes) {
            Some(event) => Decoded::Event(Box::new(event)),
            // What is wrong, and what can be read all the same, is said in one place.
            None => decode(bytes),
        }
    }

    fn event(&mut self, bytes: &[u8]) -> Option<Event> {
        if bytes.len() > MAX_RECORD_BYTES {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let outline: Outline<'_> = serde_json::from_str(text).ok()?;
        Some(Event {
            at: outline.at,
            bodies: outline.bodies,
            call: outline.call,
            code: outline.code,
            data: outline.data,
            decision: self.decision.read(outline.decision)?,
            detail: outline.detail,
            flags: outline.flags,
            kind: outline.kind,
            outcome: outline.outcome,
            prev_call: outline.prev_call,
            salt: outline.salt,
            seq: outline.seq,
            stream: self.stream(&outline.stream)?,
            tenant: self.tenant(&outline.tenant),
            truncated: outline.truncated,
            v: outline.v,
            what: self.what.read(outline.what)?,
            who: self.who.read(outline.who)?,
        })
    }

    fn stream(&mut self, text: &str) -> Option<StreamId> {
        if let Some(last) = self.stream.as_ref().filter(|last| last.as_str() == text) {
            return Some(last.clone());
        }
        let stream: StreamId = text.parse().ok()?;
        self.stream = Some(stream.clone());
        Some(stream)
    }

    fn tenant(&mut self, text: &str) -> Arc<str> {
        if let Some(last) = self.tenant.as_ref().filter(|last| ***last == *text) {
            return Arc::clone(last);
        }
        let tenant: Arc<str> = Arc::from(text);
        self.tenant = Some(Arc::clone(&tenant));
        tenant
    }
}

/// What texts have said.
#[derive(Debug)]
struct Memory<T>(HashMap<Box<str>, Arc<T>>);

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: DeserializeOwned> Memory<T> {
    /// `None` when the text does not say a `T`.
    #[expect(clippy::option_option, reason = "a record may be without the group")]
    fn read(&mut self, text: Option<&RawValue>) -> Option<Option<Arc<T>>> {
        let Some(text) = text.map(RawValue::get) else { return Some(None) };
        if let Some(known) = self.0.get(text) {
            return Some(Some(Arc::clone(known)));
        }
        let value: Arc<T> = Arc::new(serde_json::from_str(text).ok()?);
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(text.into(), Arc::clone(&value));
        Some(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Agent, Draft, Principal};
    use crate::id::Bytes;
    use crate::record::Place;

    fn record(seq: u64, person: u64) -> Vec<u8> {
        let stream = "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap();
        let place = Place { stream, seq, at: Uint::new(seq), salt: Bytes([7; 16]) };
        let mut draft = Draft::new(Kind::CallDenied).with("note", "a \"quoted\" word");
        let user = Principal { subject: format!("user-{person}"), ..Principal::default() };
        let agent = Agent { id: "agent".into(), ..Agent::default() };
        draft.who = Some(Arc::new(Who { user: Some(user), agent: Some(agent), ..Who::default() }));
        draft.what = Some(Arc::new(What { method: Some("tools/call".into()), ..What::default() }));
        draft.decision = Some(Arc::default());
        draft.data.labels = vec!["phi".into()];
        draft.seal(place).unwrap().bytes
    }

    #[test]
    fn records_of_the_same_person_share_who_that_is_and_others_do_not() {
        let mut decoder = Decoder::default();
        let who: Vec<_> = [(0, 1), (1, 1), (2, 2)]
            .iter()
            .map(|(seq, person)| {
                let decoded = decoder.decode(&record(*seq, *person));
                let Decoded::Event(event) = decoded else { panic!("{decoded:?}") };
                event.who.unwrap()
            })
            .collect();
        assert!(Arc::ptr_eq(&who[0], &who[1]));
        assert_ne!(who[0], who[2]);
    }

    #[test]
    fn a_decoder_forgets_before_it_remembers_too_much() {
        let mut decoder = Decoder::default();
        for person in 0..3_000 {
            let bytes = record(person, person);
            assert_eq!(decoder.decode(&bytes), decode(&bytes));
        }
        assert!(decoder.who.0.len() <= REMEMBERED);
    }

    proptest! {
        #[test]
        fn whatever_is_damaged_a_decoder_says_what_decode_says(
            damages in prop::collection::vec(
                (0usize..900, prop::collection::vec(any::<u8>(), 0..3), 0usize..40),
                0..3,
            ),
        ) {
            let mut decoder = Decoder::default();
            let sound = record(1, 1);
            prop_assert_eq!(decoder.decode(&sound), decode(&sound));
            let mut bytes = sound;
            for (at, put, taken) in damages {
                let at = at.min(bytes.len());
                let end = (at + taken).min(bytes.len());
                bytes.splice(at..end, put);
            }
            prop_assert_eq!(decoder.decode(&bytes), decode(&bytes));
        }

        #[test]
        fn groups_of_another_type_are_judged_alike(
            name in prop::sample::select(vec!["who", "what", "decision", "stream", "tenant", "v"]),
            value in prop::sample::select(vec!["null", "7", "\"x\"", "[]", "{}", "{\"agent\":7}"]),
        ) {
            let mut json: serde_json::Value = serde_json::from_slice(&record(1, 1)).unwrap();
            json[&name] = serde_json::from_str(value).unwrap();
            let bytes = serde_json::to_vec(&json).unwrap();
            prop_assert_eq!(Decoder::default().decode(&bytes), decode(&bytes));
        }
    }
}
