//! Journal entries to rows: the only place that knows what of a record stands in which column.
//!
//! Nothing is left out: whatever the journal handed over becomes a row. A record whose identity can
//! be read is stored under it, with the columns that can be read and the reason for the others;
//! bytes that say nothing are stored whole. The journal's types stay outside: callers pass fields.

use custody_schemas::body::ChunkHeader;
use custody_schemas::event::{Agent, Bodies, BodyRef, Data, Decision, Event, Outcome, What, Who};
use custody_schemas::id::{Micros, StreamId};
use custody_schemas::record::{Decoded, Identity};
use custody_schemas::seal::FLAG_PHI;
use custody_schemas::seal::checkpoint::{Checkpoint, Message};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::batch::{Row, Rows};
use crate::columns::EVENT_DATE;

/// Microseconds of a day.
const DAY_US: u64 = 86_400_000_000;
/// The most days that an event's date may lie before its arrival.
const DAYS_BEFORE: u64 = 30;
/// The most days that an event's date may lie after its arrival.
const DAYS_AFTER: u64 = 1;

/// When and where an entry arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Name of the journal partition.
    pub partition: &'a str,
    /// Position in it.
    pub offset: u64,
    /// When the journal took it.
    pub journaled_at: Micros,
    /// When it is put into a file; `None` while it is in the journal only.
    pub stored_at: Option<Micros>,
}

/// What a record's row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The first record stored under its identity.
    Event,
    /// Another record under an identity that is taken.
    Conflict,
}

/// The days since 1970 of the partition that an event belongs to: the UTC day of `at`, clamped to
/// 30 days before and 1 day after its arrival, so that a wrong clock cannot scatter files.
#[must_use]
pub fn event_date(at: Micros, journaled_at: Micros) -> i32 {
    let (day, arrived) = (at.get() / DAY_US, journaled_at.get() / DAY_US);
    let day = day.clamp(arrived.saturating_sub(DAYS_BEFORE), arrived + DAYS_AFTER);
    i32::try_from(day).unwrap_or(i32::MAX)
}

impl Rows {
    /// Appends a record as `decode` understood it.
    pub fn record(
        &mut self,
        bytes: &[u8],
        decoded: &Decoded,
        standing: Standing,
        arrival: &Arrival<'_>,
    ) {
        match decoded {
            Decoded::Event(event) => self.event(bytes, event, standing, None, arrival),
            Decoded::Identified { identity, problem } => {
                let event = readable(bytes, identity);
                self.event(bytes, &event, standing, Some(problem), arrival);
            }
            Decoded::Undecodable { problem } => self.undecodable(bytes, problem, arrival),
        }
    }

    fn event(
        &mut self,
        bytes: &[u8],
        event: &Event,
        standing: Standing,
        problem: Option<&str>,
        arrival: &Arrival<'_>,
    ) {
        let (entry, problem) = match standing {
            Standing::Event => ("event", problem),
            Standing::Conflict => {
                ("conflict", Some("another record is stored under this identity"))
            }
        };
        let text = std::str::from_utf8(bytes).ok();
        let mut row = self.row();
        row.date(EVENT_DATE, event_date(event.at, arrival.journaled_at));
        row.text("entry", Some(entry));
        row.text("stream", Some(event.stream.as_str()));
        row.int("seq", Some(event.seq.get()));
        row.moment("at", Some(event.at));
        row.text("kind", Some(event.kind.as_str()));
        row.int("flags", Some(event.flags.into()));
        row.text("tenant", Some(&event.tenant));
        row.show("call", event.call);
        row.show("prev_call", event.prev_call.as_ref().and_then(|p| p.call));
        who(&mut row, event.who.as_deref());
        what(&mut row, event.what.as_deref());
        decision(&mut row, event.decision.as_deref());
        outcome(&mut row, event.outcome.as_ref());
        bodies(&mut row, &event.bodies);
        row.flag("phi", Some(event.flags & FLAG_PHI != 0));
        data(&mut row, &event.data);
        row.text("detail", detail(event).as_deref());
        row.texts("truncated", &event.truncated);
        row.text("record", text);
        row.bytes("raw", if text.is_none() { Some(bytes) } else { None });
        row.text("problem", problem);
        arrived(&mut row, arrival);
    }

