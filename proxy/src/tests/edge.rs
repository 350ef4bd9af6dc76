//! Who is let in, what is refused at the door, and that every refusal of a call is recorded.

use custody_schemas::event::{Agent, Principal};
use sha2::{Digest, Sha256};

use super::*;
use crate::{Identity, StaticKey};

pub(super) fn with_keys(config: &mut Config) {
    let key = |secret: &str, user: &str| StaticKey {
        sha256: Sha256::digest(secret).into(),
        id: format!("key-{user}"),
        user: Some(Principal { subject: user.into(), ..Principal::default() }),
        agent: Some(Agent { id: "scribe".into(), ..Agent::default() }),
        roles: vec!["nurse".into()],
        purpose: Some("TREAT".into()),
    };
    config.identity = Identity::Keys(vec![key("one", "ann"), key("two", "bob")]);
}

fn denied(events: &[Event]) -> (&str, Option<&str>) {
    let event = events.last().unwrap();
    assert_eq!(event.kind, Kind::CallDenied, "{events:#?}");
    let decision = event.decision.as_ref().unwrap();
    let user = event.who.as_ref().and_then(|who| who.user.as_ref());
    (decision.reason.as_deref().unwrap(), user.map(|user| user.subject.as_str()))
}

#[tokio::test]
async fn the_key_says_who_calls_and_is_not_passed_on() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, with_keys).await;
    let headers = [("authorization", "Bearer two"), ("cookie", "c=1"), ("user-agent", "test/1")];
    let reply = bench.send(Method::POST, "/servers/ehr/mcp", &headers, CALL).await;
    assert_eq!(reply.status, 200);
    let events = bench.events();
    let who = events[0].who.as_ref().unwrap();
    assert_eq!(who.user.as_ref().unwrap().subject, "bob");
    assert_eq!(who.agent.as_ref().unwrap().id, "scribe");
    assert_eq!(who.source.as_ref().unwrap().user_agent.as_deref(), Some("test/1"));
    assert_eq!(events[0].who, events[1].who);
    let seen = upstream.seen().pop().unwrap();
    assert!(!seen.headers.contains_key("authorization") && !seen.headers.contains_key("cookie"));
    assert_eq!(seen.headers["accept-encoding"], "identity");
}

#[tokio::test]
async fn strangers_are_turned_away_unread_and_counted() {
    let upstream = Upstream::with_json(ANSWER).await;
    let mut bench = Bench::start(upstream.addr, with_keys).await;
    let headers = [vec![], vec![("authorization", "Bearer three")]];
    for headers in headers.iter().chain([&vec![("host", "evil.example")]; 3]) {
        let foreign = headers.iter().any(|(name, _)| *name == "host");
        let reply = bench.send(Method::POST, "/servers/ehr/mcp", headers, CALL).await;
        assert_eq!(reply.error(), if foreign { (403, 47006) } else { (401, 47005) });
        assert!(foreign || reply.headers["www-authenticate"] == "Bearer");
    }
    assert!(upstream.seen().is_empty());
    assert!(bench.events().is_empty(), "strangers make no record each");
    bench.shutdown.cancel();
    (&mut bench.task).await.unwrap();
    let events = bench.events();
    assert_eq!(events.len(), 2, "{events:#?}");
    for (reason, count) in [("unauthenticated", 2u64), ("foreign_origin", 3)] {
        let event = events.iter().find(|event| event.detail["reason"] == reason.into()).unwrap();
        assert_eq!((&event.kind, &event.detail["count"]), (&Kind::AuthRefused, &count.into()));
        assert_eq!(event.who.as_ref().unwrap().source.as_ref().unwrap().ip, "127.0.0.1");
    }
}

/// Path, headers beside the key, body; then the error and the reason on the record.
type Refused<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, (u16, i64), &'a str);

const EHR: &str = "/servers/ehr/mcp";

const MODERN: &str = r#"{"id":1,"method":"ping","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;

