//! Reads each section, with its defaults and its rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use sha2::{Digest, Sha256};

use super::document::{At, Document, Mistake, Section};
use super::{Config, Deployment, Journal, Key, Lake, Proxy, Query, Recipient, Rule, Server};

const SECTIONS: &[&str] = &["deployment", "proxy", "server", "key", "journal", "lake", "query"];

/// The whole configuration.
pub(super) fn config(
    text: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, Vec<Mistake>> {
    let ours = environment.filter(|(key, _)| key.starts_with("CUSTODY__"));
    let overrides: BTreeMap<String, String> = ours.collect();
    let hash = hash(text, &overrides);
    let mut document = Document::new(text, overrides.into_iter());
    let d = &mut document;
    let deployment = deployment(d);
    let keys: Vec<_> = d.sections("key").into_iter().map(|s| key(d, s)).collect();
    let proxy = proxy(d, !keys.is_empty());
    let servers = servers(d);
    let journal = journal(d);
    let lake = lake(d, &deployment);
    let query = query(d);
    let mistakes = document.finish(SECTIONS);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let keys = keys.into_iter().flatten().collect();
    Ok(Config { deployment, proxy, servers, keys, journal, lake, query, hash })
}

/// SHA-256 of the file's text and of every override, in their order: what is in force.
fn hash(text: &str, overrides: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new().chain_update(text.as_bytes());
    for (key, value) in overrides {
        hash.update(format!("\0{key}={value}"));
    }
    hex::encode(hash.finalize())
}

fn deployment(d: &mut Document<'_>) -> Deployment {
    let mut s = d.section("deployment");
    let name = s.text(d, "name");
    if let Some(At { line, value }) = &name
        && (value.is_empty() || value.chars().any(|c| c.is_whitespace() || c == '+'))
    {
        d.mistake(
            *line,
            "deployment.name must not be empty nor hold spaces or '+'; a host name is best",
        );
    }
    let writer = s.text(d, "writer");
    if let Some(At { line, value }) = &writer
        && !custody_schemas::id::is_writer_name(value)
    {
        d.mistake(*line, "deployment.writer must be 1 to 64 of a-z 0-9 . _ -");
    }
    let data = s.text(d, "data");
    d.finish_section(s);
    let or = |found: Option<At<String>>, default: &str| {
        found.map_or_else(|| default.to_owned(), |at| at.value)
    };
    Deployment {
        name: or(name, "custody.localhost"),
        writer: or(writer, "edge-1"),
        data: or(data, "./custody-data").into(),
    }
}

fn proxy(d: &mut Document<'_>, has_keys: bool) -> Proxy {
    let mut s = d.section("proxy");
    let listen = listen(d, &mut s, "127.0.0.1:7400", has_keys, "add a [[key]] for each agent");
    if let Some(At { line, value }) = s.text(d, "durability")
        && value != "local"
    {
        d.mistake(line, format!("proxy.durability must be \"local\", not {value:?}: \"replicated\" needs a Kafka journal, which this version does not have yet"));
    }
    let proxy = Proxy {
        listen,
        audit_wait_ms: s.integer(d, "audit_wait_ms", 1..=60_000).unwrap_or(1_000),
        max_message_bytes: s.bytes(d, "max_message_bytes", 1_024..=1 << 30).unwrap_or(16 << 20),
        upstream_timeout_ms: s.integer(d, "upstream_timeout_ms", 1..=3_600_000).unwrap_or(300_000),
        allowed_hosts: values(s.texts(d, "allowed_hosts")),
        allowed_origins: values(s.texts(d, "allowed_origins")),
        max_calls: s.integer(d, "max_calls", 1..=65_536).unwrap_or(1_024),
    };
    d.finish_section(s);
    proxy
}

fn values(found: Vec<At<String>>) -> Vec<String> {
    found.into_iter().map(|at| at.value).collect()
}

/// An address; beyond loopback only with authentication.
fn listen<'t>(
    d: &mut Document<'t>,
    s: &mut Section<'t>,
    default: &str,
    authenticated: bool,
    remedy: &str,
) -> SocketAddr {
    let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
    let parse = |text: &str| text.parse::<SocketAddr>().ok();
    let Some(At { line, value }) = s.text(d, "listen") else {
        return parse(default).unwrap_or(fallback);
    };
    let Some(address) = parse(&value) else {
        d.mistake(
            line,
            format!("listen must be an address and a port like {default:?}, not {value:?}"),
        );
        return fallback;
    };
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if !loopback && !authenticated {
        d.mistake(line, format!("listen = {value:?} can be reached from other machines, and nobody has to sign in: {remedy}, or listen on 127.0.0.1"));
    }
    address
}

