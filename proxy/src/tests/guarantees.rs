//! Log before effect, explicit failure, an ending for every call.

use custody_journal::{OutBody, Part};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn a_call_is_recorded_before_and_after_with_the_bytes_that_passed() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let reply = bench.post(CALL).await;
    assert_eq!((reply.status, reply.body.as_ref()), (200, ANSWER.as_bytes()));
    let events = bench.events();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["call.requested", "call.ended"]);
    assert_eq!(bench.body(events[0].bodies.request.as_ref()), CALL);
    assert_eq!(bench.body(events[1].bodies.response.as_ref()), ANSWER);
    for event in &events {
        let what = event.what.as_ref().unwrap();
        assert_eq!((what.tool.as_deref(), what.rpc_id.as_deref()), (Some("x"), Some("1")));
        assert_eq!(what.server.as_deref(), Some("ehr"));
        assert!(event.data.is_phi());
        assert_eq!(event.decision.as_ref().unwrap().effect.as_str(), "allow");
    }
    assert_eq!(status(&events), "ok");
    assert_eq!(events[0].call, events[1].call);
}

#[tokio::test]
async fn the_opening_is_durable_when_the_upstream_sees_the_call() {
    let writer: Arc<Mutex<Option<Writer>>> = Arc::default();
    let seen_at: Arc<Mutex<Vec<u64>>> = Arc::default();
    let (asks, notes) = (Arc::clone(&writer), Arc::clone(&seen_at));
    let upstream = Upstream::start(move |_| {
        let writer = asks.lock().unwrap().clone().unwrap();
        notes.lock().unwrap().push(writer.status().events);
        async { json(ANSWER) }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    *writer.lock().unwrap() = Some(bench.writer.clone());
    let before = bench.writer.status().events;
    bench.post(CALL).await;
    assert_eq!(*seen_at.lock().unwrap(), [before + 1]);
}

#[tokio::test]
async fn without_room_the_call_is_refused_before_it_takes_effect() {
    let upstream = Upstream::with_json(ANSWER).await;
    let full = |options: &mut WriterOptions| options.spool_max_bytes = 10 << 20;
    let bench = Bench::with(upstream.addr, full, |_| {}).await;
    let reply = bench.post(CALL).await;
    assert_eq!(reply.error(), (503, 47001));
    assert_eq!(reply.json()["id"], 1);
    assert!(upstream.seen().is_empty());
    let ready = bench.send(Method::GET, "/readyz", &[], "").await;
    assert_eq!(ready.status, 503);
}

#[tokio::test]
async fn a_small_spool_holds_many_calls_at_once_whose_answers_might_all_be_long() {
    const CALLS: usize = 100;
    let all = Arc::new(tokio::sync::Barrier::new(CALLS));
    let upstream = Upstream::start(move |_| {
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            json(ANSWER)
        }
    })
    .await;
    let small = |options: &mut WriterOptions| options.spool_max_bytes = 96 << 20;
    let bench = Bench::with(upstream.addr, small, |config| config.max_message_bytes = 4 << 20);
    let bench = bench.await;
    let calls = (0..CALLS).map(|_| bench.post(CALL));
    let replies = tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(calls));
    for reply in replies.await.expect("all calls are let in") {
        assert_eq!((reply.status, reply.body.as_ref()), (200, ANSWER.as_bytes()));
    }
}

