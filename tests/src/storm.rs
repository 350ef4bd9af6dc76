//! Clients that call without pause and remember what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::http::{Answer, post_mcp};

/// The code of a call that was not recorded in time and did not run.
pub const UNAVAILABLE: i64 = 47_001;
/// The code of a call that may have run, whose ending was not recorded in time.
pub const UNRECORDED: i64 = 47_002;

/// What clients have seen so far. A call is known by its tool, which no other call names.
#[derive(Debug, Default)]
pub struct Seen {
    /// Every call that was begun.
    pub attempted: BTreeSet<String>,
    /// Those that were answered with a result.
    pub answered: BTreeSet<String>,
    /// Those that were refused, by the error's code.
    pub refused: BTreeMap<i64, BTreeSet<String>>,
    /// Those whose connection broke.
    pub broken: BTreeSet<String>,
    /// The longest that a client waited for anything.
    pub slowest: Duration,
    /// How long refusals took.
    pub refusals_took: Vec<Duration>,
}

impl Seen {
    /// With what others have seen.
    pub fn add(&mut self, other: Self) {
        self.attempted.extend(other.attempted);
        self.answered.extend(other.answered);
        self.broken.extend(other.broken);
        for (code, calls) in other.refused {
            self.refused.entry(code).or_default().extend(calls);
        }
        self.slowest = self.slowest.max(other.slowest);
        self.refusals_took.extend(other.refusals_took);
    }

    fn take(&mut self, tool: String, answer: anyhow::Result<Answer>, took: Duration) {
        self.slowest = self.slowest.max(took);
        let Ok(answer) = answer else {
            self.broken.insert(tool);
            return;
        };
        let message: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match message["error"]["code"].as_i64() {
            None if answer.status.is_success() => drop(self.answered.insert(tool)),
            code => {
                self.refused.entry(code.unwrap_or(0)).or_default().insert(tool);
                self.refusals_took.push(took);
            }
        }
    }
}

/// Running clients. Dropping it stops them.
pub struct Storm {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    clients: Vec<JoinHandle<()>>,
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Storm {
    /// Lets `clients` call each of `urls`; the tools' names begin with `name`. Between two calls
    /// of a client passes `pause`, so that slow machines are not drowned.
    #[must_use]
    pub fn start(name: &str, urls: &[String], clients: u32, pause: Duration) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let next = Arc::new(AtomicU32::new(0));
        let clients = urls
            .iter()
            .flat_map(|url| (0..clients).map(move |_| url.clone()))
            .map(|url| {
                let (stop, seen, next) = (Arc::clone(&stop), Arc::clone(&seen), Arc::clone(&next));
                tokio::spawn(client(name.to_owned(), url, next, seen, stop, pause))
            })
            .collect();
        Self { stop, seen, clients }
    }

    /// What they have seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops them and waits for the answers that they still get.
    ///
    /// # Errors
    /// When a client broke off.
    pub async fn end(mut self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.await?;
        }
        Ok(std::mem::take(&mut *self.seen()))
    }
}

async fn client(
    name: String,
    url: String,
    next: Arc<AtomicU32>,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    pause: Duration,
) {
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    while !stop.load(Ordering::Relaxed) {
        let tool = format!("{name}-{}", next.fetch_add(1, Ordering::Relaxed));
        lock().attempted.insert(tool.clone());
        let begun = Instant::now();
        let answer = post_mcp(&url, call(&tool)).await;
        lock().take(tool, answer, begun.elapsed());
        tokio::time::sleep(pause).await;
    }
}

/// A call of `tool` with id 1, as many clients number all of theirs.
#[must_use]
pub fn call(tool: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
           "params": {"name": tool, "arguments": {}}})
    .to_string()
}
