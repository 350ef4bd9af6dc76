//! Several servers at one address: what each of them gets, what the client gets, what is recorded.

use custody_schemas::edits::Edits;
use serde_json::{Value, json};

use super::*;
use crate::tools::Pin;

const INIT: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}"#;

/// How a server of these tests behaves.
#[derive(Clone, Copy)]
struct Kind_ {
    /// Its tools, two on each page.
    tools: &'static [&'static str],
    /// Whether its list of tools has no end.
    circles: bool,
}

/// A server with sessions; each of its answers names it.
async fn server(name: &'static str, kind: Kind_) -> Upstream {
    Upstream::start(move |seen| async move {
        if seen.method != Method::POST {
            return answer(200, "text/plain", "");
        }
        let message: Value = serde_json::from_slice(&seen.body).unwrap();
        let id = message["id"].clone();
        let known = seen.headers.get("mcp-session-id").is_some_and(|s| s == name);
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => json!({"protocolVersion":"2025-11-25","capabilities":{"tools":{}},
                "serverInfo":{"name":name,"version":"1"},"instructions":format!("I am {name}.")}),
            _ if !known => return answer(404, "text/plain", "who?"),
            "tools/list" => page(kind, message["params"]["cursor"].as_str()),
            "tools/call" => json!({"content":[{"type":"text","text":name},
                {"type":"resource_link","uri":"a://b","name":"b"}]}),
            "resources/read" => json!({"contents":[{"uri":message["params"]["uri"],"text":name}]}),
            _ => return answer(202, "text/plain", ""),
        };
        let mut response = json_of(&json!({"jsonrpc":"2.0","id":id,"result":result}));
        response.headers_mut().insert("mcp-session-id", http::HeaderValue::from_static(name));
        response
    })
    .await
}

fn json_of(value: &Value) -> Response<Payload> {
    super::json(value.to_string())
}

fn page(kind: Kind_, cursor: Option<&str>) -> Value {
    let from: usize = cursor.map_or(0, |cursor| cursor.parse().unwrap());
    let tools: Vec<_> =
        kind.tools.iter().skip(from).take(2).map(|t| json!({"name":t,"x":1.5})).collect();
    let more = from + 2 < kind.tools.len();
    match (more, kind.circles) {
        (_, true) => json!({"tools":tools,"nextCursor":"0"}),
        (true, _) => json!({"tools":tools,"nextCursor":(from + 2).to_string()}),
        (false, _) => json!({"tools":tools}),
    }
}

const EHR: Kind_ = Kind_ { tools: &["read", "find", "write"], circles: false };
const LAB: Kind_ = Kind_ { tools: &["read"], circles: false };

struct Pair {
    ehr: Upstream,
    lab: Upstream,
    bench: Bench,
    session: String,
}

impl Pair {
    async fn of(ehr: Kind_, lab: Kind_, change: impl FnOnce(&mut Config)) -> Self {
        let (ehr, lab) = (server("ehr", ehr).await, server("lab", lab).await);
        let url = format!("http://{}/secret/mcp", lab.addr).parse().unwrap();
        let bench = Bench::start(ehr.addr, |config| {
            config.servers.push(Server::new("lab", url));
            change(config);
        })
        .await;
        let reply = bench.send(Method::POST, "/mcp", &[], INIT).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let session = reply.headers["mcp-session-id"].to_str().unwrap().to_owned();
        Self { ehr, lab, bench, session }
    }

    async fn start() -> Self {
        Self::of(EHR, LAB, |_| {}).await
    }

    async fn post(&self, body: &str) -> Reply {
        let headers = [("mcp-session-id", self.session.as_str())];
        self.bench.send(Method::POST, "/mcp", &headers, body.to_owned()).await
    }

    async fn list(&self, cursor: Option<&str>) -> Value {
        let params = cursor.map_or(json!({}), |cursor| json!({"cursor":cursor}));
        let ask = json!({"jsonrpc":"2.0","id":1,"method":"tools/list","params":params});
        self.post(&ask.to_string()).await.json()
    }
}