    /// Appends bytes that are not even identified.
    pub fn undecodable(&mut self, bytes: &[u8], problem: &str, arrival: &Arrival<'_>) {
        self.nameless("undecodable", None, None, bytes, Some(problem), arrival);
    }

    /// Appends a signed checkpoint; its stream, size and root stand in columns when they can be
    /// read. Returns whether they could.
    pub fn checkpoint(&mut self, value: &[u8], arrival: &Arrival<'_>) -> bool {
        match checkpoint(value) {
            Ok((stream, detail)) => {
                let stream = Some(stream.as_str());
                self.nameless("checkpoint", stream, Some(&detail), value, None, arrival);
                true
            }
            Err(problem) => {
                self.nameless("undecodable", None, None, value, Some(&problem), arrival);
                false
            }
        }
    }

    fn nameless(
        &mut self,
        entry: &str,
        stream: Option<&str>,
        detail: Option<&str>,
        raw: &[u8],
        problem: Option<&str>,
        arrival: &Arrival<'_>,
    ) {
        let mut row = self.row();
        row.date(EVENT_DATE, event_date(arrival.journaled_at, arrival.journaled_at));
        row.text("entry", Some(entry));
        row.text("stream", stream);
        row.int("seq", None);
        row.moment("at", None);
        row.text("kind", None);
        row.int("flags", None);
        row.text("tenant", None);
        row.text("call", None);
        row.text("prev_call", None);
        who(&mut row, None);
        what(&mut row, None);
        decision(&mut row, None);
        outcome(&mut row, None);
        bodies(&mut row, &Bodies::default());
        row.flag("phi", None);
        data(&mut row, &Data::default());
        row.text("detail", detail);
        row.texts("truncated", NONE);
        row.text("record", None);
        row.bytes("raw", Some(raw));
        row.text("problem", problem);
        arrived(&mut row, arrival);
    }

    /// Appends a chunk of a body. Returns whether its header could be read; it is stored anyway.
    pub fn chunk(&mut self, header: &[u8], value: &[u8], arrival: &Arrival<'_>) -> bool {
        let decoded = ChunkHeader::decode(header);
        let known = decoded.as_ref().ok();
        let problem = decoded.as_ref().err().map(ToString::to_string);
        let mut row = self.row();
        row.date(EVENT_DATE, event_date(arrival.journaled_at, arrival.journaled_at));
        row.show("body", known.map(|h| h.body));
        row.int("index", known.map(|h| h.index.into()));
        row.int("count", known.map(|h| h.count.into()));
        row.int("length", known.map(|h| h.length));
        row.text("encoding", known.map(|h| h.encoding.as_str()));
        row.text("cipher", known.map(|h| h.cipher.as_str()));
        row.text("key", known.map(|h| h.key.as_str()).filter(|key| !key.is_empty()));
        row.bytes("nonce", known.map(|h| h.nonce.0.as_slice()));
        row.bytes("bytes", Some(value));
        row.text("problem", problem.as_deref());
        row.bytes("raw_header", if known.is_none() { Some(header) } else { None });
        arrived(&mut row, arrival);
        known.is_some()
    }
}

const NONE: [&str; 0] = [];

fn arrived(row: &mut Row<'_>, arrival: &Arrival<'_>) {
    row.moment("journaled_at", Some(arrival.journaled_at));
    row.moment("stored_at", arrival.stored_at);
    row.text("journal_partition", Some(arrival.partition));
    row.int("journal_offset", Some(arrival.offset));
}

