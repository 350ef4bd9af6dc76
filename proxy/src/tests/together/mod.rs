//! Several servers at one address, over time: who comes later, who asks before it answers, what names
//! nobody. Streams that stand open are in `standing`.

mod standing;

use std::sync::atomic::{AtomicBool, Ordering};

use custody_schemas::edits::Edits;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::streams::{Pieces, event, send, stream};
use super::*;
use crate::inspect::{Rule, ToolRule};

const INIT: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}"#;
const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// A server that answers `initialize` and lists the tool `read`; anything else is the test's.
async fn server<F, A>(name: &'static str, other: F) -> Upstream
where
    F: Fn(Value, Seen) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Option<Response<Payload>>> + Send + 'static,
{
    Upstream::start(move |seen| {
        let other = other.clone();
        async move {
            let message: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
            if let Some(answer) = other(message.clone(), seen).await {
                return answer;
            }
            let result = match message["method"].as_str().unwrap_or_default() {
                "initialize" => json!({"protocolVersion":"2025-11-25",
                    "capabilities":{"tools":{},"resources":{}}}),
                "tools/list" => json!({"tools":[{"name":"read"}]}),
                "tools/call" => json!({"content":[{"type":"text","text":name}]}),
                _ => return answer(202, "text/plain", ""),
            };
            said(&message, &result)
        }
    })
    .await
}

async fn plain(name: &'static str) -> Upstream {
    server(name, |_, _| async { None }).await
}

fn said(message: &Value, result: &Value) -> Response<Payload> {
    super::json(json!({"jsonrpc":"2.0","id":message["id"],"result":result}).to_string())
}

/// The answer to `initialize` of a server with tools that gives out this id.
fn welcome(message: &Value, id: &str) -> Response<Payload> {
    let hello = json!({"protocolVersion":"2025-11-25","capabilities":{"tools":{}}});
    let mut response = said(message, &hello);
    response.headers_mut().insert("mcp-session-id", id.parse().unwrap());
    response
}

/// A proxy before `ehr` and `lab`.
async fn before(ehr: &Upstream, lab: &Upstream) -> Bench {
    let url = format!("http://{}/mcp", lab.addr).parse().unwrap();
    Bench::start(ehr.addr, |config| {
        config.servers.push(Server::new("lab", url));
        for server in &mut config.servers {
            if let crate::reach::Reach::Http(address) = &mut server.reach {
                address.breaker.failures = 0;
            }
        }
    })
    .await
}

async fn open(bench: &Bench) -> String {
    let reply = bench.send(Method::POST, "/mcp", &[], INIT).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.headers["mcp-session-id"].to_str().unwrap().to_owned()
}

async fn post(bench: &Bench, session: &str, body: impl Into<Bytes>) -> Reply {
    bench.send(Method::POST, "/mcp", &[("mcp-session-id", session)], body).await
}

async fn listed(bench: &Bench, session: &str) -> Vec<String> {
    let list = post(bench, session, LIST).await.json();
    let tools = list["result"]["tools"].as_array().cloned().unwrap_or_default();
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

/// What comes in a stream, event by event, without comments.
struct Events {
    coming: Coming,
    text: String,
}

impl Events {
    fn of(coming: Coming) -> Self {
        assert_eq!(coming.status, 200);
        Self { coming, text: String::new() }
    }

    async fn next(&mut self) -> String {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if event.starts_with(':') {
                    continue;
                }
                return event;
            }
            let piece = self.coming.piece().await.expect("the stream goes on");
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }

    /// The message of the next event.
    async fn message(&mut self) -> Value {
        let event = self.next().await;
        let data = event.lines().find_map(|line| line.strip_prefix("data: "));
        serde_json::from_str(data.unwrap_or_else(|| panic!("{event}"))).unwrap()
    }
}

/// A request of 2026-07-28 and its headers.
struct Modern {
    body: String,
    method: &'static str,
    name: Option<&'static str>,
}

impl Modern {
    fn new(method: &'static str, name: Option<&'static str>, mut params: Value) -> Self {
        params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion":"2026-07-28",
            "io.modelcontextprotocol/clientCapabilities":{}});
        let body = json!({"jsonrpc":"2.0","id":7,"method":method,"params":params}).to_string();
        Self { body, method, name }
    }

    async fn exchange(&self, bench: &Bench) -> Coming {
        let mut headers = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", self.method)];
        headers.extend(self.name.map(|name| ("mcp-name", name)));
        bench.exchange(Method::POST, "/mcp", &headers, self.body.clone()).await
    }

    async fn send(&self, bench: &Bench) -> Reply {
        self.exchange(bench).await.collect().await
    }
}

/// A stream that the test writes, given out once.
fn once() -> (Pieces, Arc<Mutex<Option<Response<Payload>>>>) {
    let (pieces, coming) = mpsc::channel(8);
    (pieces, Arc::new(Mutex::new(Some(stream(coming)))))
}

