//! Which headers pass, and how those that pass come onto the record.
//!
//! Nothing passes that is not named here. What passes and stands in no other field of the record
//! is noted in `detail.headers`, up to a limit in number and cut in length; beyond it a hash stands
//! for the rest. Credentials never pass, nor do ids of sessions: each side has its own.

use std::collections::BTreeMap;

use custody_schemas::event::What;
use custody_schemas::json::Json;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

/// What passes from a client to a server, beside the arguments that
/// [`PARAM_PREFIX`] repeats.
const UP: [&str; 8] = [
    "accept",
    "content-type",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "traceparent",
    "tracestate",
];
/// Headers that repeat arguments of a tool, from 2026-07-28 on.
const PARAM_PREFIX: &str = "mcp-param-";
/// How long the name of such a header may be.
const MAX_NAME: usize = 64;
/// What passes from a server to a client.
const DOWN: [&str; 5] =
    ["allow", "cache-control", "content-type", "mcp-protocol-version", "retry-after"];
/// What says nothing that is not always so.
const USUAL: [(&str, &str); 5] = [
    ("accept", "*/*"),
    ("accept", "application/json, text/event-stream"),
    ("accept", "text/event-stream"),
    ("content-type", "application/json"),
    ("content-type", "text/event-stream"),
];
/// How many headers a record holds.
const MAX_NOTED: usize = 8;

fn goes_up(name: &HeaderName) -> bool {
    let name = name.as_str();
    UP.contains(&name) || (name.starts_with(PARAM_PREFIX) && name.len() <= MAX_NAME)
}

fn goes_down(name: &HeaderName) -> bool {
    DOWN.contains(&name.as_str())
}

/// The headers of a request that the server may see.
pub(crate) fn up(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    from.iter().filter(|(name, _)| goes_up(name))
}

/// The headers of an answer that the client may see.
pub(crate) fn down(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    from.iter().filter(|(name, _)| goes_down(name))
}

/// What passes up and stands nowhere else in the record of `what`.
pub(crate) fn noted_up(from: &HeaderMap, what: &What) -> Option<Json> {
    let known =
        [&what.method, &what.protocol, &what.tool, &what.prompt, &what.resource, &what.trace];
    let is_known = |value: &[u8]| {
        known.iter().any(|known| known.as_ref().is_some_and(|known| known.as_bytes() == value))
    };
    noted(up(from).filter(|(_, value)| !is_known(value.as_bytes())))
}

/// What passes down and stands nowhere else in the record.
pub(crate) fn noted_down(from: &HeaderMap) -> Option<Json> {
    noted(down(from))
}

fn noted<'h>(headers: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>) -> Option<Json> {
    let usual = |name: &str, value: &HeaderValue| {
        USUAL.iter().any(|usual| usual.0 == name && value == usual.1)
    };
    let mut noted: BTreeMap<String, Json> = BTreeMap::new();
    let mut rest: Option<Sha256> = None;
    for (name, value) in headers.filter(|(name, value)| !usual(name.as_str(), value)) {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        if noted.len() < MAX_NOTED && !noted.contains_key(name.as_str()) {
            noted.insert(name.as_str().to_owned(), text.into());
        } else {
            let rest = rest.get_or_insert_default();
            rest.update(name.as_str());
            rest.update(b": ");
            rest.update(value.as_bytes());
            rest.update(b"\n");
        }
    }
    if let Some(rest) = rest {
        noted.insert("sha256 of the others".to_owned(), hex::encode(rest.finalize()).into());
    }
    (!noted.is_empty()).then_some(Json::Map(noted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_headers_are_noted_and_a_hash_stands_for_the_others() {
        let mut headers = HeaderMap::new();
        for i in 0..20 {
            let name = HeaderName::from_bytes(format!("mcp-param-{i}").as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_static("v"));
        }
        let Some(Json::Map(noted)) = noted_up(&headers, &What::default()) else { panic!() };
        assert_eq!(noted.len(), MAX_NOTED + 1);
        headers.insert("mcp-param-19", HeaderValue::from_static("w"));
        assert_ne!(noted_up(&headers, &What::default()), Some(Json::Map(noted)));
    }
}
