//! Clients and servers that mean harm: what they send gets nowhere, and nobody else notices.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::streams::{event, scripted, send as say};
use super::*;

const EHR: &str = "/servers/ehr/mcp";

/// Sends bytes as they are, closes nothing, and gives all that comes back until the proxy closes.
async fn raw(bench: &Bench, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(bench.addr).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut reply = Vec::new();
    let reading = stream.read_to_end(&mut reply);
    let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
    drop(read.expect("the proxy closes such a connection"));
    String::from_utf8_lossy(&reply).into_owned()
}

fn quick(config: &mut Config) {
    config.limits.head = Duration::from_millis(300);
    config.limits.body = Duration::from_millis(300);
}

#[tokio::test]
async fn requests_that_two_readers_would_cut_differently_reach_no_server() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, quick).await;
    let length = CALL.len();
    let post = "POST /servers/ehr/mcp HTTP/1.1\r\ncontent-type: application/json\r\n";
    let inner = format!("{post}host: localhost\r\ncontent-length: {length}\r\n\r\n{CALL}");
    for (what, request) in [
        (
            "two lengths",
            format!(
                "{post}host: localhost\r\ncontent-length: 2\r\ncontent-length: {length}\r\n\r\n{CALL}"
            ),
        ),
        (
            "two lengths in one",
            format!("{post}host: localhost\r\ncontent-length: 2, {length}\r\n\r\n{CALL}"),
        ),
        (
            "a length with a sign",
            format!("{post}host: localhost\r\ncontent-length: +{length}\r\n\r\n{CALL}"),
        ),
        (
            "length and chunks",
            format!(
                "{post}host: localhost\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "an unknown coding",
            format!("{post}host: localhost\r\ntransfer-encoding: xchunked\r\n\r\n{CALL}"),
        ),
        (
            "a coding twice",
            format!("{post}host: localhost\r\ntransfer-encoding: chunked, identity\r\n\r\n{CALL}"),
        ),
        (
            "a space before the colon",
            format!("{post}host: localhost\r\ncontent-length : {length}\r\n\r\n{CALL}"),
        ),
        (
            "a folded line",
            format!("{post}host: localhost\r\nx: a\r\n content-length: {length}\r\n\r\n{CALL}"),
        ),
        (
            "two hosts",
            format!(
                "{post}host: localhost\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{CALL}"
            ),
        ),
        ("no host", format!("{post}content-length: {length}\r\n\r\n{CALL}")),
        ("another host in the target", inner.replace("POST /", "POST http://evil.example/")),
        ("a zero byte", inner.replace("localhost", "local\0host")),
        (
            "a chunk that is too long",
            format!(
                "{post}host: localhost\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{CALL}"
            ),
        ),
        ("CONNECT", inner.replace("POST /servers/ehr/mcp", "CONNECT localhost:1")),
    ] {
        let reply = raw(&bench, request.as_bytes()).await;
        let refused = reply.is_empty() || reply.starts_with("HTTP/1.1 4");
        assert!(refused, "{what}: {reply}");
        assert!(upstream.seen().is_empty(), "{what}: {:?}", upstream.seen());
    }
    assert!(of_kind(&bench.events(), &Kind::CallRequested).is_empty());
    assert_eq!(bench.post(CALL).await.status, 200, "others notice nothing");
}

#[tokio::test]
async fn what_follows_a_message_on_its_connection_is_another_message_or_nothing() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, quick).await;
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
    };
    let chunked = format!(
        "{}transfer-encoding: chunked\r\n\r\n{:x}\r\n{CALL}\r\n0\r\n\r\n{}content-length: {}\r\n\r\n{CALL}",
        head(EHR),
        CALL.len(),
        head("/servers/none/mcp"),
        CALL.len(),
    );
    let reply = raw(&bench, chunked.as_bytes()).await;
    assert_eq!(reply.matches("HTTP/1.1 ").count(), 2, "{reply}");
    assert!(reply.contains("200 OK") && reply.contains("47008"), "{reply}");
    let seen = upstream.seen();
    assert_eq!((seen.len(), seen[0].body.as_ref()), (1, CALL.as_bytes()));
    assert!(!seen[0].headers.contains_key("transfer-encoding"), "framed anew, with its length");
}

