//! What other proxies get wrong with MCP: each mistake has a test that would find it here.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::future::join_all;
use tokio::sync::mpsc;

use super::streams::{event, scripted, send as say};
use super::*;

const EHR: &str = "/servers/ehr/mcp";

/// How an upstream says that it does not know a session.
#[derive(Clone, Copy, Debug)]
enum Says {
    NotFound,
    BadRequest,
}

/// An upstream with sessions, which it forgets when it is told to.
struct Forgetful {
    upstream: Upstream,
    opened: Arc<AtomicUsize>,
    /// Whether it opens another session.
    opens: Arc<AtomicBool>,
}

impl Forgetful {
    async fn start(says: Says, streams: bool) -> Self {
        let opened = Arc::new(AtomicUsize::new(0));
        let opens = Arc::new(AtomicBool::new(true));
        let (number, may) = (Arc::clone(&opened), Arc::clone(&opens));
        let upstream = Upstream::start(move |seen: Seen| {
            let (number, may) = (Arc::clone(&number), Arc::clone(&may));
            async move {
                if seen.body == INITIALIZE {
                    if !may.load(Ordering::SeqCst) {
                        return answer(500, "text/plain", "starting");
                    }
                    let id = format!("s-{}", number.fetch_add(1, Ordering::SeqCst) + 1);
                    let mut response = in_session(&id);
                    if streams {
                        let note = r#"{"jsonrpc":"2.0","method":"notifications/message"}"#;
                        let both = [event(note), event(INITIALIZED)].concat();
                        *response.body_mut() = Payload::whole(both.into());
                        let events = "text/event-stream".parse().unwrap();
                        response.headers_mut().insert("content-type", events);
                    }
                    return response;
                }
                let current = format!("s-{}", number.load(Ordering::SeqCst));
                let known = seen.headers.get("mcp-session-id").is_some_and(|id| *id == current);
                match (known, says) {
                    (true, _) if seen.method == Method::GET => {
                        answer(200, "text/event-stream", event(PROGRESS))
                    }
                    (true, _) if seen.body.starts_with(b"{\"jsonrpc\":\"2.0\",\"method\"") => {
                        answer(202, "text/plain", "")
                    }
                    (true, _) => json(ANSWER),
                    (false, Says::NotFound) => answer(404, "text/plain", "Session not found"),
                    (false, Says::BadRequest) => answer(400, "application/json", NO_SESSION),
                }
            }
        })
        .await;
        Self { upstream, opened, opens }
    }

    /// As after a restart.
    fn forget(&self) {
        self.opened.fetch_add(100, Ordering::SeqCst);
    }

    fn initialized(&self) -> usize {
        let seen = self.upstream.seen();
        seen.iter().filter(|seen| seen.body == INITIALIZE).count()
    }
}

const NO_SESSION: &str = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":null}"#;
const PROGRESS: &str = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":1}}"#;

#[tokio::test]
async fn mistake_01_a_session_that_its_server_forgot_is_opened_anew_once_and_the_client_notices_nothing()
 {
    for (says, streams) in
        [(Says::NotFound, false), (Says::BadRequest, false), (Says::NotFound, true)]
    {
        let server = Forgetful::start(says, streams).await;
        let bench = Bench::start(server.upstream.addr, |_| {}).await;
        let id = bench.open_session(&[]).await;
        let session = [("mcp-session-id", id.as_str()), ("mcp-protocol-version", "2025-11-25")];
        server.forget();
        let calls = (0..8).map(|_| bench.send(Method::POST, EHR, &session, CALL));
        for reply in join_all(calls).await {
            assert_eq!((reply.status, reply.body.as_ref()), (200, ANSWER.as_bytes()), "{says:?}");
        }
        assert_eq!(server.initialized(), 2, "one for all calls, beside the client's own");
        let events = bench.after_endings(10).await;
        let own: Vec<_> = events.iter().filter(|e| e.detail.contains_key("by")).collect();
        let mut kinds: Vec<_> = own.iter().map(|event| event.kind.as_str()).collect();
        kinds.retain(|kind| *kind != "message.relayed");
        assert_eq!(kinds, ["call.requested", "call.ended"], "it is on the record like any call");
        assert_eq!(bench.body(own[0].bodies.request.as_ref()), INITIALIZE);
        let renewed = |event: &&&Event| event.detail.contains_key("session_renewed");
        let endings = of_kind(&events, &Kind::CallEnded);
        assert!((1..=8).contains(&endings.iter().filter(renewed).count()));
        let told = server.upstream.seen().into_iter().filter(|seen| {
            memchr::memmem::find(&seen.body, b"notifications/initialized").is_some()
                && seen.headers["mcp-protocol-version"] == "2025-11-25"
        });
        assert_eq!(told.count(), 1);
        let stream = bench.send(Method::GET, EHR, &session, "").await;
        assert_eq!(stream.body, event(PROGRESS));
    }
}