#[tokio::test]
async fn an_opening_that_is_too_late_is_refused_and_ends_as_not_forwarded() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, |config| config.audit_wait = Duration::ZERO).await;
    // long enough that storing it takes longer than no time
    let long = CALL.replace("1.0", &format!("\"{}\"", "x".repeat(12 << 20)));
    let reply = bench.post(long).await;
    assert_eq!(reply.error(), (503, 47001));
    let events = bench.after_endings(1).await;
    assert_eq!(status(&events), "not_forwarded");
    assert_eq!(events[0].call, ending(&events).call);
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn an_answer_whose_ending_is_not_durable_is_withheld() {
    let spool: Arc<Mutex<PathBuf>> = Arc::default();
    let target = Arc::clone(&spool);
    let upstream = Upstream::start(move |_| {
        let spool = target.lock().unwrap().clone();
        std::fs::remove_dir_all(&spool).unwrap();
        std::fs::write(&spool, "in the way").unwrap();
        async { json(ANSWER) }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    *spool.lock().unwrap() = bench.spool();
    let reply = bench.post(CALL).await;
    assert_eq!(reply.error(), (502, 47002));
    assert!(!String::from_utf8_lossy(&reply.body).contains("hi"));
    let reply = bench.post(CALL).await;
    assert_eq!(reply.error(), (503, 47001), "and the next call is not forwarded");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn in_a_stream_a_withheld_answer_is_an_error_as_the_last_message() {
    let spool: Arc<Mutex<PathBuf>> = Arc::default();
    let target = Arc::clone(&spool);
    let upstream = Upstream::start(move |_| {
        let spool = target.lock().unwrap().clone();
        std::fs::remove_dir_all(&spool).unwrap();
        std::fs::write(&spool, "in the way").unwrap();
        async { answer(200, "text/event-stream", format!("data: {ANSWER}\n\n")) }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    *spool.lock().unwrap() = bench.spool();
    let reply = bench.post(CALL).await;
    let text = std::str::from_utf8(&reply.body).unwrap();
    let message =
        text.strip_prefix("event: message\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    let message: serde_json::Value = serde_json::from_str(message).unwrap();
    assert_eq!((&message["id"], &message["error"]["code"]), (&1.into(), &47002.into()));
}

#[tokio::test]
async fn a_client_that_leaves_has_its_call_ended_as_abandoned() {
    let (asked, mut asks) = tokio::sync::mpsc::channel(1);
    let upstream = Upstream::start(move |_| {
        let asked = asked.clone();
        async move {
            asked.send(()).await.unwrap();
            std::future::pending().await
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut client = TcpStream::connect(bench.addr).await.unwrap();
    let request = format!(
        "POST /servers/ehr/mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{CALL}",
        CALL.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    asks.recv().await.unwrap();
    drop(client);
    let events = bench.after_endings(1).await;
    assert_eq!(status(&events), "abandoned");
    assert!(ending(&events).data.is_phi());
}

#[tokio::test]
async fn a_stop_ends_calls_that_do_not_finish_in_time_as_unknown() {
    let (asked, mut asks) = tokio::sync::mpsc::channel(1);
    let upstream = Upstream::start(move |_| {
        let asked = asked.clone();
        async move {
            asked.send(()).await.unwrap();
            std::future::pending().await
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut client = TcpStream::connect(bench.addr).await.unwrap();
    let request = format!(
        "POST /servers/ehr/mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{CALL}",
        CALL.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    asks.recv().await.unwrap();
    bench.shutdown.cancel();
    let Bench { task, writer, dir, .. } = bench;
    task.await.unwrap();
    let again = Bench {
        task: tokio::spawn(async {}),
        writer,
        dir,
        addr: ([0; 4], 0).into(),
        shutdown: CancellationToken::new(),
    };
    assert_eq!(status(&again.after_endings(1).await), "unknown");
}

/// An upstream that reads a request and then does `what` with the connection.
async fn raw_upstream(what: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let mut read = 0;
                while !buffer[..read].ends_with(b"}") {
                    read += stream.read(&mut buffer[read..]).await.unwrap();
                }
                stream.write_all(what).await.unwrap();
            });
        }
    });
    addr
}

#[tokio::test]
async fn an_upstream_that_fails_is_an_explicit_error_and_an_ending() {
    for (what, expected, ended) in [
        (b"".as_slice(), (502, 47014), "unknown"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", (502, 47014), "unknown"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"a", (502, 47014), "unknown"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\ngarbage", (502, 47015), "http_error"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>", (502, 47015), "http_error"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", (502, 47015), "http_error"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"jsonrpc\":\"2\"}", (502, 47015), "http_error"),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}", (502, 47015), "http_error"),
        (b"HTTP/1.1 307 X\r\nlocation: http://secret.internal/\r\ncontent-length: 0\r\n\r\n", (502, 47015), "http_error"),
        (b"HTTP/1.1 401 X\r\nwww-authenticate: Bearer realm=\"secret\"\r\ncontent-length: 0\r\n\r\n", (502, 47016), "http_error"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 17000000\r\n\r\n", (502, 47017), "too_large"),
    ] {
        let bench = Bench::start(raw_upstream(what).await, |_| {}).await;
        let reply = bench.post(CALL).await;
        let name = String::from_utf8_lossy(what);
        assert_eq!(reply.error(), expected, "{name}");
        assert_eq!(reply.json()["id"], 1, "{name}");
        let shown = format!("{:?}{:?}", reply.headers, reply.body);
        assert!(!shown.contains("secret") && !shown.contains("location"), "{shown}");
        assert_eq!(status(&bench.after_endings(1).await), ended, "{name}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_unreachable() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bench = Bench::start(gone, |_| {}).await;
    assert_eq!(bench.post(CALL).await.error(), (502, 47012));
    assert_eq!(status(&bench.after_endings(1).await), "unreachable");
}

#[tokio::test]
async fn an_upstream_that_hangs_is_a_timeout() {
    let upstream = Upstream::start(|_| std::future::pending()).await;
    let short = |config: &mut Config| config.limits.response = Duration::from_millis(50);
    let bench = Bench::start(upstream.addr, short).await;
    assert_eq!(bench.post(CALL).await.error(), (504, 47013));
    assert_eq!(status(&bench.after_endings(1).await), "timeout");
}

#[tokio::test]
async fn an_answer_that_stops_half_way_is_a_timeout() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"a";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(head).await.unwrap();
        std::future::pending::<()>().await;
    });
    let short = |config: &mut Config| config.limits.answer = Duration::from_millis(50);
    let bench = Bench::start(addr, short).await;
    assert_eq!(bench.post(CALL).await.error(), (504, 47013));
    assert_eq!(status(&bench.after_endings(1).await), "timeout");
}

#[tokio::test]
async fn more_people_than_an_ending_holds_are_listed_before_it() {
    let entries: Vec<_> = (0..400)
        .map(
            |i| serde_json::json!({"resource": {"resourceType": "Patient", "id": format!("p{i}")}}),
        )
        .collect();
    let bundle = serde_json::json!({"resourceType": "Bundle", "entry": entries});
    let answer =
        serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": {"structuredContent": bundle}});
    let upstream = Upstream::with_json(answer.to_string()).await;
    let bench = Bench::start(upstream.addr, |config| config.servers[0].phi = false).await;
    assert_eq!(bench.post(CALL).await.status, 200);
    let events = bench.events();
    let [opening, listed @ .., ending] = events.as_slice() else { panic!("{events:#?}") };
    assert_eq!((&opening.kind, &ending.kind), (&Kind::CallRequested, &Kind::CallEnded));
    assert!(listed.iter().all(|event| event.kind == Kind::SubjectsListed));
    assert_eq!(listed[0].detail["parts"], (listed.len() as u64).into());
    let people: usize = events.iter().map(|event| event.data.subjects.len()).sum();
    assert_eq!(people, 400);
    assert_eq!(ending.data.subject_count.unwrap().get(), 400);
    assert!(ending.data.is_phi(), "although the server is configured as holding none");
}

/// A call that names `count` patients.
fn call_about(count: usize) -> String {
    let entry =
        |i| serde_json::json!({"resource": {"resourceType": "Patient", "id": format!("s{i}")}});
    let entries: Vec<_> = (0..count).map(entry).collect();
    let bundle = serde_json::json!({"resourceType": "Bundle", "entry": entries});
    let params = serde_json::json!({"name": "x", "arguments": bundle});
    serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        .to_string()
}

/// The patients that the opening or, once it is there, the ending names, and those listed, sorted.
fn people(events: &[Event], own: &Kind) -> Vec<String> {
    let named = events.iter().filter(|e| e.kind == *own || e.kind == Kind::SubjectsListed);
    let mut ids: Vec<_> =
        named.flat_map(|event| event.data.subjects.iter().map(|s| s.id.clone())).collect();
    ids.sort();
    ids
}

fn expected_people(count: usize) -> Vec<String> {
    let mut ids: Vec<_> = (0..count).map(|i| format!("s{i}")).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn everybody_in_a_request_is_on_record_before_it_is_forwarded_and_when_the_client_leaves() {
    let (asked, mut asks) = tokio::sync::mpsc::channel(1);
    let upstream = Upstream::start(move |_| {
        let asked = asked.clone();
        async move {
            asked.send(()).await.unwrap();
            std::future::pending().await
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let call = call_about(400);
    let mut client = TcpStream::connect(bench.addr).await.unwrap();
    let head = format!(
        "POST /servers/ehr/mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        call.len()
    );
    client.write_all(format!("{head}{call}").as_bytes()).await.unwrap();
    asks.recv().await.unwrap();
    assert_eq!(people(&bench.events(), &Kind::CallRequested), expected_people(400));
    drop(client);
    let events = bench.after_endings(1).await;
    assert_eq!(status(&events), "abandoned");
    assert_eq!(people(&events, &Kind::CallEnded), expected_people(400), "nobody is lost or twice");
}

#[tokio::test]
async fn everybody_in_request_and_answer_is_on_record_once() {
    let received = call_about(300).replace("\"s", "\"r");
    let received: serde_json::Value = serde_json::from_str(&received).unwrap();
    let result = serde_json::json!({"structuredContent": received["params"]["arguments"]});
    let answer = serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": result});
    let upstream = Upstream::with_json(answer.to_string()).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    assert_eq!(bench.post(call_about(200)).await.status, 200);
    let found = people(&bench.events(), &Kind::CallEnded);
    let mut expected = expected_people(200);
    expected.extend((0..300).map(|i| format!("r{i}")));
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn people_in_an_answer_are_listed_although_others_may_append_nothing_more() {
    let entries = call_about(300);
    let entries: serde_json::Value = serde_json::from_str(&entries).unwrap();
    let result = serde_json::json!({"structuredContent": entries["params"]["arguments"]});
    let answer = serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": result}).to_string();
    let writer: Arc<Mutex<Option<Writer>>> = Arc::default();
    let asks = Arc::clone(&writer);
    let upstream = Upstream::start(move |_| {
        let writer = asks.lock().unwrap().clone().unwrap();
        let answer = answer.clone();
        async move {
            let full = || OutBody { part: Part::Request, bytes: vec![b'x'; 60 << 10].into() };
            let relayed = || custody_schemas::event::Draft::new(Kind::MessageRelayed);
            while writer.append(relayed(), vec![full()]).await.is_ok() {}
            while writer.append(relayed(), Vec::new()).await.is_ok() {}
            json(answer)
        }
    })
    .await;
    let small = |options: &mut WriterOptions| options.spool_max_bytes = 24 << 20;
    let short = |config: &mut Config| config.max_message_bytes = 1 << 20;
    let bench = Bench::with(upstream.addr, small, short).await;
    *writer.lock().unwrap() = Some(bench.writer.clone());
    assert_eq!(bench.post(CALL).await.status, 200);
    assert_eq!(people(&bench.events(), &Kind::CallEnded), expected_people(300));
}

#[tokio::test]
async fn what_an_answer_holds_that_is_not_passed_on_is_on_record() {
    let refused = b"HTTP/1.1 401 X\r\ncontent-length: 4\r\n\r\nwhy?".as_slice();
    let cut = b"HTTP/1.1 307 X\r\ncontent-length: 9\r\n\r\nthere".as_slice();
    for (what, body, partial) in [(refused, "why?", false), (cut, "there", true)] {
        let bench = Bench::start(raw_upstream(what).await, |_| {}).await;
        assert_eq!(bench.post(CALL).await.status, 502);
        let events = bench.after_endings(1).await;
        let ending = ending(&events);
        assert_eq!(bench.body(ending.bodies.response.as_ref()), body);
        assert_eq!(ending.detail.contains_key("partial"), partial);
    }
}
