//! Reads what the proxy needs: `[proxy]`, `[[server]]`, `[[key]]`.

use super::{listen, reach, values};
use crate::config::document::Document;
use crate::config::section::{At, Section};
use crate::config::{Durability, Key, Pin, Proxy, Recipient, Rule, Server, Tools};

/// `[proxy]`; what its calls wait for depends on where the journal is.
pub(super) fn proxy(d: &mut Document<'_>, has_keys: bool, on_kafka: bool) -> Proxy {
    let mut s = d.section("proxy");
    let listen = listen(d, &mut s, "127.0.0.1:7400", has_keys, "add a [[key]] for each agent");
    let durability = durability(d, &mut s, on_kafka);
    let audit_wait_ms = match durability {
        Durability::Local => 1_000,
        Durability::Replicated => 10_000,
    };
    let proxy = Proxy {
        listen,
        durability,
        audit_wait_ms: s.integer(d, "audit_wait_ms", 1..=60_000).unwrap_or(audit_wait_ms),
        max_message_bytes: s.bytes(d, "max_message_bytes", 1_024..=1 << 30).unwrap_or(16 << 20),
        upstream_timeout_ms: s.integer(d, "upstream_timeout_ms", 1..=3_600_000).unwrap_or(300_000),
        allowed_hosts: values(s.texts(d, "allowed_hosts")),
        allowed_origins: values(s.texts(d, "allowed_origins")),
        max_calls: s.integer(d, "max_calls", 1..=65_536).unwrap_or(1_024),
        max_sessions: s.integer(d, "max_sessions", 1..=1_000_000).unwrap_or(10_000),
        session_idle_seconds: s
            .integer(d, "session_idle_seconds", 60..=31_536_000)
            .unwrap_or(24 * 3_600),
    };
    d.finish_section(s);
    proxy
}

fn durability<'t>(d: &mut Document<'t>, s: &mut Section<'t>, on_kafka: bool) -> Durability {
    let Some(At { line, value }) = s.text(d, "durability") else { return Durability::Local };
    match value.as_str() {
        "local" => return Durability::Local,
        "replicated" if on_kafka => return Durability::Replicated,
        "replicated" => d.mistake(
            line,
            "proxy.durability = \"replicated\" waits for Kafka: it needs [journal] kind = \"kafka\"",
        ),
        _ => d.mistake(
            line,
            format!("proxy.durability must be \"local\" or \"replicated\", not {value:?}"),
        ),
    }
    Durability::Local
}

/// `[[server]]`
pub(super) fn servers(d: &mut Document<'_>) -> Vec<Server> {
    let sections = d.sections("server");
    let mut servers: Vec<Server> = Vec::new();
    for section in sections {
        let line = section.line();
        let Some(server) = server(d, section) else { continue };
        if servers.iter().any(|s| s.name == server.name) {
            d.mistake(line, format!("there are two servers called {:?}", server.name));
        }
        servers.push(server);
    }
    servers
}

fn server<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Option<Server> {
    let name = s.required(d, "name");
    if let Some(At { line, value }) = &name
        && !is_server_name(value)
    {
        d.mistake(
            *line,
            format!("server.name {value:?} must be 1 to 64 of a-z A-Z 0-9 _ -: it stands in URLs"),
        );
    }
    let reach = reach::reach(d, &mut s);
    let timeout_ms = s.integer(d, "timeout_ms", 1..=3_600_000);
    let phi = s.boolean(d, "phi").unwrap_or(true);
    on_audit_failure(d, &mut s, phi);
    let recipient = d.subsection(&mut s, "recipient").and_then(|r| recipient(d, r));
    let rules = d.subsections(&mut s, "rule").into_iter().map(|r| rule(d, r)).collect();
    let tools = d.subsection(&mut s, "tools").map(|t| tools(d, t)).unwrap_or_default();
    d.finish_section(s);
    let (name, reach) = (name?.value, reach?);
    Some(Server { name, reach, timeout_ms, phi, recipient, rules, tools })
}

