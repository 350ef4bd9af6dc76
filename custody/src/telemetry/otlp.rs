//! Finished spans in the words of OTLP (JSON encoding, `opentelemetry-proto` 1.x).
//!
//! Ids are lower-case hexadecimal, times and integers decimal strings, kinds and codes numbers, as
//! the protocol's JSON encoding has it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};

use super::layer::{Finished, Side, Value};

/// The name under which the spans are made.
const SCOPE: &str = "custody";

/// An `ExportTraceServiceRequest` with these spans.
pub(super) fn request(about: &[(&'static str, String)], spans: &[Finished]) -> Vec<u8> {
    let about = about.iter().map(|(name, text)| attribute(name, &Value::Text(text.clone())));
    let spans: Vec<_> = spans.iter().map(span).collect();
    let scope = json!({"name": SCOPE, "version": env!("CARGO_PKG_VERSION")});
    let request = json!({"resourceSpans": [{
        "resource": {"attributes": about.collect::<Vec<_>>()},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]});
    request.to_string().into_bytes()
}

fn span(span: &Finished) -> Json {
    let attributes = span.attributes.iter().map(|(name, value)| attribute(name, value));
    let kind = match span.side {
        Side::Inside => 1,
        Side::Server => 2,
        Side::Client => 3,
    };
    let code = if span.failed { 2 } else { 0 };
    let mut json = json!({
        "traceId": format!("{:032x}", span.trace),
        "spanId": format!("{:016x}", span.span),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": nanos(span.began_at, Duration::ZERO),
        "endTimeUnixNano": nanos(span.began_at, span.took),
        "attributes": attributes.collect::<Vec<_>>(),
        "status": {"code": code},
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = format!("{parent:016x}").into();
    }
    json
}

fn nanos(at: SystemTime, later: Duration) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.saturating_add(later).as_nanos().to_string()
}

fn attribute(name: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({"stringValue": text}),
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::Truth(truth) => json!({"boolValue": truth}),
    };
    json!({"key": name, "value": value})
}