fn servers(d: &mut Document<'_>) -> Vec<Server> {
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
    let url = s.required(d, "url");
    if let Some(At { line, value }) = &url
        && !is_http_url(value)
    {
        d.mistake(
            *line,
            format!("server.url must be http://host[:port]/path or https://…, not {value:?}"),
        );
    }
    let phi = s.boolean(d, "phi").unwrap_or(true);
    on_audit_failure(d, &mut s, phi);
    let recipient = d.subsection(&mut s, "recipient").and_then(|r| recipient(d, r));
    let rules = d.subsections(&mut s, "rule").into_iter().map(|r| rule(d, r)).collect();
    d.finish_section(s);
    let (name, url) = (name?.value, url?.value);
    Some(Server { name, url, phi, recipient, rules })
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

fn is_http_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let scheme = uri.scheme_str();
    (scheme == Some("http") || scheme == Some("https")) && uri.host().is_some_and(|h| !h.is_empty())
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

fn key<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Option<Key> {
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

fn journal(d: &mut Document<'_>) -> Journal {
    let mut s = d.section("journal");
    if let Some(At { line, value }) = s.text(d, "kind")
        && value != "file"
    {
        d.mistake(
            line,
            format!("journal.kind must be \"file\", not {value:?}: this version has no other"),
        );
    }
    let segment_bytes = s.bytes(d, "segment_bytes", 1 << 20..=1 << 30).unwrap_or(64 << 20);
    let max_bytes = s.bytes(d, "max_bytes", 1 << 20..=1 << 50).unwrap_or(64 << 30);
    if max_bytes < 8 * segment_bytes {
        d.mistake(s.line(), "journal.max_bytes must be at least eight times journal.segment_bytes");
    }
    d.finish_section(s);
    Journal { max_bytes, segment_bytes }
}

fn lake(d: &mut Document<'_>, deployment: &Deployment) -> Lake {
    let mut s = d.section("lake");
    let url = s.text(d, "url");
    if let Some(At { line, value }) = &url
        && !value.starts_with("file:")
    {
        d.mistake(
            *line,
            format!(
                "lake.url must begin with \"file:\", not {value:?}: this version has no other store"
            ),
        );
    }
    let default = format!("file:{}/lake", deployment.data.display());
    let lake = Lake {
        url: url.map_or(default, |at| at.value),
        flush_seconds: s.integer(d, "flush_seconds", 1..=3_600).unwrap_or(60),
        flush_bytes: s.bytes(d, "flush_bytes", 1 << 20..=1 << 30).unwrap_or(32 << 20),
    };
    d.finish_section(s);
    lake
}

fn query(d: &mut Document<'_>) -> Query {
    let mut s = d.section("query");
    let tokens: Vec<_> = s.texts(d, "tokens").into_iter().filter_map(|at| token(d, at)).collect();
    let remedy = "add query.tokens (`custody token create` makes one)";
    let listen = listen(d, &mut s, "127.0.0.1:7480", !tokens.is_empty(), remedy);
    let zone = s.text(d, "time_zone").unwrap_or(At { line: 0, value: "UTC".to_owned() });
    if jiff::tz::TimeZone::get(&zone.value).is_err() {
        d.mistake(zone.line, format!("query.time_zone {:?} is no zone of the time-zone database, such as \"America/Chicago\"", zone.value));
    }
    let query = Query {
        listen,
        tokens,
        allowed_hosts: values(s.texts(d, "allowed_hosts")),
        time_zone: zone.value,
        deadline_ms: s.integer(d, "deadline_ms", 1..=3_600_000).unwrap_or(60_000),
        memory_bytes: s.bytes(d, "memory_bytes", 1 << 24..=1 << 40).unwrap_or(1 << 30),
        max_rows: s.integer(d, "max_rows", 1..=1_000_000_000).unwrap_or(1_000_000),
    };
    d.finish_section(s);
    query
}

/// A token as the query service writes them.
fn token(d: &mut Document<'_>, at: At<String>) -> Option<String> {
    match custody_query::access::Token::parse(&at.value) {
        Ok(_) => Some(at.value),
        Err(wrong) => {
            let text = format!("query.tokens: {wrong}; `custody token create` makes one");
            d.mistake(at.line, text);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Vec<String>> {
        with_environment(text, &[])
    }

    fn with_environment(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let owned = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        config(text, owned).map_err(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = read("").unwrap();
        assert_eq!(config.proxy.listen.to_string(), "127.0.0.1:7400");
        assert_eq!(config.lake.url, "file:./custody-data/lake");
    }

    #[test]
    fn three_mistakes_are_reported_together_with_their_lines() {
        let text = "[proxy]\nlisten = \"nowhere\"\naudit_wait = 5\n\n[[server]]\nname = \"ehr\"\n";
        let mistakes = read(text).unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:#?}");
        assert!(mistakes[0].starts_with("line 2: listen must be an address"));
        assert!(mistakes[1].starts_with("line 3: unknown key proxy.audit_wait;"), "{mistakes:?}");
        assert_eq!(mistakes[2], "line 5: [[server]] needs the key `url`");
    }

    #[test]
    fn a_misspelt_key_gets_the_right_name() {
        let mistakes = read("[proxy]\nlisen = \"127.0.0.1:1\"\n[qery]\n").unwrap_err();
        assert!(mistakes[0].ends_with("did you mean `listen`?"), "{mistakes:?}");
        assert!(mistakes[1].ends_with("did you mean `query`?"), "{mistakes:?}");
    }

    #[test]
    fn syntax_errors_and_wrong_values_are_told_in_one_go() {
        let mistakes = read("[proxy]\naudit_wait_ms = \"soon\"\nx = = 3\n").unwrap_err();
        assert!(mistakes.iter().any(|m| m.starts_with("line 2: proxy.audit_wait_ms must be")));
        assert!(mistakes.iter().any(|m| m.starts_with("line 3: ")), "{mistakes:?}");
    }

    #[test]
    fn the_environment_goes_before_the_file_and_its_mistakes_name_the_variable() {
        let text = "[proxy]\naudit_wait_ms = 5\n";
        let config = with_environment(text, &[("CUSTODY__PROXY__AUDIT_WAIT_MS", "7")]).unwrap();
        assert_eq!(config.proxy.audit_wait_ms, 7);
        assert_ne!(config.hash, read(text).unwrap().hash, "the hash is of what is in force");
        let wrong = with_environment(text, &[("CUSTODY__PROXY__AUDIT_WAIT_MS", "x")]).unwrap_err();
        assert!(wrong[0].starts_with("CUSTODY__PROXY__AUDIT_WAIT_MS must be"), "{wrong:?}");
        let unknown = with_environment("", &[("CUSTODY__PROXY__LISTN", "x")]).unwrap_err();
        assert!(unknown[0].contains("did you mean `listen`?"), "{unknown:?}");
    }

    #[test]
    fn phi_servers_never_run_unaudited_and_unset_means_phi() {
        let server = "[[server]]\nname = \"ehr\"\nurl = \"http://127.0.0.1:1/mcp\"\n";
        assert!(read(server).unwrap().servers[0].phi);
        let text = format!("{server}on_audit_failure = \"allow_and_alert\"\n");
        assert!(read(&text).unwrap_err()[0].contains("refused for a server with phi = true"));
    }

    #[test]
    fn listening_for_other_machines_needs_authentication() {
        let wrong =
            read("[proxy]\nlisten = \"0.0.0.0:7400\"\n[query]\nlisten = \"0.0.0.0:7480\"\n");
        assert_eq!(wrong.unwrap_err().len(), 2);
        let hash = "ab".repeat(32);
        let text = format!(
            "[query]\nlisten = \"0.0.0.0:7480\"\ntokens = [\"audit=sha256:{hash}\"]\n[proxy]\nlisten = \"0.0.0.0:7400\"\n[[key]]\nhash = \"sha256:{hash}\"\nagent = \"a\"\n"
        );
        let config = read(&text).unwrap();
        assert_eq!((config.query.tokens.len(), config.keys.len()), (1, 1));
    }

    #[test]
    fn sizes_have_units_and_paths_are_checked() {
        let text = "[proxy]\nmax_message_bytes = \"4 MiB\"\n[[server]]\nname = \"e\"\nurl = \"http://h/\"\n[[server.rule]]\nresult = [\"$..mrn\", \"mrn[\"]\n";
        let wrong = read(text).unwrap_err();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].starts_with("line 7: rule.result: \"mrn[\" is no JSONPath"), "{wrong:?}");
        let config = read(&text.replace(", \"mrn[\"", "")).unwrap();
        assert_eq!(config.proxy.max_message_bytes, 4 << 20);
    }
}
