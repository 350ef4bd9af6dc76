//! Servers that are processes, played by the shell: what passes, what is recorded, what happens
//! when they misbehave.

use std::path::Path;

use super::*;
use crate::identity::{Identity, StaticKey};
use crate::reach::{Command, Reach, Secret};
use sha2::{Digest, Sha256};

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const WELCOME: &str = r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"s","version":"1"}}}"#;

/// A server that answers `initialize`, and runs `case` clauses of the shell for other lines.
fn script(clauses: &str) -> String {
    format!(
        "while IFS= read -r line; do case \"$line\" in\n\
         *'\"initialize\"'*) printf '%s\\n' '{WELCOME}';;\n{clauses}\n esac; done"
    )
}

fn shell(script: &str) -> Command {
    let args = vec!["-c".to_owned(), script.to_owned()];
    let path = Secret("/usr/bin:/bin".to_owned());
    let env = [("PATH".to_owned(), path)].into();
    Command { args, env, ..Command::new("/bin/sh") }
}

async fn bench(command: Command) -> Bench {
    bench_with(command, |_| {}).await
}

async fn bench_with(command: Command, change: impl FnOnce(&mut Config)) -> Bench {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    Bench::start(nowhere, |config| {
        config.servers[0].reach = Reach::Stdio(command);
        change(config);
    })
    .await
}

impl Bench {
    /// Sends `body` in a session.
    async fn say(&self, session: &str, body: &str) -> Reply {
        let headers = [("mcp-session-id", session)];
        self.send(Method::POST, "/servers/ehr/mcp", &headers, body.to_owned()).await
    }

    /// Opens a session and gives its id.
    async fn enter(&self) -> String {
        let welcome = self.post(INITIALIZE).await;
        assert_eq!((welcome.status, &welcome.body[..]), (200, WELCOME.as_bytes()), "{welcome:?}");
        let session = welcome.headers["mcp-session-id"].to_str().unwrap().to_owned();
        assert_eq!(self.say(&session, INITIALIZED).await.status, 202);
        session
    }

    /// What servers said beside messages: the word for it, and the bytes.
    fn said(&self) -> Vec<(String, String)> {
        let events = self.events();
        let said = |event: &&Event| event.detail.contains_key("said");
        let told = |event: &Event| {
            let word = serde_json::to_value(&event.detail["said"]).unwrap();
            let bytes = self.body(event.bodies.request.as_ref());
            (word.as_str().unwrap().to_owned(), String::from_utf8(bytes.to_vec()).unwrap())
        };
        events.iter().filter(said).map(told).collect()
    }

