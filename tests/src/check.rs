//! What must hold of every cluster after whatever was done to it, asked of a query service.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::question::{number, sql};
use crate::storm::{Seen, UNAVAILABLE};
use crate::upstream::Upstream;
use crate::wait;

/// Every call that was answered is there once and ended well, nothing is invented, no stream has a
/// hole or a duplicate and each is in order; asked of the query service at `query` once it has
/// caught up, which may take as long as `patience`.
///
/// # Errors
/// With the first thing that does not hold.
pub async fn answered_calls_are_there_once(
    query: &str,
    seen: &[&Seen],
    patience: Duration,
) -> anyhow::Result<()> {
    for seen in seen {
        caught_up(query, &seen.answered, patience).await?;
    }
    let rows = sql(query, "SELECT tool, status, count(*) AS n FROM calls GROUP BY 1, 2").await?;
    let mut told = BTreeSet::new();
    for row in rows {
        ensure!(row["n"] == json!(1), "a call stands twice: {row:?}");
        let tool = row["tool"].as_str().context("a call without a tool")?.to_owned();
        let attempted = seen.iter().any(|seen| seen.attempted.contains(&tool));
        ensure!(attempted, "invented: {row:?}");
        ensure!(told.insert(tool), "a call has two statuses: {row:?}");
    }
    streams_are_whole(query).await
}

/// Waits until the calls are there as answered.
///
/// # Errors
/// With those that are missing when the time is over.
pub async fn caught_up(
    query: &str,
    answered: &BTreeSet<String>,
    patience: Duration,
) -> anyhow::Result<()> {
    let missing = async || {
        let rows = sql(query, "SELECT tool FROM calls WHERE status = 'ok'").await.ok()?;
        let there: BTreeSet<_> = rows.iter().filter_map(|row| row["tool"].as_str()).collect();
        let missing = answered.iter().filter(|tool| !there.contains(tool.as_str()));
        Some(missing.cloned().collect::<Vec<_>>())
    };
    let none = || async { missing().await?.is_empty().then_some(()) };
    if let Err(error) = wait::within(patience, "every answered call in SQL", none).await {
        bail!("{error}; of {} are missing: {:?}", answered.len(), missing().await);
    }
    Ok(())
}

/// No stream has a hole or a duplicate, each lies in its partition in its own order, and nothing is
/// in quarantine.
///
/// # Errors
/// With the streams of which that is not so.
pub async fn streams_are_whole(query: &str) -> anyhow::Result<()> {
    for (what, statement) in [
        (
            "holes or duplicates",
            "SELECT stream, count(*) AS n, max(seq) AS last FROM events WHERE entry = 'event' GROUP BY 1 HAVING max(seq) + 1 <> count(*)",
        ),
        (
            "out of order",
            "SELECT stream, seq FROM (SELECT stream, seq, journal_offset, lag(journal_offset) OVER (PARTITION BY stream ORDER BY seq) AS earlier FROM events WHERE entry = 'event') WHERE earlier >= journal_offset",
        ),
    ] {
        let wrong = sql(query, statement).await?;
        ensure!(wrong.is_empty(), "{what}: {wrong:?}");
    }
    let quarantined = number(query, "SELECT count(*) FROM quarantine").await?;
    ensure!(quarantined == 0, "{quarantined} rows are in quarantine");
    Ok(())
}

/// A call that was refused before it ran is on record as not forwarded, or not at all.
///
/// # Errors
/// With the first of which that is not so.
pub async fn refused_calls_did_not_run(query: &str, seen: &Seen) -> anyhow::Result<()> {
    let Some(refused) = seen.refused.get(&UNAVAILABLE) else { return Ok(()) };
    for row in sql(query, "SELECT tool, status FROM calls").await? {
        let tool = row["tool"].as_str().unwrap_or_default();
        let said = !refused.contains(tool) || row["status"] == "not_forwarded";
        ensure!(said, "{tool} was said not to have run, and is {}", row["status"]);
    }
    Ok(())
}

/// Every call that reached the server has an opening on record.
///
/// # Errors
/// With those that have none.
pub async fn whatever_ran_was_opened(query: &str, server: &Upstream) -> anyhow::Result<()> {
    let rows = sql(query, "SELECT tool FROM events WHERE kind = 'call.requested'").await?;
    let opened: BTreeSet<_> = rows.iter().filter_map(|row| row["tool"].as_str()).collect();
    let tool_of = |message: &bytes::Bytes| -> Option<String> {
        let message: serde_json::Value = serde_json::from_slice(message).ok()?;
        Some(message["params"]["name"].as_str()?.to_owned())
    };
    let ran: BTreeSet<_> = server.received().iter().filter_map(tool_of).collect();
    let unopened: Vec<_> = ran.iter().filter(|tool| !opened.contains(tool.as_str())).collect();
    ensure!(unopened.is_empty(), "ran without an opening: {unopened:?}");
    Ok(())
}

/// What is stored is what was signed, and nothing of it is missing: so `custody verify --json` says,
/// as it is told to run. The records that it has seen.
///
/// # Errors
/// With its verdict.
pub fn lake_is_valid(mut verify: Command) -> anyhow::Result<u64> {
    let output = verify.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdict: Value = serde_json::from_slice(&output.stdout).context(said)?;
    ensure!(output.status.success() && verdict["verdict"] == "valid", "{verdict:#}");
    verdict["records"].as_u64().context("no records were counted")
}