#[tokio::test]
async fn mistake_01_what_cannot_be_opened_anew_is_an_explicit_error_and_nothing_else_is_sent_twice()
{
    let server = Forgetful::start(Says::NotFound, false).await;
    let bench = Bench::start(server.upstream.addr, |_| {}).await;
    let id = bench.open_session(&[]).await;
    let session = [("mcp-session-id", id.as_str())];
    server.forget();
    let resumed = [session[0], ("last-event-id", "7")];
    let gone = bench.send(Method::GET, EHR, &resumed, "").await;
    assert_eq!((gone.status, server.initialized()), (404, 1), "what was to be resumed is gone");
    server.opens.store(false, Ordering::SeqCst);
    let reply = bench.send(Method::POST, EHR, &session, CALL).await;
    assert_eq!(reply.error(), (404, 47018));
    assert_eq!(reply.json()["id"], 1);
    assert_eq!(server.initialized(), 2);
    assert_eq!(bench.send(Method::POST, EHR, &session, CALL).await.error(), (404, 47009));
    server.opens.store(true, Ordering::SeqCst);
    let other = bench.open_session(&[]).await;
    server.forget();
    let older = [("mcp-session-id", other.as_str()), ("mcp-protocol-version", "2025-03-26")];
    let reply = bench.send(Method::POST, EHR, &older, CALL).await;
    assert_eq!(reply.error(), (404, 47018), "a session in another revision than was agreed on");
}