const MODERN_PING: [(&str, &str); 2] =
    [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "ping")];

const SESSIONS: [(&str, &str); 2] = [("mcp-session-id", "a"), ("mcp-session-id", "b")];

const REFUSED: [Refused<'static>; 13] = [
    (EHR, &MODERN_PING, MODERN, (400, -32600), "invalid"),
    (EHR, &[], MODERN, (400, -32020), "header_mismatch"),
    (EHR, &SESSIONS, CALL, (400, -32020), "header_mismatch"),
    ("/servers/nope/mcp", &[], CALL, (404, 47008), "unknown_server"),
    (EHR, &[], "no json", (400, -32700), "not_json"),
    (EHR, &[], "[]", (400, -32600), "invalid"),
    (EHR, &[], "{}", (400, -32600), "invalid"),
    (EHR, &[], r#"{"method":"tools/call","params":{"name":"x"}}"#, (400, -32600), "invalid"),
    (EHR, &[], r#"{"id":1,"method":"x","m\u0065thod":"y"}"#, (400, -32600), "twin_keys"),
    (EHR, &[("mcp-method", "tools/list")], CALL, (400, -32020), "header_mismatch"),
    (EHR, &[("mcp-session-id", "s")], CALL, (404, 47009), "unknown_session"),
    (EHR, &[("content-type", "text/plain")], CALL, (415, 47011), "unsupported_media_type"),
    (EHR, &[("content-encoding", "gzip")], CALL, (415, 47011), "unsupported_media_type"),
];

#[tokio::test]
async fn refusals_name_their_reason_carry_the_callers_id_and_are_recorded() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, with_keys).await;
    let deep = format!("{{\"id\":9,\"method\":\"x\",\"params\":{{\"a\":{}", "[".repeat(1_000_000));
    let deep = (EHR, [].as_slice(), deep.as_str(), (400, -32700), "not_json");
    for (path, headers, body, expected, reason) in REFUSED.into_iter().chain([deep]) {
        let headers = [headers, &[("authorization", "Bearer one")]].concat();
        let reply = bench.send(Method::POST, path, &headers, body.to_owned()).await;
        assert_eq!(reply.error(), expected, "{reason}");
        assert_eq!(denied(&bench.events()).0, reason);
        if body == CALL && reason != "unsupported_media_type" {
            assert_eq!(reply.json()["id"], 1, "{reason}");
        }
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_body_longer_than_the_limit_is_413_and_recorded() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let long = CALL.replace("1.0", &format!("\"{}\"", "x".repeat(17 << 20)));
    let reply = bench.post(long).await;
    assert_eq!(reply.error(), (413, 47003));
    let message = reply.json()["error"]["message"].to_string();
    assert!(message.contains("the limit is 16777216 bytes"), "{message}");
    assert_eq!(denied(&bench.events()).0, "too_large");
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_long_answer_below_the_limit_arrives_whole() {
    let long = ANSWER.replace("hi", &"x".repeat(15 << 20));
    let upstream = Upstream::with_json(long.clone()).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let reply = bench.post(CALL).await;
    assert!(reply.body == long, "{} bytes of {}", reply.body.len(), long.len());
    let events = bench.after_endings(1).await;
    assert!(bench.body(ending(&events).bodies.response.as_ref()) == long);
}

#[tokio::test]
async fn a_session_belongs_to_whoever_opened_it_and_neither_side_sees_the_others_id() {
    let upstream = Upstream::start(|seen: Seen| async move {
        if seen.body == INITIALIZE { in_session("s-1") } else { json(ANSWER) }
    })
    .await;
    let bench = Bench::start(upstream.addr, with_keys).await;
    let ann = ("authorization", "Bearer one");
    let bob = ("authorization", "Bearer two");
    let id = bench.open_session(&[ann]).await;
    assert!(id.len() == 32 && !id.contains("s-1"), "{id}");
    let session = ("mcp-session-id", id.as_str());
    assert_eq!(bench.send(Method::POST, EHR, &[ann, session], CALL).await.status, 200);
    assert_eq!(upstream.seen()[1].headers["mcp-session-id"], "s-1");
    let events = bench.events();
    let session_of = |event: &Event| event.what.as_ref().unwrap().session;
    assert!(session_of(&events[0]).is_none() && session_of(&events[1]).is_some());
    assert_eq!(session_of(&events[1]), session_of(&events[2]), "the call can be joined to it");
    let who = events.last().unwrap().who.as_ref().unwrap();
    assert_eq!(who.client_claimed.as_ref().unwrap().name, "cli");
    let recorded = format!("{events:?}");
    assert!(!recorded.contains("s-1") && !recorded.contains(&id), "ids of sessions are secrets");
    for method in [Method::POST, Method::GET, Method::DELETE] {
        let reply = bench.send(method, EHR, &[bob, session], CALL).await;
        assert_eq!(reply.error(), (404, 47009));
        assert_eq!(denied(&bench.events()), ("unknown_session", Some("bob")));
    }
    let forged = bench.send(Method::POST, EHR, &[ann, ("mcp-session-id", "s-1")], CALL).await;
    assert_eq!(forged.error(), (404, 47009), "the server's own id opens nothing");
    let stolen = bench.send(Method::POST, EHR, &[bob], INITIALIZE).await;
    assert_eq!(stolen.status, 502, "a server that gives bob the session of ann is not believed");
    assert_eq!(bench.send(Method::DELETE, EHR, &[ann, session], "").await.status, 200);
    assert_eq!(bench.send(Method::POST, EHR, &[ann, session], CALL).await.status, 404);
}

#[tokio::test]
async fn protocol_errors_of_the_upstream_pass_with_their_status() {
    let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"m"}}"#;
    for (code, body, ended) in
        [(400, error, "rpc_error"), (404, "not found", "http_error"), (500, "", "http_error")]
    {
        let upstream =
            Upstream::start(move |_| async move { answer(code, "text/plain", body) }).await;
        let bench = Bench::start(upstream.addr, |_| {}).await;
        let reply = bench.post(CALL).await;
        assert_eq!((reply.status, reply.body.as_ref()), (code, body.as_bytes()));
        let events = bench.after_endings(1).await;
        assert_eq!(status(&events), ended);
        assert_eq!(ending(&events).outcome.as_ref().unwrap().http_status, Some(code));
    }
}

