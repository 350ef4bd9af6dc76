//! SIGKILL at any moment: what was answered is in SQL exactly once, what was cut off is unknown.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use custody_tests::http::post_mcp;
use custody_tests::product::Setup;
use custody_tests::upstream::{Behaviour, Upstream};
use serde_json::{Value, json};

const ROUNDS: u32 = 6;
const CLIENTS: u32 = 8;

fn call(id: u32) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
           "params": {"name": format!("tool-{id}"), "arguments": {}}})
    .to_string()
}

/// Calls until it is told to stop or the product is gone; remembers what was answered.
async fn client(
    url: String,
    ids: Arc<AtomicU32>,
    answered: Arc<Mutex<BTreeSet<String>>>,
    attempted: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let id = ids.fetch_add(1, Ordering::Relaxed);
        attempted.lock().unwrap().insert(format!("tool-{id}"));
        match post_mcp(&url, call(id)).await {
            Ok(answer) if answer.status.is_success() => {
                answered.lock().unwrap().insert(format!("tool-{id}"));
            }
            Ok(_) | Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answered_calls_are_in_sql_exactly_once_after_every_kill() {
    let upstream = Upstream::start(Behaviour::Echo).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default().server("s", &upstream.url(), true).lake_lines("flush_seconds = 1");
    let ids = Arc::new(AtomicU32::new(0));
    let answered = Arc::new(Mutex::new(BTreeSet::new()));
    let attempted = Arc::new(Mutex::new(BTreeSet::new()));
    for round in 0..ROUNDS {
        let mut custody = setup.start(folder.path()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (ids, answered) = (ids.clone(), answered.clone());
                tokio::spawn(client(
                    custody.server("s"),
                    ids,
                    answered,
                    attempted.clone(),
                    stop.clone(),
                ))
            })
            .collect();
        // The moment differs from round to round; nothing is asserted about it.
        tokio::time::sleep(Duration::from_millis(400 + 370 * u64::from(round))).await;
        custody.kill().unwrap();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
    }
    let custody = setup.start(folder.path()).unwrap();
    let rows =
        custody.sql("SELECT tool, status, count(*) AS n FROM calls GROUP BY 1, 2").await.unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut ok = BTreeSet::new();
    let mut unknown = 0;
    for row in &rows {
        assert_eq!(row["n"], json!(1), "a call stands twice: {row:?}");
        assert!(attempted.lock().unwrap().contains(&text(&row["tool"])), "invented: {row:?}");
        if row["status"] == json!("ok") {
            ok.insert(text(&row["tool"]));
        } else {
            assert_eq!(row["status"], json!("unknown"), "nobody knows how it ended: {row:?}");
            unknown += 1;
        }
    }
    let gaps = "SELECT count(*) FROM (SELECT stream, max(seq) + 1 - count(*) AS missing FROM events WHERE entry = 'event' GROUP BY 1) WHERE missing <> 0";
    assert_eq!(custody.number(gaps).await.unwrap(), 0, "a stream has a hole or a duplicate");
    let answered = answered.lock().unwrap();
    let lost: Vec<_> = answered.difference(&ok).collect();
    assert!(lost.is_empty(), "answered, but not in SQL as ok: {lost:?}");
    println!("{} answered, {} in SQL, {unknown} cut off", answered.len(), rows.len());
    assert!(answered.len() > 100, "the storm was no storm");
}