#[tokio::test]
async fn mistake_03_clients_that_always_send_the_same_id_get_each_their_own_answer() {
    let upstream = Upstream::start(|seen: Seen| async move {
        let request: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let n = request["params"]["arguments"]["n"].clone();
        tokio::task::yield_now().await;
        json(format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{\"n\":{n}}}}}"))
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let calls = (0..50).map(|n| {
        let call = CALL.replace("\"a\":1.0", &format!("\"n\":{n}"));
        let bench = &bench;
        async move { assert_eq!(bench.post(call).await.json()["result"]["n"], n) }
    });
    join_all(calls).await;
    let events = bench.after_endings(50).await;
    for opening in of_kind(&events, &Kind::CallRequested) {
        let mut endings = of_kind(&events, &Kind::CallEnded);
        endings.retain(|ending| ending.call == opening.call);
        assert_eq!(endings.len(), 1);
        let asked: serde_json::Value =
            serde_json::from_slice(&bench.body(opening.bodies.request.as_ref())).unwrap();
        let got: serde_json::Value =
            serde_json::from_slice(&bench.body(endings[0].bodies.response.as_ref())).unwrap();
        assert_eq!(asked["params"]["arguments"]["n"], got["result"]["n"]);
    }
}

#[tokio::test]
async fn mistake_04_a_servers_request_is_answered_once_and_by_the_session_that_got_it() {
    let asks = r#"{"jsonrpc":"2.0","id":"q\/1","method":"elicitation/create","params":{}}"#;
    let answers = r#"{"jsonrpc":"2.0","id":"q/1","result":{"action":"accept"}}"#;
    let (pieces, coming) = mpsc::channel(8);
    let coming = Arc::new(Mutex::new(Some(coming)));
    let sessions = Arc::new(AtomicUsize::new(0));
    let upstream = Upstream::start(move |seen: Seen| {
        let (coming, sessions) = (Arc::clone(&coming), Arc::clone(&sessions));
        async move {
            if seen.body == INITIALIZE {
                return in_session(&format!("s{}", sessions.fetch_add(1, Ordering::SeqCst)));
            }
            if seen.body != CALL {
                return answer(202, "text/plain", "");
            }
            let coming = coming.lock().unwrap().take().unwrap();
            super::streams::stream(coming)
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let (ann, bob) = (bench.open_session(&[]).await, bench.open_session(&[]).await);
    let of = |id: &str| [("mcp-session-id".to_owned(), id.to_owned())];
    let post = async |headers: &[(String, String)], body: &'static str| {
        let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        bench.send(Method::POST, EHR, &headers, body).await
    };
    let headers = [("mcp-session-id", ann.as_str())];
    let mut call = bench.exchange(Method::POST, EHR, &headers, CALL).await;
    say(&pieces, &event(asks)).await;
    assert_eq!(call.piece().await.unwrap(), event(asks));
    for stranger in [of(&bob).to_vec(), Vec::new()] {
        assert_eq!(post(&stranger, answers).await.error(), (400, 47020));
        assert_eq!(bench.events().last().unwrap().kind, Kind::CallDenied);
    }
    assert_eq!(post(&of(&ann), answers).await.status, 202);
    let events = bench.events();
    let (answered, asked) = (events.last().unwrap(), of_kind(&events, &Kind::CallRequested));
    assert_eq!(answered.call, asked.last().unwrap().call, "it belongs to the call that asked");
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        (seen.body.as_ref(), &seen.headers["mcp-session-id"]),
        (answers.as_bytes(), &"s0".parse().unwrap())
    );
    assert_eq!(post(&of(&ann), answers).await.error(), (400, 47020), "and only once");
    say(&pieces, &event(ANSWER)).await;
    assert_eq!(call.piece().await.unwrap(), event(ANSWER));
}

const CANCEL: &str = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1.0,"reason":"r"}}"#;

/// An upstream whose only call gets what the test says; it takes notifications.
async fn cancellable() -> (Upstream, super::streams::Pieces) {
    let (pieces, coming) = mpsc::channel(8);
    let coming = Arc::new(Mutex::new(Some(coming)));
    let upstream = Upstream::start(move |seen: Seen| {
        let coming = Arc::clone(&coming);
        async move {
            match seen.body == CALL {
                true => super::streams::stream(coming.lock().unwrap().take().unwrap()),
                false => answer(202, "text/plain", ""),
            }
        }
    })
    .await;
    (upstream, pieces)
}

#[tokio::test]
async fn mistake_05_a_cancellation_reaches_the_server_as_it_is_and_ends_the_call_that_it_names() {
    // the server closes the stream, says nothing, or answers all the same
    for case in ["closes", "silent", "answers"] {
        let (upstream, pieces) = cancellable().await;
        let mut pieces = Some(pieces);
        let short = |config: &mut Config| config.limits.cancelled = Duration::from_millis(50);
        let bench = Bench::start(upstream.addr, short).await;
        let mut call = bench.exchange(Method::POST, EHR, &[], CALL).await;
        say(pieces.as_ref().unwrap(), &event(PROGRESS)).await;
        call.piece().await.unwrap();
        if case == "answers" {
            say(pieces.as_ref().unwrap(), &event(ANSWER)).await;
            assert_eq!(call.piece().await.unwrap(), event(ANSWER));
        }
        assert_eq!(bench.post(CANCEL).await.status, 202);
        assert_eq!(upstream.seen().pop().unwrap().body, CANCEL, "the id is not changed");
        if case == "closes" {
            pieces.take();
        }
        let events = bench.after_endings(1).await;
        let expected = if case == "answers" { "ok" } else { "cancelled" };
        assert_eq!(status(&events), expected, "{case}");
        let body = |event: &&Event| bench.body(event.bodies.request.as_ref()) == CANCEL;
        let cancelled = of_kind(&events, &Kind::MessageRelayed).into_iter().find(body).unwrap();
        let of_call = if case == "answers" { None } else { ending(&events).call };
        assert_eq!(cancelled.call, of_call, "{case}");
        drop(pieces.take());
        assert_eq!(call.piece().await, None, "{case}");
    }
}

#[tokio::test]
async fn mistake_05_a_cancelled_call_whose_server_never_answers_does_not_wait_for_it() {
    let (asked, mut asks) = mpsc::channel(1);
    let upstream = Upstream::start(move |seen: Seen| {
        let asked = asked.clone();
        async move {
            if seen.body != CALL {
                return answer(202, "text/plain", "");
            }
            asked.send(()).await.unwrap();
            std::future::pending().await
        }
    })
    .await;
    let short = |config: &mut Config| config.limits.cancelled = Duration::from_millis(50);
    let bench = Bench::start(upstream.addr, short).await;
    let (reply, _) = tokio::join!(bench.post(CALL), async {
        asks.recv().await.unwrap();
        bench.post(CANCEL).await
    });
    assert_eq!(reply.error(), (200, 47019));
    assert_eq!(status(&bench.after_endings(1).await), "cancelled");
}

#[tokio::test]
async fn mistake_05_a_modern_client_that_closes_its_stream_has_the_servers_request_dropped() {
    let (held, mut gone) = mpsc::channel::<()>(1);
    let (asked, mut asks) = mpsc::channel(1);
    let held = Arc::new(Mutex::new(Some(held)));
    let upstream = Upstream::start(move |_| {
        let (asked, held) = (asked.clone(), held.lock().unwrap().take());
        async move {
            asked.send(()).await.unwrap();
            std::future::pending::<()>().await;
            drop(held);
            json(ANSWER)
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
    let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "ping")];
    let calling = bench.exchange(Method::POST, EHR, &headers, body);
    tokio::select! {
        _ = calling => panic!("nothing answers"),
        _ = asks.recv() => {} // and with this the client goes
    }
    assert_eq!(status(&bench.after_endings(1).await), "cancelled");
    assert_eq!(gone.recv().await, None, "the connection to the server is closed");
}

#[tokio::test]
async fn mistake_06_notifications_pass_when_they_come_in_order_and_with_the_clients_own_token() {
    let (upstream, pieces) = scripted().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let call = CALL.replace("\"arguments\"", "\"_meta\":{\"progressToken\":\"t\"},\"arguments\"");
    let mut reply = bench.exchange(Method::POST, EHR, &[], call.clone()).await;
    assert_eq!(upstream.seen()[0].body, call, "no token is invented");
    for n in 0..20 {
        let progress = PROGRESS.replace("\"progress\":1", &format!("\"progress\":{n}"));
        say(&pieces, &event(&progress)).await;
        assert_eq!(reply.piece().await.unwrap(), event(&progress), "before the next one is sent");
    }
    let many: String =
        (0..500).map(|n| event(&PROGRESS.replace("1}", &format!("{n}}}")))).collect();
    say(&pieces, &many).await;
    let mut passed = Vec::new();
    while passed.len() < many.len() {
        passed.extend_from_slice(&reply.piece().await.unwrap());
    }
    assert_eq!(passed, many.as_bytes(), "a flood of them, too");
    assert_eq!(of_kind(&bench.events(), &Kind::MessageRelayed).len(), 520);
}

#[tokio::test]
async fn mistake_09_a_header_that_contradicts_the_body_is_refused_and_policy_reads_the_body() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let call = CALL.replace(
        "{\"name\"",
        "{\"_meta\":{\"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\"},\"name\"",
    );
    let right =
        [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "x")];
    for (at, wrong) in [(0, "2025-11-25"), (1, "tools/list"), (2, "harmless")] {
        let mut headers = right;
        headers[at].1 = wrong;
        let reply = bench.send(Method::POST, EHR, &headers, call.clone()).await;
        assert_eq!(reply.error(), (400, -32020), "{wrong}");
    }
    assert!(upstream.seen().is_empty());
    let tools: Vec<_> =
        bench.events().iter().map(|e| e.what.as_ref().unwrap().tool.clone()).collect();
    assert_eq!(tools, vec![Some("x".to_owned()); 3], "what is recorded is what the body says");
    assert_eq!(bench.send(Method::POST, EHR, &right, call).await.status, 200);
}