#[tokio::test]
async fn housekeeping_is_no_access_to_protected_data_unless_some_is_found() {
    let upstream = Upstream::start(|seen: Seen| async move {
        let patient = r#"{"jsonrpc":"2.0","id":1,"result":{"instructions":"{\"resourceType\":\"Patient\",\"id\":\"p\"}"}}"#;
        json(if seen.body.starts_with(b"{\"id\":1,\"method\":\"ping") { patient } else { ANSWER })
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    bench.post(r#"{"id":1,"method":"tools/list"}"#).await;
    assert!(bench.events().iter().all(|event| event.data.is_empty()));
    bench.post(r#"{"id":1,"method":"ping"}"#).await;
    let events = bench.events();
    assert_eq!(events[3].data.subjects[0].id, "p");
    assert!(events[3].data.is_phi() && !events[2].data.is_phi());
}

#[tokio::test]
async fn health_and_metrics_answer_and_count() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    bench.post(CALL).await;
    for (path, expected) in [
        ("/healthz", "ok"),
        ("/readyz", "ready"),
        ("/metrics", "custody_proxy_calls_ended_total{server=\"ehr\",status=\"ok\"} 1\n"),
        ("/metrics", "custody_proxy_calls_in_flight 0\n"),
    ] {
        let reply = bench.send(Method::GET, path, &[], "").await;
        let text = std::str::from_utf8(&reply.body).unwrap();
        assert!(reply.status == 200 && text.contains(expected), "{path}: {text}");
    }
    assert_eq!(bench.send(Method::GET, "/", &[], "").await.status, 404);
    assert_eq!(bench.send(Method::PUT, "/servers/ehr/mcp", &[], "").await.status, 405);
}

#[tokio::test]
async fn headers_that_pass_are_on_record_and_no_others_pass() {
    let upstream = Upstream::start(|_| async {
        let mut response = json(ANSWER);
        for (name, value) in [("mcp-covert", "d"), ("cache-control", "no-store"), ("x-y", "z")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let headers = [
        ("mcp-covert", "u"),
        ("mcp-param-region", "eu"),
        ("tracestate", "t=1"),
        ("mcp-method", "tools/call"),
    ];
    let reply = bench.send(Method::POST, EHR, &headers, CALL).await;
    let seen = upstream.seen().pop().unwrap();
    assert!(!seen.headers.contains_key("mcp-covert") && !reply.headers.contains_key("mcp-covert"));
    assert_eq!(
        (&seen.headers["mcp-param-region"], &seen.headers["tracestate"]),
        (&"eu".parse().unwrap(), &"t=1".parse().unwrap())
    );
    assert_eq!(reply.headers["cache-control"], "no-store");
    let events = bench.events();
    let map = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
        custody_schemas::json::Json::Map(pairs.collect())
    };
    assert_eq!(
        events[0].detail["headers"],
        map(&[("mcp-param-region", "eu"), ("tracestate", "t=1")])
    );
    assert_eq!(events[1].detail["headers"], map(&[("cache-control", "no-store")]));
}

#[tokio::test]
async fn a_trace_context_reaches_the_server_as_it_came_and_none_is_added() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let meta = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let traced =
        CALL.replace("\"name\"", &format!("\"_meta\":{{\"traceparent\":\"{meta}\"}},\"name\""));
    for (body, headers) in [
        (CALL, vec![("traceparent", header), ("tracestate", "v=1")]),
        (&traced, vec![("traceparent", header)]),
        (CALL, vec![]),
    ] {
        bench.send(Method::POST, EHR, &headers, body.to_owned()).await;
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.body, body);
        let passed: Vec<_> =
            seen.headers.iter().filter(|(name, _)| name.as_str().starts_with("trace")).collect();
        assert_eq!(passed.len(), headers.len());
        assert!(headers.iter().all(|(name, value)| seen.headers[*name] == *value));
    }
    let events = bench.after_endings(3).await;
    let traces: Vec<_> = of_kind(&events, &Kind::CallRequested)
        .iter()
        .map(|event| event.what.as_ref().unwrap().trace.as_deref())
        .collect();
    assert_eq!(traces, [Some(header), Some(meta), None], "what the body says comes first");
}

#[tokio::test]
async fn a_proxy_is_not_ready_while_it_cannot_record_or_what_it_waits_for_is_away() {
    let upstream = Upstream::with_json(ANSWER).await;
    let away = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = Arc::clone(&away);
    let ready: crate::Ready = Arc::new(move || {
        let away = asked.load(std::sync::atomic::Ordering::Relaxed);
        if away { Err("Kafka does not answer".to_owned()) } else { Ok(()) }
    });
    let watched = Watched::new(crate::Page::default(), ready);
    let bench = Bench::watched(upstream.addr, watched).await;
    let readyz = async || {
        let reply = bench.send(Method::GET, "/readyz", &[], "").await;
        (reply.status, String::from_utf8(reply.body.to_vec()).unwrap())
    };
    let (status, why) = readyz().await;
    assert!(status == 503 && why.contains("Kafka does not answer"), "{status} {why}");
    away.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(readyz().await, (200, "ready\n".to_owned()));
    bench.writer.close().await.unwrap();
    let (status, why) = readyz().await;
    assert!(status == 503 && why.contains("closed"), "{status} {why}");
    assert_eq!(bench.send(Method::GET, "/healthz", &[], "").await.status, 200);
}
