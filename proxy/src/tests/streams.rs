//! Event streams: each message recorded before it is passed on, whatever happens meanwhile.

use tokio::sync::mpsc;

use super::*;

pub(super) type Pieces = mpsc::Sender<Result<Bytes, crate::payload::BrokenOff>>;

/// An event stream that a test writes.
pub(super) fn stream(
    coming: mpsc::Receiver<Result<Bytes, crate::payload::BrokenOff>>,
) -> Response<Payload> {
    let pieces = futures::stream::unfold(coming, |mut coming| async move {
        Some((coming.recv().await?, coming))
    });
    let builder = Response::builder().header("content-type", "text/event-stream");
    builder.body(Payload::Pieces(Box::pin(pieces))).unwrap()
}

/// An upstream whose only stream is written by the test.
pub(super) async fn scripted() -> (Upstream, Pieces) {
    let (pieces, coming) = mpsc::channel(8);
    let coming = Arc::new(Mutex::new(Some(coming)));
    let upstream = Upstream::start(move |_| {
        let coming = coming.lock().unwrap().take();
        async move {
            let Some(coming) = coming else {
                return Response::builder().status(202).body(Payload::Whole(None)).unwrap();
            };
            stream(coming)
        }
    })
    .await;
    (upstream, pieces)
}

const PROGRESS: &str =
    r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1}}"#;
const SAMPLING: &str = r#"{"jsonrpc":"2.0","id":5,"method":"sampling/createMessage","params":{"text":"{\"resourceType\":\"Patient\",\"id\":\"p7\"}"}}"#;

pub(super) async fn send(pieces: &Pieces, text: &str) {
    pieces.send(Ok(Bytes::from(text.to_owned()))).await.unwrap();
}

pub(super) fn event(message: &str) -> String {
    format!("data: {message}\n\n")
}