#[tokio::test]
async fn a_server_that_asks_before_it_answers_a_list_gets_its_answer_and_the_list_comes() {
    let (pieces, given) = once();
    let answering = pieces.clone();
    let ehr = server("ehr", move |message, _| {
        let (given, answering) = (Arc::clone(&given), answering.clone());
        async move {
            if message["method"] == "tools/list" {
                return given.lock().unwrap().take();
            }
            if message["result"]["roots"].is_array() {
                assert_eq!(message["id"], 5, "as the server wrote it");
                let list = json!({"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read"}]}});
                send(&answering, &event(&list.to_string())).await;
            }
            None
        }
    })
    .await;
    let lab = plain("lab").await;
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    let headers = [("mcp-session-id", session.as_str())];
    let asking = bench.exchange(Method::POST, "/mcp", &headers, LIST);
    send(&pieces, &event(r#"{"jsonrpc":"2.0","id":5,"method":"roots/list"}"#)).await;
    let mut events = Events::of(asking.await);
    assert_eq!(events.message().await["id"], "ehr/5");
    let answer = post(&bench, &session, r#"{"jsonrpc":"2.0","id":"ehr/5","result":{"roots":[]}}"#);
    assert_eq!(answer.await.status, 202);
    let list = events.message().await;
    let names: Vec<_> = list["result"]["tools"].as_array().unwrap().iter().collect();
    assert_eq!(names, [&json!({"name":"ehr__read"}), &json!({"name":"lab__read"})]);
    let recorded = bench.after_endings(6).await;
    let own = recorded.iter().rev().find(|event| event.kind == Kind::CallEnded).unwrap();
    assert_eq!(own.what.as_ref().unwrap().server, None, "the client's own call ends last");
    let response = bench.body(own.bodies.response.as_ref());
    assert_eq!(serde_json::from_slice::<Value>(&response).unwrap(), list);
}

#[tokio::test]
async fn a_server_that_comes_later_joins_and_the_client_is_told_and_it_is_on_the_record() {
    let (pieces, given) = once();
    let ehr = server("ehr", move |_, seen| {
        let given = Arc::clone(&given);
        async move { (seen.method == Method::GET).then(|| given.lock().unwrap().take().unwrap()) }
    })
    .await;
    let there = Arc::new(AtomicBool::new(false));
    let is_there = Arc::clone(&there);
    let lab = server("lab", move |message, seen| {
        let there = is_there.load(Ordering::SeqCst);
        async move {
            if !there {
                return Some(answer(503, "text/plain", "not yet"));
            }
            let known = seen.headers.get("mcp-session-id").is_some_and(|id| id == "l");
            match message["method"].as_str() {
                Some("initialize") => Some(welcome(&message, "l")),
                _ if !known || seen.method == Method::GET => Some(answer(405, "text/plain", "")),
                _ => None,
            }
        }
    })
    .await;
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    let headers = [("mcp-session-id", session.as_str())];
    let mut own = Events::of(bench.exchange(Method::GET, "/mcp", &headers, "").await);
    assert_eq!(listed(&bench, &session).await, ["ehr__read"]);
    there.store(true, Ordering::SeqCst);
    let call = CALL.replace("\"x\"", "\"lab__read\"");
    let called = post(&bench, &session, call).await.json();
    assert_eq!(called["result"]["content"][0]["text"], "lab");
    assert_eq!(listed(&bench, &session).await, ["ehr__read", "lab__read"]);
    assert_eq!(own.message().await["method"], "notifications/tools/list_changed");
    let events = bench.events();
    let told = events.iter().find(|event| {
        let what = event.what.as_ref();
        what.is_some_and(|w| w.method.as_deref() == Some("notifications/tools/list_changed"))
    });
    assert_eq!(told.unwrap().detail["by"], "proxy".into());
    let mut joins = events.iter().filter(|event| {
        event.kind == Kind::CallRequested && event.detail.get("by") == Some(&"proxy".into())
    });
    let last = joins.next_back().unwrap();
    assert_eq!(last.what.as_ref().unwrap().method.as_deref(), Some("initialize"));
    assert_eq!(bench.body(last.bodies.request.as_ref()), INIT);
    let seen: Vec<_> = lab.seen().iter().map(|seen| seen.body.clone()).collect();
    assert!(seen.iter().any(|body| body.windows(25).any(|w| w == b"notifications/initialized")));
    send(&pieces, &event(r#"{"jsonrpc":"2.0","method":"notifications/message"}"#)).await;
    while own.message().await["method"] != "notifications/message" {}
}

#[tokio::test]
async fn a_server_whose_session_is_lost_leaves_alone_and_comes_back() {
    let lost = Arc::new(AtomicBool::new(false));
    let is_lost = Arc::clone(&lost);
    let lab = server("lab", move |message, _| {
        let lost = is_lost.load(Ordering::SeqCst);
        async move {
            match message["method"].as_str() {
                _ if lost => Some(answer(404, "text/plain", "who?")),
                Some("initialize") => Some(welcome(&message, "l")),
                _ => None,
            }
        }
    })
    .await;
    let ehr = plain("ehr").await;
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    lost.store(true, Ordering::SeqCst);
    let call = |server: &str| CALL.replace("\"x\"", &format!("\"{server}__read\""));
    assert_eq!(post(&bench, &session, call("lab")).await.error(), (502, 47012));
    assert_eq!(post(&bench, &session, call("lab")).await.error(), (200, -32602));
    let called = post(&bench, &session, call("ehr")).await.json();
    assert_eq!(called["result"]["content"][0]["text"], "ehr", "the others stay");
    lost.store(false, Ordering::SeqCst);
    let called = post(&bench, &session, call("lab")).await.json();
    assert_eq!(called["result"]["content"][0]["text"], "lab");
}

#[tokio::test]
async fn who_comes_later_is_told_what_the_client_wants_to_be_told() {
    let there = Arc::new(AtomicBool::new(false));
    let is_there = Arc::clone(&there);
    let logging = |message: &Value| {
        let capabilities = json!({"tools":{},"logging":{}});
        let hello = json!({"protocolVersion":"2025-11-25","capabilities":capabilities});
        match message["method"].as_str() {
            Some("initialize") => Some(said(message, &hello)),
            Some("logging/setLevel") => Some(said(message, &json!({}))),
            _ => None,
        }
    };
    let ehr = server("ehr", move |message, _| async move { logging(&message) }).await;
    let lab = server("lab", move |message, _| {
        let there = is_there.load(Ordering::SeqCst);
        async move { if there { logging(&message) } else { Some(answer(503, "text/plain", "")) } }
    })
    .await;
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    let level =
        r#"{"jsonrpc":"2.0","id":3,"method":"logging/setLevel","params":{"level":"error"}}"#;
    let told = post(&bench, &session, level).await;
    assert_eq!(told.body, r#"{"jsonrpc":"2.0","id":3,"result":{}}"#);
    there.store(true, Ordering::SeqCst);
    let called = post(&bench, &session, CALL.replace("\"x\"", "\"lab__read\"")).await;
    assert_eq!(called.status, 200, "{called:?}");
    for server in [&ehr, &lab] {
        assert!(server.seen().iter().any(|seen| seen.body == level));
    }
}

#[tokio::test]
async fn what_names_no_server_is_an_error_that_says_what_is_wrong() {
    let (ehr, lab) = (plain("ehr").await, plain("lab").await);
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    let before = ehr.seen().len() + lab.seen().len();
    let ask = |method: &str| json!({"jsonrpc":"2.0","id":1,"method":method}).to_string();
    for (method, code) in [
        ("custom/thing", -32601),
        ("server/discover", -32601),
        ("subscriptions/listen", -32601),
        ("logging/setLevel", -32601),
        ("completion/complete", -32602),
        ("resources/read", -32602),
        ("tasks/get", -32602),
    ] {
        let reply = post(&bench, &session, ask(method)).await;
        assert_eq!(reply.error(), (200, code), "{method}");
    }
    let unknown = Modern::new("logging/setLevel", None, json!({})).send(&bench).await;
    assert_eq!(unknown.error(), (404, -32601));
    let later = Modern::new("tools/list", None, json!({})).body.replace("2026-07-28", "2031-01-01");
    let headers = [("mcp-protocol-version", "2031-01-01"), ("mcp-method", "tools/list")];
    let reply = bench.send(Method::POST, "/mcp", &headers, later).await;
    assert_eq!(reply.error(), (400, -32022));
    let data = &reply.json()["error"]["data"];
    assert_eq!(
        (&data["supported"][0], &data["requested"]),
        (&json!("2026-07-28"), &json!("2031-01-01"))
    );
    assert_eq!(ehr.seen().len() + lab.seen().len(), before, "nobody was asked");
    let denied = of_kind(&bench.events(), &Kind::CallDenied).len();
    assert_eq!(denied, 8, "all but the level of logging, which is a call that was answered");
}

#[tokio::test]
async fn an_older_servers_result_is_made_complete_and_its_refusal_says_why_to_a_newer_client() {
    let ehr = plain("ehr").await;
    let lab = server("lab", |_, _| async {
        let refusal = r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Missing session ID"}}"#;
        Some(answer(400, "application/json", refusal))
    })
    .await;
    let bench = before(&ehr, &lab).await;
    let call = |name: &'static str| Modern::new("tools/call", Some(name), json!({"name":name}));
    let reply = call("ehr__read").send(&bench).await;
    assert_eq!(reply.json()["result"]["resultType"], "complete");
    let events = bench.after_endings(1).await;
    let ending = ending(&events);
    let edits = Edits::decode(&bench.body(ending.bodies.edits.as_ref())).unwrap();
    let arrived = bench.body(ending.bodies.response.as_ref());
    assert_eq!(edits.undo(&reply.body).unwrap(), arrived);
    assert!(!arrived.windows(10).any(|window| window == b"resultType"));
    assert_eq!(call("lab__read").send(&bench).await.error(), (400, 47021));
    let list = Modern::new("tools/list", None, json!({})).send(&bench).await.json();
    assert_eq!(list["result"]["resultType"], "complete");
    assert_eq!(list["result"]["cacheScope"], "private");
    assert_eq!(list["result"]["_meta"]["io.custody/absent"], json!(["lab"]));
}

#[tokio::test]
async fn what_all_servers_are_asked_is_looked_at_with_the_rules_of_each() {
    let (ehr, lab) = (plain("ehr").await, plain("lab").await);
    let url = format!("http://{}/mcp", lab.addr).parse().unwrap();
    let bench = Bench::start(ehr.addr, |config| {
        let mut lab = Server::new("lab", url);
        let rule = Rule::new("$.ward.patient", "mrn").unwrap();
        lab.rules.every = ToolRule { arguments: vec![rule], ..ToolRule::default() };
        config.servers.push(lab);
    })
    .await;
    let session = open(&bench).await;
    let list =
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"ward":{"patient":"m1"}}}"#;
    post(&bench, &session, list).await;
    let events = bench.events();
    let own = events.iter().find(|event| {
        let what = event.what.as_ref().unwrap();
        what.method.as_deref() == Some("tools/list") && what.server.is_none()
    });
    assert_eq!(own.unwrap().data.subjects[0].id, "m1");
}

#[tokio::test]
async fn a_task_is_its_servers_own_in_both_eras() {
    let tasks = |message: Value, _: Seen| async move {
        let id = message["params"]["taskId"].as_str().map(str::to_owned);
        let task = json!({"taskId":"t/1","status":"working"});
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => json!({"protocolVersion":"2025-11-25",
                "capabilities":{"tools":{},"tasks":{}}}),
            "tools/call" if message["params"]["_meta"].is_object() => {
                json!({"resultType":"task","taskId":"t/1","status":"working"})
            }
            "tools/call" => json!({"task":task}),
            "tasks/list" => json!({"tasks":[task]}),
            "tasks/get" | "tasks/cancel" => {
                assert_eq!(id.as_deref(), Some("t/1"), "as the server wrote it");
                json!({"resultType":"complete","taskId":"t/1","status":"working"})
            }
            "tasks/result" => json!({"content":[],
                "_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t/1"}}}),
            _ => return None,
        };
        Some(said(&message, &result))
    };
    let (ehr, lab) = (server("ehr", tasks).await, server("lab", tasks).await);
    let bench = before(&ehr, &lab).await;
    let session = open(&bench).await;
    let call = CALL.replace("\"x\"", "\"lab__read\"");
    let called = post(&bench, &session, call).await.json();
    assert_eq!(called["result"]["task"]["taskId"], "lab/t/1");
    let list = r#"{"jsonrpc":"2.0","id":2,"method":"tasks/list"}"#;
    let list = post(&bench, &session, list).await.json();
    let ids: Vec<_> = list["result"]["tasks"].as_array().unwrap().iter().collect();
    assert_eq!((&ids[0]["taskId"], &ids[1]["taskId"]), (&json!("ehr/t/1"), &json!("lab/t/1")));
    let asked = r#"{"jsonrpc":"2.0","id":3,"method":"tasks/result","params":{"taskId":"lab/t/1"}}"#;
    let result = post(&bench, &session, asked).await.json();
    let related = &result["result"]["_meta"]["io.modelcontextprotocol/related-task"];
    assert_eq!(related["taskId"], "lab/t/1");

    let called = Modern::new("tools/call", Some("lab__read"), json!({"name":"lab__read"}));
    assert_eq!(called.send(&bench).await.json()["result"]["taskId"], "lab/t/1");
    let got = Modern::new("tasks/get", Some("lab/t/1"), json!({"taskId":"lab/t/1"}));
    let got = got.send(&bench).await.json();
    assert_eq!(got["result"]["taskId"], "lab/t/1", "{got}");
    let seen = lab.seen().pop().unwrap();
    assert_eq!(seen.headers["mcp-name"], "t/1");
    let events = bench.events();
    let last = of_kind(&events, &Kind::CallRequested).pop().unwrap();
    assert!(last.prev_call.as_ref().is_some_and(|prev| prev.call.is_some()), "it continues a call");
}