fn names(list: &Value) -> Vec<&str> {
    let tools = list["result"]["tools"].as_array().unwrap_or_else(|| panic!("{list}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn mistake_07_every_page_of_every_server_is_listed_and_who_lists_in_circles_is_left_out() {
    let pair = Pair::start().await;
    let first = pair.list(None).await;
    assert_eq!(names(&first), ["ehr__read", "ehr__find", "lab__read"]);
    let cursor = first["result"]["nextCursor"].as_str().unwrap();
    let second = pair.list(Some(cursor)).await;
    assert_eq!(names(&second), ["ehr__write"]);
    assert!(second["result"].get("nextCursor").is_none());
    let forged = pair.list(Some("x")).await;
    assert_eq!(forged["error"]["data"]["reason"], "foreign_cursor");

    let circles = Kind_ { circles: true, ..LAB };
    let pair = Pair::of(EHR, circles, |_| {}).await;
    let first = pair.list(None).await;
    let second = pair.list(first["result"]["nextCursor"].as_str()).await;
    assert_eq!(names(&second), ["ehr__write", "lab__read"]);
    assert!(second["result"].get("nextCursor").is_none(), "{second}");
    let absent = second["result"]["_meta"]["io.custody/absent"][0].as_str().unwrap();
    assert!(absent.starts_with("lab ("), "{absent}");
    let events = pair.bench.events();
    let noted = events.iter().filter(|event| event.detail.contains_key("absent")).count();
    assert_eq!(noted, 1, "it is on the record");
}

#[tokio::test]
async fn a_call_goes_to_its_server_as_that_wrote_it_and_the_edits_give_back_what_was_sent() {
    let pair = Pair::start().await;
    let call = r#"{"jsonrpc" : "2.0","id":1,"method":"tools/call","params":{"arguments":{"n":1.0,"name":"x"},"name":"lab__read"}}"#;
    let before = pair.ehr.seen().len();
    let reply = pair.post(call).await;
    let got = &pair.lab.seen()[pair.lab.seen().len() - 1];
    assert_eq!(got.body, call.replace("lab__read", "read"));
    assert_eq!(got.headers["mcp-session-id"], "lab", "its own session and not ours");
    assert_eq!(pair.ehr.seen().len(), before);
    let link = reply.json()["result"]["content"][1]["uri"].as_str().unwrap().to_owned();
    assert_eq!(link, "custody://lab/a://b");

    let events = pair.bench.events();
    let of_call = |kind: &Kind| {
        let mut of_kind = of_kind(&events, kind);
        of_kind.retain(|event| event.what.as_ref().unwrap().tool.is_some());
        of_kind[0].clone()
    };
    let (opening, ending) = (of_call(&Kind::CallRequested), of_call(&Kind::CallEnded));
    assert_eq!(opening.what.as_ref().unwrap().tool.as_deref(), Some("read"));
    assert_eq!(opening.what.as_ref().unwrap().server.as_deref(), Some("lab"));
    let body = |reference: &Option<BodyRef>| pair.bench.body(reference.as_ref());
    let edits = Edits::decode(&body(&opening.bodies.edits)).unwrap();
    assert_eq!(body(&opening.bodies.request), call);
    assert_eq!(edits.undo(&got.body).unwrap(), call);
    let edits = Edits::decode(&body(&ending.bodies.edits)).unwrap();
    assert_eq!(edits.undo(&reply.body).unwrap(), body(&ending.bodies.response));

    let read = format!(
        r#"{{"jsonrpc":"2.0","id":2,"method":"resources/read","params":{{"uri":"{link}"}}}}"#
    );
    let read = pair.post(&read).await.json();
    assert_eq!(read["result"]["contents"][0], json!({"uri": link, "text": "lab"}));
}

#[tokio::test]
async fn the_clients_call_and_those_to_the_servers_are_linked_and_in_order() {
    let pair = Pair::start().await;
    pair.list(None).await;
    let events = pair.bench.after_endings(6).await;
    let calls: Vec<_> = events
        .iter()
        .filter(|event| {
            event.what.as_ref().is_some_and(|w| w.method.as_deref() == Some("tools/list"))
        })
        .filter(|event| event.kind != Kind::ToolsObserved)
        .collect();
    let kinds: Vec<_> = calls.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds[0], "call.requested");
    assert_eq!(calls[0].what.as_ref().unwrap().server, None);
    assert_eq!(calls[5].call, calls[0].call, "the client's own ends last");
    let within = calls[0].call.unwrap().to_string();
    for event in &calls[1..5] {
        assert_eq!(event.detail["within"], within.as_str().into(), "{event:?}");
        assert!(event.what.as_ref().unwrap().server.is_some());
    }
    assert!(pair.bench.body(calls[5].bodies.response.as_ref()).starts_with(b"{\"jsonrpc\""));
}

#[tokio::test]
async fn a_server_that_is_not_there_takes_nobody_down_and_is_named() {
    let ehr = server("ehr", EHR).await;
    let bench = Bench::start(ehr.addr, |config| {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        config.servers.push(Server::new("lab", format!("http://{nobody}/mcp").parse().unwrap()));
    })
    .await;
    let reply = bench.send(Method::POST, "/mcp", &[], INIT).await;
    let told = reply.json()["result"]["instructions"].as_str().unwrap().to_owned();
    assert!(told.contains("Not available now") && told.contains(": lab."), "{told}");
    assert!(told.contains("I am ehr."));
    let session = reply.headers["mcp-session-id"].to_str().unwrap();
    let call = CALL.replace("\"x\"", "\"lab__read\"");
    let headers = [("mcp-session-id", session)];
    let refused = bench.send(Method::POST, "/mcp", &headers, call).await;
    assert_eq!(refused.error(), (200, -32602));
    let events = bench.after_endings(3).await;
    let ending = of_kind(&events, &Kind::CallEnded)[2];
    assert_eq!(ending.detail["absent"], vec!["lab"].into());
    assert!(!String::from_utf8(reply.body.to_vec()).unwrap().contains("127.0.0.1"));
}

#[tokio::test]
async fn nobody_reads_on_in_anothers_list_or_session() {
    let pair = Pair::start().await;
    let cursor = pair.list(None).await["result"]["nextCursor"].clone();
    let other = pair.bench.send(Method::POST, "/mcp", &[], INIT).await;
    let other = other.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let ask = json!({"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":cursor}});
    let headers = [("mcp-session-id", other.as_str())];
    let reply = pair.bench.send(Method::POST, "/mcp", &headers, ask.to_string()).await;
    assert_eq!(reply.json()["error"]["data"]["reason"], "foreign_cursor");
    let on_its_own_route = pair.bench.send(Method::POST, "/servers/ehr/mcp", &headers, CALL).await;
    assert_eq!(on_its_own_route.error().0, 404);
    let without = pair.bench.send(Method::POST, "/mcp", &[], CALL).await;
    assert_eq!(without.error().0, 404);
}

