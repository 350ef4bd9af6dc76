//! One answer of several servers' answers: lists item by item from the bytes that each server sent,
//! and what servers say of themselves.

use bytes::Bytes;
use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::cursor::MAX_CURSOR;
use super::membership::Member;
use crate::splice::Step::{Each, Key};
use crate::splice::{find, text_of, token};

/// What the proxy calls itself.
const NAME: &str = "custody";
/// Under which key a list says whose items are missing.
const ABSENT: &str = "io.custody/absent";
/// What can change while a client listens.
pub(super) const LISTS: [&str; 3] = ["tools", "prompts", "resources"];
/// The longest instructions of one server.
const MAX_INSTRUCTIONS: usize = 16 << 10;

/// The member of a result that holds the items of a list.
pub(crate) fn items_of(method: &str) -> Option<&'static str> {
    match method {
        "tools/list" => Some("tools"),
        "prompts/list" => Some("prompts"),
        "resources/list" => Some("resources"),
        "resources/templates/list" => Some("resourceTemplates"),
        "tasks/list" => Some("tasks"),
        _ => None,
    }
}

/// The page of one server's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Page<'t> {
    /// The items as they were written.
    pub(crate) items: Vec<&'t str>,
    /// The cursor for the next one, as a raw token.
    pub(crate) next: Option<&'t str>,
    /// How long the page is good for, in milliseconds.
    ttl_ms: Option<u64>,
}

/// A server's answer is no page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoPage;

impl<'t> Page<'t> {
    /// Reads an answer.
    pub(crate) fn read(text: &'t str, key: &'static str) -> Result<Self, NoPage> {
        let list = [Key("result"), Key(key)];
        let item = [Key("result"), Key(key), Each];
        let paths =
            [&list[..], &item, &[Key("result"), Key("nextCursor")], &[Key("result"), Key("ttlMs")]];
        let mut page = Self::default();
        let mut lists = 0;
        for place in find(text, &paths).map_err(|_| NoPage)? {
            let raw = text.get(place.range).ok_or(NoPage)?;
            match place.path {
                0 => lists += usize::from(raw.starts_with('[')),
                1 => page.items.push(raw),
                2 if raw == "null" => {}
                2 if page.next.is_some() || raw.len() > MAX_CURSOR || text_of(raw).is_none() => {
                    return Err(NoPage);
                }
                2 => page.next = Some(raw),
                _ => page.ttl_ms = raw.parse().ok(),
            }
        }
        if lists == 1 { Ok(page) } else { Err(NoPage) }
    }
}

/// One page of several. `id` is the raw token of the client's id, `absent` names servers without an
/// answer; it is `typed` as from 2026-07-28 on.
pub(crate) fn join(
    (id, key): (&str, &str),
    typed: bool,
    pages: &[Page<'_>],
    next: Option<&str>,
    absent: &[String],
) -> Bytes {
    let mut text = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"{key}\":[");
    let items = pages.iter().flat_map(|page| &page.items);
    for (i, item) in items.enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text.push(']');
    if let Some(next) = next {
        text.push_str(&format!(",\"nextCursor\":{}", token(next)));
    }
    if typed {
        let ttl = pages.iter().map(|page| page.ttl_ms.unwrap_or(0)).min().unwrap_or(0);
        let ttl = if absent.is_empty() { ttl } else { 0 };
        let typed =
            format!(",\"resultType\":\"complete\",\"ttlMs\":{ttl},\"cacheScope\":\"private\"");
        text.push_str(&typed);
    }
    if !absent.is_empty() {
        text.push_str(&format!(",\"_meta\":{{\"{ABSENT}\":{}}}", json!(absent)));
    }
    text.push_str("}}");
    text.into()
}

/// What a server says of itself, in `initialize` or `server/discover`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// The server's name in the configuration.
    pub(crate) server: String,
    /// The revision that it speaks with this client.
    pub(crate) protocol: Option<String>,
    /// Every revision that it speaks, if it says so.
    versions: Vec<String>,
    /// What it can do.
    pub(crate) capabilities: Map<String, Value>,
    instructions: Option<String>,
}

impl Said {
    /// Reads an answer.
    pub(crate) fn read(server: &str, answer: &[u8]) -> Option<Self> {
        let answer: Value = serde_json::from_slice(answer).ok()?;
        let result = answer.get("result")?.as_object()?;
        let text = |key: &str| result.get(key).and_then(Value::as_str).map(str::to_owned);
        let versions = result.get("supportedVersions").and_then(Value::as_array);
        let versions = versions.into_iter().flatten().filter_map(Value::as_str);
        let instructions = text("instructions").filter(|text| !text.is_empty());
        Some(Self {
            server: server.to_owned(),
            protocol: text("protocolVersion"),
            versions: versions.map(str::to_owned).collect(),
            capabilities: result.get("capabilities")?.as_object()?.clone(),
            instructions: instructions.map(|text| text.chars().take(MAX_INSTRUCTIONS).collect()),
        })
    }

    /// It as one that takes part in a session.
    pub(crate) fn member(&self) -> Member {
        let protocol = self.protocol.as_deref().and_then(|text| HeaderValue::from_str(text).ok());
        let capabilities = Some(self.capabilities.clone());
        Member { server: self.server.clone(), protocol, capabilities }
    }
}