#[tokio::test]
async fn mistake_10_one_limit_for_both_ways_says_itself_and_is_on_the_record() {
    let long = ANSWER.replace("hi", &"x".repeat(5000));
    let upstream = Upstream::with_json(long).await;
    let small = |config: &mut Config| config.max_message_bytes = 4096;
    let bench = Bench::start(upstream.addr, small).await;
    let reply = bench.post(CALL.replace("1.0", &format!("\"{}\"", "x".repeat(5000)))).await;
    assert_eq!(reply.error(), (413, 47003));
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("the limit is 4096 bytes"));
    let denied = bench.events();
    assert_eq!(denied[0].kind, Kind::CallDenied);
    assert_eq!(denied[0].decision.as_ref().unwrap().reason.as_deref(), Some("too_large"));
    assert_eq!(bench.post(CALL).await.error(), (502, 47017));
    assert_eq!(status(&bench.after_endings(1).await), "too_large");
}

#[tokio::test]
async fn mistake_11_a_silent_stream_of_the_server_is_kept_open_however_long_it_is_silent() {
    let (upstream, pieces) = scripted().await;
    let short = |config: &mut Config| {
        config.limits.keep_alive = Duration::from_millis(5);
        config.limits.stream_idle = Duration::from_millis(10);
    };
    let bench = Bench::start(upstream.addr, short).await;
    let mut reply = bench.exchange(Method::GET, EHR, &[], "").await;
    for _ in 0..20 {
        assert_eq!(reply.piece().await.unwrap(), ": keep-alive\n\n");
    }
    say(&pieces, &event(PROGRESS)).await;
    while reply.piece().await.unwrap() != event(PROGRESS) {}
}

