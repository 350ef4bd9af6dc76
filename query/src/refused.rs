//! Refused credentials are events too, counted per source, reason and minute, so that somebody who
//! tries a thousand tokens leaves one event a minute and not a thousand.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use custody_journal::Writer;
use custody_schemas::event::{Draft, Source, Who};
use custody_schemas::kind::Kind;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::error::QueryError;

/// How long refusals are counted before they are recorded.
const COUNT_FOR: Duration = Duration::from_secs(60);
/// The most sources that are told apart at a time.
const MAX_SOURCES: usize = 1024;
/// What stands for all sources beyond those.
const OTHERS: &str = "others";

type Counts = HashMap<(String, String), u64>;

/// Counts refusals and records them.
pub(crate) struct Refusals {
    counts: Arc<Mutex<Counts>>,
    writer: Writer,
    stop: CancellationToken,
}

impl Refusals {
    pub(crate) fn new(engine: &Engine) -> Self {
        Self { counts: Arc::default(), writer: engine.writer(), stop: engine.stopping() }
    }

    /// Counts a refusal; the first of its kind has all of a minute recorded when it is over.
    pub(crate) fn count(&self, source: &str, error: &QueryError) {
        let mut counts = self.counts.lock();
        let full = counts.len() >= MAX_SOURCES;
        let known = counts.keys().any(|(known, _)| known == source);
        let source = if full && !known { OTHERS } else { source };
        let key = (source.to_owned(), error.to_string());
        let count = counts.entry(key.clone()).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
        let (counts, writer) = (Arc::clone(&self.counts), self.writer.clone());
        let stop = self.stop.clone();
        tokio::spawn(async move {
            // Over when the minute is, or when the service stops.
            let _minute = stop.run_until_cancelled(tokio::time::sleep(COUNT_FOR)).await;
            let count = counts.lock().remove(&key).unwrap_or_default();
            record(&writer, key, count).await;
        });
    }
}

async fn record(writer: &Writer, (source, reason): (String, String), count: u64) {
    let mut draft = Draft::new(Kind::AuthRefused)
        .with("edge", "query")
        .with("reason", reason)
        .with("count", count);
    let source = Source { ip: source, ..Source::default() };
    draft.who = Some(Arc::new(Who { source: Some(source), ..Who::default() }));
    if let Err(error) = writer.append(draft, Vec::new()).await {
        tracing::error!(%error, count, "refused credentials could not be recorded");
    }
}