/// What all of them can do together: everything that one can. When some are `absent`, their lists
/// change when they come.
fn together(said: &[Said], absent: &[String]) -> Value {
    let mut all = Value::Object(Map::new());
    for one in said {
        add(&mut all, &Value::Object(one.capabilities.clone()), 0);
    }
    for list in LISTS.iter().filter(|_| !absent.is_empty()) {
        if let Some(Value::Object(can)) = all.get_mut(*list) {
            can.insert("listChanged".to_owned(), Value::Bool(true));
        }
    }
    all
}

/// Objects become one, of two truths one is enough; nothing is read deeper than it can be meant.
fn add(to: &mut Value, more: &Value, depth: usize) {
    match (to, more) {
        (Value::Object(to), Value::Object(more)) if depth < 8 => {
            for (key, value) in more {
                match to.get_mut(key) {
                    Some(known) => add(known, value, depth + 1),
                    None => drop(to.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Bool(to), Value::Bool(more)) => *to |= more,
        _ => {}
    }
}

/// What an agent is told about several servers at one address.
fn instructions(said: &[Said], absent: &[String]) -> String {
    let names: Vec<&str> = said.iter().map(|one| one.server.as_str()).collect();
    let mut text = format!(
        "Several servers at one address: {}. The names of their tools and prompts begin with the \
         server's name.",
        names.join(", ")
    );
    if !absent.is_empty() {
        text.push_str(&format!(
            " Not available now, or not in this revision of the protocol: {}.",
            absent.join(", ")
        ));
    }
    for one in said {
        if let Some(instructions) = &one.instructions {
            text.push_str(&format!("\n\n# {}\n{instructions}", one.server));
        }
    }
    text
}

/// The answer to `initialize`.
pub(crate) fn initialized(id: &str, protocol: &str, said: &[Said], absent: &[String]) -> Bytes {
    let result = json!({
        "protocolVersion": protocol,
        "capabilities": together(said, absent),
        "serverInfo": { "name": NAME, "version": env!("CARGO_PKG_VERSION") },
        "instructions": instructions(said, absent),
    });
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}").into()
}

/// The answer to `server/discover`, for a client that speaks `protocol`.
pub(crate) fn discovered(id: &str, protocol: &str, said: &[Said], absent: &[String]) -> Bytes {
    let of_all = |version: &&String| said.iter().all(|one| one.versions.contains(version));
    let versions = said.first().map(|one| one.versions.iter().filter(of_all).collect::<Vec<_>>());
    let versions = versions.filter(|versions| !versions.is_empty());
    let versions = versions.map_or_else(|| json!([protocol]), |versions| json!(versions));
    let info = json!({ "name": NAME, "version": env!("CARGO_PKG_VERSION") });
    let result = json!({
        "resultType": "complete",
        "supportedVersions": versions,
        "capabilities": together(said, absent),
        "serverInfo": info,
        "instructions": instructions(said, absent),
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": { "io.modelcontextprotocol/serverInfo": info },
    });
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_joined_of_the_items_as_they_were_written() {
        let ehr = r#"{"id":1,"result":{"tools":[ {"name":"a","x":1.0} , {"name":"b"}],"nextCursor":"n\/1","ttlMs":500,"resultType":"complete"}}"#;
        let lab = r#"{"id":1,"result":{"tools":[{"name":"\u0061"}],"nextCursor":null,"ttlMs":90}}"#;
        let pages = [ehr, lab].map(|text| Page::read(text, "tools").unwrap());
        assert_eq!((pages[0].next, pages[1].next), (Some(r#""n\/1""#), None));
        let joined = join(("\"x\"", "tools"), true, &pages, Some("c"), &[]);
        assert_eq!(
            joined,
            r#"{"jsonrpc":"2.0","id":"x","result":{"tools":[{"name":"a","x":1.0},{"name":"b"},{"name":"\u0061"}],"nextCursor":"c","resultType":"complete","ttlMs":90,"cacheScope":"private"}}"#
        );
        let joined = join(("1", "tools"), false, &pages[1..], None, &["ehr".to_owned()]);
        let value: Value = serde_json::from_slice(&joined).unwrap();
        assert_eq!(value["result"]["_meta"][ABSENT], json!(["ehr"]));
        for wrong in [
            r#"{"error":{}}"#,
            r#"{"result":{"tools":{}}}"#,
            r#"{"result":{"tools":[],"tools":[]}}"#,
        ] {
            assert_eq!(Page::read(wrong, "tools"), Err(NoPage), "{wrong}");
        }
    }

    #[test]
    fn an_agent_is_told_what_the_servers_can_do_together_and_which_are_not_there() {
        let ehr = r#"{"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":false},"logging":{}},"instructions":"Be careful."}}"#;
        let lab = r#"{"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}}}}"#;
        let said = [("ehr", ehr), ("lab", lab)]
            .map(|(server, text)| Said::read(server, text.as_bytes()).unwrap());
        let answer = initialized("1", "2025-11-25", &said, &["pacs".to_owned()]);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let result = &answer["result"];
        assert_eq!(
            result["capabilities"],
            json!({"tools":{"listChanged":true},"logging":{},"resources":{"subscribe":true,"listChanged":true}})
        );
        let told = result["instructions"].as_str().unwrap();
        assert!(told.contains("protocol: pacs.") && told.contains("# ehr\nBe careful."), "{told}");
    }
}