    async fn said_when(
        &self,
        wanted: impl Fn(&[(String, String)]) -> bool,
    ) -> Vec<(String, String)> {
        self.events_when(|_| wanted(&self.said())).await;
        self.said()
    }
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn messages_to_and_from_a_process_pass_as_they_are() {
    let answer = r#"{ "jsonrpc":"2.0","id":1,"result":{"content":[],"x":1.50,"é":"\u00e9"}}"#;
    let clauses = format!("*tools/call*) printf '%s\\r\\n' '{answer}';;");
    let bench = bench(shell(&script(&clauses))).await;
    let session = bench.enter().await;
    let reply = bench.say(&session, CALL).await;
    assert_eq!((reply.status, &reply.body[..]), (200, answer.as_bytes()));
    assert_eq!(reply.headers["content-type"], "application/json");
    let events = bench.after_endings(2).await;
    let ending = of_kind(&events, &Kind::CallEnded)[1];
    assert_eq!(&bench.body(ending.bodies.response.as_ref())[..], answer.as_bytes());
}

#[tokio::test]
async fn what_a_process_says_before_its_answer_comes_in_a_stream() {
    let clauses = r#"*tools/call*)
        printf '%s\n' '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,"progress":1}}'
        printf '%s\n' '{"jsonrpc":"2.0","id":"s1","method":"sampling/createMessage","params":{}}';;
      *'"s1"'*) printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"content":[]}}';;"#;
    let bench = bench(shell(&script(clauses))).await;
    let session = bench.enter().await;
    let headers = [("mcp-session-id", session.as_str())];
    let mut coming = bench.exchange(Method::POST, "/servers/ehr/mcp", &headers, CALL).await;
    assert_eq!(coming.headers["content-type"], "text/event-stream");
    let mut heard = String::new();
    while !heard.contains("sampling/createMessage") {
        heard += std::str::from_utf8(&coming.piece().await.unwrap()).unwrap();
    }
    let answered = bench.say(&session, r#"{"jsonrpc":"2.0","id":"s1","result":{}}"#).await;
    assert_eq!(answered.status, 202);
    let rest = coming.collect().await;
    assert!(std::str::from_utf8(&rest.body).unwrap().contains(r#""id":1,"result""#), "{rest:?}");
    assert!(heard.starts_with("event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\""), "{heard}");
}

#[tokio::test]
async fn a_message_of_many_lines_is_told_in_one_and_the_edits_give_the_original() {
    let clauses = r#"*tools/call*) printf '%s\n' "$line" >"$SEEN"; printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"content":[]}}';;"#;
    let seen = tempfile::tempdir().unwrap();
    let file = seen.path().join("seen");
    let mut command = shell(&script(clauses));
    command.env.insert("SEEN".to_owned(), Secret(file.display().to_string()));
    let bench = bench(command).await;
    let session = bench.enter().await;
    let pretty = CALL.replace(",\"params\"", ",\r\n  \"params\"");
    assert_eq!(bench.say(&session, &pretty).await.status, 200);
    assert_eq!(lines(&file), [pretty.replace("\r\n", "  ")]);
    let events = bench.after_endings(2).await;
    let opening = of_kind(&events, &Kind::CallRequested)[1];
    assert_eq!(&bench.body(opening.bodies.request.as_ref())[..], pretty.as_bytes());
    assert_eq!(opening.bodies.edit_count.map(|count| count.get()), Some(2));
}

#[tokio::test]
async fn mistake_12_when_a_process_crashes_every_pending_call_fails_at_once_and_it_is_started_again()
 {
    let clauses = r#"*crash*) echo "Synthetic, Patient: no memory" >&2; exit 3;;
      *fine*) printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"content":[]}}';;"#;
    let bench = bench(shell(&script(clauses))).await;
    let session = bench.enter().await;
    let call = |id: u32, tool: &str| {
        CALL.replace("\"id\":1", &format!("\"id\":{id}")).replace("\"x\"", &format!("\"{tool}\""))
    };
    let (slow, slower, crash) = (call(1, "slow"), call(2, "slower"), call(3, "crash"));
    let pending = async { tokio::join!(bench.say(&session, &slow), bench.say(&session, &slower)) };
    let crashing = async {
        bench.events_when(|events| of_kind(events, &Kind::CallRequested).len() == 3).await;
        bench.say(&session, &crash).await
    };
    let ((first, second), third) = tokio::join!(pending, crashing);
    for reply in [first, second, third] {
        assert_eq!(reply.error(), (502, 47014), "broken, not timed out");
    }
    let said = bench.said_when(|said| said.len() >= 2).await;
    let stderr = ("stderr".to_owned(), "Synthetic, Patient: no memory\n".to_owned());
    assert!(said.contains(&stderr), "{said:?}");
    assert!(said.iter().any(|(word, how)| word == "exit" && how.contains('3')), "{said:?}");
    let again = bench.enter().await;
    assert_eq!(bench.say(&again, &call(1, "fine")).await.status, 200);
    for counted in ["s{server=\"ehr\"} 1", "s_started_total{server=\"ehr\"} 2"] {
        bench.shows(&format!("custody_proxy_program{counted}")).await;
    }
    bench.shows("custody_proxy_programs_failed_total{server=\"ehr\"} 1").await;
}

#[tokio::test]
async fn a_process_that_crashes_on_every_start_is_not_started_for_every_call() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("starts");
    let mut command = shell("echo start >>\"$STARTS\"; exit 1");
    command.env.insert("STARTS".to_owned(), Secret(file.display().to_string()));
    let bench = bench(command).await;
    let mut refused = 0;
    for _ in 0..30 {
        match bench.post(INITIALIZE).await.error() {
            (502, 47012) => refused += 1,
            other => assert_eq!(other, (502, 47014)),
        }
    }
    let starts = lines(&file).len();
    assert!((2..12).contains(&starts) && starts + refused >= 30, "{starts} starts, {refused}");
}

