//! What says, in something that a client brings back, which server it came from.
//!
//! URIs of resources, ids of tasks, ids of servers' requests and tokens of their progress are given
//! to clients with the server's name in them, and to the server as it wrote them. Nothing has to be
//! remembered for that.

use http::HeaderValue;

use crate::scan::{Scanner, Token};

/// The scheme of a marked URI.
const SCHEME: &str = "custody://";
/// The scheme of user interfaces, which clients look at.
const UI: &str = "ui://";
/// What a marked one begins with.
const MARKED_UI: &str = "ui://custody/";
/// Between a server's name and what it marks.
const BETWEEN: char = '/';

/// A URI, or a template of one, of `server`.
pub(crate) fn uri(server: &str, uri: &str) -> String {
    match uri.strip_prefix(UI) {
        Some(rest) => format!("{MARKED_UI}{server}{BETWEEN}{rest}"),
        None => format!("{SCHEME}{server}{BETWEEN}{uri}"),
    }
}

/// Whose URI it is, and what its server calls it.
pub(crate) fn unmark_uri(marked: &str) -> Option<(String, String)> {
    if let Some(rest) = marked.strip_prefix(MARKED_UI) {
        let (server, rest) = rest.split_once(BETWEEN)?;
        return Some((server.to_owned(), format!("{UI}{rest}")));
    }
    let (server, uri) = marked.strip_prefix(SCHEME)?.split_once(BETWEEN)?;
    Some((server.to_owned(), uri.to_owned()))
}

/// A task's id.
pub(crate) fn task(server: &str, id: &str) -> String {
    format!("{server}{BETWEEN}{id}")
}

/// Whose task it is, and what its server calls it.
pub(crate) fn unmark_task(marked: &str) -> Option<(String, String)> {
    let (server, id) = marked.split_once(BETWEEN)?;
    Some((server.to_owned(), id.to_owned()))
}

/// The id of an event in a stream. None stays none.
pub(crate) fn event(server: &str, id: &[u8]) -> Vec<u8> {
    if id.is_empty() {
        return Vec::new();
    }
    [server.as_bytes(), b"/", id].concat()
}

/// Whose event it is, and what its server calls it.
pub(crate) fn unmark_event(marked: &str) -> Option<(String, HeaderValue)> {
    let (server, id) = unmark_task(marked)?;
    Some((server, HeaderValue::from_str(&id).ok()?))
}

/// An id or a progress token of a server, as a raw token.
pub(crate) fn token(server: &str, raw: &str) -> String {
    crate::splice::token(&format!("{server}{BETWEEN}{raw}"))
}

/// Whose id or token it is, and the raw token that its server wrote.
pub(crate) fn unmark_token(marked: &str) -> Option<(String, String)> {
    let (server, raw) = unmark_task(&crate::splice::text_of(marked)?)?;
    let mut scanner = Scanner::over(&raw);
    let scalar =
        matches!(scanner.step(), Ok(Some(Token::Text(_) | Token::Number(_) | Token::Null)));
    (scalar && scanner.finish().is_ok()).then_some((server, raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_told_apart_again() {
        for original in
            ["file:///a/b", "fhir://Patient/1?x=y", "ui://app/main.html", "x", "fhir://{+path}"]
        {
            let marked = uri("ehr", original);
            assert_eq!(unmark_uri(&marked), Some(("ehr".into(), original.into())), "{marked}");
        }
        assert!(uri("ehr", "ui://app/x").starts_with("ui://"));
        assert_eq!(unmark_task(&task("ehr", "a/b")), Some(("ehr".into(), "a/b".into())));
        for raw in ["7", "\"a\\/b\"", "null", "-1.50"] {
            let marked = token("ehr", raw);
            assert_eq!(unmark_token(&marked), Some(("ehr".into(), raw.into())), "{marked}");
        }
        for forged in ["7", "\"ehr\"", "\"ehr/[1]\"", "\"ehr/1,2\"", "\"ehr/\""] {
            assert_eq!(unmark_token(forged), None, "{forged}");
        }
    }
}
