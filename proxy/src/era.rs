//! Which revision of MCP a request speaks, and whether its headers say what its body says.
//!
//! Policy reads the body only. A header that contradicts the body is refused, because whoever
//! reads the header behind us would act on another call than the one that was judged.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};

use crate::envelope::{Envelope, Shape};

/// The first revision without sessions.
const MODERN: &str = "2026-07-28";
/// The revision in force when a legacy client names none.
const UNNAMED: &str = "2025-03-26";

/// The header with the revision.
pub(crate) const PROTOCOL_HEADER: &str = "mcp-protocol-version";
/// The header with the method, from 2026-07-28 on.
pub(crate) const METHOD_HEADER: &str = "mcp-method";
/// The header with the tool, prompt, resource or task, from 2026-07-28 on.
pub(crate) const NAME_HEADER: &str = "mcp-name";
/// The header with the session, until 2025-11-25.
pub(crate) const SESSION_HEADER: &str = "mcp-session-id";

/// How strictly a request is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Era {
    /// 2026-07-28 or later: no sessions, `_meta` on every request, headers repeat the body.
    Modern,
    /// Earlier.
    Legacy,
}

/// Era and revision of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    /// The era.
    pub(crate) era: Era,
    /// The revision as the client writes it.
    pub(crate) protocol: String,
}

/// What is wrong between headers and body, in words.
pub(crate) type Mismatch = &'static str;

/// Finds the era of a message and holds its headers against its body.
pub(crate) fn check(headers: &HeaderMap, envelope: &Envelope<'_>) -> Result<Spoken, Mismatch> {
    let version = single(headers, PROTOCOL_HEADER)?;
    let in_body = envelope.meta_protocol.as_deref();
    let modern = in_body.is_some_and(is_modern);
    if modern || headers.contains_key(METHOD_HEADER) || headers.contains_key(NAME_HEADER) {
        let strict = modern && envelope.shape() == Shape::Request;
        check_method(headers, envelope, strict)?;
        check_name(headers, envelope, strict)?;
    }
    if modern && version.is_none() && envelope.shape() == Shape::Request {
        return Err("MCP-Protocol-Version is missing");
    }
    if let (Some(body), Some(header)) = (in_body, version)
        && body != header
    {
        return Err("MCP-Protocol-Version differs from _meta");
    }
    let initialize = envelope.protocol.as_deref().filter(|_| envelope.method() == "initialize");
    let protocol = in_body.or(initialize).or(version).unwrap_or(UNNAMED).to_owned();
    Ok(Spoken { era: if modern { Era::Modern } else { Era::Legacy }, protocol })
}

/// Whether a revision is of the modern era. They are dates, so that they compare as text.
pub(crate) fn is_modern(revision: &str) -> bool {
    revision.len() == MODERN.len() && revision >= MODERN
}

fn check_method(
    headers: &HeaderMap,
    envelope: &Envelope<'_>,
    strict: bool,
) -> Result<(), Mismatch> {
    match single(headers, METHOD_HEADER)? {
        None if strict => Err("Mcp-Method is missing"),
        Some(method) if method != envelope.method() => Err("Mcp-Method differs from method"),
        _ => Ok(()),
    }
}

fn check_name(headers: &HeaderMap, envelope: &Envelope<'_>, strict: bool) -> Result<(), Mismatch> {
    let expected = match envelope.method() {
        "tools/call" | "prompts/get" => envelope.name.as_deref(),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
            envelope.uri.as_deref()
        }
        "tasks/get" | "tasks/update" | "tasks/cancel" => envelope.task.as_deref(),
        _ => return Ok(()),
    };
    match (single(headers, NAME_HEADER)?, expected) {
        (None, Some(_)) if strict => Err("Mcp-Name is missing"),
        (Some(header), Some(body)) => match decoded(header) {
            Some(name) if name == body => Ok(()),
            Some(_) => Err("Mcp-Name differs from params"),
            None => Err("Mcp-Name is not valid Base64"),
        },
        (Some(_), None) => Err("Mcp-Name names what params do not"),
        (None, _) => Ok(()),
    }
}

/// The only value of a header.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Mismatch> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("an MCP header stands twice");
    }
    first.to_str().map(Some).map_err(|_| "an MCP header is not plain text")
}

/// A header value, out of its `=?base64?…?=` wrapping if it has one.
fn decoded(value: &str) -> Option<Cow<'_, str>> {
    let wrapped = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?="));
    let Some(base64) = wrapped else { return Some(Cow::Borrowed(value)) };
    String::from_utf8(STANDARD.decode(base64).ok()?).ok().map(Cow::Owned)
}

/// A header value that means `name`, wrapped where it could not stand as it is.
pub(crate) fn encoded(name: &str) -> HeaderValue {
    let is_plain = !name.is_empty()
        && name.trim() == name
        && name.bytes().all(|b| (0x20..0x7f).contains(&b))
        && !name.starts_with("=?base64?");
    let wrapped = || format!("=?base64?{}?=", STANDARD.encode(name));
    let value = if is_plain { name.to_owned() } else { wrapped() };
    HeaderValue::from_str(&value).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Look;

    const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"søk","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;

    fn check_with(body: &str, pairs: &[(&'static str, &'static str)]) -> Result<Spoken, Mismatch> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        check(&headers, &Envelope::read(body.as_bytes(), Look::Policy).unwrap())
    }

    const VERSION: (&str, &str) = (PROTOCOL_HEADER, "2026-07-28");
    const METHOD: (&str, &str) = (METHOD_HEADER, "tools/call");
    const NAME: (&str, &str) = (NAME_HEADER, "=?base64?c8O4aw==?=");

    #[test]
    fn a_modern_request_whose_headers_repeat_its_body_is_modern() {
        let spoken = check_with(CALL, &[VERSION, METHOD, NAME]).unwrap();
        assert_eq!(spoken, Spoken { era: Era::Modern, protocol: "2026-07-28".into() });
    }

    #[test]
    fn a_modern_request_whose_headers_differ_or_are_missing_is_refused() {
        for wrong in [
            vec![METHOD, NAME],
            vec![(PROTOCOL_HEADER, "2025-11-25"), METHOD, NAME],
            vec![VERSION, NAME],
            vec![VERSION, (METHOD_HEADER, "tools/list"), NAME],
            vec![VERSION, METHOD],
            vec![VERSION, METHOD, (NAME_HEADER, "other")],
            vec![VERSION, METHOD, (NAME_HEADER, "=?base64?%?=")],
            vec![VERSION, METHOD, METHOD, NAME],
        ] {
            assert!(check_with(CALL, &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_name_is_written_so_that_it_is_read_again() {
        for name in ["read", "søk", " x", "=?base64?eA==?=", "", "a b"] {
            let value = encoded(name);
            assert_eq!(decoded(value.to_str().unwrap()).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_legacy_request_needs_no_headers_but_may_not_contradict_its_body() {
        let call = r#"{"id":1,"method":"tools/call","params":{"name":"a"}}"#;
        assert_eq!(check_with(call, &[]).unwrap().protocol, "2025-03-26");
        let named = check_with(call, &[(PROTOCOL_HEADER, "2025-11-25")]).unwrap();
        assert_eq!((named.era, named.protocol.as_str()), (Era::Legacy, "2025-11-25"));
        assert!(check_with(call, &[(METHOD_HEADER, "tools/list")]).is_err());
        assert!(check_with(call, &[(NAME_HEADER, "b")]).is_err());
        let initialize =
            r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#;
        assert_eq!(check_with(initialize, &[]).unwrap().protocol, "2025-06-18");
    }
}