/// Only `deny` can be had in this version; the other word is told apart for `phi` servers.
fn on_audit_failure<'t>(d: &mut Document<'t>, s: &mut Section<'t>, phi: bool) {
    let Some(At { line, value }) = s.text(d, "on_audit_failure") else { return };
    match value.as_str() {
        "deny" => {}
        "allow_and_alert" if phi => d.mistake(
            line,
            "on_audit_failure = \"allow_and_alert\" is refused for a server with phi = true (or unset): a call that touches patients must never run unrecorded",
        ),
        "allow_and_alert" => d.mistake(
            line,
            "on_audit_failure = \"allow_and_alert\" is not in this version yet; leave it out, which denies",
        ),
        _ => d.mistake(line, format!("server.on_audit_failure must be \"deny\", not {value:?}")),
    }
}

fn is_server_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

fn recipient<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Option<Recipient> {
    let name = s.required(d, "name");
    let address = s.text(d, "address").map(|at| at.value);
    let relation = s.text(d, "relation");
    const RELATIONS: [&str; 3] = ["internal", "business_associate", "external"];
    if let Some(At { line, value }) = &relation
        && !RELATIONS.contains(&value.as_str())
    {
        d.mistake(*line, format!("recipient.relation must be one of {}", RELATIONS.join(", ")));
    }
    d.finish_section(s);
    Some(Recipient { name: name?.value, address, relation: relation.map(|at| at.value) })
}

fn tools<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Tools {
    let allow = values(s.texts(d, "allow"));
    let deny = values(s.texts(d, "deny"));
    let pin = s.text(d, "pin").map_or_else(Pin::default, |At { line, value }| match &*value {
        "off" => Pin::Off,
        "observe" => Pin::Observe,
        "enforce" => Pin::Enforce,
        _ => {
            let text =
                format!("tools.pin must be \"off\", \"observe\" or \"enforce\", not {value:?}");
            d.mistake(line, text);
            Pin::default()
        }
    });
    d.finish_section(s);
    Tools { allow, deny, pin }
}

fn rule<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Rule {
    let activity = s.text(d, "activity");
    if let Some(At { line, value }) = &activity
        && !["C", "R", "U", "D", "E"].contains(&value.as_str())
    {
        d.mistake(*line, "rule.activity must be C, R, U, D or E");
    }
    let rule = Rule {
        tool: s.text(d, "tool").map(|at| at.value),
        phi: s.boolean(d, "phi"),
        system: s.text(d, "system").map(|at| at.value),
        arguments: paths(d, &mut s, "arguments"),
        result: paths(d, &mut s, "result"),
        activity: activity.map(|at| at.value),
    };
    d.finish_section(s);
    rule
}

fn paths<'t>(d: &mut Document<'t>, s: &mut Section<'t>, key: &'static str) -> Vec<String> {
    let found = s.texts(d, key);
    for At { line, value } in &found {
        if let Err(error) = serde_json_path::JsonPath::parse(value) {
            d.mistake(*line, format!("rule.{key}: {value:?} is no JSONPath: {error}"));
        }
    }
    values(found)
}

/// `[[key]]`
pub(super) fn key<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Option<Key> {
    let hash = s.required(d, "hash");
    let sha256 = hash.and_then(|At { line, value }| {
        let parsed = sha256(&value);
        if parsed.is_none() {
            d.mistake(line, "key.hash must be \"sha256:\" and 64 hexadecimal digits; `custody token create` makes one");
        }
        parsed
    });
    let agent = s.required(d, "agent");
    let mut text = |name| s.text(d, name).map(|at| at.value);
    let agent_name = text("agent_name");
    let user = text("user");
    let user_name = text("user_name");
    let purpose = text("purpose");
    let roles = values(s.texts(d, "roles"));
    d.finish_section(s);
    Some(Key { sha256: sha256?, agent: agent?.value, agent_name, user, user_name, roles, purpose })
}

/// The digits of `sha256:…`.
fn sha256(text: &str) -> Option<String> {
    let digits = text.strip_prefix("sha256:")?.to_lowercase();
    (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}