#[tokio::test]
async fn lines_that_are_no_messages_are_on_the_record_and_go_to_nobody() {
    let clauses = r#"*tools/call*) echo 'Listening on stdio…'; echo '[1,2]'; echo;
      printf '%s\n' '{"jsonrpc":"2.0","id":99,"result":{"secret":1}}'
      printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"content":[]}}';;"#;
    let bench = bench(shell(&script(clauses))).await;
    let session = bench.enter().await;
    let reply = bench.say(&session, CALL).await;
    assert_eq!(&reply.body[..], br#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#);
    let said = bench.said_when(|said| said.len() >= 3).await;
    let words: Vec<_> = said.iter().map(|(word, text)| (word.as_str(), text.as_str())).collect();
    assert_eq!(words[0], ("garbage", "Listening on stdio…"));
    assert_eq!(words[1], ("garbage", "[1,2]"));
    assert_eq!(words[2], ("undelivered", r#"{"jsonrpc":"2.0","id":99,"result":{"secret":1}}"#));
}

#[tokio::test]
async fn a_process_gets_the_environment_of_the_configuration_and_nothing_else() {
    let bench = bench(shell("read -r line; env >&2")).await;
    assert_eq!(bench.post(INITIALIZE).await.status, 502);
    let said = bench.said_when(|said| said.iter().any(|(word, _)| word == "stderr")).await;
    let (_, env) = said.iter().find(|(word, _)| word == "stderr").unwrap();
    let own = ["PWD", "OLDPWD", "SHLVL", "_"]; // the shell's
    let given = env.lines().filter(|line| !own.contains(&line.split('=').next().unwrap()));
    assert_eq!(given.collect::<Vec<_>>(), ["PATH=/usr/bin:/bin"]);
}

fn keys(config: &mut Config) {
    let key = |name: &str| StaticKey {
        sha256: Sha256::digest(name).into(),
        id: name.to_owned(),
        user: None,
        agent: None,
        roles: Vec::new(),
        purpose: None,
    };
    config.identity = Identity::Keys(vec![key("alpha"), key("beta")]);
}

#[tokio::test]
async fn mistake_02_two_principals_never_share_a_process() {
    let clauses = r#"*tools/call*|*tools/list*) printf '{"jsonrpc":"2.0","id":1,"result":{"pid":%s}}\n' $$;;"#;
    let bench = bench_with(shell(&script(clauses)), keys).await;
    let send = |key: &str, session: Option<String>, body: &str| {
        let key = format!("Bearer {key}");
        let body = body.to_owned();
        let bench = &bench;
        async move {
            let mut headers = vec![("authorization", key.as_str())];
            headers.extend(session.as_deref().map(|session| ("mcp-session-id", session)));
            if body.contains("_meta") {
                headers.push(("mcp-protocol-version", "2026-07-28"));
                headers.push(("mcp-method", "tools/list"));
            }
            bench.send(Method::POST, "/servers/ehr/mcp", &headers, body).await
        }
    };
    let id = |reply: &Reply| reply.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let alpha = id(&send("alpha", None, INITIALIZE).await);
    let beta = id(&send("beta", None, INITIALIZE).await);
    assert_eq!(send("beta", Some(alpha.clone()), CALL).await.status, 404);
    let pid = |reply: Reply| reply.json()["result"]["pid"].as_u64().unwrap();
    let modern = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
    let pids = [
        pid(send("alpha", Some(alpha), CALL).await),
        pid(send("beta", Some(beta), CALL).await),
        pid(send("alpha", None, modern).await),
        pid(send("beta", None, modern).await),
    ];
    let all: std::collections::HashSet<_> = pids.iter().collect();
    assert_eq!(all.len(), 4, "{pids:?}");
    assert_eq!(pid(send("alpha", None, modern).await), pids[2], "without sessions, one for each");
}

#[tokio::test]
async fn a_late_answer_to_a_call_that_was_left_is_not_taken_for_that_to_another_with_its_id() {
    // Every call is answered with the tool that it names, the one called `slow` when another comes.
    let clauses = r#"*'"slow"'*) late=1;;
      *tools/call*) if [ "$late" ]; then printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"of":"slow"}}'; late=; fi
        printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"of":"quick"}}';;
      *ping*) printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"of":"slow"}}' '{"jsonrpc":"2.0","id":2,"result":{}}'; late=;;"#;
    let bench = bench(shell(&script(clauses))).await;
    let session = bench.enter().await;
    let headers = [("mcp-session-id", session.as_str())];
    let stream = TcpStream::connect(bench.addr).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let slow = CALL.replace("\"x\"", "\"slow\"");
    let request = Request::post("/servers/ehr/mcp")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header(headers[0].0, headers[0].1)
        .body(Full::new(Bytes::from(slow)))
        .unwrap();
    let sending = tokio::spawn(async move { sender.send_request(request).await });
    bench.events_when(|events| of_kind(events, &Kind::CallRequested).len() == 2).await;
    connection.abort();
    sending.abort();
    bench.after_endings(2).await;
    let quick = bench.say(&session, CALL);
    let ping = async {
        bench.events_when(|events| of_kind(events, &Kind::CallRequested).len() >= 3).await;
        bench.say(&session, r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#).await
    };
    let (quick, ping) = tokio::join!(quick, ping);
    assert_eq!(ping.status, 200, "{ping:?}");
    assert_eq!(quick.json()["result"]["of"], "quick");
    let said = bench.said_when(|said| !said.is_empty()).await;
    assert!(said[0].0 == "undelivered" && said[0].1.contains("slow"), "{said:?}");
}

