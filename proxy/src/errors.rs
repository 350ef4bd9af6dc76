//! Every way in which the proxy itself refuses or fails a call, and how a client sees it.
//!
//! One table gives each its JSON-RPC code, HTTP status and words. A message says what happened,
//! whether the call can have taken effect, and what to do; it never holds an upstream's address or
//! anything from a body except the caller's own id.

use bytes::Bytes;
use custody_schemas::id::CallId;
use http::StatusCode;

use crate::federation::SPOKEN;

/// Why the proxy answers instead of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The opening could not be recorded: nothing was forwarded.
    AuditUnavailable,
    /// The ending could not be recorded: the answer is withheld.
    AuditOutcomeUnrecorded,
    /// Not JSON.
    NotJson,
    /// JSON, but not one JSON-RPC message.
    Invalid,
    /// Two keys that are alike.
    TwinKeys,
    /// Headers and body disagree.
    HeaderMismatch,
    /// A request body longer than the limit.
    TooLarge,
    /// The request's body stopped arriving.
    BodyTimeout,
    /// No credential, or one that is not known.
    Unauthenticated,
    /// `Host` or `Origin` is not one of ours.
    ForeignOrigin,
    /// There is no such path.
    NotFound,
    /// There is no such server.
    UnknownServer,
    /// The session does not exist, or belongs to somebody else.
    UnknownSession,
    /// The HTTP method is not one of MCP's.
    MethodNotAllowed,
    /// The body is not declared as plain `application/json`.
    UnsupportedMediaType,
    /// No connection to the upstream.
    Unreachable,
    /// The upstream took too long.
    UpstreamTimeout,
    /// The upstream broke off its answer.
    UpstreamBroken,
    /// The upstream answered something that is not MCP.
    UpstreamInvalid,
    /// The upstream refused the proxy's own credentials.
    UpstreamRefused,
    /// The answer is longer than the limit.
    AnswerTooLarge,
    /// The upstream forgot the session and opened no other.
    SessionLost,
    /// The client cancelled the call, and no answer came.
    Cancelled,
    /// An answer to something that this caller was not asked.
    NotAsked,
    /// No server at the common address offers what is named.
    NotOffered,
    /// A cursor that this caller was not given for this list.
    ForeignCursor,
    /// No server at the common address knows the method.
    UnknownMethod,
    /// A revision that is not spoken at the common address.
    UnsupportedRevision,
    /// The server that is named does not speak the revision of the request.
    OtherRevision,
    /// No stream at the common address has such an event.
    UnknownEvent,
    /// The configuration does not let this tool be used.
    ToolDenied,
    /// The tool's definition has changed and is not approved.
    ToolChanged,
}