fn who(row: &mut Row<'_>, who: Option<&Who>) {
    let user = who.and_then(|w| w.user.as_ref());
    let agent = who.and_then(|w| w.agent.as_ref());
    let claimed = who.and_then(|w| w.client_claimed.as_ref());
    let source = who.and_then(|w| w.source.as_ref());
    let of_agent = |get: fn(&Agent) -> Option<&str>| agent.and_then(get);
    row.text("user_issuer", user.and_then(|u| u.issuer.as_deref()));
    row.text("user_subject", user.map(|u| u.subject.as_str()));
    row.text("user_name", user.and_then(|u| u.name.as_deref()));
    row.text("agent_id", of_agent(|a| Some(&a.id)));
    row.text("agent_name", of_agent(|a| a.name.as_deref()));
    row.text("agent_instance", of_agent(|a| a.instance.as_deref()));
    row.text("agent_version", of_agent(|a| a.version.as_deref()));
    row.text("client_name", claimed.map(|c| c.name.as_str()));
    row.text("client_version", claimed.and_then(|c| c.version.as_deref()));
    row.texts("delegation", who.iter().flat_map(|w| &w.delegation).map(actor));
    row.text("assurance", who.map(|w| w.assurance.as_str()));
    row.text("token_id", who.and_then(|w| w.token_id.as_deref()));
    row.texts("roles", who.iter().flat_map(|w| &w.roles));
    row.text("purpose", who.and_then(|w| w.purpose.as_deref()));
    let purpose_source = who.and_then(|w| w.purpose_source.as_ref());
    row.text("purpose_source", purpose_source.map(|s| s.as_str()));
    row.text("source_ip", source.map(|s| s.ip.as_str()));
    row.text("user_agent", source.and_then(|s| s.user_agent.as_deref()));
}

fn actor(actor: &custody_schemas::event::Principal) -> String {
    format!("{}|{}", actor.issuer.as_deref().unwrap_or_default(), actor.subject)
}

fn what(row: &mut Row<'_>, what: Option<&What>) {
    let text = |get: fn(&What) -> Option<&str>| what.and_then(get);
    let recipient = what.and_then(|w| w.recipient.as_ref());
    row.text("method", text(|w| w.method.as_deref()));
    row.text("server", text(|w| w.server.as_deref()));
    row.text("recipient", recipient.map(|r| r.name.as_str()));
    let relation = recipient.and_then(|r| r.relation.as_ref());
    row.text("recipient_relation", relation.map(|r| r.as_str()));
    row.text("tool", text(|w| w.tool.as_deref()));
    row.show("tool_definition", what.and_then(|w| w.tool_definition));
    row.text("resource", text(|w| w.resource.as_deref()));
    row.text("prompt", text(|w| w.prompt.as_deref()));
    row.text("activity", text(|w| w.activity.as_ref().map(|a| a.as_str())));
    row.text("protocol", text(|w| w.protocol.as_deref()));
    row.text("transport", text(|w| w.transport.as_deref()));
    row.text("rpc_id", text(|w| w.rpc_id.as_deref()));
    row.show("session", what.and_then(|w| w.session));
    row.text("trace", text(|w| w.trace.as_deref()));
}

fn decision(row: &mut Row<'_>, decision: Option<&Decision>) {
    row.text("effect", decision.map(|d| d.effect.as_str()));
    row.text("reason", decision.and_then(|d| d.reason.as_deref()));
    row.texts("policies", decision.iter().flat_map(|d| &d.policies));
    row.text("policy_version", decision.and_then(|d| d.policy_version.as_deref()));
    row.text("approval", decision.and_then(|d| d.approval.as_deref()));
}

fn outcome(row: &mut Row<'_>, outcome: Option<&Outcome>) {
    row.text("status", outcome.map(|o| o.status.as_str()));
    row.int("http_status", outcome.and_then(|o| o.http_status).map(u64::from));
    row.text("code", outcome.and_then(|o| o.code.as_deref()));
    row.int("duration_us", outcome.and_then(|o| o.duration_us).map(|d| d.get()));
    row.text("result_type", outcome.and_then(|o| o.result_type.as_deref()));
}

