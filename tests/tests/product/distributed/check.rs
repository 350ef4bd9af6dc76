//! What must hold of every cluster after whatever was done to it.

use std::collections::BTreeSet;

use custody_tests::question::{number, sql};
use custody_tests::storm::Seen;
use custody_tests::wait;
use serde_json::json;

/// Every call that was answered is there once and ended well, nothing is invented, and no stream
/// has a hole or a duplicate; asked of the query service at `query` once it has caught up.
pub async fn answered_calls_are_there_once(query: &str, seen: &[&Seen]) {
    for seen in seen {
        caught_up(query, &seen.answered).await;
    }
    let rows = sql(query, "SELECT tool, status, count(*) AS n FROM calls GROUP BY 1, 2").await;
    let mut told = BTreeSet::new();
    for row in rows.unwrap() {
        assert_eq!(row["n"], json!(1), "a call stands twice: {row:?}");
        let tool = row["tool"].as_str().unwrap().to_owned();
        let attempted = seen.iter().any(|seen| seen.attempted.contains(&tool));
        assert!(attempted, "invented: {row:?}");
        assert!(told.insert(tool), "a call has two statuses: {row:?}");
    }
    streams_are_whole(query).await;
}

/// Waits until the calls are there as answered.
pub async fn caught_up(query: &str, answered: &BTreeSet<String>) {
    let statement = "SELECT tool FROM calls WHERE status = 'ok'";
    let missing = async || {
        let rows = sql(query, statement).await.ok()?;
        let there: BTreeSet<_> = rows.iter().filter_map(|row| row["tool"].as_str()).collect();
        let missing = answered.iter().filter(|tool| !there.contains(tool.as_str()));
        Some(missing.cloned().collect::<Vec<_>>())
    };
    let none = || async { missing().await?.is_empty().then_some(()) };
    if let Err(error) = wait::until("every answered call in SQL", none).await {
        panic!("{error}; of {} are missing: {:?}", answered.len(), missing().await);
    }
}

/// No stream has a hole or a duplicate, and nothing is in quarantine.
pub async fn streams_are_whole(query: &str) {
    let wrong = "SELECT stream, count(*) AS n, max(seq) AS last FROM events WHERE entry = 'event' GROUP BY 1 HAVING max(seq) + 1 <> count(*)";
    assert_eq!(json!(sql(query, wrong).await.unwrap()), json!([]), "holes or duplicates");
    assert_eq!(number(query, "SELECT count(*) FROM quarantine").await.unwrap(), 0);
}
