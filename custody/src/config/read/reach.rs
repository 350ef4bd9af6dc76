//! Reads how a server is reached: the keys of `[[server]]` about network, processes, credentials.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::journal::{file, secret};
use super::{is_http_url, values};
use crate::config::document::Document;
use crate::config::reach::{Address, Command, OAuth, Pairs, Reach};
use crate::config::section::{At, Section};

/// Values from this length on are left out of the configuration's hash, whatever they are called.
const LIKE_A_SECRET: usize = 16;
/// Headers that the proxy writes itself, or that belong to one connection.
const NOT_OURS: [&str; 10] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "mcp-session-id",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// What is said of a program only, and of a server on the network only.
const OF_A_PROGRAM: [&str; 5] = ["args", "cwd", "env", "idle_seconds", "max_processes"];
const OF_A_URL: [&str; 8] = [
    "breaker_failures",
    "breaker_pause_ms",
    "ca",
    "certificate",
    "headers",
    "key",
    "oauth",
    "transport",
];

/// How the server of this section is reached.
pub(super) fn reach<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Option<Reach> {
    let command = s.words(d, "command");
    let url = s.text(d, "url");
    match (command, url) {
        (Some(at), Some(_)) => {
            d.mistake(at.line, "server.command and server.url are two ways to a server: keep one");
            ignore(s);
            None
        }
        (None, None) => {
            let text = "[[server]] needs the key `url`, or `command` for a program on this machine";
            d.mistake(s.line(), text);
            ignore(s);
            None
        }
        (Some(words), None) => {
            misplaced(d, s, &OF_A_URL, "a server with a url");
            command_of(d, s, words).map(Reach::Stdio)
        }
        (None, Some(url)) => {
            misplaced(d, s, &OF_A_PROGRAM, "a program: it needs server.command");
            let legacy = is_legacy(d, s);
            let address = address(d, s, url);
            Some(if legacy { Reach::LegacySse(address) } else { Reach::Http(address) })
        }
    }
}

fn is_legacy<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> bool {
    let Some(At { line, value }) = s.text(d, "transport") else { return false };
    if value != "http" && value != "sse" {
        let text = "server.transport must be \"http\" or \"sse\" (HTTP+SSE of 2024-11-05)";
        d.mistake(line, format!("{text}, not {value:?}"));
    }
    value == "sse"
}

/// Takes out what is about a way to a server, where it is not clear which way there is.
fn ignore(s: &mut Section<'_>) {
    for key in OF_A_PROGRAM.iter().chain(&OF_A_URL) {
        drop(s.take(key));
    }
}

fn misplaced<'t>(d: &mut Document<'t>, s: &mut Section<'t>, keys: &[&'static str], whose: &str) {
    for key in keys {
        if let Some((line, _)) = s.take(key) {
            d.mistake(line, format!("server.{key} is for {whose}"));
        }
    }
}

fn address<'t>(d: &mut Document<'t>, s: &mut Section<'t>, url: At<String>) -> Address {
    if !is_http_url(&url.value) {
        let text =
            format!("server.url must be http://host[:port]/path or https://…, not {:?}", url.value);
        d.mistake(url.line, text);
    }
    let ca = file(d, s, "ca");
    let certificate = file(d, s, "certificate");
    let key = file(d, s, "key");
    if certificate.is_some() != key.is_some() {
        d.mistake(s.line(), "server.certificate and server.key belong together: name both");
    }
    let headers = headers(d, s);
    let oauth = d.subsection(s, "oauth").and_then(|inner| oauth(d, inner));
    if oauth.is_some() && headers.0.keys().any(|name| name.eq_ignore_ascii_case("authorization")) {
        d.mistake(s.line(), "server.oauth gives the header Authorization: leave it out of headers");
    }
    Address {
        url: url.value,
        headers,
        ca,
        client: certificate.zip(key),
        oauth,
        breaker_failures: s.integer(d, "breaker_failures", 0..=1_000),
        breaker_pause_ms: s.integer(d, "breaker_pause_ms", 1..=60_000),
    }
}

fn headers<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Pairs {
    let headers = pairs(d, s, "headers");
    for (name, At { line, value }) in &headers {
        if name.parse::<http::HeaderName>().is_err() || value.parse::<http::HeaderValue>().is_err()
        {
            d.mistake(*line, format!("server.headers.{name}: HTTP forbids this name or its value"));
        } else if NOT_OURS.contains(&name.to_ascii_lowercase().as_str()) {
            d.mistake(
                *line,
                format!("server.headers.{name} is written by the proxy: leave it out"),
            );
        }
    }
    plain(headers)
}

fn oauth<'t>(d: &mut Document<'t>, mut s: Section<'t>) -> Option<OAuth> {
    let token_url = s.required(d, "token_url");
    if let Some(At { line, value }) = &token_url
        && !is_http_url(value)
    {
        d.mistake(*line, format!("oauth.token_url must be https://host/path, not {value:?}"));
    }
    let client_id = s.required(d, "client_id");
    let before = d.count();
    let client_secret = secret(d, &mut s, "client_secret", "client_secret_file");
    if client_secret.is_none() && d.count() == before {
        d.mistake(s.line(), "oauth needs the key `client_secret` or `client_secret_file`");
    }
    let scopes = values(s.texts(d, "scopes"));
    let resource = s.text(d, "resource").map(|at| at.value);
    d.finish_section(s);
    let (token_url, client_id) = (token_url?.value, client_id?.value);
    Some(OAuth { token_url, client_id, client_secret: client_secret?, scopes, resource })
}

fn command_of<'t>(
    d: &mut Document<'t>,
    s: &mut Section<'t>,
    words: At<Vec<String>>,
) -> Option<Command> {
    let At { line, value } = words;
    let mut words = value.into_iter();
    let program = words.next().filter(|program| !program.is_empty());
    if program.is_none() {
        d.mistake(line, "server.command must name a program");
    }
    let args: Vec<String> = words.chain(values(s.texts(d, "args"))).collect();
    let env = pairs(d, s, "env");
    for (name, At { line, value }) in &env {
        if name.is_empty() || name.contains('=') || name.contains('\0') || value.contains('\0') {
            d.mistake(*line, format!("server.env: {name:?} cannot stand in an environment"));
        }
    }
    let command = Command {
        program: program?,
        args,
        env: plain(env),
        cwd: folder(d, s),
        max_processes: s.integer(d, "max_processes", 1..=4_096).unwrap_or(64),
        idle_seconds: s.integer(d, "idle_seconds", 10..=604_800).unwrap_or(1_800),
    };
    Some(command)
}

fn folder<'t>(d: &mut Document<'t>, s: &mut Section<'t>) -> Option<PathBuf> {
    let At { line, value } = s.text(d, "cwd")?;
    if !std::path::Path::new(&value).is_dir() {
        d.mistake(line, format!("server.cwd {value:?} is no folder"));
    }
    Some(value.into())
}

/// A table of names and values.
fn pairs<'t>(
    d: &mut Document<'t>,
    s: &mut Section<'t>,
    key: &'static str,
) -> BTreeMap<String, At<String>> {
    let Some(mut inner) = d.subsection(s, key) else { return BTreeMap::new() };
    let pairs = inner.rest(d);
    d.finish_section(inner);
    for at in pairs.values().filter(|at| at.value.len() >= LIKE_A_SECRET || key == "headers") {
        d.remember_secret(&at.value);
    }
    pairs
}

fn plain(pairs: BTreeMap<String, At<String>>) -> Pairs {
    Pairs(pairs.into_iter().map(|(name, at)| (name, at.value)).collect())
}