fn bodies(row: &mut Row<'_>, bodies: &Bodies) {
    let (request, response) = (bodies.request.as_ref(), bodies.response.as_ref());
    let bytes = |body: &BodyRef| body.bytes.get();
    row.show("request_body", request.map(|b| b.body));
    row.int("request_bytes", request.map(bytes));
    row.show("response_body", response.map(|b| b.body));
    row.int("response_bytes", response.map(bytes));
    row.show("edits_body", bodies.edits.as_ref().map(|b| b.body));
    row.int("edit_count", bodies.edit_count.map(|n| n.get()));
}

fn data(row: &mut Row<'_>, data: &Data) {
    row.texts("labels", &data.labels);
    row.texts("identifiers", &data.identifiers);
    row.texts("sensitivity", &data.sensitivity);
    row.flag("disclosure", data.disclosure.as_ref().map(|d| d.is));
    row.text("detector", data.detector.as_deref());
    row.text("subject_status", data.subject_status.as_ref().map(|s| s.as_str()));
    row.int("subject_count", data.subject_count.map(|n| n.get()));
    row.subjects("subjects", &data.subjects);
}

fn detail(event: &Event) -> Option<String> {
    if event.detail.is_empty() {
        return None;
    }
    serde_json::to_string(&event.detail).ok()
}

/// The groups of a record that this version can read, when it cannot read all of them.
fn readable(bytes: &[u8], identity: &Identity) -> Event {
    let groups: Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
    Event {
        at: identity.at,
        bodies: group(&groups, "bodies").unwrap_or_default(),
        call: group(&groups, "call"),
        code: identity.code,
        data: group(&groups, "data").unwrap_or_default(),
        decision: group::<Decision>(&groups, "decision").map(Into::into),
        detail: group(&groups, "detail").unwrap_or_default(),
        flags: identity.flags,
        kind: identity.kind.clone(),
        outcome: group(&groups, "outcome"),
        prev_call: group(&groups, "prev_call"),
        salt: custody_schemas::id::Bytes([0; 16]),
        seq: identity.seq,
        stream: identity.stream.clone(),
        tenant: group::<String>(&groups, "tenant").unwrap_or_default().into(),
        truncated: group(&groups, "truncated").unwrap_or_default(),
        v: group(&groups, "v").unwrap_or_default(),
        what: group::<What>(&groups, "what").map(Into::into),
        who: group::<Who>(&groups, "who").map(Into::into),
    }
}

fn group<T: DeserializeOwned>(groups: &Map<String, Value>, name: &str) -> Option<T> {
    groups.get(name).and_then(|value| T::deserialize(value).ok())
}

