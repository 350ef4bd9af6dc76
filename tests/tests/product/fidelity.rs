//! Every message arrives as it was sent, byte for byte, or is refused and recorded; never changed.

use bytes::Bytes;
use custody_tests::http::{post_mcp, send};
use custody_tests::product::{Custody, Setup};
use custody_tests::upstream::{Behaviour, Upstream};
use http::Method;
use serde_json::Value;

struct Message {
    name: String,
    bytes: Bytes,
}

fn messages(from: &str) -> Vec<Message> {
    let lines = include_str!("../../fixtures/mcp-messages.jsonl").lines();
    let all: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), 64, "the whole list of messages");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ours = all.into_iter().filter(|m| m["from"] == from);
    ours.map(|m| Message { name: text(&m["name"]), bytes: text(&m["bytes"]).into() }).collect()
}

/// Number of recorded events that hold exactly these bytes as a body.
async fn bodies_with(custody: &Custody, bytes: &Bytes) -> i64 {
    let hex = bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let statement = format!("SELECT count(*) FROM bodies WHERE bytes = X'{hex}'");
    custody.number(&statement).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_clients_arrive_unchanged_or_are_refused_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let answer = Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    let upstream = Upstream::start(Behaviour::Answer(answer)).await.unwrap();
    let setup = Setup::default().server("phi", &upstream.url(), true);
    let setup = setup.server("plain", &upstream.url(), false);
    let custody = setup.start(folder.path()).unwrap();
    let mut arrived_whole = 0;
    for route in ["phi", "plain"] {
        for message in messages("client") {
            // an answer passes to whoever has asked
            if message.name.contains("resp") {
                let asked = send(Method::GET, &custody.server(route), &[], "").await.unwrap();
                assert!(asked.text().contains("roots/list"), "{}", asked.text());
            }
            let before = upstream.received().len();
            let answer = post_mcp(&custody.server(route), message.bytes.clone()).await.unwrap();
            let arrived = upstream.received().split_off(before);
            if let [one] = arrived.as_slice() {
                assert_eq!(*one, message.bytes, "{} arrived changed on {route}", message.name);
                assert!(bodies_with(&custody, &message.bytes).await >= 1, "{}", message.name);
                arrived_whole += 1;
            } else {
                assert!(arrived.is_empty(), "{} arrived {} times", message.name, arrived.len());
                assert!(answer.status.is_client_error(), "{}: {}", message.name, answer.status);
                let error: Value = serde_json::from_slice(&answer.body).unwrap();
                let text = error["error"]["message"].as_str().unwrap();
                assert!(text.len() > 20, "{} is refused with {text:?}", message.name);
            }
        }
    }
    assert!(arrived_whole >= 50, "only {arrived_whole} messages were let through");
    let refused = custody.number("SELECT count(*) FROM denied").await.unwrap();
    assert_eq!(refused + arrived_whole, 2 * messages("client").len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_servers_arrive_unchanged_or_are_refused_and_recorded() {
    let call =
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{}}}"#;
    let messages = messages("server");
    let mut upstreams = Vec::new();
    let mut setup = Setup::default();
    for (i, message) in messages.iter().enumerate() {
        let upstream = Upstream::start(Behaviour::Answer(message.bytes.clone())).await.unwrap();
        setup = setup.server(&format!("s{i}"), &upstream.url(), i % 2 == 0);
        upstreams.push(upstream);
    }
    let folder = tempfile::tempdir().unwrap();
    let custody = setup.start(folder.path()).unwrap();
    let mut arrived_whole = 0;
    for (i, message) in messages.iter().enumerate() {
        let answer = post_mcp(&custody.server(&format!("s{i}")), call).await.unwrap();
        if answer.status.is_success() {
            assert_eq!(answer.body, message.bytes, "{} arrived changed", message.name);
            arrived_whole += 1;
        } else {
            let error: Value = serde_json::from_slice(&answer.body).unwrap();
            assert!(error["error"]["message"].as_str().unwrap().len() > 20, "{}", message.name);
        }
        assert!(bodies_with(&custody, &message.bytes).await >= 1, "{}", message.name);
    }
    assert!(arrived_whole >= 20, "only {arrived_whole} of {} arrived", messages.len());
    let ended = "SELECT count(*) FROM calls WHERE status <> 'in_flight'";
    assert_eq!(custody.number(ended).await.unwrap(), messages.len() as i64);
}