#[tokio::test]
async fn each_message_is_passed_on_when_it_comes_and_was_recorded_before() {
    let (upstream, pieces) = scripted().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut reply = bench.exchange(Method::POST, "/servers/ehr/mcp", &[], CALL).await;
    for message in [PROGRESS, SAMPLING] {
        let (first, second) = message.split_at(20);
        send(&pieces, &format!("data: {first}")).await;
        send(&pieces, &format!("{second}\n\n")).await;
        assert_eq!(reply.piece().await.unwrap(), event(message));
        let events = bench.events();
        let last = events.last().unwrap();
        assert_eq!(last.kind, Kind::MessageRelayed);
        assert_eq!(bench.body(last.bodies.request.as_ref()), message);
    }
    send(&pieces, &event(ANSWER)).await;
    assert_eq!(reply.piece().await.unwrap(), event(ANSWER));
    let events = bench.events();
    assert_eq!(status(&events), "ok");
    let data = &ending(&events).data;
    assert_eq!(data.subjects[0].id, "p7", "what passed beside the answer belongs to the call");
    drop(pieces);
    assert_eq!(reply.piece().await, None);
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_has_its_call_ended_as_abandoned() {
    let (upstream, pieces) = scripted().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut reply = bench.exchange(Method::POST, "/servers/ehr/mcp", &[], CALL).await;
    send(&pieces, &event(PROGRESS)).await;
    reply.piece().await.unwrap();
    reply.leave();
    assert_eq!(status(&bench.after_endings(1).await), "abandoned");
    pieces.closed().await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_the_call_as_unknown_and_says_so() {
    let (upstream, pieces) = scripted().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut reply = bench.exchange(Method::POST, "/servers/ehr/mcp", &[], CALL).await;
    send(&pieces, &event(PROGRESS)).await;
    reply.piece().await.unwrap();
    pieces.send(Err(crate::payload::BrokenOff)).await.unwrap();
    let last = reply.piece().await.unwrap();
    assert!(std::str::from_utf8(&last).unwrap().contains("\"code\":47014"), "{last:?}");
    assert_eq!(status(&bench.after_endings(1).await), "unknown");
}

#[tokio::test]
async fn a_silent_stream_is_kept_open_by_comments() {
    let (upstream, pieces) = scripted().await;
    let short = |config: &mut Config| config.limits.keep_alive = Duration::from_millis(5);
    let bench = Bench::start(upstream.addr, short).await;
    let mut reply = bench.exchange(Method::POST, "/servers/ehr/mcp", &[], CALL).await;
    assert_eq!(reply.piece().await.unwrap(), ": keep-alive\n\n");
    assert_eq!(reply.piece().await.unwrap(), ": keep-alive\n\n");
    send(&pieces, &event(ANSWER)).await;
    while let Some(piece) = reply.piece().await {
        if piece == event(ANSWER) {
            return;
        }
    }
    panic!("the answer did not come");
}

#[tokio::test]
async fn a_stream_that_stays_silent_too_long_is_a_timeout() {
    let (upstream, _pieces) = scripted().await;
    let short = |config: &mut Config| {
        config.limits.keep_alive = Duration::from_millis(5);
        config.limits.stream_idle = Duration::from_millis(20);
    };
    let bench = Bench::start(upstream.addr, short).await;
    let reply = bench.post(CALL).await;
    assert!(std::str::from_utf8(&reply.body).unwrap().contains("\"code\":47013"));
    assert_eq!(status(&bench.after_endings(1).await), "timeout");
}

#[tokio::test]
async fn an_event_longer_than_the_limit_ends_the_stream() {
    let long = event(&ANSWER.replace("hi", &"x".repeat(17 << 20)));
    let upstream = Upstream::start(move |_| {
        let long = long.clone();
        async move { answer(200, "text/event-stream", long) }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let reply = bench.post(CALL).await;
    assert!(std::str::from_utf8(&reply.body).unwrap().contains("\"code\":47017"));
    assert_eq!(status(&bench.after_endings(1).await), "too_large");
}

#[tokio::test]
async fn the_servers_own_stream_is_recorded_message_by_message() {
    let (upstream, pieces) = scripted().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut reply = bench.exchange(Method::GET, "/servers/ehr/mcp", &[], "").await;
    send(&pieces, &event(PROGRESS)).await;
    assert_eq!(reply.piece().await.unwrap(), event(PROGRESS));
    let events = bench.events();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["message.relayed", "message.relayed"]);
    assert_eq!(events[0].detail["http_method"], "GET".into());
    assert_eq!(bench.body(events[1].bodies.request.as_ref()), PROGRESS);
    assert_eq!(events[1].detail["direction"], "to_client".into());
    assert_eq!(upstream.seen()[0].method, Method::GET);
}

#[tokio::test]
async fn a_notification_is_recorded_and_passed_on_without_a_call() {
    let upstream = Upstream::start(|_| async {
        Response::builder().status(202).body(Payload::Whole(None)).unwrap()
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let reply = bench.post(PROGRESS).await;
    assert_eq!((reply.status, reply.body.len()), (202, 0));
    assert_eq!(upstream.seen()[0].body, PROGRESS);
    let events = bench.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, Kind::MessageRelayed);
    assert_eq!(events[0].detail["direction"], "to_server".into());
}

#[tokio::test]
async fn an_answer_fetched_with_a_get_ends_the_call_whose_stream_was_closed() {
    let upstream = Upstream::start(|seen: Seen| async move {
        match seen.method {
            Method::GET => answer(200, "text/event-stream", event(ANSWER)),
            _ if seen.body == CALL => answer(200, "text/event-stream", "id: 1\ndata:\n\n"),
            _ => in_session("s"),
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let id = bench.open_session(&[]).await;
    let session = [("mcp-session-id", id.as_str())];
    let cut = bench.send(Method::POST, "/servers/ehr/mcp", &session, CALL).await;
    assert_eq!(cut.body, "id: 1\ndata:\n\n");
    assert_eq!(of_kind(&bench.events(), &Kind::CallEnded).len(), 1, "of initialize");
    let rest = bench.send(Method::GET, "/servers/ehr/mcp", &session, "").await;
    assert_eq!(rest.body, event(ANSWER));
    let events = &bench.events()[2..];
    assert_eq!(status(events), "ok");
    assert_eq!(ending(events).call, events[0].call);
    assert_eq!(bench.body(ending(events).bodies.response.as_ref()), ANSWER);
}

/// An upstream that closes the stream of every call before it answers.
async fn closes_streams() -> Upstream {
    Upstream::start(|seen: Seen| async move {
        match seen.body == INITIALIZE {
            true => in_session("s"),
            false => answer(200, "text/event-stream", "id: 1\ndata:\n\n"),
        }
    })
    .await
}

#[tokio::test]
async fn an_answer_that_is_never_fetched_is_unknown() {
    let upstream = closes_streams().await;
    let short = |config: &mut Config| config.limits.response = Duration::from_millis(500);
    let bench = Bench::start(upstream.addr, short).await;
    let id = bench.open_session(&[]).await;
    bench.send(Method::POST, "/servers/ehr/mcp", &[("mcp-session-id", &id)], CALL).await;
    assert_eq!(status(&bench.after_endings(2).await[2..]), "unknown");
    let bench = Bench::start(upstream.addr, |_| {}).await;
    bench.post(CALL).await;
    assert_eq!(status(&bench.after_endings(1).await), "unknown", "without a session at once");
}

#[tokio::test]
async fn a_modern_client_that_leaves_has_cancelled_its_call() {
    let (upstream, pieces) = scripted().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
    let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "subscriptions/listen")];
    let mut reply = bench.exchange(Method::POST, "/servers/ehr/mcp", &headers, call).await;
    send(&pieces, &event(PROGRESS)).await;
    reply.piece().await.unwrap();
    reply.leave();
    assert_eq!(status(&bench.after_endings(1).await), "cancelled");
}

#[tokio::test]
async fn calls_whose_answers_are_never_fetched_keep_no_more_than_a_few_slots() {
    let upstream = closes_streams().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let ours = bench.open_session(&[]).await;
    for id in 0..20 {
        let call = CALL.replace("\"id\":1", &format!("\"id\":{id}"));
        let session = [("mcp-session-id", ours.as_str())];
        bench.send(Method::POST, "/servers/ehr/mcp", &session, call).await;
    }
    let ended = of_kind(&bench.after_endings(5).await, &Kind::CallEnded).len();
    assert_eq!((ended, bench.writer.status().slots), (1 + 4, 16));
}

#[tokio::test]
async fn what_passes_beside_an_answer_is_protected_as_its_tool_is_and_else_as_its_server() {
    let asks = r#"{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{}}"#;
    let upstream = Upstream::start(move |seen: Seen| async move {
        match seen.method {
            Method::POST => {
                let both = [event(asks), event(ANSWER)].concat();
                answer(200, "text/event-stream", both)
            }
            _ => json(asks),
        }
    })
    .await;
    let of_tool = |server: bool, tool: bool| {
        move |config: &mut Config| {
            config.servers[0].phi = server;
            let rule = crate::inspect::ToolRule { phi: Some(tool), ..Default::default() };
            config.servers[0].rules.tools.insert("x".into(), rule);
        }
    };
    for (server, tool) in [(false, true), (true, false)] {
        let bench = Bench::start(upstream.addr, of_tool(server, tool)).await;
        bench.post(CALL).await;
        bench.send(Method::GET, "/servers/ehr/mcp", &[], "").await;
        let events = bench.events();
        let relayed: Vec<_> = of_kind(&events, &Kind::MessageRelayed);
        let phi: Vec<_> = relayed.iter().map(|event| event.data.is_phi()).collect();
        assert_eq!(phi, [tool, false, server], "beside the call, the GET, what it gave");
    }
}

#[tokio::test]
async fn what_a_client_fetches_that_lost_its_stream_belongs_to_the_call_that_it_left() {
    let (pieces, coming) = mpsc::channel(8);
    let coming = Arc::new(Mutex::new(Some(coming)));
    let upstream = Upstream::start(move |seen: Seen| {
        let coming = Arc::clone(&coming);
        async move {
            match seen.method {
                Method::GET => answer(200, "text/event-stream", event(ANSWER)),
                _ if seen.body == INITIALIZE => in_session("s"),
                _ => stream(coming.lock().unwrap().take().unwrap()),
            }
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let id = bench.open_session(&[]).await;
    let session = [("mcp-session-id", id.as_str())];
    let mut reply = bench.exchange(Method::POST, "/servers/ehr/mcp", &session, CALL).await;
    send(&pieces, &format!("id: 7\n{}", event(PROGRESS))).await;
    assert_eq!(reply.piece().await.unwrap(), format!("id: 7\n{}", event(PROGRESS)));
    reply.leave();
    let left = bench.after_endings(2).await;
    let resumed = [session[0], ("last-event-id", "7")];
    let rest = bench.send(Method::GET, "/servers/ehr/mcp", &resumed, "").await;
    assert_eq!(rest.body, event(ANSWER));
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(seen.headers["last-event-id"], "7");
    let events = bench.events();
    let passed = events.last().unwrap();
    assert_eq!((&passed.kind, passed.call), (&Kind::MessageRelayed, left.last().unwrap().call));
    assert_eq!(bench.body(passed.bodies.request.as_ref()), ANSWER);
}

#[tokio::test]
async fn a_session_ends_when_its_client_or_its_server_says_so_and_when_nobody_uses_it() {
    let status = Arc::new(Mutex::new(405));
    let says = Arc::clone(&status);
    let (deleted, mut deletes) = mpsc::channel(8);
    let upstream = Upstream::start(move |seen: Seen| {
        let (status, deleted) = (*says.lock().unwrap(), deleted.clone());
        async move {
            match seen.method {
                Method::DELETE => {
                    deleted.send(seen.headers["mcp-session-id"].clone()).await.unwrap();
                    answer(status, "text/plain", "")
                }
                _ if seen.body == INITIALIZE => in_session("s"),
                _ => json(ANSWER),
            }
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    for (deleting, then) in [(405, 200), (200, 404)] {
        *status.lock().unwrap() = deleting;
        let id = bench.open_session(&[]).await;
        let session = [("mcp-session-id", id.as_str())];
        let ended = bench.send(Method::DELETE, "/servers/ehr/mcp", &session, "").await;
        let after = bench.send(Method::POST, "/servers/ehr/mcp", &session, CALL).await;
        assert_eq!((ended.status, after.status), (deleting, then));
        assert_eq!(deletes.recv().await.unwrap(), "s");
    }
    let short = |config: &mut Config| config.limits.session_idle = Duration::from_millis(200);
    let bench = Bench::start(upstream.addr, short).await;
    let id = bench.open_session(&[]).await;
    let told =
        |events: &[Event]| events.iter().any(|e| e.detail.get("by") == Some(&"proxy".into()));
    let events = bench.events_when(told).await;
    assert_eq!(events.last().unwrap().detail["http_method"], "DELETE".into());
    let session = [("mcp-session-id", id.as_str())];
    let after = bench.send(Method::POST, "/servers/ehr/mcp", &session, CALL).await;
    assert_eq!(after.error(), (404, 47009));
    assert_eq!(deletes.recv().await.unwrap(), "s", "and the server was told");
}

#[tokio::test]
async fn many_may_listen_for_they_take_little_room_and_no_silence_is_too_long() {
    let listen = r#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
    let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "subscriptions/listen")];
    let upstream = Upstream::start(|_| async {
        let pieces = futures::stream::once(async { Ok(Bytes::from(event(SAMPLING))) });
        let pieces = futures::StreamExt::chain(pieces, futures::stream::pending());
        let builder = Response::builder().header("content-type", "text/event-stream");
        builder.body(Payload::Pieces(Box::pin(pieces))).unwrap()
    })
    .await;
    let small = |options: &mut WriterOptions| options.spool_max_bytes = 64 << 20;
    let quick = |config: &mut Config| {
        config.limits.stream_idle = Duration::from_millis(5);
        config.limits.keep_alive = Duration::from_millis(20);
    };
    let bench = Bench::with(upstream.addr, small, quick).await;
    let mut listening = Vec::new();
    for _ in 0..40 {
        let mut reply = bench.exchange(Method::POST, "/servers/ehr/mcp", &headers, listen).await;
        assert_eq!(
            (reply.status, reply.piece().await.unwrap()),
            (StatusCode::OK, event(SAMPLING).into())
        );
        listening.push(reply);
    }
    assert_eq!(bench.writer.status().slots, 40, "with room for 16 MiB each there were three");
    for reply in &mut listening {
        assert_eq!(reply.piece().await.unwrap(), ": keep-alive\n\n");
    }
    listening.into_iter().for_each(Coming::leave);
    let events = bench.after_endings(40).await;
    let relayed = of_kind(&events, &Kind::MessageRelayed);
    assert!(relayed.iter().all(|event| event.data.subjects[0].id == "p7" && event.call.is_some()));
    for ending in of_kind(&events, &Kind::CallEnded) {
        assert_eq!(ending.outcome.as_ref().unwrap().status.as_str(), "cancelled");
    }
}

#[tokio::test]
async fn a_call_that_continues_another_names_it_if_it_is_its_own() {
    let upstream = Upstream::start(|seen: Seen| async move {
        let asked = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{},"requestState":"s\/1"}}"#;
        let task = r#"{"jsonrpc":"2.0","id":1,"result":{"task":{"taskId":"t-1","status":"working"}}}"#;
        let text = String::from_utf8(seen.body.to_vec()).unwrap();
        match (text.contains("requestState"), text.contains("\"n\"")) {
            (true, _) => answer(200, "text/event-stream", event(ANSWER)),
            (false, true) => json(task),
            (false, false) => answer(200, "text/event-stream", event(asked)),
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, super::edge::with_keys).await;
    let (ann, bob) = (("authorization", "Bearer one"), ("authorization", "Bearer two"));
    let again = CALL.replace("\"arguments\"", "\"requestState\":\"s/1\",\"arguments\"");
    let task = CALL.replace("\"a\"", "\"n\"");
    let get = r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"t-1","n":"n"}}"#;
    for (who, body) in [(ann, CALL), (ann, &*again), (bob, &*again), (ann, &*task), (ann, get)] {
        assert_eq!(
            bench.send(Method::POST, "/servers/ehr/mcp", &[who], body.to_owned()).await.status,
            200
        );
    }
    let events = bench.after_endings(5).await;
    let calls = of_kind(&events, &Kind::CallRequested);
    let links: Vec<_> = calls.iter().map(|call| call.prev_call.as_ref()).collect();
    let (first, bobs) = (links[1].unwrap(), links[2].unwrap());
    assert_eq!((links[0], first.call, bobs.call), (None, calls[0].call, None));
    assert!(first.state.is_some() && first.state == bobs.state);
    assert_eq!(links[4].unwrap().call, calls[3].call, "a task continues the call that began it");
    let ended = of_kind(&events, &Kind::CallEnded);
    assert_eq!(ended[1].prev_call.as_ref(), Some(first), "and the ending says so, too");
}
