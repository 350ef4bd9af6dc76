//! What has left the lake lawfully: retention and erasure say so in records of their own, which are
//! sealed as all others are. A leaf whose record is gone is then expired or erased, not missing.

use std::collections::HashSet;

use custody_schemas::event::Event;
use custody_schemas::id::{BodyId, Micros, StreamId, Uint};
use custody_schemas::json::Json;
use custody_schemas::kind::Kind;

/// Why something is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A retention rule let whole days go.
    Expired,
    /// What was kept about a person was erased.
    Erased,
}

/// What retention and erasure say.
#[derive(Clone, Debug, Default)]
pub struct Lawful {
    events_before: Micros,
    bodies_before: Micros,
    events: HashSet<(StreamId, u64)>,
    bodies: HashSet<BodyId>,
}

/// Whether a kind's events say that something has left.
#[must_use]
pub fn says_so(kind: &Kind) -> bool {
    matches!(kind, Kind::RetentionApplied | Kind::SubjectErased)
}

impl Lawful {
    /// Takes note of what a sealed event says. Nothing that was recorded after it is covered.
    pub fn note(&mut self, event: &Event) {
        if event.kind == Kind::RetentionApplied {
            let before = match event.detail.get("before") {
                Some(Json::Int(at)) => Uint::new(u64::try_from(at.get()).unwrap_or(0)),
                _ => return,
            };
            let before = before.min(event.at);
            match event.detail.get("table") {
                Some(Json::Text(table)) if table == "events" => {
                    self.events_before = self.events_before.max(before);
                }
                Some(Json::Text(table)) if table == "bodies" => {
                    self.bodies_before = self.bodies_before.max(before);
                }
                _ => {}
            }
        }
        if event.kind == Kind::SubjectErased {
            self.events.extend(texts(event, "events").filter_map(identity));
            self.bodies
                .extend(texts(event, "bodies").filter_map(|text| text.parse::<BodyId>().ok()));
        }
    }

    /// Why the record of this leaf is not there, if that is lawful.
    #[must_use]
    pub fn event(&self, stream: &StreamId, seq: u64, at: Micros) -> Option<Gone> {
        // A set of pairs cannot be asked for a borrowed one; nothing is asked where nothing left.
        if !self.events.is_empty() && self.events.contains(&(stream.clone(), seq)) {
            return Some(Gone::Erased);
        }
        (at < self.events_before).then_some(Gone::Expired)
    }

    /// Why this body of a record is not there, if that is lawful.
    #[must_use]
    pub fn body(&self, body: BodyId, at: Micros) -> Option<Gone> {
        if self.bodies.contains(&body) {
            return Some(Gone::Erased);
        }
        (at < self.bodies_before).then_some(Gone::Expired)
    }
}

fn texts<'a>(event: &'a Event, name: &str) -> impl Iterator<Item = &'a str> {
    let list = match event.detail.get(name) {
        Some(Json::List(list)) => list.as_slice(),
        _ => &[],
    };
    list.iter().filter_map(|item| match item {
        Json::Text(text) => Some(text.as_str()),
        Json::Null | Json::Bool(_) | Json::Int(_) | Json::List(_) | Json::Map(_) => None,
    })
}

/// `{stream}/{seq}`.
fn identity(text: &str) -> Option<(StreamId, u64)> {
    let (stream, seq) = text.rsplit_once('/')?;
    Some((stream.parse().ok()?, seq.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use custody_schemas::event::Draft;
    use custody_schemas::id::Bytes;
    use custody_schemas::record::Place;

    use super::*;

    const STREAM: &str = "edge-1/0190c8a0-7b1e-7000-8000-000000000001";

    fn event(draft: Draft, at: u64) -> Event {
        let stream = STREAM.parse().unwrap();
        draft.seal(Place { stream, seq: 9, at: Uint::new(at), salt: Bytes([1; 16]) }).unwrap().event
    }

    #[test]
    fn only_what_a_record_names_has_left_lawfully_and_nothing_later_than_it() {
        let stream: StreamId = STREAM.parse().unwrap();
        let mut lawful = Lawful::default();
        assert_eq!(lawful.event(&stream, 3, Uint::new(0)), None);
        let applied = |table: &str, before: u64| {
            Draft::new(Kind::RetentionApplied).with("table", table).with("before", before)
        };
        lawful.note(&event(applied("events", 50), 100));
        lawful.note(&event(applied("bodies", 900), 100));
        assert_eq!(lawful.event(&stream, 3, Uint::new(49)), Some(Gone::Expired));
        assert_eq!(lawful.event(&stream, 3, Uint::new(50)), None);
        let body: BodyId = Bytes([5; 16]);
        assert_eq!(lawful.body(body, Uint::new(99)), Some(Gone::Expired));
        assert_eq!(lawful.body(body, Uint::new(100)), None, "the future cannot expire");
        let erased = Draft::new(Kind::SubjectErased)
            .with("events", vec![format!("{STREAM}/70")])
            .with("bodies", vec![body.to_string()]);
        lawful.note(&event(erased, 200));
        assert_eq!(lawful.event(&stream, 70, Uint::new(150)), Some(Gone::Erased));
        assert_eq!(lawful.event(&stream, 71, Uint::new(150)), None);
        assert_eq!(lawful.body(body, Uint::new(150)), Some(Gone::Erased));
    }
}
