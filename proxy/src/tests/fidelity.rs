//! Messages of all shapes arrive byte for byte, or are refused and recorded.

use super::*;

/// A request of a server.
const ASKS: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"roots/list\"}\n\n";

/// Requests and notifications as clients send them, with what becomes of them on a phi server.
const REFUSED: [&str; 3] = ["tools/call duplicate key", "tools/call dup name", "batch"];

struct Message {
    from: String,
    name: String,
    bytes: Bytes,
}

/// The messages that every proxy must pass unchanged, from the file that lies beside the tests.
fn messages() -> Vec<Message> {
    include_str!("messages.jsonl")
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            Message { from: text("from"), name: text("name"), bytes: text("bytes").into() }
        })
        .collect()
}

fn headers(message: &Message) -> Vec<(&'static str, &'static str)> {
    if message.name.starts_with("2026") {
        vec![
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", "x"),
        ]
    } else {
        Vec::new()
    }
}

#[tokio::test]
async fn every_message_of_a_client_arrives_byte_for_byte_or_is_refused_and_recorded() {
    let upstream = Upstream::start(|seen: Seen| async move {
        if seen.method == Method::GET {
            return answer(200, "text/event-stream", ASKS);
        }
        let request: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        match (request.get("id"), request.get("method")) {
            (Some(id), Some(_)) => {
                json(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}"))
            }
            _ => Response::builder().status(202).body(Payload::Whole(None)).unwrap(),
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut forwarded = 0;
    for message in messages().iter().filter(|message| message.from == "client") {
        // an answer passes if it was asked for
        if message.name.contains("resp") {
            bench.send(Method::GET, "/servers/ehr/mcp", &[], "").await;
            forwarded += 1;
        }
        let reply = bench
            .send(Method::POST, "/servers/ehr/mcp", &headers(message), message.bytes.clone())
            .await;
        let recorded = bench.events();
        let last = recorded.iter().rfind(|event| event.bodies.request.is_some()).unwrap();
        assert_eq!(bench.body(last.bodies.request.as_ref()), message.bytes, "{}", message.name);
        if REFUSED.contains(&message.name.as_str()) {
            assert_eq!(reply.error(), (400, -32600), "{}", message.name);
            assert_eq!(last.kind, Kind::CallDenied, "{}", message.name);
        } else {
            assert!(matches!(reply.status, 200 | 202), "{}: {reply:?}", message.name);
            let seen = upstream.seen().pop().unwrap();
            assert_eq!(seen.body, message.bytes, "{}", message.name);
            forwarded += 1;
        }
        assert_eq!(upstream.seen().len(), forwarded, "{}", message.name);
    }
    assert_eq!(forwarded, 27 + 6);
}

#[tokio::test]
async fn twins_in_arguments_pass_where_there_is_no_protected_data() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |config| config.servers[0].phi = false).await;
    let messages = messages();
    let twins = messages.iter().find(|m| m.name == "tools/call duplicate key").unwrap();
    assert_eq!(bench.post(twins.bytes.clone()).await.status, 200);
    assert_eq!(upstream.seen()[0].body, twins.bytes);
    let names = messages.iter().find(|m| m.name == "tools/call dup name").unwrap();
    assert_eq!(bench.post(names.bytes.clone()).await.error(), (400, -32600));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn every_answer_of_a_server_arrives_byte_for_byte_as_json() {
    let answer: Arc<Mutex<Bytes>> = Arc::default();
    let next = Arc::clone(&answer);
    let upstream = Upstream::start(move |_| {
        let body = next.lock().unwrap().clone();
        async move { json(body) }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut released = 0;
    for message in messages().iter().filter(|message| message.from == "server") {
        let value: serde_json::Value = serde_json::from_slice(&message.bytes).unwrap();
        if value.get("method").is_some() {
            continue;
        }
        *answer.lock().unwrap() = message.bytes.clone();
        let call = CALL.replace("\"id\":1,", &format!("\"id\":{},", value["id"]));
        let reply = bench.post(call).await;
        assert_eq!((reply.status, &reply.body), (200, &message.bytes), "{}", message.name);
        released += 1;
        let events = bench.after_endings(released).await;
        let recorded = of_kind(&events, &Kind::CallEnded)[released - 1];
        assert_eq!(bench.body(recorded.bodies.response.as_ref()), message.bytes);
    }
    assert_eq!(released, 24);
}

#[tokio::test]
async fn every_message_of_a_server_arrives_byte_for_byte_in_an_event_stream() {
    let messages = messages();
    let from_server = messages.iter().filter(|message| message.from == "server");
    let requests: Vec<_> = from_server
        .filter(|message| {
            let value: serde_json::Value = serde_json::from_slice(&message.bytes).unwrap();
            value.get("method").is_some()
        })
        .collect();
    let mut stream = Vec::new();
    for message in &requests {
        stream.extend_from_slice(b"event: message\r\ndata: ");
        stream.extend_from_slice(&message.bytes);
        stream.extend_from_slice(b"\r\n\r\n");
    }
    stream.extend_from_slice(b": and now\n\nid: 7\ndata: ");
    stream.extend_from_slice(ANSWER.as_bytes());
    stream.extend_from_slice(b"\n\n");
    let body = Bytes::from(stream);
    let sent = body.clone();
    let upstream = Upstream::start(move |_| {
        let body = sent.clone();
        async move { answer(200, "text/event-stream", body) }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let reply = bench.post(CALL).await;
    // what is no message stays behind; if it comes alone, a comment of ours says what it said
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let expected = text(&body).replace(": and now\n\n", "");
    assert_eq!(text(&reply.body).replace(": keep-alive\n\n", ""), expected);
    let events = bench.after_endings(1).await;
    assert_eq!(status(&events), "ok");
    assert_eq!(ending(&events).detail["content_type"], "text/event-stream".into());
    assert_eq!(bench.body(ending(&events).bodies.response.as_ref()), ANSWER);
    let relayed = of_kind(&events, &Kind::MessageRelayed);
    assert_eq!(relayed.len(), requests.len());
    for (event, message) in relayed.iter().zip(&requests) {
        assert_eq!(bench.body(event.bodies.request.as_ref()), message.bytes);
        assert_eq!(event.call, ending(&events).call);
    }
}