#[tokio::test]
async fn the_end_of_a_session_is_told_to_every_server() {
    let pair = Pair::start().await;
    let headers = [("mcp-session-id", pair.session.as_str())];
    let reply = pair.bench.send(Method::DELETE, "/mcp", &headers, "").await;
    assert_eq!(reply.status, 204);
    for (name, upstream) in [("ehr", &pair.ehr), ("lab", &pair.lab)] {
        let last = upstream.seen().pop().unwrap();
        assert_eq!(
            (last.method, last.headers["mcp-session-id"].to_str().unwrap()),
            (Method::DELETE, name)
        );
    }
    assert_eq!(pair.post(CALL).await.error().0, 404);
}

#[tokio::test]
async fn a_tool_that_changed_is_hidden_and_refused_here_too() {
    let changed = Upstream::start(|seen| async move {
        let message: Value = serde_json::from_slice(&seen.body).unwrap();
        let result = match message["method"].as_str().unwrap() {
            "initialize" => json!({"protocolVersion":"2025-11-25","capabilities":{"tools":{}}}),
            "tools/list" => json!({"tools":[{"name":"x","d":message["id"]},{"name":"y"}]}),
            _ => json!({}),
        };
        json_of(&json!({"jsonrpc":"2.0","id":message["id"],"result":result}))
    })
    .await;
    let bench =
        Bench::start(changed.addr, |config| config.servers[0].tools.pin = Pin::Enforce).await;
    let reply = bench.send(Method::POST, "/mcp", &[], INIT).await;
    let session = reply.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let post = async |body: String| {
        bench.send(Method::POST, "/mcp", &[("mcp-session-id", session.as_str())], body).await
    };
    let list = |id: u8| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/list"}}"#);
    assert_eq!(names(&post(list(1)).await.json()), ["ehr__x", "ehr__y"]);
    assert_eq!(names(&post(list(2)).await.json()), ["ehr__y"]);
    let call = CALL.replace("\"x\"", "\"ehr__x\"");
    assert_eq!(post(call).await.error(), (200, 47031));
}
