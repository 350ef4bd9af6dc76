//! What a trace shows of a call: the call itself, joined to the trace that its caller names, and in
//! it the waits for the opening, for the server and for the ending.
//!
//! Spans hold our own words, names from the configuration and the id under which the call stands
//! in the record: nothing else that a caller or a server sent. They change nothing that is
//! forwarded. Where nobody collects spans they cost next to nothing.

use custody_schemas::id::CallId;
use custody_schemas::words::Status;
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::metrics::word;
use crate::record::Facts;

/// The target of spans of traces, and of nothing else.
const TARGET: &str = "custody::span";

/// The methods of MCP that a span names.
const METHODS: [&str; 22] = [
    "completion/complete",
    "elicitation/create",
    "initialize",
    "logging/setLevel",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "roots/list",
    "sampling/createMessage",
    "server/discover",
    "subscriptions/listen",
    "tasks/cancel",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tools/call",
    "tools/list",
];

/// The method as a span names it.
fn known(method: Option<&str>) -> &'static str {
    METHODS.into_iter().find(|known| Some(*known) == method).unwrap_or("other")
}

/// A call that is about to be recorded.
pub(crate) fn call(id: CallId, facts: &Facts) -> Span {
    let what = &facts.what;
    info_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.kind = "server",
        otel.failed = Empty,
        traceparent = what.trace.as_deref(),
        mcp.method.name = known(what.method.as_deref()),
        custody.call = %id,
        custody.server = what.server.as_deref(),
        custody.status = Empty,
        http.response.status_code = Empty,
    )
}

/// The wait for the opening.
pub(crate) fn record_opening(call: &Span) -> Span {
    info_span!(target: TARGET, parent: call, "record opening")
}

/// The wait for the head of the server's answer.
pub(crate) fn ask(call: &Span, server: &str) -> Span {
    info_span!(
        target: TARGET,
        parent: call,
        "ask server",
        otel.kind = "client",
        custody.server = server,
    )
}

/// The wait for the ending.
pub(crate) fn record_ending(call: &Span) -> Span {
    info_span!(target: TARGET, parent: call, "record ending")
}

/// Says how a call ended.
pub(crate) fn ended(call: &Span, status: &Status, http: Option<u16>) {
    call.record("custody.status", word(status));
    call.record("otel.failed", *status != Status::Ok);
    if let Some(http) = http {
        call.record("http.response.status_code", http);
    }
}

/// Says that its ending was not recorded in time.
pub(crate) fn unrecorded(call: &Span) {
    call.record("otel.failed", true);
}