#[tokio::test]
async fn a_head_that_is_too_long_or_never_ends_is_cut_off() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, quick).await;
    let long =
        format!("POST {EHR} HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let reply = raw(&bench, long.as_bytes()).await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431"), "{reply}");
    let many: String = (0..2000).map(|n| format!("x-{n}: a\r\n")).collect();
    let reply =
        raw(&bench, format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{many}\r\n").as_bytes())
            .await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 4"), "{reply}");
    let mut slow = TcpStream::connect(bench.addr).await.unwrap();
    slow.write_all(b"POST /servers/ehr/mcp HTTP/1.1\r\nhost: loc").await.unwrap();
    let mut reply = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), slow.read_to_end(&mut reply)).await;
    drop(read.expect("a head that does not end is not waited for"));
    assert!(upstream.seen().is_empty() && bench.events().is_empty());
    assert_eq!(bench.post(CALL).await.status, 200);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused_and_on_the_record() {
    let upstream = Upstream::with_json(ANSWER).await;
    let bench = Bench::start(upstream.addr, quick).await;
    let request = format!(
        "POST {EHR} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: 500\r\n\r\n{CALL}"
    );
    let reply = raw(&bench, request.as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("47004"), "{reply}");
    let events = bench.events();
    assert_eq!(events[0].decision.as_ref().unwrap().reason.as_deref(), Some("body_timeout"));
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_its_call_for_so_long_and_no_longer() {
    let (upstream, pieces) = scripted().await;
    let impatient = |config: &mut Config| config.limits.stall = Duration::from_millis(300);
    let bench = Bench::start(upstream.addr, impatient).await;
    let mut client = TcpStream::connect(bench.addr).await.unwrap();
    let request = format!(
        "POST {EHR} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{CALL}",
        CALL.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let long = event(&format!(
        "{{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"params\":\"{}\"}}",
        "x".repeat(1 << 20)
    ));
    let flood = async { while pieces.send(Ok(Bytes::from(long.clone()))).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), flood).await.expect("the server is let go");
    assert_eq!(status(&bench.after_endings(1).await), "abandoned");
    drop(client);
}

#[tokio::test]
async fn a_server_that_floods_notifications_fills_its_own_clients_stream_and_nobody_elses() {
    const MANY: usize = 2_000;
    let (upstream, pieces) = scripted().await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut reply = bench.exchange(Method::POST, EHR, &[], CALL).await;
    let note = |n| {
        let method = "notifications/message";
        event(&format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"data":{n}}}}}"#))
    };
    let flood = async {
        for n in 0..MANY {
            say(&pieces, &note(n)).await;
            if n == MANY / 2 {
                let said = r#"{"jsonrpc":"2.0","method":"notifications/x"}"#;
                assert_eq!(bench.post(said).await.status, 202, "others are served meanwhile");
            }
        }
        say(&pieces, &event(ANSWER)).await;
    };
    let mut heard = String::new();
    let hearing = async {
        while !heard.contains("\"result\"") {
            heard += std::str::from_utf8(&reply.piece().await.unwrap()).unwrap();
        }
    };
    tokio::join!(flood, hearing);
    let all: String = (0..MANY).map(note).chain([event(ANSWER)]).collect();
    assert!(heard == all, "every message, in order");
    let events = bench.after_endings(1).await;
    assert_eq!(of_kind(&events, &Kind::MessageRelayed).len(), MANY + 1, "each on the record");
}

#[tokio::test]
async fn a_server_that_answers_for_another_call_is_not_passed_on() {
    let stolen = ANSWER.replace("\"id\":1", "\"id\":2");
    let upstream = Upstream::with_json(stolen.clone()).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let reply = bench.post(CALL).await;
    assert_eq!(reply.error(), (502, 47015));
    let events = bench.after_endings(1).await;
    assert_eq!(bench.body(ending(&events).bodies.response.as_ref()), stolen);

    for said in [stolen.clone(), format!("[{stolen}]")] {
        let (upstream, pieces) = scripted().await;
        let bench = Bench::start(upstream.addr, |_| {}).await;
        let mut reply = bench.exchange(Method::POST, EHR, &[], CALL).await;
        say(&pieces, &event(&said)).await;
        let last = reply.piece().await.unwrap();
        let last = std::str::from_utf8(&last).unwrap();
        assert!(last.contains("\"code\":47015") && last.contains("\"id\":1"), "{last}");
        assert_eq!(reply.piece().await, None);
        assert_eq!(status(&bench.after_endings(1).await), "http_error");
    }
}

#[tokio::test]
async fn a_servers_own_stream_gives_no_answer_to_a_call_that_is_open() {
    let (pieces, coming) = tokio::sync::mpsc::channel(8);
    let (calls, mut called) = tokio::sync::mpsc::channel(1);
    let coming = Arc::new(Mutex::new(Some(coming)));
    let upstream = Upstream::start(move |seen: Seen| {
        let (coming, calls) = (Arc::clone(&coming), calls.clone());
        async move {
            if seen.method == Method::GET {
                return super::streams::stream(coming.lock().unwrap().take().unwrap());
            }
            calls.send(()).await.unwrap();
            std::future::pending().await
        }
    })
    .await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    let mut stream = bench.exchange(Method::GET, EHR, &[], "").await;
    let calling = bench.post(CALL);
    let listening = async {
        called.recv().await.unwrap();
        say(&pieces, &event(ANSWER)).await;
        assert_eq!(stream.piece().await, None, "the stream is broken off");
    };
    tokio::select! {
        reply = calling => panic!("{reply:?}"),
        () = listening => {}
    }
}

#[tokio::test]
async fn an_answer_that_is_nested_too_deeply_to_be_read_is_no_answer() {
    let deep = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}", "[".repeat(1_000_000));
    let upstream = Upstream::with_json(deep).await;
    let bench = Bench::start(upstream.addr, |_| {}).await;
    assert_eq!(bench.post(CALL).await.error(), (502, 47015));
    assert_eq!(status(&bench.after_endings(1).await), "http_error");
}