/// The stream of a checkpoint message, and what it says, as JSON.
fn checkpoint(value: &[u8]) -> Result<(StreamId, String), String> {
    let message = Message::decode(value).map_err(|e| e.to_string())?;
    let text = message.note.split("\n\n").next().unwrap_or_default();
    let checkpoint = Checkpoint::parse(&format!("{text}\n")).map_err(|e| e.to_string())?;
    let mut parts = checkpoint.origin.rsplitn(3, '/');
    let (run, writer) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let stream = format!("{writer}/{run}").parse::<StreamId>().map_err(|e| e.to_string())?;
    let detail = serde_json::json!({
        "first": message.first,
        "leaves": message.leaves.len(),
        "origin": checkpoint.origin,
        "root": checkpoint.root.to_string(),
        "size": checkpoint.size,
    });
    Ok((stream, detail.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use custody_schemas::event::Draft;
    use custody_schemas::id::Uint;
    use custody_schemas::kind::Kind;
    use custody_schemas::record::{Place, decode};

    const DAY: u64 = DAY_US;

    fn arrival(offset: u64) -> Arrival<'static> {
        let journaled_at = Uint::new(20_000 * DAY);
        Arrival { partition: "edge-1", offset, journaled_at, stored_at: None }
    }

    fn record() -> Vec<u8> {
        let place = Place {
            stream: "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap(),
            seq: 3,
            at: Uint::new(20_000 * DAY),
            salt: custody_schemas::id::Bytes([1; 16]),
        };
        let mut draft = Draft::new(Kind::StreamAlive).with("note", "x");
        draft.who = Some(Default::default());
        draft.seal(place).unwrap().bytes
    }

    fn text<'a>(batch: &'a arrow::array::RecordBatch, column: &str, row: usize) -> Option<&'a str> {
        let column = batch.column_by_name(column).unwrap().as_string::<i32>();
        column.is_valid(row).then(|| column.value(row))
    }

    #[test]
    fn whatever_arrives_becomes_a_row_with_every_column() {
        let mut rows = Rows::events();
        let good = record();
        let newer = String::from_utf8(good.clone())
            .unwrap()
            .replace("{\"assurance\"", "{\"agent\":7,\"assurance\"");
        for (offset, bytes) in
            [&good[..], newer.as_bytes(), b"\xff\x00 not json"].iter().enumerate()
        {
            rows.record(bytes, &decode(bytes), Standing::Event, &arrival(offset as u64));
        }
        rows.record(&good, &decode(&good), Standing::Conflict, &arrival(3));
        assert!(!rows.checkpoint(b"no message", &arrival(4)));
        let batch = rows.finish().unwrap();
        assert_eq!(batch.num_rows(), 5);
        let entries: Vec<_> = (0..5).map(|i| text(&batch, "entry", i).unwrap()).collect();
        assert_eq!(entries, ["event", "event", "undecodable", "conflict", "undecodable"]);
        assert_eq!(text(&batch, "problem", 0), None);
        assert!(text(&batch, "problem", 1).unwrap().contains("invalid type"));
        assert_eq!(text(&batch, "record", 1), Some(newer.as_str()), "kept as it is");
        assert_eq!(text(&batch, "detail", 1), Some("{\"note\":\"x\"}"), "what can be read is read");
        let raw = batch.column_by_name("raw").unwrap().as_binary::<i32>();
        assert_eq!(raw.value(2), b"\xff\x00 not json");
    }

    #[test]
    fn a_checkpoint_names_its_stream_and_its_size() {
        let stream: StreamId = "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap();
        let (signer, _) =
            custody_schemas::seal::key::Signer::from_seed("audit.example/edge-1", &[3; 32])
                .unwrap();
        let origin = custody_schemas::seal::checkpoint::origin("audit.example", &stream);
        let note =
            Checkpoint::of(origin, &custody_schemas::seal::Tree::new()).sign(&signer).unwrap();
        let value = Message { note, first: 0, leaves: Vec::new() }.encode();
        let mut rows = Rows::events();
        assert!(rows.checkpoint(&value, &arrival(0)));
        let batch = rows.finish().unwrap();
        assert_eq!(text(&batch, "stream", 0), Some(stream.as_str()));
        assert!(text(&batch, "detail", 0).unwrap().contains("\"size\":0"));
    }

    #[test]
    fn a_wrong_clock_cannot_move_an_event_further_than_a_month_back_or_a_day_ahead() {
        let arrived = Uint::new(20_000 * DAY + 5);
        for (at, day) in
            [(0, 19_970), (19_970, 19_970), (19_999, 19_999), (20_001, 20_001), (90_000, 20_001)]
        {
            assert_eq!(event_date(Uint::new(at * DAY), arrived), day);
        }
        assert_eq!(event_date(Uint::new(u64::MAX), Uint::new(0)), 1);
    }

    #[test]
    fn a_chunk_whose_header_says_nothing_is_stored_whole() {
        let mut rows = Rows::bodies();
        assert!(!rows.chunk(b"?", b"content", &arrival(0)));
        let batch = rows.finish().unwrap();
        let bytes = batch.column_by_name("bytes").unwrap().as_binary::<i32>();
        assert_eq!(bytes.value(0), b"content");
        assert!(text(&batch, "problem", 0).is_some());
    }
}