impl Failure {
    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.numbers().0
    }

    /// The JSON-RPC error code.
    #[must_use]
    pub fn code(self) -> i64 {
        self.numbers().1
    }

    /// The word for it in records, metrics and `error.data.reason`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        self.numbers().2
    }

    /// The JSON-RPC error that a client receives. `id` is the raw token of its request, `note`
    /// says more where there is more to say.
    #[must_use]
    pub fn body(self, id: Option<&str>, call: Option<CallId>, note: Option<&str>) -> Bytes {
        let (_, code, reason) = self.numbers();
        let message = self.message();
        let id = id.unwrap_or("null");
        let mut more = call.map(|call| format!(",\"call\":\"{call}\"")).unwrap_or_default();
        if self == Self::UnsupportedRevision {
            let requested = json_text(note.unwrap_or_default());
            more.push_str(&format!(",\"supported\":{SPOKEN:?},\"requested\":{requested}"));
        }
        let message = match note {
            Some(note) => json_text(&format!("{message}: {note}")),
            None => json_text(message),
        };
        Bytes::from(format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":{code},\"message\":{message},\
             \"data\":{{\"reason\":\"{reason}\"{more}}}}}}}"
        ))
    }

    /// HTTP status, JSON-RPC code, reason.
    const fn numbers(self) -> (StatusCode, i64, &'static str) {
        use StatusCode as S;
        match self {
            Self::AuditUnavailable => (S::SERVICE_UNAVAILABLE, 47001, "audit_unavailable"),
            Self::AuditOutcomeUnrecorded => (S::BAD_GATEWAY, 47002, "audit_outcome_unrecorded"),
            Self::NotJson => (S::BAD_REQUEST, -32700, "not_json"),
            Self::Invalid => (S::BAD_REQUEST, -32600, "invalid"),
            Self::TwinKeys => (S::BAD_REQUEST, -32600, "twin_keys"),
            Self::HeaderMismatch => (S::BAD_REQUEST, -32020, "header_mismatch"),
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, 47003, "too_large"),
            Self::BodyTimeout => (S::REQUEST_TIMEOUT, 47004, "body_timeout"),
            Self::Unauthenticated => (S::UNAUTHORIZED, 47005, "unauthenticated"),
            Self::ForeignOrigin => (S::FORBIDDEN, 47006, "foreign_origin"),
            Self::NotFound => (S::NOT_FOUND, 47007, "not_found"),
            Self::UnknownServer => (S::NOT_FOUND, 47008, "unknown_server"),
            Self::UnknownSession => (S::NOT_FOUND, 47009, "unknown_session"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, 47010, "method_not_allowed"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, 47011, "unsupported_media_type")
            }
            Self::Unreachable => (S::BAD_GATEWAY, 47012, "unreachable"),
            Self::UpstreamTimeout => (S::GATEWAY_TIMEOUT, 47013, "timeout"),
            Self::UpstreamBroken => (S::BAD_GATEWAY, 47014, "upstream_broken"),
            Self::UpstreamInvalid => (S::BAD_GATEWAY, 47015, "upstream_invalid"),
            Self::UpstreamRefused => (S::BAD_GATEWAY, 47016, "upstream_refused"),
            Self::AnswerTooLarge => (S::BAD_GATEWAY, 47017, "answer_too_large"),
            Self::SessionLost => (S::NOT_FOUND, 47018, "session_lost"),
            Self::Cancelled => (S::OK, 47019, "cancelled"),
            Self::NotAsked => (S::BAD_REQUEST, 47020, "not_asked"),
            Self::NotOffered => (S::OK, -32602, "not_offered"),
            Self::ForeignCursor => (S::OK, -32602, "foreign_cursor"),
            Self::UnknownMethod => (S::OK, -32601, "unknown_method"),
            Self::UnsupportedRevision => (S::BAD_REQUEST, -32022, "unsupported_revision"),
            Self::OtherRevision => (S::BAD_REQUEST, 47021, "other_revision"),
            Self::UnknownEvent => (S::BAD_REQUEST, 47022, "unknown_event"),
            Self::ToolDenied => (S::OK, 47030, "tool_denied"),
            Self::ToolChanged => (S::OK, 47031, "tool_changed"),
        }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::AuditUnavailable => {
                "the call could not be recorded and was not forwarded; it is safe to retry"
            }
            Self::AuditOutcomeUnrecorded => {
                "the outcome could not be recorded, so the answer is withheld; the call may \
                 have taken effect, do not repeat it blindly"
            }
            Self::NotJson => "the body is not JSON; not forwarded",
            Self::Invalid => "not a message that MCP allows; not forwarded",
            Self::TwinKeys => {
                "two keys of one object are alike, so the message can be read in two ways; \
                 not forwarded"
            }
            Self::HeaderMismatch => "headers and body disagree; not forwarded",
            Self::TooLarge => "the message is longer than max_message_bytes; not forwarded",
            Self::BodyTimeout => "the body of the request did not arrive in time; not forwarded",
            Self::Unauthenticated => {
                "a valid key is required as `Authorization: Bearer …`; not forwarded"
            }
            Self::ForeignOrigin => {
                "the Host or Origin header names none of the hosts that this proxy serves \
                 (proxy.allowed_hosts, proxy.allowed_origins); not forwarded"
            }
            Self::NotFound => "there is nothing here; servers are at /servers/{name}/mcp",
            Self::UnknownServer => "no server of this name is configured; not forwarded",
            Self::UnknownSession => "no such session; initialize a new one; not forwarded",
            Self::MethodNotAllowed => "use POST, GET or DELETE",
            Self::UnsupportedMediaType => {
                "send application/json without a content encoding; not forwarded"
            }
            Self::Unreachable => "the server cannot be reached; the call was not delivered",
            Self::UpstreamTimeout => {
                "the server did not answer in time; the call may have taken effect"
            }
            Self::UpstreamBroken => "the server broke off; the call may have taken effect",
            Self::UpstreamInvalid => {
                "the server answered something that is not MCP; the call may have taken effect"
            }
            Self::UpstreamRefused => {
                "the server refused the credentials that this proxy is configured with"
            }
            Self::NotOffered => {
                "no server at this address offers what is named; list again; not forwarded"
            }
            Self::ForeignCursor => "no such cursor; begin the list anew; not forwarded",
            Self::UnknownMethod => "no server at this address knows the method; not forwarded",
            Self::UnsupportedRevision => "this revision is not spoken here; not forwarded",
            Self::OtherRevision => {
                "the server refused this revision of the protocol; use an earlier one with it"
            }
            Self::UnknownEvent => "no such event here; open the stream without Last-Event-ID",
            Self::ToolDenied => "this tool may not be used here; not forwarded",
            Self::ToolChanged => {
                "the definition of this tool has changed and is not approved yet \
                 (custody tools approve); not forwarded"
            }
            Self::AnswerTooLarge => {
                "the answer is longer than max_message_bytes; the call may have taken effect"
            }
            Self::SessionLost => {
                "the server has forgotten the session and opened no other; the message was not \
                 processed; initialize anew"
            }
            Self::Cancelled => "cancelled as you asked; the call may have taken effect",
            Self::NotAsked => {
                "no request with this id waits for an answer in this session; not forwarded"
            }
        }
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_the_callers_id_as_it_was_written() {
        let body = Failure::AuditUnavailable.body(Some("\"a\\/b\""), None, Some("no \"room\""));
        let text = std::str::from_utf8(&body).unwrap();
        assert!(
            text.starts_with("{\"jsonrpc\":\"2.0\",\"id\":\"a\\/b\",\"error\":{\"code\":47001,")
        );
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["error"]["data"]["reason"], "audit_unavailable");
        assert!(value["error"]["message"].as_str().unwrap().ends_with(": no \"room\""));
    }

    #[test]
    fn every_error_is_in_the_documentation() {
        let documented = include_str!("../../docs/proxy.md");
        let table = include_str!("errors.rs").split("const fn numbers").nth(1).unwrap();
        let rows = table.split("(S::").skip(1).map(|row| row.split(')').next().unwrap());
        let mut count = 0;
        for row in rows.take_while(|row| row.split(", ").count() == 3) {
            let mut cells = row.split(", ").skip(1);
            let (code, reason) = (cells.next().unwrap(), cells.next().unwrap().trim_matches('"'));
            let found = documented.lines().any(|line| {
                line.starts_with(&format!("| {code} |")) && line.contains(&format!("`{reason}`"))
            });
            assert!(found, "docs/proxy.md says nothing about {code} {reason}");
            count += 1;
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn the_two_audit_errors_have_the_promised_codes() {
        let faces = [Failure::AuditUnavailable, Failure::AuditOutcomeUnrecorded]
            .map(|failure| (failure.code(), failure.status().as_u16(), failure.reason()));
        assert_eq!(faces[0], (47001, 503, "audit_unavailable"));
        assert_eq!(faces[1], (47002, 502, "audit_outcome_unrecorded"));
    }
}