#[tokio::test]
async fn mistake_13_a_name_that_somebody_else_could_point_here_gets_nothing() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    for header in [
        ("host", "evil.example"),
        ("host", "localhost.evil.example:7400"),
        ("host", "127.0.0.1.evil.example"),
        ("origin", "https://evil.example"),
        ("origin", "null"),
    ] {
        for path in [EHR, "/metrics", "/readyz"] {
            let method = if path == EHR { Method::POST } else { Method::GET };
            let reply = bench.send(method, path, &[header], CALL).await;
            assert_eq!(reply.error(), (403, 47006), "{header:?} {path}");
        }
    }
    assert!(upstream.seen().is_empty() && bench.events().is_empty());
}

#[tokio::test]
async fn mistake_16_keys_that_are_alike_in_any_spelling_are_refused() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    for twin in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"safe","name":"evil"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"safe","n\u0061me":"evil"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"safe","Name":"evil"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","meth\u006fd":"tools/call","params":{"name":"evil"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"patient":"a","p\u0061tient":"b"}}}"#,
    ] {
        let reply = bench.post(twin).await;
        assert_eq!(reply.error(), (400, -32600), "{twin}");
        assert_eq!(reply.json()["error"]["data"]["reason"], "twin_keys");
        let events = bench.events();
        assert_eq!(bench.body(events.last().unwrap().bodies.request.as_ref()), twin);
    }
    assert!(upstream.seen().is_empty());
}
