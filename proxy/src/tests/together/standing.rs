//! Streams of several servers that stand open, as one: what servers say by themselves, and what a client
//! listens to.

use tokio::sync::Notify;

use super::*;

/// A server of 2026-07-28 that agrees to what it is asked, in a stream of the test's.
async fn listening(given: Arc<Mutex<Option<Response<Payload>>>>, again: Arc<Notify>) -> Upstream {
    server("ehr", move |message, _| {
        let (given, again) = (Arc::clone(&given), Arc::clone(&again));
        async move {
            if message["method"] != "subscriptions/listen" {
                return None;
            }
            let given = given.lock().unwrap().take();
            let Some(stream) = given else {
                again.notify_one();
                return Some(answer(503, "text/plain", ""));
            };
            Some(stream)
        }
    })
    .await
}

fn acknowledged(notifications: &Value) -> String {
    let meta = json!({"io.modelcontextprotocol/subscriptionId":7});
    let params = json!({"_meta":meta,"notifications":notifications});
    let method = "notifications/subscriptions/acknowledged";
    event(&json!({"jsonrpc":"2.0","method":method,"params":params}).to_string())
}

#[tokio::test]
async fn a_client_listens_to_all_servers_at_once_and_is_told_what_they_agree_on_together() {
    let ((to_ehr, ehr_gives), (to_lab, lab_gives)) = (once(), once());
    let ehr = listening(ehr_gives, Arc::default()).await;
    let lab = listening(lab_gives, Arc::default()).await;
    let bench = before(&ehr, &lab).await;
    let wanted = json!({"toolsListChanged":true,"promptsListChanged":true,
        "resourceSubscriptions":["custody://lab/a://b"]});
    let listen = Modern::new("subscriptions/listen", None, json!({"notifications":wanted}));
    send(&to_ehr, &acknowledged(&json!({"toolsListChanged":true}))).await;
    let agreed = json!({"promptsListChanged":true,"resourceSubscriptions":["a://b"]});
    send(&to_lab, &acknowledged(&agreed)).await;
    let mut events = Events::of(listen.exchange(&bench).await);
    let first = events.message().await;
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(first["params"]["notifications"], wanted);
    assert_eq!(first["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 7);
    let asked = |server: &Upstream| {
        let message: Value = serde_json::from_slice(&server.seen()[0].body).unwrap();
        message["params"]["notifications"]["resourceSubscriptions"].clone()
    };
    assert_eq!((asked(&ehr), asked(&lab)), (json!([]), json!(["a://b"])));
    let updated =
        r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a://b"}}"#;
    send(&to_lab, &event(updated)).await;
    assert_eq!(events.message().await["params"]["uri"], "custody://lab/a://b");
    let changed = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#;
    send(&to_ehr, &event(changed)).await;
    assert_eq!(
        events.message().await.to_string(),
        serde_json::from_str::<Value>(changed).unwrap().to_string()
    );
    let recorded = bench.events();
    assert_eq!(recorded[0].kind, Kind::CallRequested);
    assert_eq!(
        recorded[0].what.as_ref().unwrap().server,
        None,
        "the client's own call opens first"
    );
    let last = recorded.last().unwrap();
    assert_eq!(bench.body(last.bodies.request.as_ref()), changed);
    events.coming.leave();
    let recorded = bench.after_endings(3).await;
    for ending in of_kind(&recorded, &Kind::CallEnded) {
        assert_eq!(ending.outcome.as_ref().unwrap().status.as_str(), "cancelled");
    }
    to_ehr.closed().await;
    to_lab.closed().await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_heard_again_and_one_that_knows_no_listening_is_left_out() {
    let (to_ehr, ehr_gives) = once();
    let again = Arc::new(Notify::new());
    let ehr = listening(Arc::clone(&ehr_gives), Arc::clone(&again)).await;
    let lab = server("lab", |message, _| async move {
        let unknown = json!({"jsonrpc":"2.0","id":message["id"],
            "error":{"code":-32601,"message":"no"}});
        Some(answer(404, "application/json", unknown.to_string()))
    })
    .await;
    let bench = before(&ehr, &lab).await;
    let wanted = json!({"notifications":{"toolsListChanged":true}});
    let listen = Modern::new("subscriptions/listen", None, wanted.clone());
    send(&to_ehr, &acknowledged(&wanted["notifications"])).await;
    let mut events = Events::of(listen.exchange(&bench).await);
    assert_eq!(events.message().await["params"]["notifications"], wanted["notifications"]);
    drop(to_ehr);
    again.notified().await;
    let (to_ehr, gives) = once();
    *ehr_gives.lock().unwrap() = gives.lock().unwrap().take();
    send(&to_ehr, &acknowledged(&wanted["notifications"])).await;
    let told = events.message().await;
    assert_eq!(told["method"], "notifications/tools/list_changed");
    assert_eq!(told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 7);
    let asked = lab.seen().len();
    assert_eq!(asked, 1, "it is not asked again");

    let nobody = before(&lab, &lab).await;
    assert_eq!(listen.send(&nobody).await.error(), (404, -32601));
}

/// A server with a stream of its own, which the test writes.
async fn with_own_stream(
    given: Arc<Mutex<Option<Response<Payload>>>>,
    id: &'static str,
) -> Upstream {
    server(id, move |message, seen| {
        let given = Arc::clone(&given);
        async move {
            match (seen.method, message["method"].as_str()) {
                (Method::GET, _) => {
                    let stream = given.lock().unwrap().take();
                    Some(stream.unwrap_or_else(|| answer(503, "text/plain", "")))
                }
                (_, Some("initialize")) => Some(in_session(id)),
                _ => None,
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_servers_own_streams_are_one_that_outlives_each_and_goes_on_where_it_was() {
    let ((to_ehr, ehr_gives), (to_lab, lab_gives)) = (once(), once());
    let ehr = with_own_stream(Arc::clone(&ehr_gives), "e").await;
    let lab = with_own_stream(Arc::clone(&lab_gives), "l").await;
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    let headers = [("mcp-session-id", session.as_str())];
    let mut events = Events::of(bench.exchange(Method::GET, "/mcp", &headers, "").await);
    let log = |data: u8| {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"data":{data}}}}}"#
        )
    };
    send(&to_ehr, &format!("id: e1\n{}", event(&log(1)))).await;
    assert_eq!(events.message().await["params"]["data"], 1);
    send(&to_lab, &format!("id: l1\n{}", event(&log(2)))).await;
    assert_eq!(events.message().await["params"]["data"], 2);
    let (again_ehr, gives) = once();
    *ehr_gives.lock().unwrap() = gives.lock().unwrap().take();
    drop(to_ehr);
    send(&to_lab, &format!("id: l2\n{}", event(&log(3)))).await;
    assert_eq!(events.message().await["params"]["data"], 3, "the other's goes on");
    send(&again_ehr, &event(&log(4))).await;
    let last = events.next().await;
    assert!(last.contains("\"data\":4"), "{last}");
    let gets = |server: &Upstream| {
        let seen = server.seen().into_iter().filter(|seen| seen.method == Method::GET);
        seen.map(|seen| seen.headers.get("last-event-id").cloned()).collect::<Vec<_>>()
    };
    assert_eq!(gets(&ehr), [None, Some("e1".parse().unwrap())]);

    send(&again_ehr, &format!("id: e2\n{}", event(&log(5)))).await;
    let last = events.next().await;
    let id = last.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    events.coming.leave();
    let ((to_ehr, ehr_again), (_to_lab, lab_again)) = (once(), once());
    *ehr_gives.lock().unwrap() = ehr_again.lock().unwrap().take();
    *lab_gives.lock().unwrap() = lab_again.lock().unwrap().take();
    let resuming = [headers[0], ("last-event-id", id.as_str())];
    let mut events = Events::of(bench.exchange(Method::GET, "/mcp", &resuming, "").await);
    send(&to_ehr, &event(&log(6))).await;
    assert_eq!(events.message().await["params"]["data"], 6);
    assert_eq!(gets(&ehr)[2], Some("e2".parse().unwrap()));
    assert_eq!(gets(&lab)[1], Some("l2".parse().unwrap()));
}

#[tokio::test]
async fn the_rest_of_a_calls_stream_comes_from_the_server_that_began_it_and_from_no_other() {
    let (to_lab, lab_gives) = once();
    let ehr = server("ehr", |message, seen| async move {
        let rest = json!({"jsonrpc":"2.0","id":1,"result":{"content":[]}}).to_string();
        match (seen.method, message["method"].as_str()) {
            (Method::GET, _) if seen.headers.get("last-event-id").is_some_and(|id| id == "9") => {
                Some(answer(200, "text/event-stream", event(&rest)))
            }
            (Method::GET, _) => Some(answer(405, "text/plain", "")),
            (_, Some("initialize")) => Some(in_session("e")),
            (_, Some("tools/call")) => {
                Some(answer(200, "text/event-stream", "id: 9\nretry: 10\ndata:\n\n"))
            }
            _ => None,
        }
    })
    .await;
    let lab = with_own_stream(lab_gives, "l").await;
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    let begun = post(&bench, &session, CALL.replace("\"x\"", "\"ehr__read\"")).await;
    assert_eq!(begun.body, "id: ehr/9\nretry: 10\ndata: \n\n");
    let headers = [("mcp-session-id", session.as_str())];
    let own = Events::of(bench.exchange(Method::GET, "/mcp", &headers, "").await);
    let forged = json!({"jsonrpc":"2.0","id":1,"result":{"content":["forged"]}}).to_string();
    send(&to_lab, &event(&forged)).await;
    to_lab.closed().await;
    let resuming = [headers[0], ("last-event-id", "ehr/9")];
    let rest = bench.send(Method::GET, "/mcp", &resuming, "").await;
    assert!(std::str::from_utf8(&rest.body).unwrap().contains("\"id\":1"), "{rest:?}");
    let events = bench.events();
    let is_call = |event: &&Event| event.what.as_ref().is_some_and(|what| what.tool.is_some());
    let ended: Vec<_> = of_kind(&events, &Kind::CallEnded).into_iter().filter(is_call).collect();
    assert_eq!(ended.len(), 1);
    let response = bench.body(ended[0].bodies.response.as_ref());
    assert!(!response.windows(6).any(|window| window == b"forged"), "{response:?}");
    own.coming.leave();
    for unknown in ["7", "pacs/7", "*x", ""] {
        let asking = [headers[0], ("last-event-id", unknown)];
        let reply = bench.send(Method::GET, "/mcp", &asking, "").await;
        assert_eq!(reply.error(), (400, 47022), "{unknown}");
    }
}