#[tokio::test]
async fn the_clients_own_stream_gives_what_belongs_to_no_request_and_a_stop_ends_the_process() {
    let clauses = r#"*initialized*) printf '%s\n' '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}';;"#;
    let bench = bench(shell(&format!("echo $$ >&2; {}", script(clauses)))).await;
    let session = bench.enter().await;
    let headers = [("mcp-session-id", session.as_str()), ("accept", "text/event-stream")];
    let mut stream = bench.exchange(Method::GET, "/servers/ehr/mcp", &headers, "").await;
    let event = stream.piece().await.unwrap();
    assert!(std::str::from_utf8(&event).unwrap().contains("list_changed"));
    let said = bench.said_when(|said| !said.is_empty()).await;
    let pid: u32 = said[0].1.trim().parse().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    bench.shutdown.cancel();
    bench.task.await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "no process is left behind");
}

#[tokio::test]
async fn a_call_that_was_cancelled_ends_without_a_word_when_its_session_does() {
    let bench = bench(shell(&script("*tools/call*) ;;"))).await;
    let session = bench.enter().await;
    let headers = [("mcp-session-id", session.as_str())];
    let cancelling = async {
        bench.events_when(|events| of_kind(events, &Kind::CallRequested).len() == 2).await;
        let cancel =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert_eq!(bench.say(&session, cancel).await.status, 202);
        bench.send(Method::DELETE, "/servers/ehr/mcp", &headers, "").await
    };
    let (called, left) = tokio::join!(bench.say(&session, CALL), cancelling);
    assert_eq!((left.status, called.status, &called.body[..]), (200, 200, &b""[..]));
    let events = bench.after_endings(2).await;
    let ending = of_kind(&events, &Kind::CallEnded)[1];
    assert_eq!(ending.outcome.as_ref().unwrap().status.as_str(), "cancelled");
}

#[tokio::test]
async fn a_client_without_sessions_that_always_sends_id_1_gets_every_answer_from_a_few_processes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("starts");
    let clauses = r#"*tools/list*) sleep 0.3; printf '%s\n' "$line" | sed 's/.*"of":"\([0-9]*\)".*/{"jsonrpc":"2.0","id":1,"result":{"of":"\1"}}/';;"#;
    let mut command = shell(&format!("echo start >>\"$STARTS\"; {}", script(clauses)));
    command.env.insert("STARTS".to_owned(), Secret(file.display().to_string()));
    let bench = bench(command).await;
    let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/list")];
    let asking = (0..24).map(|of| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{"of":"{of}","_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}}}}"#);
        let bench = &bench;
        async move { (of, bench.send(Method::POST, "/servers/ehr/mcp", &headers, body).await) }
    });
    for (of, reply) in futures::future::join_all(asking).await {
        assert_eq!(reply.json()["result"]["of"], of.to_string(), "{reply:?}");
    }
    let starts = lines(&file).len();
    assert!((2..=8).contains(&starts), "{starts}");
}

#[tokio::test]
async fn a_session_of_many_lines_is_opened_anew_in_one_when_its_process_was_gone() {
    let clauses = r#"*crash*) exit 1;;
      *tools/call*) printf '%s\n' '{"jsonrpc":"2.0","id":1,"result":{"content":[]}}';;"#;
    let bench = bench(shell(&script(clauses))).await;
    let welcome = bench.post(INITIALIZE.replace(",\"params\"", ",\n\"params\"")).await;
    let session = welcome.headers["mcp-session-id"].to_str().unwrap().to_owned();
    assert_eq!(bench.say(&session, INITIALIZED).await.status, 202);
    let crash = CALL.replace("\"x\"", "\"crash\"").replace("\"id\":1", "\"id\":2");
    assert_eq!(bench.say(&session, &crash).await.error(), (502, 47014));
    let reply = bench.say(&session, CALL).await;
    assert_eq!(reply.status, 200, "in the client's own session: {reply:?}");
}
