//! Reads `[query]`.

use super::{listen, values};
use crate::config::Query;
use crate::config::document::Document;
use crate::config::section::At;

/// `[query]`
pub(super) fn query(d: &mut Document<'_>) -> Query {
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

/// A token as the query service writes them; a build without that service does not judge them.
#[cfg(not(feature = "query"))]
fn token(_: &mut Document<'_>, at: At<String>) -> Option<String> {
    Some(at.value)
}

/// A token as the query service writes them.
#[cfg(feature = "query")]
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
